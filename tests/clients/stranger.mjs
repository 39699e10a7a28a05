// Somebody who knows a chain, an ERC-8004 identity registry and one number in it, and nothing else. Finds the agent,
// checks that it asks to be paid as the identity's owner, and buys one answer, two vectors and a ranking with the official
// client.
//
//   node stranger.mjs RPC_URL REGISTRY AGENT_ID PRIVATE_KEY
//
// Prints one JSON line {owner, url, price, status, text, vectors: {request, tokens, amount}, ranking: the same}. Exits with 1 at the first thing that does not fit.
import assert from 'node:assert/strict';
import { x402Client } from '@x402/core/client';
import { decodePaymentRequiredHeader } from '@x402/core/http';
import { toClientEvmSigner } from '@x402/evm';
import { registerExactEvmScheme } from '@x402/evm/exact/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import { createPublicClient, http, isAddressEqual, parseAbi } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [rpcUrl, registry, id, key] = process.argv.slice(2);
const chain = createPublicClient({ transport: http(rpcUrl) });
const abi = parseAbi([
  'function ownerOf(uint256) view returns (address)',
  'function tokenURI(uint256) view returns (string)',
]);
const ask = (functionName) => chain.readContract({ address: registry, abi, functionName, args: [BigInt(id)] });
const network = `eip155:${await chain.getChainId()}`;

// From the number to the file, and from the file back to the number.
const [owner, uri] = [await ask('ownerOf'), await ask('tokenURI')];
const read = async (url) => (await fetch(url)).json();
const file = await read(uri);
assert.equal(file.type, 'https://eips.ethereum.org/EIPS/eip-8004#registration-v1');
const named = file.registrations.find((r) => String(r.agentId) === id);
assert.ok(named, `the file names another identity: ${JSON.stringify(file.registrations)}`);
const [kind, chainId, at] = named.agentRegistry.split(':');
assert.equal(`${kind}:${chainId}`, network);
assert.ok(isAddressEqual(at, registry));
assert.ok(file.x402Support && file.active, 'it sells');
const service = (name) => file.services.find((s) => s.name === name).endpoint;
const card = await read(service('A2A'));
assert.equal(card.name, file.name);
const discovery = await read(service('x402'));
assert.equal(discovery.version, 1);
const resource = discovery.resources.find((r) => r.endsWith('/chat/completions'));
const help = await (await fetch(card.documentationUrl)).text();
assert.ok(help.startsWith(`# ${file.name}\n`) && help.includes(resource), help);

// What it costs, and whose account the money would go to: the identity's owner, or nobody's.
const models = await read(`${service('OpenAI')}/models`);
const request = {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ model: models.data[0].id, messages: [{ role: 'user', content: 'Who are you?' }], max_tokens: 16 }),
};
const quote = await fetch(resource, request);
assert.equal(quote.status, 402);
const { accepts } = decodePaymentRequiredHeader(quote.headers.get('payment-required'));
assert.ok(accepts.length > 0 && accepts.every((a) => a.network === network && isAddressEqual(a.payTo, owner)), 'payTo');
const exact = accepts.find((a) => a.scheme === 'exact');

const client = new x402Client();
registerExactEvmScheme(client, { signer: toClientEvmSigner(privateKeyToAccount(key)) });
client.setSpendControls({ allowedAssets: [{ network, asset: exact.asset, maxAmountPerPayment: exact.amount }] });
const answer = await wrapFetchWithPayment(fetch, client)(resource, request);
const body = await answer.text();
const text = answer.ok ? JSON.parse(body).choices[0].message.content : body;

// Vectors are a class of their own: the offer says so before anything is paid.
const place = discovery.resources.find((r) => r.endsWith('/embeddings'));
const wanted = { ...request, body: JSON.stringify({ model: models.data[1].id, input: ['bread', 'water'] }) };
const terms = decodePaymentRequiredHeader((await fetch(place, wanted)).headers.get('payment-required'));
assert.match(terms.resource.description, /a million tokens of the texts cost /);
const paid = await wrapFetchWithPayment(fetch, client)(place, wanted);
assert.equal(paid.status, 200, paid.status === 200 ? '' : await paid.text());
const { data, usage, x402 } = await paid.json();
assert.deepEqual(data.map((item) => [item.index, item.embedding.length]), [[0, 384], [1, 384]]);
const vectors = { request: x402.request, tokens: usage.prompt_tokens, amount: x402.amount };

// So are documents in the order of their nearness to a question.
const desk = discovery.resources.find((r) => r.endsWith('/rerank'));
const sorted = { model: models.data[1].id, query: 'What do bakers make?', documents: ['water', 'bread'], top_n: 1 };
const order = await wrapFetchWithPayment(fetch, client)(desk, { ...request, body: JSON.stringify(sorted) });
assert.equal(order.status, 200, order.status === 200 ? '' : await order.text());
const ranked = await order.json();
assert.deepEqual(ranked.results.map((r) => [r.index, r.document]), [[1, undefined]]);
const ranking = { request: ranked.x402.request, tokens: ranked.usage.prompt_tokens, amount: ranked.x402.amount };
const url = uri.slice(0, uri.indexOf('/.well-known/'));
console.log(JSON.stringify({ owner, url, price: exact.amount, status: answer.status, text, vectors, ranking }));
