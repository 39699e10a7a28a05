// Reads a transaction as JSON and says whether arweave-js takes its signature.
const Arweave = require('arweave')
const arweave = Arweave.init({ host: '127.0.0.1', port: 1, protocol: 'http' })
let text = ''
process.stdin.on('data', (piece) => { text += piece }).on('end', async () => {
  const transaction = arweave.transactions.fromRaw(JSON.parse(text))
  console.log(await arweave.transactions.verify(transaction) ? 'valid' : 'not valid')
})
