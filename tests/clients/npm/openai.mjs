// OpenAI's client for JavaScript: chat, tools, structured output, responses.
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { QUESTION, REPORT, River, WEATHER_QUESTION, Weather, main } from './scenario.mjs';

const connect = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none-needed', maxRetries: 0 });
const asked = [{ role: 'user', content: QUESTION }];

async function chat(url, model) {
  const client = connect(url);
  const options = { model, messages: asked, temperature: 0, max_tokens: 24 };
  const whole = await client.chat.completions.create(options);
  const stream = client.chat.completions.stream({
    ...options,
    stream_options: { include_usage: true },
  });
  let streamed = '';
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? '';
  const final = await stream.finalChatCompletion();
  return {
    text: whole.choices[0].message.content,
    usage: whole.usage,
    streamed,
    streamed_usage: final.usage,
  };
}

async function tools(url, model) {
  const reports = [];
  const weather = zodFunction({
    name: 'get_weather',
    description: 'The weather.',
    parameters: Weather,
    function: (given) => {
      reports.push(given);
      return REPORT;
    },
  });
  const options = {
    model,
    messages: [{ role: 'user', content: WEATHER_QUESTION }],
    tools: [weather],
    tool_choice: 'required',
    temperature: 0,
  };
  const client = connect(url);
  const stream = client.chat.completions.stream(options);
  const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  // The runner calls the function, sends what it gave, and asks for the answer.
  const runner = client.chat.completions.runTools(options, { maxChatCompletions: 1 });
  await runner.done();
  const call = runner.messages.find((message) => message.tool_calls);
  const results = runner.messages.filter((message) => message.role === 'tool');
  const last = await client.chat.completions.create({
    model,
    messages: runner.messages,
    tools: [weather],
    temperature: 0,
    max_tokens: 24,
  });
  return {
    calls: call.tool_calls.map(({ function: { name, arguments: given } }) => ({
      name,
      arguments: given,
    })),
    streamed: streamed.map((one) => one.function.parsed_arguments),
    reports,
    results: results.map((message) => message.content),
    answer: last.choices[0].message,
  };
}

async function structured(url, model) {
  const client = connect(url);
  const options = {
    model,
    messages: asked,
    temperature: 0,
    response_format: zodResponseFormat(River, 'river'),
  };
  const whole = await client.chat.completions.parse(options);
  const stream = client.chat.completions.stream(options);
  const final = await stream.finalChatCompletion();
  return { river: whole.choices[0].message.parsed, streamed: final.choices[0].message.parsed };
}

async function responses(url, model) {
  const client = connect(url);
  const options = { model, input: QUESTION, temperature: 0 };
  const whole = await client.responses.create({ ...options, max_output_tokens: 24 });
  const stream = client.responses.stream({ ...options, max_output_tokens: 24 });
  const final = await stream.finalResponse();
  const parsed = await client.responses.parse({
    ...options,
    text: { format: zodTextFormat(River, 'river') },
  });
  return {
    text: whole.output_text,
    usage: whole.usage,
    streamed: final.output_text,
    streamed_usage: final.usage,
    river: parsed.output_parsed,
  };
}

await main({ chat, tools, structured, responses });
