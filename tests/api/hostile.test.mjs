// Requests as no client should send them: each gets a correct error at a bounded cost, and the next request is served.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { call, credentials, raw, sign, start } from './server.mjs'

let server
before(async () => (server = await start()))
after(() => server.stop())

const status = (answer) => Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1])
const host = () => new URL(server.api).host
const alive = async () => assert.equal((await fetch(server.api + '/_stasis/health')).status, 200)
function head(method, target, extra = {}, o = {}) {
  const headers = sign({ method, url: server.api + target, ...o })
  return `${method} ${target} HTTP/1.1\r\n${Object.entries({ ...headers, ...extra }).map(([k, v]) => `${k}: ${v}\r\n`).join('')}\r\n`
}

test('signatures that do not hold', async () => {
  const cases = [
    [{}, 403, 'MissingAuthenticationTokenException', () => fetch(server.api + '/2025-09-09/microvms')],
    [{ key: { ...credentials, secretAccessKey: 'x' } }, 403, 'InvalidSignatureException'],
    [{ key: { ...credentials, accessKeyId: 'AKIDUNKNOWN' } }, 403, 'UnrecognizedClientException'],
    [{ date: new Date(Date.now() - 301e3) }, 403, 'InvalidSignatureException'],
    [{ date: new Date(Date.now() + 310e3) }, 403, 'InvalidSignatureException'],
    [{ service: 's3' }, 403, 'InvalidSignatureException'],
  ]
  for (const [o, code, name, other] of cases) {
    const r = other ? await other() : await call(server, 'GET', '/2025-09-09/microvms', o)
    assert.equal(r.status, code)
    assert.equal(r.headers.get('x-amzn-errortype'), name)
  }
  const good = await call(server, 'GET', '/2025-09-09/microvms', { date: new Date(Date.now() - 290e3) })
  assert.equal(good.status, 200)
  const client = server.client({ credentials: { ...credentials, secretAccessKey: 'wrong' } })
  await assert.rejects(client.send(new api.ListMicrovmsCommand({})), (e) => {
    assert.equal(e.name, 'InvalidSignatureException')
    assert.match(e.message, /^The request signature we calculated does not match the signature you provided\./)
    return true
  })
})

test('the body must be the signed one', async () => {
  const url = server.api + '/2025-09-09/microvms'
  for (const extra of [{}, { 'x-amz-content-sha256': 'UNSIGNED-PAYLOAD' }]) {
    const headers = sign({ method: 'POST', url, body: '{}', headers: extra, payload: extra['x-amz-content-sha256'] })
    delete headers.host
    const r = await fetch(url, { method: 'POST', headers, body: '{"x":1}' })
    assert.equal(r.status, 403)
    assert.equal(r.headers.get('x-amzn-errortype'), 'InvalidSignatureException')
  }
})

test('JSON that is none, or is odd', async () => {
  const post = (body) => call(server, 'POST', '/2025-09-09/microvms', { body })
  const deep = '['.repeat(100000)
  for (const body of ['{', '[]', '1', 'null', '"x"', '{"a":1,"a":2}', '{"imageIdentifier":"\\u0000"}', '{"a":\xff}', '{} x', deep, '{"a":' + deep, '{"a":1e999}',
    '{"a":"\ud800"}', '{"maximumDurationInSeconds":99999999999999999999}']) {
    const r = await post(Buffer.from(body, 'latin1'))
    assert.equal(r.status, 400, body.slice(0, 40))
    assert.equal(r.errorType, 'SerializationException', body.slice(0, 40))
  }
  for (const [body, message] of [
    ['{"imageIdentifier":1}', 'NUMBER_VALUE can not be converted to a String'],
    ['{"imageIdentifier":{}}', 'Start of structure or map found where not expected.'],
    ['{"maximumDurationInSeconds":"1"}', 'STRING_VALUE can not be converted to an Integer'],
    ['{"maximumDurationInSeconds":1.5}', 'DECIMAL_VALUE can not be converted to an Integer'],
    ['{"ingressNetworkConnectors":"x"}', 'Expected list or null'],
    ['{"idlePolicy":{"autoResumeEnabled":"yes"}}', 'STRING_VALUE can not be converted to a Boolean'],
  ]) {
    const r = await post(body)
    assert.equal(r.json.message, message)
    assert.equal(r.errorType, 'SerializationException')
  }
  const many = await post(JSON.stringify({ imageIdentifier: 'arn:x', ingressNetworkConnectors: Array(10000).fill('') }))
  assert.equal(many.status, 400)
  assert.ok(many.text.length < 40000)
})

