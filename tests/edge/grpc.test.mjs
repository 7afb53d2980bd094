// gRPC with @grpc/grpc-js on both ends, and other servers of HTTP/2 without TLS (X-aws-proxy-force-h2).
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import http from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import { after, before, test } from 'node:test'
import grpc from '@grpc/grpc-js'
import { examples } from '../docs.mjs'
import { RUNNING, SUSPENDED, ask, listen, start, until } from './host.mjs'

const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const method = (path, requestStream, responseStream) => ({
  path, requestStream, responseStream,
  requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b,
})
const service = {
  unary: method('/test.Echo/Unary', false, false),
  serverStream: method('/test.Echo/ServerStream', false, true),
  clientStream: method('/test.Echo/ClientStream', true, false),
  both: method('/test.Echo/Both', true, true),
}
let edge, server, cancelled = 0

const implementation = {
  unary(call, done) {
    const trailers = new grpc.Metadata()
    trailers.set('x-size', String(call.request.length))
    if (call.metadata.get('x-fail').length > 0) done({ code: grpc.status.RESOURCE_EXHAUSTED, details: 'not today: ü' })
    else if (call.metadata.get('x-hang').length > 0) call.on('cancelled', () => cancelled++)
    else done(null, call.request, trailers)
  },
  serverStream(call) {
    for (let i = 0; i < 50; i++) call.write(Buffer.from(`${call.request} ${i}`))
    call.end()
  },
  clientStream(call, done) {
    const hash = createHash('sha256')
    call.on('data', (d) => hash.update(d))
    call.on('end', () => done(null, Buffer.from(hash.digest('hex'))))
  },
  both(call) {
    const ms = Number(call.metadata.get('x-slow')[0] ?? 0)
    call.on('data', (d) => setTimeout(() => call.write(d), ms))
    call.on('end', () => setTimeout(() => call.end(), ms))
    call.on('error', () => {})
  },
}

before(async () => {
  server = new grpc.Server()
  server.addService(service, implementation)
  const port = await new Promise((resolve, reject) => server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (e, p) => (e ? reject(e) : resolve(p))))
  edge = await start(port)
})
after(async () => {
  await edge?.stop()
  server.forceShutdown()
})

const Client = grpc.makeGenericClientConstructor(service, 'Echo')
const connect = (e = RUNNING) =>
  new Client(`127.0.0.1:${edge.port}`, grpc.credentials.createSsl(edge.ca), {
    'grpc.ssl_target_name_override': edge.name(e), 'grpc.default_authority': edge.authority(e), 'grpc.enable_retries': 0,
  })
const metadata = (more = {}, e = RUNNING) => {
  const m = new grpc.Metadata()
  for (const [k, v] of Object.entries({ 'x-aws-proxy-auth': edge.token(e), 'x-aws-proxy-force-h2': 'true', ...more })) m.set(k, v)
  return m
}
const unary = (client, data, m = metadata()) =>
  new Promise((resolve, reject) => {
    let trailers
    const call = client.unary(data, m, (e, reply) => (e ? reject(e) : setImmediate(() => resolve({ reply, trailers }))))
    call.on('status', (s) => (trailers = s.metadata))
  })
const all = async (stream) => {
  const got = []
  for await (const d of stream) got.push(d)
  return got
}

test('all four kinds of calls, with trailers', async () => {
  const client = connect()
  for (const size of [0, 1, 20000, 1_000_000]) {
    const data = randomBytes(size)
    const { reply, trailers } = await unary(client, data)
    assert.ok(data.equals(reply), `${size} bytes`)
    assert.deepEqual(trailers.get('x-size'), [String(size)])
  }
  const stream = await all(client.serverStream(Buffer.from('n'), metadata()))
  assert.deepEqual(stream.map(String), Array.from({ length: 50 }, (_, i) => `n ${i}`))
  const parts = Array.from({ length: 40 }, () => randomBytes(30000))
  const sum = await new Promise((resolve, reject) => {
    const call = client.clientStream(metadata(), (e, r) => (e ? reject(e) : resolve(String(r))))
    for (const p of parts) call.write(p)
    call.end()
  })
  assert.equal(sum, sha256(Buffer.concat(parts)))
  // One at a time: an answer must come before the next message goes.
  const both = client.both(metadata())
  for (let i = 0; i < 20; i++) {
    both.write(Buffer.from(`ping ${i}`))
    const [back] = await new Promise((resolve) => both.once('data', (d) => resolve([d])))
    assert.equal(String(back), `ping ${i}`)
  }
  both.end()
  await all(both)
  client.close()
})

test('100 calls at once, also to a microVM that sleeps', async () => {
  for (const e of [RUNNING, SUSPENDED]) {
    const client = connect(e)
    const replies = await Promise.all(Array.from({ length: 100 }, (_, i) => unary(client, Buffer.from(`call ${i}`), metadata({}, e))))
    replies.forEach((r, i) => assert.equal(String(r.reply), `call ${i}`))
    client.close()
  }
})

