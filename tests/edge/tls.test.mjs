// Applications that speak TLS: HTTPS, gRPC and WebSockets behind a certificate of their own, asleep and awake.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import { after, before, test } from 'node:test'
import grpc from '@grpc/grpc-js'
import WebSocket, { WebSocketServer } from 'ws'
import { certificate } from '../certificate.mjs'
import { RUNNING, SUSPENDED, ask, listen, loopback, start, until } from './host.mjs'

const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const { key, cert } = certificate()

const application = (q, r) => {
  seen.push({ url: q.url, host: q.headers.host, server: q.socket.servername, protocol: q.socket.getProtocol?.(), connection: q.socket })
  if (q.url === '/echo') q.pipe(r)
  else if (q.url === '/sum') {
    const hash = createHash('sha256')
    q.on('data', (d) => hash.update(d))
    q.on('end', () => r.end(hash.digest('hex')))
  } else if (q.url.startsWith('/bytes/')) r.end(Buffer.alloc(Number(q.url.slice(7)), 'x'))
  else if (q.url === '/events') {
    r.writeHead(200, { 'content-type': 'text/event-stream' })
    let n = 0
    const timer = setInterval(() => r.write(`data: ${n++}\n\n`), 20)
    r.on('close', () => clearInterval(timer))
  } else if (q.url === '/until-close') q.socket.end('HTTP/1.1 200 OK\r\n\r\nall of it')
  else r.end(`${q.method} ${q.url}`)
}

let edge, client, modern, old, costly, long, plain, silent, rpc, sockets, ports, seen = []

before(async () => {
  modern = https.createServer({ key, cert, minVersion: 'TLSv1.3' }, application)
  old = https.createServer({ key, cert, maxVersion: 'TLSv1.2' }, application)
  // More than 4096 bits of key, and more than 16 KiB of certificate.
  costly = https.createServer(certificate({ key: 'rsa:4608' }), application)
  long = https.createServer(certificate({ comment: 'x'.repeat(20_000) }), application)
  plain = http.createServer(application)
  silent = net.createServer((s) => s.on('error', () => {}).end('SSH-2.0-something\r\n'))
  sockets = new WebSocketServer({ server: modern })
  sockets.on('connection', (s) => s.on('message', (data, binary) => s.send(data, { binary })).on('error', () => {}))
  rpc = new grpc.Server()
  const bytes = { requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b }
  rpc.addService({ echo: { path: '/test.Echo/Both', requestStream: true, responseStream: true, ...bytes } }, {
    echo(call) {
      call.on('data', (d) => call.write(d))
      call.on('end', () => call.end())
      call.on('error', () => {})
    },
  })
  ports = { modern: await listen(modern), old: await listen(old), costly: await listen(costly), long: await listen(long), plain: await listen(plain), silent: await listen(silent) }
  const credentials = grpc.ServerCredentials.createSsl(null, [{ private_key: Buffer.from(key), cert_chain: Buffer.from(cert) }])
  ports.rpc = await new Promise((resolve, reject) => rpc.bindAsync('127.0.0.1:0', credentials, (e, p) => (e ? reject(e) : resolve(p))))
  edge = await start(ports.modern, { wakeMs: 200, tls: [8080, ports.costly, ports.long, ports.old, ports.silent, ports.rpc, ports.plain] })
  client = edge.h2()
  await once(client, 'remoteSettings')
})
after(async () => {
  client?.destroy()
  await edge?.stop()
  for (const s of sockets.clients) s.terminate()
  for (const s of [modern, old, costly, long, plain]) {
    s.closeAllConnections()
    s.close()
  }
  silent.close()
  rpc.forceShutdown()
})

const get = (url, o = {}, headers = {}) => ask(client, { ':path': url, 'x-aws-proxy-auth': edge.token(), ...headers }, o)
const at = (port) => ({ 'x-aws-proxy-port': String(port) })
const reason = (why) => until(() => edge.log().includes(why), `the log says "${why}": ${edge.log().slice(-1500)}`, 3000)

test('TLS 1.3 and 1.2 inside; bodies both ways; the connection is kept for the next request', async () => {
  for (const [port, protocol] of [[8080, 'TLSv1.3'], [ports.old, 'TLSv1.2']]) {
    seen = []
    const r = await get('/hello?a=1', {}, at(port))
    assert.equal(r.status, 200)
    assert.equal(String(r.body), 'GET /hello?a=1')
    assert.equal(seen[0].protocol, protocol)
    assert.equal(seen[0].server, 'localhost')
    assert.equal(seen[0].host, edge.authority())
    for (const size of [0, 1, 16383, 16384, 16385, 5_000_000]) {
      const data = randomBytes(size)
      const echo = await get('/echo', { body: data }, at(port))
      assert.ok(data.equals(echo.body), `${size} bytes there and back`)
      const sum = await get('/sum', { body: data }, at(port))
      assert.equal(String(sum.body), sha256(data))
    }
    const down = await get('/bytes/20000000', {}, at(port))
    assert.equal(down.body.length, 20_000_000)
    assert.equal(new Set(seen.map((s) => s.connection)).size, 1, 'one connection for all')
    assert.equal(String((await get('/until-close', {}, at(port))).body), 'all of it')
  }
})

