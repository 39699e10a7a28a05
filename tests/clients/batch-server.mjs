// A seller: the official Express middleware and facilitator, unmodified, selling one route by `batch-settlement`.
//
//   node batch-server.mjs RPC_URL CHAIN_ID ASSET RECEIVER_KEY FACILITATOR_KEY AMOUNT [permit2]
//
// permit2: ASSET has no EIP-3009, deposits come by Permit2, EIP-2612 permissions are handed in. Charges what the
// request's `cost` says, at most AMOUNT. Prints {"url"} once it listens; each line on stdin makes it claim and settle
// what it is owed and print {"claimed"}; ends with its stdin.
import { createInterface } from 'node:readline';
import { x402Facilitator } from '@x402/core/facilitator';
import { x402ResourceServer } from '@x402/core/server';
import { toFacilitatorEvmSigner } from '@x402/evm';
import { BatchSettlementEvmScheme as FacilitatorScheme } from '@x402/evm/batch-settlement/facilitator';
import { BatchSettlementEvmScheme as ServerScheme } from '@x402/evm/batch-settlement/server';
import { paymentMiddleware, setSettlementOverrides } from '@x402/express';
import { declareEip2612GasSponsoringExtension } from '@x402/extensions';
import express from 'express';
import { createWalletClient, defineChain, http, publicActions } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [rpcUrl, chainId, asset, receiverKey, facilitatorKey, amount, method] = process.argv.slice(2);
const network = `eip155:${chainId}`;
const nativeCurrency = { name: 'Ether', symbol: 'ETH', decimals: 18 };
const chain = defineChain({ id: Number(chainId), name: 'local', nativeCurrency, rpcUrls: { default: { http: [rpcUrl] } } });
const receiver = privateKeyToAccount(receiverKey);
const account = privateKeyToAccount(facilitatorKey);
const wallet = createWalletClient({ account, chain, transport: http(rpcUrl), pollingInterval: 20 }).extend(publicActions);
const signer = toFacilitatorEvmSigner({
  address: account.address,
  getCode: (a) => wallet.getCode(a),
  readContract: (a) => wallet.readContract(a),
  verifyTypedData: (a) => wallet.verifyTypedData(a),
  writeContract: (a) => wallet.writeContract(a),
  sendTransaction: (a) => wallet.sendTransaction(a),
  waitForTransactionReceipt: (a) => wallet.waitForTransactionReceipt(a),
});
const facilitator = new x402Facilitator().register(network, new FacilitatorScheme(signer, account));
const local = {
  verify: (payment, requirements) => facilitator.verify(payment, requirements),
  settle: (payment, requirements) => facilitator.settle(payment, requirements),
  getSupported: async () => facilitator.getSupported(),
};
const scheme = new ServerScheme(receiver.address, { receiverAuthorizerSigner: receiver, withdrawDelay: 900 });
const resources = new x402ResourceServer(local).register(network, scheme);
const app = express();
app.use(express.json());
const byPermit2 = method === 'permit2';
const token = byPermit2
  ? { name: 'Test Dollar', version: '1', assetTransferMethod: method }
  : { name: 'USD Coin', version: '2' };
const accepts = {
  scheme: 'batch-settlement',
  network,
  payTo: receiver.address,
  price: { amount, asset, extra: token },
  maxTimeoutSeconds: 60,
};
const extensions = byPermit2 ? declareEip2612GasSponsoringExtension() : undefined;
const route = { accepts, description: 'metered', mimeType: 'application/json', extensions };
app.use(paymentMiddleware({ 'POST /v1/infer': route }, resources));
app.post('/v1/infer', (request, response) => {
  setSettlementOverrides(response, { amount: String(request.body.cost) });
  response.json({ ok: true });
});
const listener = app.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${listener.address().port}/v1/infer` }));
});
const lines = createInterface({ input: process.stdin });
lines.on('line', async () => {
  const claimed = await scheme.createChannelManager(local, network, asset).claimAndSettle();
  console.log(JSON.stringify({ claimed }, (_, value) => (typeof value === 'bigint' ? String(value) : value)));
});
lines.on('close', () => process.exit(0));
