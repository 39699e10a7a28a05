// A customer: the official @x402/fetch client, unmodified, paying by the scheme it is told to.
//
//   node schemes.mjs SELLER_URL PRIVATE_KEY CALLS stream|plain SCHEME RPC_URL ASSET [--forget] [--hang-up] [--refund]
//
// SCHEME: exact, upto or batch-settlement. --forget: a new client, without memory, for each call. --hang-up: the
// second answer is left after its first piece. --refund: takes back what is left in the channel at the end.
// Prints one JSON line a call {call, status, charged, payment, error} and, with --refund, one {refund}.
import { x402Client } from '@x402/core/client';
import { decodePaymentResponseHeader } from '@x402/core/http';
import { toClientEvmSigner } from '@x402/evm';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { UptoEvmScheme } from '@x402/evm/upto/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import { createPublicClient, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [seller, key, calls, mode, name, rpcUrl, asset, ...flags] = process.argv.slice(2);
const url = new URL('/v1/chat/completions', seller);
const signer = toClientEvmSigner(privateKeyToAccount(key), createPublicClient({ transport: http(rpcUrl) }));
const make = {
  exact: () => new ExactEvmScheme(signer, { rpcUrl }),
  upto: () => new UptoEvmScheme(signer, { rpcUrl }),
  'batch-settlement': () => new BatchSettlementEvmScheme(signer, { depositPolicy: { depositMultiplier: 5 }, rpcUrl }),
}[name];
let scheme, pay;
function fresh() {
  scheme = make();
  // The client refuses tokens it does not know until it is told: name ours, with a limit.
  const client = new x402Client().register('eip155:*', scheme);
  client.setSpendControls({ allowedAssets: [{ network: 'eip155:*', asset, maxAmountPerPayment: '100000000' }] });
  pay = wrapFetchWithPayment(fetch, client);
}
fresh();
// An agent names its model; the tests' stand-in sellers have none.
const models = await fetch(new URL('/v1/models', seller)).catch(() => null);
const model = models?.ok ? (await models.json()).data[0].id : undefined;
let failed = false;
for (let call = 0; call < Number(calls); call++) {
  if (flags.includes('--forget')) fresh();
  try {
    const body = JSON.stringify({
      model,
      messages: [{ role: 'user', content: `question ${call}` }],
      max_tokens: 16,
      stream: mode === 'stream',
    });
    const answer = await pay(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const line = { call, status: answer.status };
    const header = answer.headers.get('payment-response');
    if (header) line.payment = decodePaymentResponseHeader(header);
    if (flags.includes('--hang-up') && call === 1) {
      const reader = answer.body.getReader();
      await reader.read();
      await reader.cancel();
    } else {
      const text = await answer.text();
      if (!answer.ok) line.error = text;
      const last = text.match(/"x402":\{[^}]*"charged":"(\d+)"/);
      if (last) line.charged = last[1];
    }
    console.log(JSON.stringify(line));
    failed ||= !answer.ok;
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ call, error: String(error?.cause ?? error) }));
  }
}
if (flags.includes('--refund')) {
  try {
    console.log(JSON.stringify({ refund: await scheme.refund(url.href) }));
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ refund: null, error: String(error?.cause ?? error) }));
  }
}
process.exit(failed ? 1 : 0);
