// Asks an agent and pays with the official x402 client. Signing needs no RPC. First: npm install --prefix examples
//   VIVARIUM_WORLD=DIR node pay.mjs ["question"]   or   node pay.mjs AGENT_URL KEY_FILE USDC_ADDRESS ["question"]
import { readFileSync } from 'node:fs';
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { registerExactEvmScheme } from '@x402/evm/exact/client';
import { privateKeyToAccount } from 'viem/accounts';
const dir = process.env.VIVARIUM_WORLD, args = process.argv.slice(2);
const world = dir && JSON.parse(readFileSync(`${dir}/world.json`));
const [url, keyFile, asset] = world ? [world.agent.url, world.customer.key_file, world.usdc] : args.splice(0, 3);
const [key] = readFileSync(keyFile, 'utf8').match(/0x[0-9a-f]{64}/i);
const client = registerExactEvmScheme(new x402Client(), { signer: privateKeyToAccount(key) });
// The client refuses tokens that it does not know. Name this one, with a limit: 5 test USDC (6 decimals) a call.
client.setSpendControls({ allowedAssets: [{ network: 'eip155:*', asset, maxAmountPerPayment: '5000000' }] });
const model = (await (await fetch(`${url}/v1/models`)).json()).data[0].id;
const body = JSON.stringify({ model, max_tokens: 64, messages: [{ role: 'user', content: args[0] ?? 'What is a lease?' }] });
const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body };
const answer = await wrapFetchWithPayment(fetch, client)(`${url}/v1/chat/completions`, post);
console.log(answer.status, await answer.text());
console.log('paid by', decodePaymentResponseHeader(answer.headers.get('payment-response')).transaction);
