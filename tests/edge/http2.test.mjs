// HTTP/2 with clients: node's (nghttp2), curl, nghttp, h2load, in front of an HTTP/1.1 application.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { ASLEEP, FAILED, RUNNING, SUSPENDED, ask, listen, start, until } from './host.mjs'

const run = promisify(execFile)
const sha256 = (data) => createHash('sha256').update(data).digest('hex')
let edge, server, client, seen = 0, smuggled = 0, swallowed = 0

const application = http.createServer((q, r) => {
  const url = q.url.split('?')[0]
  if (url !== '/silent') seen++
  if (q.url.includes('smuggled')) smuggled++
  if (url === '/echo') q.pipe(r)
  else if (url === '/sum') {
    const hash = createHash('sha256')
    q.on('data', (d) => hash.update(d))
    q.on('end', () => {
      r.setHeader('x-trailers', JSON.stringify(q.trailers))
      r.end(hash.digest('hex'))
    })
  } else if (url === '/trailers') {
    r.writeHead(200, { trailer: 'x-sum', 'X-Upper': 'a' })
    r.write('body')
    r.addTrailers({ 'X-Sum': '7', 'Set-Cookie': 'no=1' })
    r.end()
  } else if (url === '/204' || url === '/304') r.writeHead(Number(url.slice(1)), { etag: '"a"' }).end()
  else if (url === '/hints') {
    r.writeEarlyHints({ link: '</style.css>; rel=preload' })
    r.end('hinted')
  } else if (url === '/silent') setTimeout(() => r.end('spoke at last'), 33_000)
  else if (url === '/early') r.writeHead(413, { connection: 'close' }).end('too much')
  else if (url === '/events') {
    r.writeHead(200, { 'content-type': 'text/event-stream' })
    let n = 0
    const timer = setInterval(() => {
      r.write(`data: ${n++}\n\n`)
      if (n === 4) {
        clearInterval(timer)
        r.end()
      }
    }, 100)
  } else if (url === '/swallow') {
    q.pause() // never reads
    r.on('close', () => {})
  } else if (url === '/flood') {
    const block = Buffer.alloc(65536, 'x')
    const more = () => {
      while (!r.destroyed) {
        swallowed += block.length
        if (!r.write(block)) return
      }
    }
    r.on('drain', more)
    more()
  } else if (url === '/hang') q.socket.on('close', () => swallowed--)
  else if (url === '/cut') {
    r.writeHead(200, { 'content-length': 100 })
    r.write('part')
    setTimeout(() => q.socket.destroy(), 50)
  } else {
    let size = 0
    q.on('data', (d) => (size += d.length))
    q.on('end', () => {
      r.setHeader('content-type', 'application/json')
      r.end(JSON.stringify({ method: q.method, url: q.url, version: q.httpVersion, headers: q.headers, raw: q.rawHeaders, size }))
    })
  }
})
application.on('checkContinue', (q, r) => {
  if (q.url === '/early') r.writeHead(417, { connection: 'close' }).end()
  else {
    r.writeContinue()
    application.emit('request', q, r)
  }
})

before(async () => {
  server = await listen(application)
  edge = await start(server)
  client = edge.h2()
})
after(async () => {
  client?.destroy()
  await edge?.stop()
  application.closeAllConnections()
  application.close()
})

// A request that is complete says nothing about its client: the application may take its time. Asked for by the first test, looked at by the last.
let silent
const get = (p, headers = {}, o) => ask(client, { ':path': p, 'x-aws-proxy-auth': edge.token(), ...headers }, o)

