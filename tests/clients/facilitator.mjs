// A facilitator: the official one, unmodified, behind the standard HTTP API.
//
//   node facilitator.mjs RPC_URL CHAIN_ID KEY [deaf|late]
//
// deaf: takes the question and never answers. late: settles, and never says so. Prints {"url"} once it listens; ends
// with its stdin.
import { x402Facilitator } from '@x402/core/facilitator';
import { toFacilitatorEvmSigner } from '@x402/evm';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/facilitator';
import { ExactEvmScheme } from '@x402/evm/exact/facilitator';
import { UptoEvmScheme } from '@x402/evm/upto/facilitator';
import express from 'express';
import { createWalletClient, defineChain, http, publicActions } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [rpcUrl, chainId, key, manner] = process.argv.slice(2);
const network = `eip155:${chainId}`;
const nativeCurrency = { name: 'Ether', symbol: 'ETH', decimals: 18 };
const chain = defineChain({ id: Number(chainId), name: 'local', nativeCurrency, rpcUrls: { default: { http: [rpcUrl] } } });
const account = privateKeyToAccount(key);
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
const facilitator = new x402Facilitator()
  .register(network, new ExactEvmScheme(signer))
  .register(network, new UptoEvmScheme(signer))
  .register(network, new BatchSettlementEvmScheme(signer, account));
const app = express();
app.use(express.json());
app.get('/supported', (_, response) => response.json(facilitator.getSupported()));
app.post('/verify', async ({ body }, response) => {
  response.json(await facilitator.verify(body.paymentPayload, body.paymentRequirements));
});
app.post('/settle', async ({ body }, response) => {
  if (manner === 'deaf') return;
  const settled = await facilitator.settle(body.paymentPayload, body.paymentRequirements);
  if (manner !== 'late') response.json(settled);
});
const listener = app.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${listener.address().port}` }));
});
process.stdin.resume().on('end', () => process.exit(0));
