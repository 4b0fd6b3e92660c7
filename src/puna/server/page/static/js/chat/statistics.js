/** Figures of an answer, as text. */

import { visible } from "../markdown/visible.js";

/** @typedef {import("../conversation.js").Message} Message */

export const count = (/** @type {number} */ value) => value.toLocaleString("en");

/** @param {number} milliseconds */
const seconds = (milliseconds) =>
  milliseconds < 9950 ? `${(milliseconds / 1000).toFixed(2)} s` : `${(milliseconds / 1000).toFixed(1)} s`;

const ENDS = /** @type {Record<string, string>} */ ({
  length: "stopped at the maximum answer length",
  stopped: "stopped by you",
  interrupted: "interrupted",
});

/** Milliseconds after the first token: in less time, the tokens arrived together and their speed is unknown. */
const MEASURABLE = 10;

/** Fewer tokens that are read again are not worth a note. */
const NOTED = 64;

/** @param {any} usage @returns {string | null} why a large part of the prompt was not in the server's cache */
function reasonOfMiss(usage) {
  const miss = usage?.prefix_miss;
  const read = (usage?.prompt_tokens ?? 0) - (usage?.prompt_tokens_details?.cached_tokens ?? 0);
  if (!miss || read < NOTED) return null;
  const text = visible(JSON.stringify(miss.token?.text ?? ""));
  const reasons = /** @type {Record<string, string>} */ ({
    input: `cache: the prompt differs from token ${count(miss.position + 1)}, ${text}`,
    adapter: "cache: read with another adapter before",
    salt: "cache: belongs to another user",
    evicted: "cache: removed to free memory",
    empty: "cache: no prompt with this beginning",
    end: `cache: ends after ${count(miss.position)} tokens`,
  });
  return reasons[miss.reason] ?? null;
}

/**
 * @param {Message} message an answer that has ended
 * @returns {string[]}
 */
export function figures(message) {
  const { usage, timing } = message;
  const result = [];
  const tokens = usage?.completion_tokens;
  if (timing && tokens > 1 && timing.total - timing.first > MEASURABLE)
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
  const miss = reasonOfMiss(usage);
  if (miss) result.push(miss);
  const end = ENDS[message.finish ?? "interrupted"];
  if (end) result.push(message.full ? "the context is full" : end);
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
