// The package `@anthropic-ai/sdk`: a streamed tool round trip, and counting.
const Anthropic = require("@anthropic-ai/sdk");
const { check, schema, question, weather, run } = require("./weather.cjs");

run(async (address, model) => {
  const client = new Anthropic({ baseURL: address, apiKey: "x", maxRetries: 0 });
  const messages = [{ role: "user", content: question }];
  const choice = { type: "any", disable_parallel_tool_use: true };
  const fields = { model, tools: [{ name: "get_weather", input_schema: schema }] };
  const stream = client.messages.stream({ ...fields, messages, tool_choice: choice, max_tokens: 100 });
  const message = await stream.finalMessage();
  check(message.stop_reason === "tool_use" && message.content.length > 0, "calls");
  const results = message.content.map((use) => ({
    type: "tool_result", tool_use_id: use.id, content: weather(use.input),
  }));
  messages.push({ role: "assistant", content: message.content }, { role: "user", content: results });
  const final = await client.messages.create({ ...fields, messages, tool_choice: { type: "none" }, max_tokens: 8 });
  check(final.content[0].type === "text" && final.usage.cache_read_input_tokens > 0, "text");
  check((await client.messages.countTokens({ ...fields, messages })).input_tokens > 50, "count");
});