test('who may not pass gets the service\'s answers', async () => {
  const patient = edge.h2()
  silent = ask(patient, { ':path': '/silent', 'x-aws-proxy-auth': edge.token() }).finally(() => patient.close())
  const before = seen
  const cases = [
    [{}, 403, 'Request missing authentication'],
    [{ 'x-aws-proxy-auth': 'nonsense' }, 403, 'Request missing authentication'],
    [{ 'x-aws-proxy-auth': edge.token(SUSPENDED) }, 403, 'Token authentication failed'],
    [{ 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-port': 'x' }, 400, 'Invalid port'],
    [{ 'x-aws-proxy-auth': edge.token(), 'x-aws-proxy-port': '1' }, 502, ''],
  ]
  for (const [headers, status, body] of cases) {
    const r = await ask(client, { ':path': '/', ...headers })
    assert.deepEqual([r.status, String(r.body)], [status, body])
    assert.equal(r.headers['content-length'], String(body.length))
  }
  for (const e of [ASLEEP, FAILED]) {
    const r = await ask(client, { ':path': '/', ':authority': edge.authority(e), 'x-aws-proxy-auth': edge.token(e) })
    assert.deepEqual([r.status, String(r.body)], [502, ''])
  }
  // An upload that is refused: the answer comes, and then the stream is over.
  const r = await ask(client, { ':path': '/sum' }, { write: (s) => s.write('some') })
  assert.deepEqual([r.status, r.code], [403, 0])
  assert.equal(seen, before)
})

test('the application sees an ordinary request of HTTP/1.1', async () => {
  const r = await get('/some/path?q=1', { 'X-Thing': 'a', cookie: 'a=b', 'x-aws-proxy-other': 'no', te: 'trailers', 'x-amzn-requestid': 'forged' })
  const got = JSON.parse(r.body)
  assert.deepEqual([got.method, got.url, got.version, got.headers.host, got.headers['x-thing']], ['GET', '/some/path?q=1', '1.1', edge.authority(), 'a'])
  assert.match(got.headers['x-amzn-requestid'], /^[0-9a-f-]{36}$/)
  for (const h of Object.keys(got.headers)) assert.ok(!h.startsWith('x-aws-proxy') && !['te', 'transfer-encoding', 'upgrade'].includes(h), h)
  // Cookies in pieces become one.
  const crumbs = await get('/x', { cookie: ['a=1', 'b=2', 'c=3'] })
  const cookies = JSON.parse(crumbs.body).raw.filter((v, i, a) => i % 2 === 1 && a[i - 1].toLowerCase() === 'cookie')
  assert.deepEqual(cookies, ['a=1; b=2; c=3'])
})

test('bodies pass unharmed both ways, many at once', async () => {
  await Promise.all([0, 1, 1000, 16384, 65535, 65536, 65537, 200_000, 3_000_000].map(async (size) => {
    const body = randomBytes(size)
    const length = await get('/sum', { 'content-length': size }, { body })
    assert.equal(String(length.body), sha256(body), `${size} bytes`)
    const back = await get('/echo', {}, { body })
    assert.equal(sha256(back.body), sha256(body), `${size} bytes back`)
  }))
  const all = await Promise.all(Array.from({ length: 300 }, (_, i) => get(`/n${i}`)))
  assert.ok(all.every((r, i) => r.status === 200 && JSON.parse(r.body).url === `/n${i}`))
})

test('trailers both ways, without those that may not be there', async () => {
  const down = await get('/trailers')
  assert.equal(String(down.body), 'body')
  assert.equal(down.headers['x-upper'], 'a')
  assert.equal(down.trailers['x-sum'], '7')
  assert.equal(down.trailers['set-cookie'], undefined)
  const up = await new Promise((resolve, reject) => {
    const s = client.request({ ':method': 'POST', ':path': '/sum', 'x-aws-proxy-auth': edge.token() }, { waitForTrailers: true })
    s.on('wantTrailers', () => s.sendTrailers({ 'x-check': '9', authorization: 'evil' }))
    s.on('response', (h) => resolve(JSON.parse(h['x-trailers'])))
    s.on('error', reject)
    s.resume()
    s.end('abc')
  })
  assert.deepEqual(up, { 'x-check': '9' })
})

test('HEAD, 204, 304, early hints, 100-continue', async () => {
  const head = await get('/', { ':method': 'HEAD' })
  assert.deepEqual([head.status, head.body.length], [200, 0])
  assert.equal((await get('/204')).status, 204)
  const notModified = await get('/304')
  assert.deepEqual([notModified.status, notModified.headers.etag], [304, '"a"'])
  const hints = await get('/hints')
  assert.equal(hints.interim[0][':status'], 103)
  assert.equal(String(hints.body), 'hinted')
  const go = await new Promise((resolve, reject) => {
    const s = client.request({ ':method': 'PUT', ':path': '/sum', expect: '100-continue', 'x-aws-proxy-auth': edge.token() }, { endStream: false })
    let continued = false
    s.on('continue', () => {
      continued = true
      s.end('later')
    })
    const parts = []
    s.on('data', (d) => parts.push(d))
    s.on('end', () => resolve([continued, String(Buffer.concat(parts))]))
    s.on('error', reject)
  })
  assert.deepEqual(go, [true, sha256('later')])
})

test('a response before the end of the request ends the stream, not the connection', async () => {
  const r = await get('/early', {}, { write: (s) => s.write(Buffer.alloc(10000)) })
  assert.deepEqual([r.status, String(r.body), r.code], [413, 'too much', 0])
  assert.equal((await get('/after')).status, 200)
})

test('a response that breaks off is reset, not taken for complete', async () => {
  const r = await get('/cut')
  assert.equal(String(r.body), 'part')
  assert.ok(r.code !== 0, 'reset with an error')
  assert.equal((await get('/after')).status, 200)
})

test('events arrive as they are sent', async () => {
  const times = []
  await new Promise((resolve) => {
    const s = client.request({ ':path': '/events', 'x-aws-proxy-auth': edge.token() })
    s.on('data', () => times.push(Date.now()))
    s.on('end', resolve)
  })
  assert.equal(times.length, 4)
  assert.ok(times.at(-1) - times[0] > 200)
})

test('requests to a microVM that sleeps are held, bodies included, and all answered', async () => {
  const sleeper = edge.h2(SUSPENDED)
  const started = Date.now()
  const all = await Promise.all(Array.from({ length: 120 }, (_, i) => ask(sleeper, { ':path': '/sum', 'x-aws-proxy-auth': edge.token(SUSPENDED) }, { body: `body ${i}` })))
  assert.ok(Date.now() - started >= 300)
  all.forEach((r, i) => assert.deepEqual([r.status, String(r.body)], [200, sha256(`body ${i}`)]))
  sleeper.destroy()
})

test('a wake that takes seconds is waited for', async () => {
  const slow = await start(server, { wakeMs: 3000 })
  try {
    const c = slow.h2(SUSPENDED)
    const headers = { ':path': '/sum', 'x-aws-proxy-auth': slow.token(SUSPENDED) }
    const answers = await Promise.all([ask(c, { ...headers, ':path': '/' }), ask(c, headers, { body: 'x' }), ask(c, headers, { write: (st) => setTimeout(() => st.end('x'), 1500) })])
    assert.deepEqual(answers.map((a) => a.status), [200, 200, 200])
    assert.deepEqual(answers.slice(1).map((a) => String(a.body)), [sha256('x'), sha256('x')])
    c.close()
  } finally {
    await slow.stop()
  }
})

test('a client that cancels lets go of the application', async () => {
  swallowed = 0
  const s = client.request({ ':path': '/hang', 'x-aws-proxy-auth': edge.token() })
  s.on('error', () => {})
  await new Promise((r) => setTimeout(r, 200))
  s.close(8)
  await until(() => swallowed === -1, 'the application\'s connection is closed')
})

test('back-pressure: an application that reads nothing, and a client that reads nothing', async () => {
  let sent = 0
  const s = client.request({ ':method': 'POST', ':path': '/swallow', 'x-aws-proxy-auth': edge.token() })
  s.on('error', () => {})
  const block = Buffer.alloc(16384)
  const more = () => s.write(block, () => {
    sent += block.length
    if (sent < 64 << 20) more()
  })
  more()
  await new Promise((r) => setTimeout(r, 1000))
  const stuck = sent
  await new Promise((r) => setTimeout(r, 500))
  assert.equal(sent, stuck, 'nothing moves any more')
  // The windows, and what the sockets between edge and application hold.
  assert.ok(sent < 16 << 20, `${sent} bytes were taken`)
  assert.equal((await get('/beside')).status, 200, 'other streams go on')
  s.close()

  swallowed = 0
  const down = client.request({ ':path': '/flood', 'x-aws-proxy-auth': edge.token() })
  down.on('error', () => {})
  down.pause()
  await new Promise((r) => setTimeout(r, 1000))
  const produced = swallowed
  await new Promise((r) => setTimeout(r, 500))
  assert.equal(swallowed, produced)
  assert.equal((await get('/beside')).status, 200)
  down.close()
})

test('heads that mean two things are refused', async () => {
  const before = seen
  const odd = [
    { ':path': '/a b' },
    { ':path': 'http://other/' },
    { ':path': '*' },
    { ':method': 'GET /x HTTP/1.1' },
  ]
  for (const headers of odd) {
    const r = await get('/', headers).catch((e) => ({ error: e }))
    assert.ok(r.error || r.status === 400, `${JSON.stringify(headers)} gave ${r.status}`)
  }
  assert.equal(seen, before)
})

// Frames by hand. -------------------------------------------------------------------------------------------------------------

const frame = (type, flags, id, payload = Buffer.alloc(0)) => {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head[3] = type
  head[4] = flags
  head.writeUInt32BE(id, 5)
  return Buffer.concat([head, payload])
}
const preface = Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), frame(4, 0, 0)])
// Literal fields without indexing.
const field = (name, value) => {
  const text = (s) => {
    const b = Buffer.from(s, 'latin1')
    if (b.length < 127) return Buffer.concat([Buffer.from([b.length]), b])
    const rest = b.length - 127
    return Buffer.concat([Buffer.from(rest < 128 ? [127, rest] : [127, (rest & 127) | 128, rest >> 7]), b])
  }
  return Buffer.concat([Buffer.from([0]), text(name), text(value)])
}
const head = (more = [], o = {}) => {
  const pseudo = { ':method': 'POST', ':scheme': 'https', ':path': '/raw', ':authority': edge.authority(), ...o }
  return Buffer.concat([...Object.entries(pseudo).map(([k, v]) => field(k, v)), field('x-aws-proxy-auth', edge.token()), ...more.map(([k, v]) => field(k, v))])
}

