/** Figures of an answer, as text. */

/** @typedef {import("../conversation.js").Message} Message */

export const count = (/** @type {number} */ value) => value.toLocaleString("en");

/** @param {number} milliseconds */
const seconds = (milliseconds) =>
  milliseconds < 9950 ? `${(milliseconds / 1000).toFixed(2)} s` : `${(milliseconds / 1000).toFixed(1)} s`;

const ENDS = /** @type {Record<string, string>} */ ({
  length: "stopped at the token limit",
  stopped: "stopped by you",
  interrupted: "interrupted",
});

/**
 * @param {Message} message an answer that has ended
 * @returns {string[]}
 */
export function figures(message) {
  const { usage, timing } = message;
  const result = [];
  const tokens = usage?.completion_tokens;
  if (timing && tokens > 1 && timing.total > timing.first)
    result.push(`${(((tokens - 1) * 1000) / (timing.total - timing.first)).toFixed(1)} tokens/s`);
  if (timing && message.content) result.push(`first token after ${seconds(timing.first)}`);
  if (tokens !== undefined) result.push(`${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (usage)
    result.push(
      cached
        ? `prompt ${count(usage.prompt_tokens)}, ${count(cached)} from the cache`
        : `prompt ${count(usage.prompt_tokens)}`,
    );
  if (message.finish && ENDS[message.finish]) result.push(ENDS[message.finish]);
  if (message.edited) result.push("edited");
  return result;
}

/** @param {import("./generation.js").Generation} generation in progress @returns {string} */
export function liveFigures(generation) {
  const { speed, chunks, first, started } = generation;
  if (!first) return `waiting ${seconds(performance.now() - started)}`;
  return [
    speed ? `${speed.toFixed(1)} tokens/s` : null,
    `first token after ${seconds(first - started)}`,
    `${count(chunks)} tokens`,
  ]
    .filter(Boolean)
    .join(" · ");
}
