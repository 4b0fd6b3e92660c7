/** One request for an answer: sends it, reads the stream into the message, measures times. No DOM. */

import { ApiError, streamChat } from "../api.js";
import { pacer } from "../frames.js";
import { requestBody } from "../request.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").Message} Message */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */
/** @typedef {{done: number, total: number, cached: number}} Progress of reading the prompt, in tokens */

const CUT =
  "The connection to the server ended before the answer was complete. The text so far is kept. " +
  "When the server runs again, continue this answer or request another one with the buttons below.";

export class Generation {
  /**
   * @param {Conversation} conversation
   * @param {Message} message an assistant message; the text is appended to its content
   * @param {TokenScore[]} scores of the content so far; new ones are appended
   * @param {number | null} context maximum number of tokens of prompt and answer
   * @param {() => void} onupdate
   */
  constructor(conversation, message, scores, context, onupdate) {
    this.conversation = conversation;
    this.message = message;
    this.scores = scores;
    this.context = context;
    this.onupdate = onupdate;
    this.abort = new AbortController();
    /** @type {Progress | null} */
    this.progress = null;
    this.chunks = 0;
    this.started = 0;
    this.first = 0;
  }

  stop() {
    this.abort.abort();
  }

  /** @returns {number | null} tokens per second since the first token */
  get speed() {
    const seconds = (performance.now() - this.first) / 1000;
    return this.first && this.chunks > 1 && seconds > 0.2 ? (this.chunks - 1) / seconds : null;
  }

  /** Runs until the answer is complete, stopped or failed; errors are stored in the message. */
  async run() {
    const { message } = this;
    if (!message.content) delete message.reasoning; // of an answer that begins again
    delete message.error;
    delete message.full;
    delete message.finish;
    delete message.usage;
    this.started = performance.now();
    try {
      const pause = pacer(); // many chunks can arrive at once
      for await (const chunk of streamChat(requestBody(this.conversation, message), this.abort.signal)) {
        this.#read(chunk);
        await pause();
      }
      if (!message.finish) throw new ApiError(0, CUT); // a proxy can end the stream in order after the server stopped
    } catch (error) {
      if (this.abort.signal.aborted) {
        message.finish = "stopped";
      } else {
        message.finish = "error";
        message.error = describe(error);
        if (error instanceof ApiError && error.code === "context_length_exceeded") message.full = true;
      }
    }
    if (message.finish === "length" && message.usage?.total_tokens >= (this.context ?? Infinity)) message.full = true;
    const total = performance.now() - this.started;
    message.timing = { first: this.first ? this.first - this.started : total, total };
    this.onupdate();
  }

  /** @param {any} chunk of a chat completion */
  #read(chunk) {
    const { message } = this;
    const progress = chunk.prompt_progress;
    if (progress)
      this.progress = { done: progress.processed ?? 0, total: progress.total ?? 0, cached: progress.cache ?? 0 };
    if (chunk.usage) message.usage = chunk.usage;
    if (chunk.system_fingerprint) message.fingerprint = chunk.system_fingerprint;
    const choice = chunk.choices?.[0];
    if (choice) this.#readChoice(choice);
    this.onupdate();
  }

  /** @param {any} choice */
  #readChoice(choice) {
    const reasoning = choice.delta?.reasoning_content ?? "";
    const all = choice.logprobs?.content ?? [];
    // The view of probabilities shows the tokens of the content; those of tags come with empty reasoning.
    const scores = choice.delta?.reasoning_content === undefined ? all : [];
    if (choice.delta?.content || reasoning || all.length) {
      this.first ||= performance.now();
      this.progress = null;
      this.chunks += Math.max(1, all.length);
    }
    if (reasoning) this.message.reasoning = (this.message.reasoning ?? "") + reasoning;
    this.message.content += choice.delta?.content ?? "";
    for (const { token, logprob, top_logprobs: top } of scores) {
      const alternatives = (top ?? []).map((/** @type {any} */ item) => [item.token, item.logprob]);
      this.scores.push({ text: token, logprob, top: alternatives });
    }
    if (choice.finish_reason) this.message.finish = choice.finish_reason;
  }
}

/** @param {any} error */
function describe(error) {
  if (error instanceof SyntaxError) return "The server sent an answer that is not JSON. Try again.";
  if (!(error instanceof ApiError)) return CUT;
  if (error.retryAfter) return `${error.message} Try again in ${Math.ceil(error.retryAfter)} s.`;
  return error.message;
}
