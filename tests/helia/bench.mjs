// Adds a file to Helia's block store on disk and reads it back, every block checked; prints how long each took.
// node bench.mjs FILE FOLDER
import { unixfs } from '@helia/unixfs'
import { FsBlockstore } from 'blockstore-fs'
import { sha256 } from 'multiformats/hashes/sha2'
import { createReadStream } from 'node:fs'

const [file, folder] = process.argv.slice(2)
const blockstore = new FsBlockstore(folder)
await blockstore.open()
const get = blockstore.get.bind(blockstore)
// As Helia's own store does with what comes from elsewhere; FsBlockstore alone believes its files.
blockstore.get = async function * (cid, options) {
  const pieces = []
  for await (const piece of get(cid, options)) pieces.push(piece)
  const block = Buffer.concat(pieces)
  const hash = await sha256.digest(block)
  if (Buffer.compare(hash.digest, cid.multihash.digest) !== 0) throw new Error(`other bytes than ${cid}`)
  yield block
}
const fs = unixfs({ blockstore })
const started = performance.now()
const cid = await fs.addByteStream(createReadStream(file, { highWaterMark: 1 << 20 }), { profile: 'unixfs-v1-2025' })
const added = performance.now()
let bytes = 0
for await (const piece of fs.cat(cid)) bytes += piece.length
const read = performance.now()
console.log(JSON.stringify({ cid: cid.toString(), bytes, add_ms: added - started, read_ms: read - added }))
