// Golden CIDs from the JavaScript importer: `npm install && npm run generate`. The Rust tests read cids.json.
// Content is xorshift32 from seed 1, one byte a step (low byte), or zeros; see `Noise` in ../it/support.rs.
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'

const KIB = 1024, MIB = 1024 * KIB
// Blocks are thrown away: only names matter, and 1 GiB need not fit into memory.
const nowhere = { put: async (cid) => cid }

function * noise (bytes) {
  let x = 1
  for (let left = bytes; left > 0;) {
    const piece = new Uint8Array(Math.min(left, 64 * KIB))
    for (let i = 0; i < piece.length; i++) {
      x ^= x << 13; x ^= x >>> 17; x ^= x << 5
      piece[i] = x & 0xff
    }
    left -= piece.length
    yield piece
  }
}

function * zeros (bytes) {
  const piece = new Uint8Array(MIB)
  for (let left = bytes; left > 0; left -= piece.length) yield piece.subarray(0, Math.min(left, piece.length))
}

async function root (candidates, options) {
  let last
  for await (const entry of importer(candidates, nowhere, options)) last = entry
  return last.cid.toString()
}

const files = []
async function file (profile, options, kind, bytes) {
  const content = kind === 'zeros' ? zeros(bytes) : noise(bytes)
  files.push({ profile, content: kind, bytes, cid: await root([{ content }], options) })
}

const small = (chunk, width) => ({
  profile: 'unixfs-v1-2025', chunker: fixedSize({ chunkSize: chunk }), layout: balanced({ maxChildrenPerNode: width })
})
for (const profile of ['unixfs-v1-2025', 'unixfs-v0-2015']) {
  const [chunk, width] = profile === 'unixfs-v1-2025' ? [MIB, 1024] : [256 * KIB, 174]
  const full = chunk * width
  for (const bytes of [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk]) await file(profile, { profile }, 'noise', bytes)
  for (const bytes of [full - 1, full, full + 1]) await file(profile, { profile }, 'zeros', bytes)
}
// As long with small chunks: 4,096 leaves on three levels.
await file('unixfs-v0-2015', { profile: 'unixfs-v0-2015' }, 'zeros', 1024 * MIB)
// Raw leaves in the old sizes, as many tools write today.
const raw174 = { cidVersion: 1, rawLeaves: true, ...small(256 * KIB, 174) }
for (const bytes of [256 * KIB + 1, 5 * MIB]) await file('raw-256k-174', raw174, 'noise', bytes)
// Small numbers reach many levels: 10 bytes a leaf, 3 links a node.
for (const bytes of [29, 30, 31, 89, 90, 91, 270, 271, 2430, 2431]) await file('raw-10-3', small(10, 3), 'noise', bytes)

const directories = []
async function directory (name, profile, candidates) {
  directories.push({ name, profile, cid: await root(candidates, { profile }) })
}
const bytesOf = (text) => new TextEncoder().encode(text)
for (const profile of ['unixfs-v1-2025', 'unixfs-v0-2015']) {
  await directory('empty', profile, [{ path: 'd' }])
  await directory('one', profile, [{ path: 'd/hello.txt', content: bytesOf('hello\n') }])
  // Sorted by bytes, not letters: B before a, ä last.
  await directory('nested', profile, [
    { path: 'd/a', content: bytesOf('a') }, { path: 'd/B', content: bytesOf('b') },
    { path: 'd/ä.txt', content: bytesOf('umlaut') }, { path: 'd/sub/.hidden', content: bytesOf('') },
    { path: 'd/sub/deep/noise', content: noise(3 * MIB) }, { path: 'd/sub/empty' }
  ])
  const files = (count) => Array.from({ length: count }, (_, i) => ({ path: `d/file-${i}`, content: bytesOf(`${i}`) }))
  await directory('thousand', profile, files(1000))
  await directory('ten-thousand', profile, files(10000))
  // Names of 200 digits: the last directory that is one block, one whose measure is the threshold itself, the first shard.
  const long = (count, below = 'd') => Array.from({ length: count }, (_, i) => (
    { path: `${below}/${String(i).padStart(200, '0')}`, content: bytesOf('x') }))
  const [last, exact, pair] = profile === 'unixfs-v1-2025' ? [1065, 1064, 152] : [1120, 1119, 115]
  await directory('last-flat', profile, long(last))
  await directory('exact', profile, [...long(exact), ...['y', 'z'].map((c) => ({ path: `d/${c.repeat(pair)}`, content: bytesOf('x') }))])
  await directory('first-sharded', profile, long(last + 1))
  await directory('shard-in-shard', profile, [...long(1200), ...long(1300, 'd/sub'), { path: 'd/ä', content: bytesOf('umlaut') }])
}
console.log(JSON.stringify({ files, directories }, null, 1))