test('an error of the application arrives as it is; an unknown method too', async () => {
  const client = connect()
  await assert.rejects(unary(client, Buffer.alloc(0), metadata({ 'x-fail': '1' })), { code: grpc.status.RESOURCE_EXHAUSTED, details: 'not today: ü' })
  const Other = grpc.makeGenericClientConstructor({ none: method('/test.Echo/None', false, false) }, 'Other')
  const other = new Other(`127.0.0.1:${edge.port}`, grpc.credentials.createSsl(edge.ca), { 'grpc.ssl_target_name_override': edge.name(), 'grpc.default_authority': edge.authority() })
  await assert.rejects(new Promise((resolve, reject) => other.none(Buffer.alloc(0), metadata(), (e, r) => (e ? reject(e) : resolve(r)))), { code: grpc.status.UNIMPLEMENTED })
  await assert.rejects(unary(client, Buffer.alloc(0), metadata({ 'x-aws-proxy-auth': 'nonsense' })), { code: grpc.status.PERMISSION_DENIED })
  client.close()
  other.close()
})

test('a cancelled call is cancelled for the application', async () => {
  const client = connect()
  const call = client.unary(Buffer.alloc(0), metadata({ 'x-hang': '1' }), () => {})
  await new Promise((r) => setTimeout(r, 200))
  call.cancel()
  await until(() => cancelled === 1, 'the application saw it')
  client.close()
})

test('other servers of HTTP/2: bodies, HEAD, trailers, early ends; clients of either version', async () => {
  const app = http2.createServer((q, r) => {
    if (q.url === '/early') {
      r.writeHead(413).end('much')
      return
    }
    if (q.url === '/cut') {
      r.writeHead(200)
      r.write('part')
      setTimeout(() => r.stream.close(2), 50)
      return
    }
    const hash = createHash('sha256')
    q.on('data', (d) => hash.update(d))
    q.on('end', () => {
      if (q.url === '/204') return r.writeHead(204).end()
      r.writeHead(200, { 'x-version': q.httpVersion, 'x-te': q.headers.te ?? '', 'x-authority': q.authority })
      r.addTrailers({ 'x-sum': '7' })
      r.end(q.method === 'HEAD' ? undefined : hash.digest('hex'))
    })
  })
  const port = await listen(app)
  const client = edge.h2()
  const headers = { 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-force-h2': 'true', 'x-aws-proxy-port': port }
  for (const size of [0, 70000, 2_000_000]) {
    const body = randomBytes(size)
    const r = await ask(client, { ':path': '/', ...headers }, { body })
    assert.deepEqual([r.status, String(r.body), r.headers['x-version'], r.headers['x-authority'], r.trailers?.['x-sum']], [200, sha256(body), '2.0', edge.authority(), '7'])
  }
  assert.equal((await ask(client, { ':path': '/', ':method': 'HEAD', ...headers })).status, 200)
  assert.equal((await ask(client, { ':path': '/204', ...headers })).status, 204)
  const early = await ask(client, { ':path': '/early', ...headers }, { write: (s) => s.write('some') })
  assert.deepEqual([early.status, String(early.body), early.code], [413, 'much', 0])
  const cut = await ask(client, { ':path': '/cut', ...headers })
  assert.ok(cut.code !== 0)
  // HTTP/1.1 outside, HTTP/2 inside.
  const r = await new Promise((resolve, reject) => {
    const q = https.request({ host: '127.0.0.1', port: edge.port, ca: edge.ca, servername: edge.name(), method: 'POST', path: '/', headers: { host: edge.authority(), ...headers } }, (res) => {
      const parts = []
      res.on('data', (d) => parts.push(d))
      res.on('end', () => resolve([res.statusCode, String(Buffer.concat(parts)), res.trailers['x-sum']]))
    })
    q.on('error', reject)
    q.end('abc')
  })
  assert.deepEqual(r, [200, sha256('abc'), '7'])
  client.destroy()
  app.close()
})

test('an application that speaks HTTP/1.1 only: 502', async () => {
  const app = http.createServer((q, r) => r.end('one'))
  const port = await listen(app)
  const client = edge.h2()
  const r = await ask(client, { ':path': '/', 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-force-h2': 'true', 'x-aws-proxy-port': port })
  assert.deepEqual([r.status, r.body.length], [502, 0])
  client.destroy()
  app.closeAllConnections()
  app.close()
})

test('who waits for an answer wakes the microVM that was suspended meanwhile', async () => {
  // The server takes note of what it got at once (WINDOW_UPDATE), and answers later.
  const client = connect()
  const call = client.both(metadata({ 'x-slow': '400' }))
  for (const asleep of [false, true]) {
    const data = randomBytes(200_000)
    call.write(data)
    await new Promise((r) => setTimeout(r, 150))
    if (asleep) await edge.sleep()
    const [back] = await once(call, 'data')
    assert.ok(data.equals(back))
  }
  call.end()
  call.resume()
  await once(call, 'end')
  client.close()
})

test('the example of docs/endpoint.md', async () => {
  const example = examples('endpoint.md').find((b) => b.startsWith('const client = new Client('))
  class Named extends Client {
    constructor(name, credentials) {
      super(`127.0.0.1:${edge.port}`, credentials, { 'grpc.ssl_target_name_override': name.split(':')[0], 'grpc.default_authority': name })
    }
  }
  const m = new grpc.Metadata()
  const run = new Function('Client', 'grpc', 'ca', 'token', 'metadata', `${example.replace('<endpoint>', edge.authority())}\nreturn client`)
  const client = run(Named, grpc, edge.ca, edge.token(), m)
  assert.equal(String((await unary(client, Buffer.from('hello'), m)).reply), 'hello')
  client.close()
})
