/** Chat requests: what the page sends, and the same request as `curl` and Python. */

import { pathTo } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */

/** Number of alternatives per token that the page requests. */
const ALTERNATIVES = 5;

/** Fields that the OpenAI client does not know; its snippet passes them in `extra_body`. */
const EXTRA_FIELDS = new Set([
  "top_k",
  "min_p",
  "repetition_penalty",
  "continue_final_message",
  "add_generation_prompt",
  "return_progress",
  "explain_prefix",
]);

/**
 * @param {Message} message of a user
 * @returns {string} the text with the files as fenced blocks
 */
export function fullText(message) {
  const blocks = (message.files ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `File ${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [message.content, ...blocks].filter(Boolean).join("\n\n");
}

/**
 * Returns the body of the request whose answer is `message`. It depends on the stored message only, so that the request
 * of an old answer can be shown.
 * @param {Conversation} conversation
 * @param {Message} message an answer, finished or not
 * @returns {Record<string, any>}
 */
export function requestBody(conversation, message) {
  const messages = pathTo(conversation, message)
    .slice(0, -1)
    .map((other) => ({ role: other.role, content: other.role === "user" ? fullText(other) : other.content }));
  if (message.system) messages.unshift({ role: /** @type {any} */ ("system"), content: message.system });
  const { probabilities = true, ...sampling } = message.parameters ?? {};
  /** @type {Record<string, any>} */
  const body = {
    model: message.model,
    messages,
    ...sampling,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    explain_prefix: true,
  };
  if (probabilities) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (message.continued) {
    messages.push({ role: "assistant", content: message.content.slice(0, message.continued) });
    Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  }
  return body;
}

/**
 * @param {string} url
 * @param {Record<string, any>} body
 * @param {boolean} key whether the server needs an API key, read from $PUNA_API_KEY
 */
export function curlSnippet(url, body, key) {
  const quote = (/** @type {string} */ text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const authorization = key ? ' \\\n  -H "Authorization: Bearer $PUNA_API_KEY"' : "";
  const json = JSON.stringify(body, null, 2);
  const header = `-H 'Content-Type: application/json'${authorization}`;
  return `curl -N ${quote(`${url}/chat/completions`)} \\\n  ${header} \\\n  --data-raw ${quote(json)}\n`;
}

/**
 * @param {any} value JSON
 * @param {string} [indent]
 * @returns {string} a Python literal
 */
function python(value, indent = "    ") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value).replace(/\u007f/g, "\\x7f");
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => python(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

/**
 * @param {string} url
 * @param {Record<string, any>} body
 * @param {boolean} key
 * @returns {string} a program for the `openai` package
 */
export function pythonSnippet(url, body, key) {
  const known = Object.entries(body).filter(([name]) => !EXTRA_FIELDS.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => EXTRA_FIELDS.has(name)));
  const fields = known.map(([name, value]) => `    ${name}=${python(value)},\n`);
  if (Object.keys(extra).length) fields.push(`    extra_body=${python(extra)},\n`);
  const credential = key ? 'os.environ["PUNA_API_KEY"]' : '"none"';
  return `${key ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${credential})
stream = client.chat.completions.create(
${fields.join("")})
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
`;
}
