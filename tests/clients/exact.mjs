// A customer: the official @x402/fetch client, unmodified, paying by scheme `exact`.
//
//   node exact.mjs AGENT_URL PRIVATE_KEY CALLS stream|plain [--asset ADDRESS] [--model NAME] [--prompt TEXT] [--max-tokens N]
//
// Prints one JSON line a call: {call, status, text, payment, ms} where `payment` is the decoded PAYMENT-RESPONSE
// (of the header, or of a stream's last event), and exits with 1 if any call failed.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { x402Client } from '@x402/core/client';
import { decodePaymentResponseHeader } from '@x402/core/http';
import { toClientEvmSigner } from '@x402/evm';
import { registerExactEvmScheme } from '@x402/evm/exact/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import { privateKeyToAccount } from 'viem/accounts';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    asset: { type: 'string' },
    model: { type: 'string', default: 'default' },
    prompt: { type: 'string', default: 'Say hello.' },
    path: { type: 'string', default: '/v1/chat/completions' },
    'max-tokens': { type: 'string', default: '16' },
  },
});
const [agent, key, calls, mode] = positionals;
if (!agent || !key || !/^\d+$/.test(calls ?? '') || !['stream', 'plain'].includes(mode)) {
  console.error('usage: node exact.mjs AGENT_URL PRIVATE_KEY CALLS stream|plain');
  process.exit(2);
}
const secret = key.startsWith('0x') ? key : readFileSync(key, 'utf8').trim();

const client = new x402Client();
registerExactEvmScheme(client, { signer: toClientEvmSigner(privateKeyToAccount(secret)) });
// The client refuses tokens it does not know until it is told: name ours, or allow any.
client.setSpendControls(
  values.asset ? { allowedAssets: [{ network: 'eip155:*', asset: values.asset, maxAmountPerPayment: '1000000' }] } : false,
);
const pay = wrapFetchWithPayment(fetch, client);

/** The text of a stream's events, and the receipt that its last ones carry. */
async function readStream(body) {
  let text = '';
  let receipt;
  for (const block of body.split('\n\n')) {
    const field = (name) => block.split('\n').filter((l) => l.startsWith(`${name}: `)).map((l) => l.slice(name.length + 2)).join('\n');
    const data = field('data');
    if (!data || data === '[DONE]') continue;
    const event = JSON.parse(data);
    if (field('event') === 'receipt') receipt = event;
    text += event.choices?.[0]?.delta?.content ?? '';
  }
  return { text, receipt };
}

let failed = false;
for (let call = 0; call < Number(calls); call++) {
  const started = performance.now();
  try {
    const answer = await pay(new URL(values.path, agent), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        model: values.model,
        // A different question each time: the same one again would be answered from the first payment.
        messages: [{ role: 'user', content: `${values.prompt} (${call})` }],
        max_tokens: Number(values['max-tokens']),
        stream: mode === 'stream',
      }),
    });
    const body = await answer.text();
    const header = answer.headers.get('payment-response');
    const line = { call, status: answer.status, text: body, payment: header && decodePaymentResponseHeader(header) };
    if (answer.ok && mode === 'stream') Object.assign(line, await readStream(body));
    else if (answer.ok) line.text = JSON.parse(body).choices?.[0]?.message?.content ?? body;
    line.ms = Math.round(performance.now() - started);
    console.log(JSON.stringify(line));
    failed ||= !answer.ok;
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ call, error: String(error?.cause ?? error) }));
  }
}
process.exit(failed ? 1 : 0);