// Sends raw frames and collects what comes until `enough`, or the end.
async function raw(bytes, enough = () => false) {
  const s = await edge.tls(['h2'])
  const frames = []
  let rest = Buffer.alloc(0), ended = false
  s.on('data', (d) => {
    rest = Buffer.concat([rest, d])
    while (rest.length >= 9 && rest.length >= 9 + rest.readUIntBE(0, 3)) {
      const n = rest.readUIntBE(0, 3)
      frames.push({ type: rest[3], flags: rest[4], id: rest.readUInt32BE(5), payload: rest.subarray(9, 9 + n) })
      rest = rest.subarray(9 + n)
    }
  })
  s.on('error', () => {})
  s.on('close', () => (ended = true))
  s.write(Buffer.concat([preface, ...[bytes].flat()]))
  await until(() => ended || enough(frames), 'an answer')
  s.destroy()
  return { frames, ended, goaway: frames.find((f) => f.type === 7)?.payload.readUInt32BE(4), resets: frames.filter((f) => f.type === 3) }
}

test('smuggling by HTTP/2 fields: each is refused, and nothing of it reaches the application', async () => {
  const families = {
    'H2.CL: less than what follows': [frame(1, 4, 1, head([['content-length', '0']])), frame(0, 1, 1, Buffer.from('GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n'))],
    'H2.CL: more than what follows': [frame(1, 4, 1, head([['content-length', '99']])), frame(0, 1, 1, Buffer.from('x'))],
    'H2.CL: two lengths': [frame(1, 4, 1, head([['content-length', '1'], ['content-length', '2']])), frame(0, 1, 1, Buffer.from('x'))],
    'H2.TE': [frame(1, 4, 1, head([['transfer-encoding', 'chunked']])), frame(0, 1, 1, Buffer.from('0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n'))],
    'connection': [frame(1, 5, 1, head([['connection', 'keep-alive, content-length']]))],
    'upgrade': [frame(1, 5, 1, head([['upgrade', 'h2c']]))],
    'CR LF in a value': [frame(1, 5, 1, head([['foo', 'bar\r\nTransfer-Encoding: chunked']]))],
    'LF in a value': [frame(1, 5, 1, head([['foo', 'bar\nTransfer-Encoding: chunked']]))],
    'NUL in a value': [frame(1, 5, 1, head([['foo', 'bar\0baz']]))],
    'CR LF in a name': [frame(1, 5, 1, head([['foo: bar\r\ntransfer-encoding', 'chunked']]))],
    'colon in a name': [frame(1, 5, 1, head([['transfer-encoding: chunked\r\nx', 'y']]))],
    'upper case in a name': [frame(1, 5, 1, head([['Foo', 'bar']]))],
    'CR LF in the path': [frame(1, 5, 1, head([], { ':path': '/ HTTP/1.1\r\nHost: x\r\n\r\nGET /smuggled' }))],
    'space in the path': [frame(1, 5, 1, head([], { ':path': '/ HTTP/1.1' }))],
    'CR LF in the method': [frame(1, 5, 1, head([], { ':method': 'GET / HTTP/1.1\r\nHost: x\r\n\r\nGET' }))],
    'space in the method': [frame(1, 5, 1, head([], { ':method': 'GET /smuggled' }))],
    'CR LF in the authority': [frame(1, 5, 1, head([], { ':authority': `${edge.authority()}\r\nx: y` }))],
    'user information in the authority': [frame(1, 5, 1, head([], { ':authority': `${edge.authority()}@evil` }))],
    'Host that differs': [frame(1, 5, 1, head([['host', 'evil']]))],
    'two Hosts': [frame(1, 5, 1, head([['host', edge.authority()], ['host', 'evil']]))],
    'pseudo-header after a field': [frame(1, 5, 1, Buffer.concat([head([['a', 'b']]), field(':path', '/smuggled')]))],
    'two paths': [frame(1, 5, 1, Buffer.concat([field(':path', '/one'), head()]))],
    'unknown pseudo-header': [frame(1, 5, 1, head([], { ':evil': 'x' }))],
    'absolute form': [frame(1, 5, 1, head([], { ':path': 'https://evil/' }))],
    'CONNECT': [frame(1, 4, 1, Buffer.concat([field(':method', 'CONNECT'), field(':authority', edge.authority()), field('x-aws-proxy-auth', edge.token())]))],
    'CONNECT of another protocol': [frame(1, 4, 1, head([], { ':method': 'CONNECT', ':protocol': 'h2c' }))],
  }
  for (const [name, frames] of Object.entries(families)) {
    const before = seen
    const r = await raw(frames, (f) => f.some((x) => x.id === 1 && (x.type === 3 || x.type === 1)) || f.some((x) => x.type === 7))
    const answer = r.frames.find((x) => x.type === 1 && x.id === 1)
    const refused = r.resets.length > 0 || r.goaway > 0 || (answer && (answer.payload[0] === 0x8c || String(answer.payload).includes('403'))) // 0x8c: ":status 400"
    assert.ok(refused, `${name}: ${JSON.stringify(r.frames.map((f) => [f.type, f.id, f.payload.toString('hex').slice(0, 20)]))}`)
    await new Promise((r) => setTimeout(r, 5))
    // Which length is wrong shows only behind the head, which may be on its way by then.
    assert.ok(seen === before || name.startsWith('H2.CL: '), name)
  }
  await new Promise((r) => setTimeout(r, 100))
  assert.equal(smuggled, 0)
  const before = seen
  // The same frames without the evil pass.
  await raw([frame(1, 4, 1, head([['content-length', '1']])), frame(0, 1, 1, Buffer.from('x'))], (f) => f.some((x) => x.type === 1))
  assert.equal(seen, before + 1)
})

