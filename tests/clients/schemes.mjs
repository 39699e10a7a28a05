// A customer: the official @x402/fetch client, unmodified, paying by the scheme it is told to.
//
//   node schemes.mjs SELLER_URL PRIVATE_KEY CALLS stream|plain SCHEME RPC_URL ASSET
//     [--forget] [--hang-up] [--refund] [--approve] [--named] [--at-once] [--max-tokens=N]
//
// SCHEME: exact, exact-permit2, upto or batch-settlement. --forget: a new client, without memory, for each call.
// --hang-up: the second answer is left after its first piece. --refund: takes back what is left in the channel at the
// end. --approve: lets Permit2 spend before, by a transaction, as for tokens without EIP-2612. --named: the same
// question each time, under one payment identifier. --at-once: all calls together.
// Prints one JSON line a call {call, status, charged, payment, text, error} and, with --refund, one {refund}.
import { x402Client } from '@x402/core/client';
import { decodePaymentResponseHeader } from '@x402/core/http';
import { toClientEvmSigner } from '@x402/evm';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { UptoEvmScheme } from '@x402/evm/upto/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import { appendPaymentIdentifierToExtensions } from '@x402/extensions/payment-identifier';
import { createPublicClient, createWalletClient, erc20Abi, http, maxUint256 } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [seller, key, calls, mode, name, rpcUrl, asset, ...flags] = process.argv.slice(2);
const number = (flag, otherwise) => Number(flags.find((f) => f.startsWith(`${flag}=`))?.split('=')[1] ?? otherwise);
const url = new URL('/v1/chat/completions', seller);
const account = privateKeyToAccount(key);
const chain = createPublicClient({ transport: http(rpcUrl) });
const signer = toClientEvmSigner(account, chain);
const permit2 = '0x000000000022D473030F116dDEE9F6B43aC78BA3';
if (flags.includes('--approve')) {
  const wallet = createWalletClient({ account, transport: http(rpcUrl) });
  const args = [permit2, maxUint256];
  const hash = await wallet.writeContract({ chain: null, address: asset, abi: erc20Abi, functionName: 'approve', args });
  await chain.waitForTransactionReceipt({ hash, pollingInterval: 100 });
}
const make = {
  exact: () => new ExactEvmScheme(signer, { rpcUrl }),
  'exact-permit2': () => new ExactEvmScheme(signer, { rpcUrl }),
  upto: () => new UptoEvmScheme(signer, { rpcUrl }),
  'batch-settlement': () => new BatchSettlementEvmScheme(signer, { depositPolicy: { depositMultiplier: 5 }, rpcUrl }),
}[name];
const run = crypto.randomUUID();
const identifier = `pay_${run}`;
let scheme, pay;
// Of several offers of one scheme the client takes the first, unless it is told which.
function wanted(version, accepts) {
  const byPermit2 = (offer) => offer.extra?.assetTransferMethod === 'permit2';
  return name === 'exact-permit2' ? accepts.find(byPermit2) : accepts[0];
}
function fresh() {
  scheme = make();
  // The client refuses tokens it does not know until it is told: name ours, with a limit.
  const client = new x402Client(wanted).register('eip155:*', scheme);
  client.setSpendControls({ allowedAssets: [{ network: 'eip155:*', asset, maxAmountPerPayment: '100000000' }] });
  if (flags.includes('--named')) {
    client.onAfterPaymentCreation(async ({ paymentPayload }) => {
      appendPaymentIdentifierToExtensions(paymentPayload.extensions, identifier);
    });
  }
  pay = wrapFetchWithPayment(fetch, client);
}
fresh();
// An agent names its model; the tests' stand-in sellers have none.
const models = await fetch(new URL('/v1/models', seller)).catch(() => null);
const model = models?.ok ? (await models.json()).data[0].id : undefined;
let failed = false;
async function one(call) {
  if (flags.includes('--forget')) fresh();
  try {
    const body = JSON.stringify({
      model,
      // Of its own in each run: the same question again may be answered from what is kept.
      messages: [{ role: 'user', content: `question ${flags.includes('--named') ? 0 : call} of ${run.slice(0, 8)}` }],
      max_tokens: number('--max-tokens', 16),
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
      if (answer.ok) line.text = text;
      else line.error = text;
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
const all = Array.from({ length: Number(calls) }, (_, call) => call);
if (flags.includes('--at-once')) await Promise.all(all.map(one));
else for (const call of all) await one(call);
if (flags.includes('--refund')) {
  try {
    console.log(JSON.stringify({ refund: await scheme.refund(url.href) }));
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ refund: null, error: String(error?.cause ?? error) }));
  }
}
process.exit(failed ? 1 : 0);