test('HTTP/1.1 clients, many at once', async () => {
  const one = (i) =>
    new Promise((resolve, reject) => {
      const q = https.request({ host: '127.0.0.1', port: edge.port, ca: edge.ca, servername: edge.name(), method: 'POST', path: '/echo',
        headers: { host: edge.authority(), 'x-aws-proxy-auth': edge.token(), 'transfer-encoding': 'chunked' } }, async (r) => {
        let body = ''
        for await (const d of r) body += d
        resolve([r.statusCode, body])
      })
      q.on('error', reject)
      q.end(`number ${i}`)
    })
  const all = await Promise.all(Array.from({ length: 100 }, (_, i) => one(i)))
  assert.deepEqual(all, Array.from({ length: 100 }, (_, i) => [200, `number ${i}`]))
})

test('gRPC over TLS: both directions at once, across a sleep', async () => {
  const Client = grpc.makeGenericClientConstructor({ echo: { path: '/test.Echo/Both', requestStream: true, responseStream: true, requestSerialize: (b) => b, responseDeserialize: (b) => b } }, 'Echo')
  const c = new Client(`127.0.0.1:${edge.port}`, grpc.credentials.createSsl(edge.ca), { 'grpc.ssl_target_name_override': edge.name(), 'grpc.default_authority': edge.authority() })
  const m = new grpc.Metadata()
  for (const [k, v] of Object.entries({ 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-force-h2': 'true', ...at(ports.rpc) })) m.set(k, v)
  const call = c.echo(m)
  for (let i = 0; i < 6; i++) {
    const data = randomBytes(50_000)
    call.write(data)
    const [back] = await once(call, 'data')
    assert.ok(data.equals(back))
    if (i === 2) await edge.sleep()
  }
  call.end()
  call.resume()
  await once(call, 'end')
  c.close()
})

test('a WebSocket and an event stream over TLS go on after a sleep', async () => {
  const s = new WebSocket(`wss://${edge.authority()}/chat`, [], { ca: edge.ca, headers: { 'x-aws-proxy-auth': edge.token() }, lookup: loopback })
  await once(s, 'open')
  const stream = client.request({ ':path': '/events', 'x-aws-proxy-auth': edge.token() })
  let text = ''
  stream.on('data', (d) => (text += d))
  const numbers = () => [...text.matchAll(/data: (\d+)\n/g)].map((n) => Number(n[1]))
  await until(() => numbers().length > 5, 'events')
  for (let round = 0; round < 4; round++) {
    await edge.sleep()
    const data = randomBytes(100_000)
    s.send(data)
    const [back] = await once(s, 'message')
    assert.ok(data.equals(back), `round ${round}`)
    const had = numbers().length
    await until(() => numbers().length > had + 3, 'more events')
  }
  assert.deepEqual(numbers(), numbers().map((_, i) => i), 'none lost, none twice')
  stream.close()
  s.terminate()
})

test('large bodies in flight as the microVM falls asleep arrive whole', async () => {
  const data = randomBytes(30_000_000)
  const other = edge.h2() // node refuses headers while so much waits in a session
  const upload = ask(other, { ':path': '/sum', 'x-aws-proxy-auth': edge.token() }, { body: data })
  const download = get('/bytes/30000000')
  for (let i = 0; i < 5; i++) {
    await new Promise((r) => setTimeout(r, 30))
    await edge.sleep()
  }
  assert.equal(String((await upload).body), sha256(data))
  assert.equal((await download).body.length, 30_000_000)
  other.close()
})

test('a request that comes while the microVM sleeps is answered when it wakes', async () => {
  await edge.sleep()
  const started = Date.now()
  const all = await Promise.all(Array.from({ length: 50 }, (_, i) => get(`/late/${i}`)))
  assert.ok(all.every((r, i) => r.status === 200 && String(r.body) === `GET /late/${i}`))
  assert.ok(Date.now() - started >= 190)
  const r = await ask(client, { ':path': '/suspended', ':authority': edge.authority(SUSPENDED), 'x-aws-proxy-auth': edge.token(SUSPENDED) })
  assert.equal(String(r.body), 'GET /suspended')
})

test('an application that does not speak TLS where its image says so: 502, and the log says why', async () => {
  for (const port of [ports.silent, ports.plain]) {
    const r = await get('/', {}, at(port))
    assert.equal(r.status, 502)
    await reason(`no TLS handshake at port ${port}, which STASIS_TLS of the image names`)
  }
})

test('a certificate that would cost the edge too much is refused', async () => {
  seen = []
  for (const port of [ports.costly, ports.long]) {
    assert.equal((await get('/', {}, at(port))).status, 502)
    await reason(`no TLS handshake at port ${port}`)
  }
  assert.equal(seen.length, 0)
})

test('an application that speaks TLS where its image does not say so: the log says what to do', async () => {
  // As GnuTLS, rustls and Java answer plain text; OpenSSL closes without a word.
  const hidden = net.createServer((s) => s.on('error', () => {}).once('data', () => s.end(Buffer.from('15030300020232', 'hex'))))
  const r = await get('/', {}, at(await listen(hidden)))
  assert.equal(r.status, 502)
  await reason('the application speaks TLS at this port: its image can say so with STASIS_TLS')
  hidden.close()
})