test('floods end the connection, and the edge goes on', async () => {
  const many = (n, f) => Buffer.concat(Array.from({ length: n }, (_, i) => f(i)))
  // Rapid reset (CVE-2023-44487).
  const rapid = await raw(many(3000, (i) => Buffer.concat([frame(1, 5, 2 * i + 1, head()), frame(3, 0, 2 * i + 1, Buffer.from([0, 0, 0, 8]))])))
  assert.ok(rapid.ended)
  // A head that never ends: by CONTINUATIONs, and by size.
  const continued = await raw([frame(1, 1, 1, head()), many(2000, () => frame(9, 0, 1, field('x', 'y'.repeat(1000))))])
  assert.ok(continued.ended)
  // Settings and pings whose answers are never read.
  const unread = async (bytes) => {
    const s = await edge.tls(['h2'])
    let ended = false
    s.on('error', () => {})
    s.on('close', () => (ended = true))
    s.pause()
    s.write(preface)
    for (let i = 0; i < 400 && !ended; i++) {
      s.write(bytes)
      await new Promise((r) => setImmediate(r))
    }
    await until(() => ended || s.writableLength > 100_000, 'the edge takes no more')
    s.destroy()
  }
  await unread(many(2000, () => frame(4, 0, 0)))
  await unread(many(2000, () => frame(6, 0, 0, Buffer.alloc(8))))
  // More streams than allowed are refused, not queued.
  const streams = await raw(many(400, (i) => frame(1, 4, 2 * i + 1, head([], { ':path': '/swallow' }))), (f) => f.filter((x) => x.type === 3).length >= 272 || f.some((x) => x.type === 7))
  assert.ok(streams.resets.every((f) => f.payload.readUInt32BE(0) === 7) || streams.goaway !== undefined)
  // More content than the window allows.
  const over = await raw([frame(1, 4, 1, head([], { ':path': '/swallow' })), many(12, () => frame(0, 0, 1, Buffer.alloc(16384)))], (f) => f.some((x) => x.type === 3 || x.type === 7))
  assert.ok(over.resets.some((f) => f.payload.readUInt32BE(0) === 3) || over.goaway === 3)
  assert.equal((await get('/alive')).status, 200)
})

