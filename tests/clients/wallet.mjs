// A customer that is a contract: the official @x402/fetch client, unmodified, paying from a smart wallet.
//
//   node wallet.mjs SELLER_URL OWNER_KEY CALLS stream|plain RPC_URL ASSET [SCHEME]
//
// SCHEME: exact (the default), exact-permit2 or upto; for the last two the wallet lets Permit2 spend.
// Development chains only: gives the owner ether, deploys contracts/abi/TestWallet, mints to it, pays from it. Before
// the last call the wallet declares its signatures void. Prints one JSON line a call: {call, status, payment, error}.
import { readFileSync } from 'node:fs';
import { x402Client } from '@x402/core/client';
import { decodePaymentResponseHeader } from '@x402/core/http';
import { toClientEvmSigner } from '@x402/evm';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { UptoEvmScheme } from '@x402/evm/upto/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import { createWalletClient, defineChain, encodeFunctionData, erc20Abi, http, maxUint256, parseAbi, publicActions } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [seller, key, calls, mode, rpcUrl, asset, name = 'exact'] = process.argv.slice(2);
const owner = privateKeyToAccount(key);
const transport = http(rpcUrl);
const nativeCurrency = { name: 'Ether', symbol: 'ETH', decimals: 18 };
const id = await createWalletClient({ transport }).extend(publicActions).getChainId();
const chain = defineChain({ id, name: 'local', nativeCurrency, rpcUrls: { default: { http: [rpcUrl] } } });
const client = createWalletClient({ account: owner, chain, transport, pollingInterval: 50 }).extend(publicActions);
const mined = async (hash) => client.waitForTransactionReceipt({ hash: await hash });

await client.request({ method: 'anvil_setBalance', params: [owner.address, '0xde0b6b3a7640000'] });
const { abi, bytecode } = JSON.parse(readFileSync(new URL('../../contracts/abi/TestWallet.json', import.meta.url)));
const { contractAddress: wallet } = await mined(client.deployContract({ abi, bytecode, args: [owner.address] }));
const mint = { abi: parseAbi(['function mint(address,uint256)']), address: asset, functionName: 'mint', args: [wallet, 100000000n] };
await mined(client.writeContract(mint));
if (name !== 'exact') {
  const permit2 = '0x000000000022D473030F116dDEE9F6B43aC78BA3';
  const approve = encodeFunctionData({ abi: erc20Abi, functionName: 'approve', args: [permit2, maxUint256] });
  await mined(client.writeContract({ abi, address: wallet, functionName: 'execute', args: [asset, approve] }));
}

// What a smart wallet's own SDK does: its owner signs, and the wallet's wrapping goes around it.
const signTypedData = async (message) => `0x01${(await owner.signTypedData(message)).slice(2)}`;
const signer = toClientEvmSigner({ address: wallet, signTypedData }, client);
const scheme = name === 'upto' ? new UptoEvmScheme(signer, { rpcUrl }) : new ExactEvmScheme(signer, { rpcUrl });
// Of several offers of one scheme the client takes the first, unless it is told which.
const byPermit2 = (offer) => offer.extra?.assetTransferMethod === 'permit2';
const wanted = (version, accepts) => (name === 'exact-permit2' ? accepts.find(byPermit2) : accepts[0]);
const x402 = new x402Client(wanted).register('eip155:*', scheme);
x402.setSpendControls({ allowedAssets: [{ network: 'eip155:*', asset, maxAmountPerPayment: '100000000' }] });
const pay = wrapFetchWithPayment(fetch, x402);
const models = await fetch(new URL('/v1/models', seller)).catch(() => null);
const model = models?.ok ? (await models.json()).data[0].id : undefined;
for (let call = 0; call < Number(calls); call++) {
  if (call === Number(calls) - 1) {
    await mined(client.writeContract({ abi, address: wallet, functionName: 'setFrozen', args: [true] }));
  }
  const messages = [{ role: 'user', content: `question ${call}` }];
  const body = JSON.stringify({ model, messages, max_tokens: 16, stream: mode === 'stream' });
  const headers = { 'content-type': 'application/json' };
  const answer = await pay(new URL('/v1/chat/completions', seller), { method: 'POST', headers, body });
  const text = await answer.text();
  const header = answer.headers.get('payment-response');
  const line = { call, status: answer.status, payment: header && decodePaymentResponseHeader(header) };
  if (!answer.ok) line.error = JSON.parse(text).error.code;
  console.log(JSON.stringify(line));
}
