// What one microVM's clients may have of the edge, and what those may have of it who show no token.
import assert from 'node:assert/strict'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import { after, before, test } from 'node:test'
import { readFileSync } from 'node:fs'
import WebSocket, { WebSocketServer } from 'ws'
import { RUNNING, SUSPENDED, ask, listen, loopback, start } from './host.mjs'

let server, port, waiting = []
const application = http.createServer((q, r) => {
  if (q.url === '/wait') waiting.push(r)
  else if (q.url === '/big') r.end(Buffer.alloc(1_000_000, 'x'))
  else q.resume().on('end', () => r.end('ok'))
})
before(async () => {
  new WebSocketServer({ server: application }).on('connection', (s) => s.on('message', (m) => s.send(m)))
  server = await listen(application)
  port = application.address().port
})
after(() => application.close())

const sleep = (ms) => new Promise((r) => setTimeout(r, ms))
// One request of HTTP/1.1 on a connection of its own.
const get = (edge, path, { e = RUNNING, body, agent } = {}) =>
  new Promise((resolve, reject) => {
    const q = https.request({ host: '127.0.0.1', port: edge.port, ca: edge.ca, servername: edge.name(e), path, method: body ? 'POST' : 'GET', agent: agent ?? false,
      headers: { host: edge.authority(e), 'x-aws-proxy-auth': edge.token(e) } }, (r) => {
      const chunks = []
      r.on('data', (d) => chunks.push(d)).on('end', () => resolve({ status: r.statusCode, headers: r.headers, body: Buffer.concat(chunks) })).on('error', reject)
    })
    q.on('error', reject)
    q.end(body)
  })
async function until(what) {
  for (let i = 0; i < 500 && !what(); i++) await sleep(10)
  assert.ok(what())
}
const release = () => waiting.splice(0).forEach((r) => r.end('waited'))

test('connections: as many requests and tunnels at once as the size allows, whatever protocol; 429 beyond', async () => {
  const edge = await start(port, { configuration: { connectionsPerVcpu: 2 } }) // of two processors
  try {
    const client = edge.h2()
    const held = [get(edge, '/wait'), get(edge, '/wait'), ask(client, { ':path': '/wait', 'x-aws-proxy-auth': edge.token() })]
    await until(() => waiting.length === 3)
    const socket = new WebSocket(`wss://${edge.authority()}/`, ['lambda-microvms', `lambda-microvms.authentication.${edge.token()}`], { ca: edge.ca, lookup: loopback })
    await new Promise((resolve, reject) => socket.on('open', resolve).on('error', reject))
    const refused = await get(edge, '/')
    assert.equal(refused.status, 429)
    assert.equal(refused.body.toString(), 'Too many connections')
    assert.equal(refused.headers['retry-after'], '1')
    const also = await ask(client, { ':path': '/', 'x-aws-proxy-auth': edge.token() })
    assert.deepEqual([also.status, also.headers['retry-after']], [429, '1'])
    // Another microVM has its own share; without a token there is nothing to learn.
    assert.equal((await get(edge, '/', { e: SUSPENDED })).status, 200)
    release()
    for (const r of await Promise.all(held)) assert.equal(r.status, 200)
    socket.close()
    await new Promise((r) => socket.on('close', r))
    for (let i = 0; i < 8; i++) assert.equal((await get(edge, '/')).status, 200)
    client.close()
  } finally {
    await edge.stop()
  }
})

test('rate: so many requests in a second; 429 beyond, and again as time passes', async () => {
  const edge = await start(port, { configuration: { requestsPerSecondPerVcpu: 10 } })
  const agent = new https.Agent({ keepAlive: true })
  try {
    const statuses = []
    const started = Date.now()
    for (let i = 0; i < 60; i++) statuses.push((await get(edge, '/', { agent })).status)
    const good = statuses.filter((s) => s === 200).length, seconds = (Date.now() - started) / 1000
    assert.ok(good >= 20 && good <= 21 + seconds * 20, `${good} of 60 in ${seconds} s`)
    assert.equal(statuses.filter((s) => s === 429).length, 60 - good)
    await sleep(500)
    for (let i = 0; i < 9; i++) assert.equal((await get(edge, '/', { agent })).status, 200)
  } finally {
    agent.destroy()
    await edge.stop()
  }
})

