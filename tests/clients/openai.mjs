// A program written for OpenAI: the official SDK, unmodified, with nothing changed but its base URL.
//
//   node openai.mjs BASE_URL
//
// Prints one JSON line a step: {models}, {plain}, {streamed, chunks}, {refused, status, code}. Exits with 1 if any
// step was not what an OpenAI program expects.
import OpenAI from 'openai';

const [baseURL] = process.argv.slice(2);
const openai = new OpenAI({ baseURL, apiKey: 'unused' });
const say = (line) => console.log(JSON.stringify(line));
const ask = (more) => ({ messages: [{ role: 'user', content: 'Say hello.' }], max_tokens: 12, ...more });

const models = (await openai.models.list()).data.map((model) => model.id);
say({ models });
const plain = await openai.chat.completions.create({ model: models[0], ...ask() });
say({ plain: plain.choices[0].message.content, finish: plain.choices[0].finish_reason, usage: plain.usage });
let streamed = '';
let chunks = 0;
for await (const chunk of await openai.chat.completions.create({ model: models[0], stream: true, ...ask({ seed: 3 }) })) {
  streamed += chunk.choices[0]?.delta?.content ?? '';
  chunks += 1;
}
say({ streamed, chunks });
try {
  await openai.chat.completions.create({ model: 'no-such-model', ...ask() });
  process.exitCode = 1;
} catch (error) {
  say({ refused: error.message, status: error.status, code: error.code });
}
if (!plain.choices[0].message.content || !streamed || chunks < 2) process.exitCode = 1;