test('heads that are malformed, too large, or unlike each other', async () => {
  const cases = [
    ['GARBAGE\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n', 400],
    ['GET / HTTP/2.0\r\nHost: a\r\n\r\n', 505],
    ['GET / HTTP/1.1\r\nHost : a\r\n\r\n', 400],
    ['GET / HTTP/1.1\nHost: a\n\n', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', 400],
    [`GET /${'a'.repeat(40000)} HTTP/1.1\r\nHost: a\r\n\r\n`, 431],
    [`GET / HTTP/1.1\r\nHost: a\r\n${'X: y\r\n'.repeat(200)}\r\n`, 431],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n', 413],
    [`POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n${'10000\r\n' + 'x'.repeat(65536) + '\r\n'}`.repeat(1) + ('10000\r\n' + 'x'.repeat(65536) + '\r\n').repeat(16), 413],
  ]
  for (const url of [server.api, server.artifacts])
    for (const [bytes, code] of cases) {
      if (url === server.artifacts && (code === 413 || /\nzz\r\n/.test(bytes))) continue // streamed: the signature is refused first
      const answer = await raw(url, bytes)
      assert.equal(status(answer), code, bytes.slice(0, 60))
    }
  await alive()
})

test('headers that contradict each other', async () => {
  const target = '/2025-09-09/microvms', good = head('GET', target)
  const twice = (name) => good.replace(new RegExp(`(${name}: [^\\r]*\\r\\n)`, 'i'), '$1$1')
  for (const [bytes, code] of [
    [twice('authorization'), 403],
    [twice('x-amz-date'), 403],
    [good.replace('\r\n\r\n', '\r\nx-amz-extra: unsigned\r\n\r\n'), 403],
    [good.replace('GET', 'POST').replace('\r\n\r\n', '\r\ncontent-length: 0\r\n\r\n'), 403],
    [good.replace(target, target + '?maxResults=1'), 403],
    [good.replace(target, '/2025-09-09//microvms'), 404], // signs alike, and is no operation
    [good.replace('\r\n\r\n', '\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello'), 400],
    [good.replace('\r\n\r\n', '\r\ntransfer-encoding: identity\r\n\r\n'), 400],
    [good.replace('HTTP/1.1', 'HTTP/1.0').replace('\r\n\r\n', '\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'), 400],
  ]) assert.equal(status(await raw(server.api, bytes, { until: /\}$/ })), code, bytes.slice(0, 200))
  await alive()
})

test('half a body, and one that comes slowly, cost a connection and no more', async () => {
  const net = await import('node:net')
  const port = Number(new URL(server.api).port)
  const half = Array.from({ length: 100 }, () => {
    const s = net.connect(port, '127.0.0.1')
    s.on('error', () => {})
    s.write('POST /2025-09-09/microvms HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{')
    return s
  })
  const body = '{}', slow = head('POST', '/2025-09-09/microvms', { 'content-length': body.length }, { body })
  const answer = await raw(server.api, [slow, '{', '}'], { pause: 500, until: /\}$/ })
  assert.equal(status(answer), 400)
  const started = Date.now()
  for (let i = 0; i < 20; i++) await alive()
  assert.ok(Date.now() - started < 2000)
  for (const s of half) s.destroy()
})

test('a pipeline of a thousand is answered whole, and one that is not read is let go', async () => {
  const one = 'GET /_stasis/health HTTP/1.1\r\nHost: a\r\n\r\n'
  const answer = await raw(server.api, one.repeat(999) + one.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n'), { timeout: 60000 })
  assert.equal(answer.match(/HTTP\/1\.1 200/g).length, 1000)
  const net = await import('node:net')
  const deaf = net.connect(Number(new URL(server.api).port), '127.0.0.1')
  deaf.on('error', () => {})
  deaf.pause()
  for (let i = 0; i < 200; i++) deaf.write(one.repeat(100))
  await new Promise((r) => setTimeout(r, 1000))
  await alive()
  const rss = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))[1])
  assert.ok(rss < 600000, `${rss} KiB`) // sanitizers included
  deaf.destroy()
})