test('bytes: both ways they wait, nothing is lost, and small requests are not kept from passing', async () => {
  const edge = await start(port, { configuration: { bytesPerSecondPerVcpu: 500_000 } })
  try {
    for (const transfer of [() => get(edge, '/big'), () => get(edge, '/', { body: Buffer.alloc(1_000_000, 'y') })]) {
      const started = Date.now()
      const r = await transfer()
      const seconds = (Date.now() - started) / 1000
      assert.equal(r.status, 200)
      assert.ok(r.body.length === 1_000_000 || r.body.toString() === 'ok')
      assert.ok(seconds > 0.7 && seconds < 3, `${seconds} s for a megabyte at a megabyte a second`)
    }
    const client = edge.h2()
    const started = Date.now()
    const all = await Promise.all([1, 2].map(() => ask(client, { ':path': '/big', 'x-aws-proxy-auth': edge.token() })))
    assert.deepEqual(all.map((r) => r.body.length), [1_000_000, 1_000_000])
    assert.ok(Date.now() - started > 1500)
    client.close()
    // Somebody who leaves in the midst of it, and the edge's end while another waits.
    const q = https.request({ host: '127.0.0.1', port: edge.port, ca: edge.ca, servername: edge.name(RUNNING), path: '/big', headers: { host: edge.authority(), 'x-aws-proxy-auth': edge.token() } }, (r) => setTimeout(() => q.destroy(), 100))
    q.on('error', () => {}).end()
    await sleep(300)
    const last = get(edge, '/big').catch(() => 'cut')
    await sleep(100)
    await edge.stop()
    assert.equal(await last, 'cut')
  } finally {
    await edge.stop()
  }
})

const memory = (pid) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1])

test('strangers who fill the edge make way for those who come after them', { timeout: 120000 }, async () => {
  const edge = await start(port)
  const strangers = []
  try {
    // Half of them do not even begin a handshake; the others have done one and say nothing.
    for (let i = 0; i < 4200; i++) {
      const s = net.connect(edge.port, '127.0.0.1')
      s.on('error', () => {})
      strangers.push(s)
      if (i % 200 === 199) await new Promise((r) => (s.readyState === 'open' ? r() : s.once('connect', r).once('error', r)))
    }
    const before = memory(edge.pid)
    for (let i = 0; i < 20; i++) assert.equal((await get(edge, '/')).status, 200)
    await until(() => strangers.filter((s) => s.closed).length >= 100)
    assert.ok(memory(edge.pid) - before < 20000, `${memory(edge.pid) - before} KiB more`)
  } finally {
    strangers.forEach((s) => s.destroy())
    await edge.stop()
  }
})

test('a head that never ends is refused in time, and costs its connection only', { timeout: 60000 }, async () => {
  const edge = await start(port)
  try {
    const slow = await edge.tls()
    let got = ''
    slow.on('data', (d) => (got += d)).on('error', () => {})
    const ended = new Promise((r) => slow.on('close', r))
    slow.write(`GET / HTTP/1.1\r\nHost: ${edge.authority()}\r\n`)
    const drip = setInterval(() => slow.writable && slow.write('X: y\r\n'), 500)
    const started = Date.now()
    assert.equal((await get(edge, '/')).status, 200)
    await ended
    clearInterval(drip)
    assert.match(got, /^HTTP\/1\.1 408 /)
    const seconds = (Date.now() - started) / 1000
    assert.ok(seconds > 25 && seconds < 40, `${seconds} s`)
  } finally {
    await edge.stop()
  }
})
