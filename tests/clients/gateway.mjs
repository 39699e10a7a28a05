// Helia's trustless gateway fetcher against one of our stores: brings the graph below a CID block by block, each checked
// by its hash, and prints what it is. The route to the gateway is told, as Helia's routing would.
// node gateway.mjs URL CID
import { trustlessGatewayBlockBroker } from '@helia/trustless-gateway-client'
import { decode } from '@ipld/dag-pb'
import { uriToMultiaddr } from '@multiformats/uri-to-multiaddr'
import { logger } from 'birnam'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { createHash } from 'node:crypto'

const [url, root] = process.argv.slice(2)
const routing = {
  async * findProviders (cid) {
    yield { id: CID.parse('bafkqaaa'), multiaddrs: [uriToMultiaddr(url)], protocols: ['transport-ipfs-gateway-http'] }
  }
}
const components = { routing, logger: { forComponent: logger } }
const broker = trustlessGatewayBlockBroker({ allowInsecure: true, allowLocal: true })(components)
const content = createHash('sha256')
let blocks = 0
let bytes = 0

async function bring (cid) {
  const block = await broker.retrieve(cid, {
    validateFn: async (block) => {
      const hash = await sha256.digest(block instanceof Uint8Array ? block : block.subarray())
      if (Buffer.compare(hash.digest, cid.multihash.digest) !== 0) throw new Error('other bytes')
    }
  })
  const whole = block instanceof Uint8Array ? block : block.subarray()
  blocks += 1
  if (cid.code === 0x55) {
    bytes += whole.length
    content.update(whole)
    return
  }
  for (const link of decode(whole).Links) await bring(link.Hash)
}

try {
  await bring(CID.parse(root))
  console.log(JSON.stringify({ blocks, bytes, sha256: content.digest('hex') }))
} catch (error) {
  console.log(JSON.stringify({ error: [error, ...(error.errors ?? [])].map((e) => e.message).join('; ') }))
  process.exitCode = 1
}
