// Golden Arweave objects from arweave-js and arbundles: `npm install && npm run arweave`. The Rust tests read arweave.json.
// The key is made here for the tests and worth nothing. Content is the noise of cids.mjs.
import Arweave from 'arweave'
import { generateTransactionChunks } from 'arweave/node/lib/merkle.js'
import arbundles from 'arbundles'
import { createHash } from 'node:crypto'

const { bundleAndSignData, createData, signers: { ArweaveSigner } } = arbundles
const KIB = 1024
const arweave = Arweave.init({ host: '127.0.0.1', port: 1, protocol: 'http' })
const hex = (bytes) => Buffer.from(bytes).toString('hex')

function noise (bytes) {
  const out = new Uint8Array(bytes)
  let x = 1
  for (let i = 0; i < bytes; i++) {
    x ^= x << 13; x ^= x >>> 17; x ^= x << 5
    out[i] = x & 0xff
  }
  return out
}

const roots = []
for (const bytes of [1, 32 * KIB - 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 288 * KIB - 1, 288 * KIB, 512 * KIB, 512 * KIB + 100, 1000 * KIB, 2048 * KIB + 7]) {
  const made = await generateTransactionChunks(noise(bytes))
  roots.push({
    bytes,
    root: hex(made.data_root),
    chunks: made.chunks.map((chunk, i) => ({
      start: chunk.minByteRange,
      end: chunk.maxByteRange,
      proof: createHash('sha256').update(made.proofs[i].proof).digest('hex')
    }))
  })
}

const jwk = await arweave.wallets.generate()
const address = await arweave.wallets.jwkToAddress(jwk)
const transaction = await arweave.createTransaction({
  data: noise(300 * KIB), last_tx: Buffer.alloc(48, 7).toString('base64url'), reward: '123456789012345', quantity: '0'
}, jwk)
transaction.addTag('Content-Type', 'application/octet-stream')
transaction.addTag('Ünïcode', 'ja')
await arweave.transactions.sign(transaction, jwk)
if (!await arweave.transactions.verify(transaction)) throw new Error('not valid by its own maker')
const { chunks, data, ...plain } = transaction.toJSON()

const signer = new ArweaveSigner(jwk)
const items = [createData('hello item', signer, { tags: [{ name: 'Content-Type', value: 'text/plain' }, { name: 'N', value: '1' }] }), createData(noise(1000), signer)]
const bundle = await bundleAndSignData(items, signer)
if (!await bundle.verify()) throw new Error('not valid by its own maker')
console.log(JSON.stringify({
  what: 'a development key, worth nothing', jwk, address, roots, transaction: plain,
  items: bundle.items.map((item) => item.id), bundle: bundle.getRaw().toString('base64url')
}, null, 1))