test('a head that is too long, or of too many fields: 431', async () => {
  const big = await get('/', { 'x-big': 'y'.repeat(40000) }).catch((e) => ({ error: e }))
  assert.ok(big.error || big.status === 431, `${big.status}`)
  const nearly = await get('/', { 'x-big': 'y'.repeat(15000) })
  assert.equal(nearly.status, 200)
  const many = await get('/', Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`x-${i}`, 'y'])))
  assert.equal(many.status, 431)
})

// Other clients. --------------------------------------------------------------------------------------------------------------

const missing = async (program) => !(await run('which', [program]).then(() => true, () => false)) && `${program} is not installed`

test('curl: HTTP/2 is preferred, HTTP/1.1 and HTTP/1.0 still there', { skip: await missing('curl') }, async () => {
  const curl = async (...args) => (await run('curl', ['-sS', '--max-time', '20', '--cacert', path.join(edge.folder, 'tls/ca.pem'), '--resolve', `${edge.name(RUNNING)}:${edge.port}:127.0.0.1`,
    '-H', `X-aws-proxy-auth: ${edge.token()}`, '-w', '|%{http_version} %{http_code}', ...args], { maxBuffer: 64 << 20 })).stdout
  const url = `https://${edge.authority()}`
  assert.match(await curl(`${url}/`), /\|2 200$/)
  assert.match(await curl('--http1.1', `${url}/`), /\|1.1 200$/)
  assert.match(await curl('--http1.0', `${url}/`), /\|1.1 200$/)
  assert.equal(await curl('--data-binary', 'abc', `${url}/sum`), `${sha256('abc')}|2 200`)
  assert.equal(await curl('-T', path.join(edge.folder, 'token'), `${url}/early`), 'too much|2 413')
  assert.match(await curl('-I', `${url}/`), /\|2 200$/)
})

test('h2load and nghttp', { skip: await missing('h2load') }, async () => {
  const out = (await run('h2load', ['-n', '2000', '-c', '20', '-m', '20', '-H', `X-aws-proxy-auth: ${edge.token()}`, `--connect-to=127.0.0.1:${edge.port}`, `https://${edge.authority()}/`])).stdout
  assert.match(out, /2000 succeeded, 0 failed, 0 errored/)
  const ng = (await run('nghttp', ['-v', '-H', `X-aws-proxy-auth: ${edge.token()}`, '-H', `:authority: ${edge.authority()}`, `https://127.0.0.1:${edge.port}/trailers`])).stdout
  assert.match(ng, /x-sum: 7/)
})

test('what is only a TCP connection, or half a handshake, does no harm', async () => {
  const sockets = Array.from({ length: 50 }, () => net.connect(edge.port, '127.0.0.1'))
  for (const s of sockets) s.on('error', () => {})
  await new Promise((r) => setTimeout(r, 100))
  assert.equal((await get('/')).status, 200)
  for (const s of sockets) s.destroy()
})

test('an application that is silent for more than half a minute is waited for', async () => {
  const r = await silent
  assert.deepEqual([r.status, String(r.body)], [200, 'spoke at last'])
})