test('paths and queries that are odd', async () => {
  for (const [target, code] of [
    ['/2025-09-09/microvms/%00', 400],
    ['/2025-09-09/microvms/%zz', 400],
    ['/2025-09-09/microvms?maxResults=0', 400],
    ['/2025-09-09/microvms?maxResults=99999999999999999999', 400],
    ['/2025-09-09/microvms/' + 'a'.repeat(20000), 400],
    ['/' + '/'.repeat(1000), 404],
    ['/2025-09-09/microvms/..%2f..%2fx', 404],
  ]) {
    const r = await raw(server.api, head('GET', target), { until: /\}$/ })
    assert.ok([code, 403].includes(status(r)), `${target.slice(0, 60)}: ${r.slice(0, 300)}`)
    assert.match(r, /x-amzn-errortype: /)
  }
})

test('pipelined requests are answered in order', async () => {
  const answer = await raw(server.api, 'GET /_stasis/health HTTP/1.1\r\nHost: a\r\n\r\n'.repeat(20) + 'GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
  assert.deepEqual([...answer.matchAll(/HTTP\/1\.1 (\d+)/g)].map((m) => m[1]), [...Array(20).fill('200'), '403'])
})

test('a request that comes byte by byte', async () => {
  const bytes = head('GET', '/2025-09-09/microvms')
  const answer = await raw(server.api, [...bytes], { pause: 1, until: /nextToken/ })
  assert.equal(status(answer), 200)
})

test('Expect: 100-continue, HEAD, HTTP/1.0', async () => {
  const body = JSON.stringify({ imageIdentifier: 'x' })
  const answer = await raw(server.api, head('POST', '/2025-09-09/microvms', { expect: '100-continue', 'content-length': body.length }, { body }), { until: /100 Continue\r\n\r\n/ })
  assert.ok(answer.startsWith('HTTP/1.1 100 Continue'))
  const old = await raw(server.api, `GET /_stasis/health HTTP/1.0\r\n\r\n`)
  assert.equal(status(old), 200)
  const h = await raw(server.api, `HEAD /_stasis/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
  assert.match(h, /content-length: [1-9]/)
  assert.ok(h.endsWith('\r\n\r\n'))
})

test('a client that half-closes still gets its answer; one that leaves costs nothing', async () => {
  const net = await import('node:net')
  const got = await new Promise((resolve) => {
    const s = net.connect({ port: new URL(server.api).port, host: '127.0.0.1', allowHalfOpen: true })
    let text = ''
    s.on('data', (d) => (text += d))
    s.on('end', () => (s.destroy(), resolve(text)))
    s.end('GET /_stasis/health HTTP/1.1\r\nHost: a\r\n\r\n')
  })
  assert.equal(status(got), 200)
  for (let i = 0; i < 50; i++) {
    const s = net.connect(new URL(server.artifacts).port, '127.0.0.1')
    s.on('error', () => {})
    s.write(`PUT /things/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc`, () => s.destroy())
  }
  await alive()
})

test('slow clients are let go after their time', async () => {
  const started = Date.now()
  const [one, two] = await Promise.all([
    raw(server.api, 'GET / HTTP/1.1\r\nHost: a\r\n', { timeout: 30000 }),
    raw(server.api, '', { timeout: 30000 }),
  ])
  assert.equal(one + two, '')
  assert.ok(Date.now() - started > 8000 && Date.now() - started < 15000)
})

test('no more connections than allowed, and the open ones go on', async () => {
  const net = await import('node:net')
  const port = Number(new URL(server.artifacts).port)
  const sockets = []
  for (let i = 0; i < 300; i++) {
    const s = net.connect(port, '127.0.0.1')
    s.on('error', () => {})
    sockets.push(s)
  }
  await new Promise((r) => setTimeout(r, 500))
  const closed = sockets.filter((s) => s.destroyed || s.readableEnded || s.closed).length
  for (const s of sockets) s.destroy()
  assert.ok(closed >= 44, String(closed))
  await new Promise((r) => setTimeout(r, 300))
  assert.equal((await fetch(server.artifacts + '/')).status, 403)
})

test('1000 requests by 50 clients at once, and memory stays where it was', async () => {
  const client = server.client()
  await Promise.all(Array.from({ length: 50 }, async () => {
    for (let i = 0; i < 20; i++) await client.send(new api.ListMicrovmsCommand({}))
  }))
  const threads = Number(/Threads:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))[1])
  assert.ok(threads < 200, String(threads))
})
