// A seller: the official Express middleware, unmodified, selling one thing by scheme `exact` (or `upto`: half of it), as
// a stream to whoever asks with `stream`.
//
//   node server.mjs PAY_TO ASSET CHAIN_ID AMOUNT [FACILITATOR_URL [exact|upto]]
//
// By `upto` it takes EIP-2612 permissions, of the tests' token that has them. Without a URL its facilitator is a
// STAND-IN: it checks the signature with viem but has no chain, so it "settles" by making up a transaction hash. Prints
// {"url"} once it listens and one JSON line for each settlement; ends with its stdin.
import { createHash } from 'node:crypto';
import { HTTPFacilitatorClient, x402ResourceServer } from '@x402/core/server';
import { ExactEvmScheme } from '@x402/evm/exact/server';
import { UptoEvmScheme } from '@x402/evm/upto/server';
import { paymentMiddleware, setSettlementOverrides } from '@x402/express';
import { declareEip2612GasSponsoringExtension } from '@x402/extensions';
import express from 'express';
import { verifyTypedData } from 'viem';

const [payTo, asset, chainId, amount, facilitatorUrl, scheme = 'exact'] = process.argv.slice(2);
const network = `eip155:${chainId}`;
const types = {
  TransferWithAuthorization: [
    { name: 'from', type: 'address' },
    { name: 'to', type: 'address' },
    { name: 'value', type: 'uint256' },
    { name: 'validAfter', type: 'uint256' },
    { name: 'validBefore', type: 'uint256' },
    { name: 'nonce', type: 'bytes32' },
  ],
};
const used = new Set();
const standIn = {
  async getSupported() {
    return { kinds: [{ x402Version: 2, scheme: 'exact', network }], extensions: [], signers: {} };
  },
  async verify({ payload }, requirements) {
    const { authorization: message, signature } = payload;
    const domain = { ...requirements.extra, chainId: Number(chainId), verifyingContract: requirements.asset };
    const signed = await verifyTypedData({ address: message.from, domain, types, primaryType: 'TransferWithAuthorization', message, signature });
    const right = message.to.toLowerCase() === requirements.payTo.toLowerCase() && message.value === requirements.amount;
    if (signed && right && !used.has(message.nonce)) return { isValid: true, payer: message.from };
    return { isValid: false, invalidReason: signed ? 'invalid_payload' : 'invalid_exact_evm_payload_signature', payer: message.from };
  },
  async settle({ payload }) {
    const { from, nonce, value } = payload.authorization;
    used.add(nonce);
    const transaction = `0x${createHash('sha256').update(nonce).digest('hex')}`;
    console.log(JSON.stringify({ settled: value, payer: from }));
    return { success: true, transaction, network, payer: from };
  },
};

const facilitator = facilitatorUrl ? new HTTPFacilitatorClient({ url: facilitatorUrl }) : standIn;
const app = express();
app.use(express.json());
const byUpto = scheme === 'upto';
const token = byUpto ? { name: 'Test Dollar', version: '1' } : { name: 'USD Coin', version: '2' };
const accepts = {
  scheme,
  network,
  payTo,
  price: { amount, asset, extra: token },
  maxTimeoutSeconds: 60,
};
const selling = byUpto ? new UptoEvmScheme() : new ExactEvmScheme();
const resources = new x402ResourceServer(facilitator).register(network, selling);
const extensions = byUpto ? declareEip2612GasSponsoringExtension() : undefined;
const route = { accepts, description: 'one inference', mimeType: 'application/json', extensions };
app.use(paymentMiddleware({ 'POST /v1/infer': route, 'POST /v1/chat/completions': route }, resources));
app.post(['/v1/infer', '/v1/chat/completions'], (request, response) => {
  // `upto`: half of what was permitted.
  if (byUpto) setSettlementOverrides(response, { amount: String(BigInt(amount) / 2n) });
  if (request.body.stream) {
    response.type('text/event-stream');
    response.write('data: {"ok":true}\n\n');
    response.end('data: [DONE]\n\n');
    return;
  }
  response.json({ ok: true, echo: request.body });
});
const listener = app.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${listener.address().port}` }));
});
process.stdin.resume().on('end', () => process.exit(0));
