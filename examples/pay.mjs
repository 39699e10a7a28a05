// Asks an agent something and pays with the official x402 client. No RPC is needed: signing a payment is off line.
//   npm install && node pay.mjs AGENT_URL KEY_FILE USDC_ADDRESS ["your question"]
import { readFileSync } from 'node:fs';
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { registerExactEvmScheme } from '@x402/evm/exact/client';
import { privateKeyToAccount } from 'viem/accounts';

const [url, keyFile, asset, question = 'What are you?'] = process.argv.slice(2);
const client = new x402Client();
registerExactEvmScheme(client, { signer: privateKeyToAccount(readFileSync(keyFile, 'utf8').trim()) });
// The client pays only with tokens it knows until you name others; here: at most 0.05 test USDC (50,000 units) a call.
client.setSpendControls({ allowedAssets: [{ network: 'eip155:*', asset, maxAmountPerPayment: '50000' }] });
const body = JSON.stringify({ messages: [{ role: 'user', content: question }], max_tokens: 64 });
const answer = await wrapFetchWithPayment(fetch, client)(`${url}/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
console.log(answer.status, (await answer.json()).choices?.[0].message.content);
const receipt = answer.headers.get('payment-response');
if (receipt) console.log('paid:', decodePaymentResponseHeader(receipt).transaction);
