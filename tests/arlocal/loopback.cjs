// Preloaded into arlocal: it listens on loopback only, and says which port it got.
const net = require('node:net')
const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (port, ...rest) {
  const callback = rest.find((argument) => typeof argument === 'function')
  return listen.call(this, { port: Number(port), host: '127.0.0.1' }, () => {
    console.log(`listening on ${this.address().port}`)
    callback?.()
  })
}
