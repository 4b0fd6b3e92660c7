// The package `ai` with the providers of OpenAI-compatible servers and of Anthropic: tools, streams, objects.
const { generateText, streamText, generateObject, tool, stepCountIs, jsonSchema } = require("ai");
const { check, schema, question, weather, run } = require("./weather.cjs");

async function roundTrip(model) {
  const calls = [];
  const tools = {
    get_weather: tool({
      description: "The weather in a city",
      inputSchema: jsonSchema(schema),
      execute: async (input) => { calls.push(input); return weather(input); },
    }),
  };
  const settings = { model, prompt: question, temperature: 0, maxRetries: 0, maxOutputTokens: 100 };
  const steps = { tools, stopWhen: stepCountIs(2), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }) };
  const result = await generateText({ ...settings, ...steps });
  check(calls.length > 0 && result.steps.length === 2 && result.text.length > 0, `calls: ${JSON.stringify(result.steps.map((step) => [step.finishReason, step.content]))}`);
  const count = calls.length;
  const stream = streamText({ ...settings, ...steps, onError: ({ error }) => { throw error; } });
  const kinds = new Set();
  for await (const part of stream.fullStream) kinds.add(part.type);
  check(kinds.has("tool-call") && kinds.has("tool-input-delta") && kinds.has("text-delta"), [...kinds].join());
  check(!kinds.has("error") && calls.length > count, "streamed calls");
  const usage = await stream.totalUsage;
  check(usage.inputTokens > 0 && usage.outputTokens > 0, "usage");
  const { object } = await generateObject({ ...settings, schema: jsonSchema(schema) });
  weather(object);
}

run(async (address, model) => {
  const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
  const { createAnthropic } = require("@ai-sdk/anthropic");
  const compatible = createOpenAICompatible({
    name: "puna", baseURL: `${address}/v1`, apiKey: "x", includeUsage: true, supportsStructuredOutputs: true,
  });
  await roundTrip(compatible(model));
  await roundTrip(createAnthropic({ baseURL: `${address}/v1`, apiKey: "x" })(model));
});
