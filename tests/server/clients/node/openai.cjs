// The package `openai`: a tool round trip with streams, over chat completions and responses.
const OpenAI = require("openai");
const { check, schema, question, weather, run } = require("./weather.cjs");

const tool = { name: "get_weather", description: "The weather in a city", parameters: schema, strict: true };

async function chat(client, model) {
  const messages = [{ role: "user", content: question }];
  const fields = { model, temperature: 0, tools: [{ type: "function", function: tool }] };
  const stream = client.chat.completions.stream({ ...fields, messages, tool_choice: "required", max_tokens: 100 });
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  check(finish_reason === "tool_calls" && message.tool_calls.length > 0, "calls");
  messages.push(message);
  for (const call of message.tool_calls) {
    const content = weather(JSON.parse(call.function.arguments));
    messages.push({ role: "tool", tool_call_id: call.id, content });
  }
  const final = await client.chat.completions.create({ ...fields, messages, tool_choice: "none", max_tokens: 8 });
  check(final.choices[0].message.content.length > 0, "text");
}

async function responses(client, model) {
  const input = [{ role: "user", content: question }];
  const fields = { model, temperature: 0, tools: [{ type: "function", ...tool }] };
  const stream = client.responses.stream({ ...fields, input, tool_choice: "required", max_output_tokens: 100 });
  const kinds = new Set();
  stream.on("event", (event) => kinds.add(event.type));
  const response = await stream.finalResponse();
  check(kinds.has("response.function_call_arguments.delta") && response.status === "completed", "events");
  for (const call of response.output) {
    const output = weather(JSON.parse(call.arguments));
    const { type, call_id, name } = call;
    input.push({ type, call_id, name, arguments: call.arguments }, { type: "function_call_output", call_id, output });
  }
  const final = await client.responses.create({ ...fields, input, tool_choice: "none", max_output_tokens: 8 });
  check(final.output_text.length > 0, "text");
}

run(async (address, model) => {
  const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "x", maxRetries: 0 });
  await chat(client, model);
  await responses(client, model);
});
