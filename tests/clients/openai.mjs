// A program written for OpenAI: the official SDK, unmodified, with nothing changed but its base URL; or, with a key, with the
// official x402 client as its transport, which pays by scheme `exact`.
//
//   node openai.mjs BASE_URL [PRIVATE_KEY]
//
// Prints one JSON line a step: {models}, {plain}, {streamed, chunks}, {json}, {call}, {told}, {vectors, tokens, near,
// far}, {refused, status, code, param} twice. Exits with 1 if any step was not what an OpenAI program expects.
import { x402Client } from '@x402/core/client';
import { toClientEvmSigner } from '@x402/evm';
import { registerExactEvmScheme } from '@x402/evm/exact/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import OpenAI from 'openai';
import { privateKeyToAccount } from 'viem/accounts';

const [baseURL, key] = process.argv.slice(2);
const openai = new OpenAI({ baseURL, apiKey: 'unused', ...(key && { fetch: paying(key) }) });

function paying(key) {
  const client = new x402Client();
  registerExactEvmScheme(client, { signer: toClientEvmSigner(privateKeyToAccount(key)) });
  // The client refuses tokens it does not know until it is told.
  client.setSpendControls(false);
  return wrapFetchWithPayment(fetch, client);
}

const say = (line) => console.log(JSON.stringify(line));
const ask = (more) => ({ messages: [{ role: 'user', content: 'Say hello.' }], max_tokens: 12, ...more });

const models = (await openai.models.list()).data.map((model) => model.id);
say({ models });
const plain = await openai.chat.completions.create({ model: models[0], ...ask() });
say({ plain: plain.choices[0].message.content, finish: plain.choices[0].finish_reason, usage: plain.usage });
let streamed = '';
let chunks = 0;
for await (const chunk of await openai.chat.completions.create({ model: models[0], stream: true, ...ask({ seed: 3 }) })) {
  // Programs that asked for no usage look at the first choice without asking whether there is one.
  streamed += chunk.choices[0].delta.content ?? '';
  chunks += 1;
}
say({ streamed, chunks });

// JSON by a schema.
const schema = {
  type: 'object',
  properties: { city: { enum: ['Paris', 'Rome'] }, cold: { type: 'boolean' } },
  required: ['city', 'cold'],
  additionalProperties: false,
};
const response_format = { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } };
const formed = await openai.chat.completions.create({ model: models[0], response_format, ...ask({ max_tokens: 40 }) });
const json = JSON.parse(formed.choices[0].message.content);
say({ json });
if (typeof json.cold !== 'boolean' || !schema.properties.city.enum.includes(json.city)) process.exitCode = 1;

// A call, streamed, and what comes of it.
const tools = [{ type: 'function', function: { name: 'weather', description: 'Tells the weather.', parameters: schema } }];
const call = { id: '', name: '', arguments: '' };
let finish;
const calling = { tools, tool_choice: 'required', parallel_tool_calls: false, max_tokens: 60, stream: true };
for await (const chunk of await openai.chat.completions.create({ model: models[0], ...ask(calling) })) {
  for (const part of chunk.choices[0].delta.tool_calls ?? []) {
    call.id += part.id ?? '';
    call.name += part.function.name ?? '';
    call.arguments += part.function.arguments ?? '';
  }
  finish = chunk.choices[0].finish_reason ?? finish;
}
const told = await openai.chat.completions.create({
  model: models[0],
  tools,
  tool_choice: 'none',
  logprobs: true,
  top_logprobs: 2,
  max_tokens: 8,
  messages: [
    { role: 'user', content: 'Is it cold?' },
    { role: 'assistant', content: null, tool_calls: [{ id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } }] },
    { role: 'tool', tool_call_id: call.id, content: '{"degrees": -5}' },
  ],
});
say({ call, finish });
const tokens = told.choices[0].logprobs.content;
say({ told: told.choices[0].message.content, tokens: tokens.length });
if (call.name !== 'weather' || finish !== 'tool_calls' || !('city' in JSON.parse(call.arguments))) process.exitCode = 1;
if (tokens.length === 0 || tokens.some((token) => !(token.logprob <= 0) || token.top_logprobs.length !== 2)) process.exitCode = 1;

// Vectors: the SDK asks for base64 by itself, and shows numbers.
const input = ['How do I bake bread?', 'Mix flour, water, salt and yeast; let it rise and bake it.', 'The ocean is deep.'];
const vectors = await openai.embeddings.create({ model: models[1], input });
const [question, near, far] = vectors.data.map((item) => item.embedding);
const cosine = (one, other) => one.reduce((sum, number, at) => sum + number * other[at], 0);
say({ vectors: vectors.data.length, tokens: vectors.usage.prompt_tokens, near: cosine(question, near), far: cosine(question, far) });
if (question.length !== 384 || Math.abs(cosine(question, question) - 1) > 1e-5) process.exitCode = 1;
if (!(cosine(question, near) > cosine(question, far) + 0.2)) process.exitCode = 1;

// Not OpenAI's, so the SDK has no name for it, but it sends it, and its errors are the same.
const ranking = { model: models[1], query: input[0], documents: [input[2], input[1]] };
const ranked = await openai.post('/rerank', { body: ranking });
say({ ranked: ranked.results });
if (ranked.results.map((result) => result.index).join() !== '1,0' || ranked.results[0].document) process.exitCode = 1;
if (Math.abs(ranked.results[0].relevance_score - cosine(question, near)) > 1e-3) process.exitCode = 1;
try {
  await openai.post('/rerank', { body: { ...ranking, rank_fields: ['text'] } });
  process.exitCode = 1;
} catch (error) {
  say({ refused: error.message, status: error.status, code: error.code, param: error.param });
  if (error.status !== 400 || error.param !== 'rank_fields') process.exitCode = 1;
}

// What an agent refuses is an ordinary API error, and nothing is paid for it.
for (const wrong of [{ model: 'no-such-model' }, { n: 2 }]) {
  try {
    await openai.chat.completions.create({ model: models[0], ...ask(wrong) });
    process.exitCode = 1;
  } catch (error) {
    say({ refused: error.message, status: error.status, code: error.code, param: error.param });
    if (error.param !== Object.keys(wrong)[0]) process.exitCode = 1;
  }
}
if (!plain.choices[0].message.content || !streamed || chunks < 2) process.exitCode = 1;
