// WebSockets with the `ws` library on both ends: over HTTP/1.1, and over HTTP/2 (RFC 8441) as browsers do it.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import http from 'node:http'
import { after, before, test } from 'node:test'
import WebSocket, { Receiver, Sender, WebSocketServer } from 'ws'
import { RUNNING, SUSPENDED, listen, loopback, start, until } from './host.mjs'

let edge, server, sockets, client, closed = 0
const handshakes = []

before(async () => {
  server = http.createServer((q, r) => r.end('no upgrade'))
  sockets = new WebSocketServer({ server, handleProtocols: (offered) => (offered.has('chat') ? 'chat' : false) })
  sockets.on('connection', (s, q) => {
    handshakes.push(q)
    s.on('message', (data, binary) => s.send(data, { binary }))
    s.on('close', () => closed++)
    s.on('error', () => {})
  })
  edge = await start(await listen(server))
  client = edge.h2()
  await once(client, 'remoteSettings')
})
after(async () => {
  client?.destroy()
  await edge?.stop()
  for (const s of sockets.clients) s.terminate()
  server.closeAllConnections()
  server.close()
})

const open = (protocols, headers = {}, e = RUNNING) =>
  new WebSocket(`wss://${edge.authority(e)}/chat`, protocols, { ca: edge.ca, headers, lookup: loopback })
const names = (e = RUNNING, ...more) => ['lambda-microvms', `lambda-microvms.authentication.${edge.token(e)}`, ...more]

test('HTTP/1.1: token by header or by subprotocols, messages both ways, a close with its code', async () => {
  for (const [protocols, headers, selected] of [
    [[], { 'x-aws-proxy-auth': edge.token() }, ''],
    [names(), {}, 'lambda-microvms'],
    [names(RUNNING, 'lambda-microvms.port.8080', 'chat'), {}, 'chat'],
  ]) {
    const s = open(protocols, headers)
    await once(s, 'open')
    assert.equal(s.protocol, selected)
    for (const size of [0, 1, 125, 126, 65535, 65536, 1_000_000]) {
      const data = randomBytes(size)
      s.send(data)
      const [back] = await once(s, 'message')
      assert.ok(data.equals(back), `${size} bytes`)
    }
    s.close(4321, 'enough')
    const [code, reason] = await once(s, 'close')
    assert.deepEqual([code, String(reason)], [4321, 'enough'])
  }
  for (const q of handshakes) assert.ok(!(q.headers['sec-websocket-protocol'] ?? '').includes('lambda'), 'the application sees only its own subprotocols')
})

test('HTTP/1.1: held while the microVM wakes; refused without a token', async () => {
  const s = open(names(SUSPENDED), {}, SUSPENDED)
  const started = Date.now()
  await once(s, 'open')
  assert.ok(Date.now() - started >= 300)
  s.terminate()
  const refused = open(['chat'])
  const [error] = await once(refused, 'error')
  assert.match(error.message, /403/)
})

// A WebSocket over a stream of HTTP/2: `ws` gives the frames, node the stream.
function overH2(headers) {
  const stream = client.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/chat', 'sec-websocket-version': '13', ...headers }, { endStream: false })
  const receiver = new Receiver({ isServer: false })
  stream.on('data', (d) => receiver.write(d))
  stream.on('error', () => {})
  receiver.on('error', () => {})
  return { stream, receiver, sender: new Sender(stream) }
}

test('HTTP/2: extended CONNECT opens one, and its frames pass both ways', async () => {
  assert.equal(client.remoteSettings.enableConnectProtocol, true)
  for (const [headers, selected] of [
    [{ 'x-aws-proxy-auth': edge.token() }, undefined],
    [{ 'sec-websocket-protocol': names().join(', ') }, 'lambda-microvms'],
    [{ 'sec-websocket-protocol': names(RUNNING, 'chat').join(', ') }, 'chat'],
  ]) {
    const before = closed
    const { stream, receiver, sender } = overH2(headers)
    const [response] = await once(stream, 'response')
    assert.equal(response[':status'], 200)
    assert.equal(response['sec-websocket-protocol'], selected)
    assert.equal(response['sec-websocket-accept'], undefined)
    assert.equal(response.upgrade, undefined)
    for (const size of [0, 1, 65536, 500_000]) {
      const data = randomBytes(size)
      sender.send(data, { fin: true, opcode: 2, binary: true, mask: true })
      const [back] = await once(receiver, 'message')
      assert.ok(data.equals(back), `${size} bytes`)
    }
    sender.close(1000, Buffer.from('bye'), true)
    const [code] = await once(receiver, 'conclude')
    assert.equal(code, 1000)
    stream.end()
    await once(stream, 'close')
    assert.equal(stream.rstCode, 0)
    await until(() => closed > before, 'the application saw the close')
  }
})

test('HTTP/2: what is no WebSocket in the end is an error, not an open tunnel', async () => {
  const refused = overH2({})
  const [response] = await once(refused.stream, 'response')
  assert.equal(response[':status'], 403)
  // An application that answers 200 to the handshake has not agreed.
  const plain = http.createServer((q, r) => r.end('page'))
  plain.on('upgrade', (q, s) => s.end('HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage'))
  const port = await listen(plain)
  const other = overH2({ 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-port': port })
  const [answer] = await once(other.stream, 'response')
  assert.equal(answer[':status'], 502)
  plain.close()
})

test('HTTP/2: a client that goes takes the application\'s end with it', async () => {
  const before = closed
  const { stream } = overH2({ 'x-aws-proxy-auth': edge.token() })
  await once(stream, 'response')
  stream.close(8)
  await until(() => closed > before, 'the application saw the end')
})
