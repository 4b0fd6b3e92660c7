/** The server's API. URLs are relative to the page, so that the server may be behind a path prefix. */

import { events } from "./sse.js";

const KEY = "puna.key";

/** An error that the server reported, or that kept the page from reaching the server. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status, 0 if there was no response
   * @param {string} message
   * @param {{retryAfter?: number, code?: string}} [details] seconds, and the server's name for the error
   */
  constructor(status, message, { retryAfter, code } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = code;
  }
}

/** @type {(refused: boolean) => Promise<string | null>} */
let askForKey = async () => null;

/** @param {(refused: boolean) => Promise<string | null>} ask shows a prompt; returns null if the user cancels it */
export function setKeyPrompt(ask) {
  askForKey = ask;
}

/** @returns {string | null} the key of this tab; sessionStorage forgets it when the tab is closed */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** @type {Promise<string | null> | null} one prompt for requests that fail at the same time */
let prompt = null;

/** @param {string | null} refused the key that the server refused */
async function requestKey(refused) {
  prompt ??= askForKey(refused !== null).finally(() => (prompt = null));
  const key = await prompt;
  if (key !== null) sessionStorage.setItem(KEY, key);
  return key;
}

/**
 * @param {string} path
 * @param {{method?: string, body?: string, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>} a response with a status below 400
 */
async function request(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = apiKey();
    /** @type {Record<string, string>} */
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method,
        body,
        headers,
        signal,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "The server did not answer. Check that it is running, then try again.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await readError(response);
    await response.body?.cancel();
    if (apiKey() !== key) continue; // another request has asked for the key meanwhile
    if ((await requestKey(key)) === null) throw new ApiError(401, "This server needs an API key.");
  }
}

/** @param {Response} response */
async function readError(response) {
  const seconds = Number(response.headers.get("retry-after"));
  let message = `The server answered with status ${response.status}.`;
  let code;
  try {
    const document = await response.json();
    if (typeof document?.error?.message === "string") message = document.error.message;
    if (typeof document?.error?.code === "string") code = document.error.code;
  } catch {
    // The body is not JSON, so the message contains only the status.
  }
  return new ApiError(response.status, message, { code, retryAfter: seconds > 0 ? seconds : undefined });
}

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {string | null} parent name of the base model if this is an adapter
 * @property {number | null} context maximum number of tokens
 * @property {Record<string, any>} sampling settings that the page sends unless a conversation has others
 * @property {Record<string, any>} defaults sampling settings of answers in conversations that have none
 */

/** For models without sampling settings: choosing from all tokens at temperature 1, small models write nonsense. */
const CAREFUL = { temperature: 0.2, top_p: 0.9 };

/** Maximum length of an answer in tokens, and its maximum share of the context: an endless answer fills neither at once. */
const LONGEST = 4096;
const SHARE = 1 / 4;

/**
 * @param {Record<string, any>} defaults of the server
 * @param {number | null} context
 */
function samplingFor(defaults, context) {
  const { temperature, top_p = 1, top_k = 0, min_p = 0 } = defaults;
  const careful = temperature === 1 && top_p === 1 && top_k <= 0 && min_p === 0 ? CAREFUL : {};
  return { ...careful, max_completion_tokens: Math.min(LONGEST, Math.ceil((context ?? Infinity) * SHARE)) };
}

/** @returns {Promise<Model[]>} */
export async function listModels() {
  const document = await (await request("v1/models")).json();
  return document.data.map((/** @type {any} */ model) => {
    const defaults = model.sampling_defaults ?? {};
    const context = Number(model.max_model_len) || null;
    const sampling = samplingFor(defaults, context);
    return {
      id: String(model.id),
      parent: typeof model.parent === "string" ? model.parent : null,
      context,
      sampling,
      defaults: { ...defaults, ...sampling },
    };
  });
}

/**
 * @param {object} body of a streaming chat request
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>} the chunks
 */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  if (!response.body) throw new ApiError(0, "The answer is empty.");
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error)
      throw new ApiError(response.status, String(chunk.error.message ?? "The server reported an error."), {
        code: String(chunk.error.code ?? ""),
      });
    yield chunk;
  }
}
