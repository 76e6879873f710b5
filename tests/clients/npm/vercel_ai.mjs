// Vercel's AI SDK with its OpenAI provider: `openai(model)` (responses) and `openai.chat(model)`.
import { createOpenAI } from '@ai-sdk/openai';
import { Output, generateText, isStepCount, streamText, tool } from 'ai';
import { QUESTION, REPORT, River, WEATHER_QUESTION, Weather, main } from './scenario.mjs';

const provider = (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none-needed' });

async function text(model) {
  const options = { model, prompt: QUESTION, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
  const whole = await generateText(options);
  const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
  return {
    text: whole.text,
    usage: whole.usage,
    streamed: await stream.text,
    streamed_usage: await stream.usage,
  };
}

async function calls(model) {
  const weather = tool({
    description: 'The weather.',
    inputSchema: Weather,
    execute: async () => REPORT,
  });
  const options = {
    model,
    tools: { get_weather: weather },
    prompt: WEATHER_QUESTION,
    temperature: 0,
    maxOutputTokens: 64,
    maxRetries: 0,
    // The first step must call; the second answers.
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'auto' }),
    stopWhen: isStepCount(2),
  };
  const whole = await generateText(options);
  const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
  const streamed = await stream.steps;
  const shown = (steps) => ({
    calls: steps[0].toolCalls.map(({ toolName, input }) => ({ name: toolName, arguments: input })),
    results: steps[0].toolResults.map(({ output }) => output),
    finish: steps.map((step) => step.finishReason),
    answer: steps[1].text,
    more: steps[1].toolCalls.map(({ input }) => input),
  });
  return { whole: shown(whole.steps), streamed: shown(streamed) };
}

async function structured(model) {
  const options = {
    model,
    prompt: QUESTION,
    output: Output.object({ schema: River }),
    temperature: 0,
    maxRetries: 0,
  };
  const { output } = await generateText(options);
  const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
  for await (const part of stream.partialOutputStream) void part;
  return { river: output, streamed: await stream.output };
}

const both = (run) => ({
  responses: (url, model) => run(provider(url)(model)),
  chat: (url, model) => run(provider(url).chat(model)),
});
const scenarios = {};
for (const [name, run] of Object.entries({ text, calls, structured })) {
  for (const [api, bound] of Object.entries(both(run))) scenarios[`${name}_${api}`] = bound;
}
await main(scenarios);
