// What the scripts of the npm clients share: `node SCRIPT.mjs SCENARIO URL MODEL` prints what the
// client made of the answers as JSON.
import { z } from 'zod';

export const QUESTION = 'Name three rivers of Europe.';
export const WEATHER_QUESTION = 'What is the weather in Oslo in celsius?';
export const REPORT = 'Sunny, 21 degrees.';

export const River = z.object({
  country: z.enum(['Austria', 'France', 'Italy']),
  length_km: z.int().min(1).max(9000),
  navigable: z.boolean(),
});

export const Weather = z.object({
  city: z.enum(['Oslo', 'Paris', 'Rome']),
  unit: z.enum(['celsius', 'fahrenheit']),
  days: z.int().min(1).max(7),
});

export async function main(scenarios) {
  const [name, url, model] = process.argv.slice(2);
  console.log(JSON.stringify(await scenarios[name](url, model)));
}
