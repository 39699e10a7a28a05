// A customer: the official @x402/fetch client, unmodified, paying by scheme `exact`.
//
//   node exact.mjs AGENT_URL PRIVATE_KEY|KEY_FILE CALLS stream|plain [--asset ADDRESS] [--model NAME] [--prompt TEXT]
//                  [--path PATH] [--max-tokens N] [--same]
//
// Prints one JSON line a call: {call, status, text, payment, x402, ms}. `payment` is the decoded PAYMENT-RESPONSE, or
// null where the head of a stream left before the settlement; `x402` is what the answer's last piece says about it.
// Each call asks something else unless --same. Exits with 1 if any call failed.
import { randomUUID } from 'node:crypto';
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
    model: { type: 'string' },
    prompt: { type: 'string', default: 'Say hello.' },
    same: { type: 'boolean', default: false },
    path: { type: 'string', default: '/v1/chat/completions' },
    'max-tokens': { type: 'string', default: '16' },
  },
});
const [agent, key, calls, mode] = positionals;
if (!agent || !key || !/^\d+$/.test(calls ?? '') || !['stream', 'plain'].includes(mode)) {
  console.error('usage: node exact.mjs AGENT_URL PRIVATE_KEY|KEY_FILE CALLS stream|plain');
  process.exit(2);
}
const secret = key.startsWith('0x') ? key : readFileSync(key, 'utf8').match(/0x[0-9a-f]{64}/i)[0];

const client = new x402Client();
registerExactEvmScheme(client, { signer: toClientEvmSigner(privateKeyToAccount(secret)) });
// The client refuses tokens it does not know until it is told: name ours, or allow any.
client.setSpendControls(
  values.asset ? { allowedAssets: [{ network: 'eip155:*', asset: values.asset, maxAmountPerPayment: '1000000' }] } : false,
);
const pay = wrapFetchWithPayment(fetch, client);

/** The text of a stream's events, and what the last ones say about the payment. */
function readStream(body) {
  let text = '';
  let x402;
  for (const line of body.split('\n')) {
    if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
    const event = JSON.parse(line.slice('data: '.length));
    if (event.error) throw new Error(`the stream broke off: ${event.error.message}`);
    text += event.choices?.[0]?.delta?.content ?? '';
    x402 = event.x402 ?? x402;
  }
  return { text, x402 };
}

const model = values.model ?? (await (await fetch(new URL('/v1/models', agent))).json()).data[0].id;
const suffix = randomUUID().slice(0, 8);
let failed = false;
for (let call = 0; call < Number(calls); call++) {
  const started = performance.now();
  try {
    const answer = await pay(new URL(values.path, agent), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        model,
        messages: [{ role: 'user', content: values.same ? values.prompt : `${values.prompt} (${suffix} ${call})` }],
        max_tokens: Number(values['max-tokens']),
        stream: mode === 'stream',
      }),
    });
    const body = await answer.text();
    const header = answer.headers.get('payment-response');
    const line = { call, status: answer.status, text: body, payment: header && decodePaymentResponseHeader(header) };
    if (answer.ok && mode === 'stream') Object.assign(line, readStream(body));
    else if (answer.ok) {
      const { choices, x402 } = JSON.parse(body);
      Object.assign(line, { text: choices[0].message.content, x402 });
    }
    line.ms = Math.round(performance.now() - started);
    console.log(JSON.stringify(line));
    failed ||= !answer.ok;
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ call, error: String(error?.cause ?? error) }));
  }
}
process.exit(failed ? 1 : 0);
