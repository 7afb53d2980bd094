// The soak: clients of all kinds talk to many microVMs, which fall asleep when idle, are suspended over the API in the middle of whatever goes on, and now and
// then lose their VMM. Every request is accounted for: one that was answered was counted once by its application, one that was not was counted at
// most once, and only clients of a microVM that was killed may see an error. The engine's memory is looked at all the while.
//
// Prints one figure a line, `name value unit`, and "ok" or what was violated; exit code 1 then.
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http2 from 'node:http2'
import https from 'node:https'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import grpc from '@grpc/grpc-js'
import WebSocket from 'ws'
import { certificate } from '../certificate.mjs'
import { KILL_A_VMM, random, rss } from '../torture/model.mjs'

const root = path.resolve(import.meta.dirname, '../..')
process.env.STASIS_HOME ??= path.join(root, 'build/soak-home')
const { api, call, cli, engine, inside, sleep } = await import('../e2e/engine.mjs')
const run = promisify(execFile)

const seconds = Number(process.env.SOAK_SECONDS ?? 600), count = Number(process.env.SOAK_MICROVMS ?? 30)
const seed = Number(process.env.SOAK_SEED ?? Date.now() % 1_000_000)
const KILL_EVERY_S = 40, SUSPEND_EVERY_S = 3, PATIENCE_MS = 240_000
const rng = random(seed)
const between = (from, to) => from + rng() * (to - from)
const pick = (list) => list[Math.floor(rng() * list.length)]
const sha256 = (data) => createHash('sha256').update(data).digest('hex')

let over = false, ids = 0, kills = 0
const fleet = [], ended = []
const violations = [], times = [], counts = {}, memory = []
const violated = (text) => {
  violations.push(text)
  console.log(`VIOLATED ${text}`)
}
const counted = (what, n = 1) => (counts[what] = (counts[what] ?? 0) + n)

const e = await engine()
const [edgeHost, edgePort] = e.edge.split(':')
const { client } = e

// MicroVMs. -------------------------------------------------------------------------------------------------------------------

async function image() {
  const name = `soak-${Date.now().toString(36)}`
  const folder = mkdtempSync(path.join(os.tmpdir(), 'soak-'))
  cpSync(path.join(root, 'tests/soak/application'), folder, { recursive: true })
  const { key, cert } = certificate()
  writeFileSync(path.join(folder, 'key.pem'), key)
  writeFileSync(path.join(folder, 'certificate.pem'), cert)
  const made = await cli('image', 'create', name, folder, '--memory', '512')
  rmSync(folder, { recursive: true })
  if (made.code !== 0) throw new Error(`the image cannot be built: ${made.stderr}`)
  return `arn:aws:lambda:${e.region}:${e.account}:microvm-image:${name}`
}

async function launch(arn) {
  const idlePolicy = { maxIdleDurationSeconds: 60 + Math.floor(between(0, 30)), suspendedDurationSeconds: 3600, autoResumeEnabled: true }
  const made = await client.send(new api.RunMicrovmCommand({ imageIdentifier: arn, idlePolicy }))
  const m = { id: made.microvmId, endpoint: made.endpoint, name: made.endpoint.split(':')[0], requests: new Map(), errors: [], dead: false }
  m.auth = async () => {
    if (m.token && m.until > Date.now()) return m.token
    const t = await client.send(new api.CreateMicrovmAuthTokenCommand({ microvmIdentifier: m.id, expirationInMinutes: 60, allowedPorts: [{ allPorts: {} }] }))
    m.until = Date.now() + 50 * 60_000
    return (m.token = t.authToken['X-aws-proxy-auth'])
  }
  fleet.push(m)
  counted('microvms')
  return m
}

const stateOf = async (m) => client.send(new api.GetMicrovmCommand({ microvmIdentifier: m.id }))

// Requests. -------------------------------------------------------------------------------------------------------------------

// One request: recorded before it leaves, and again when its answer was right.
async function request(m, kind, action) {
  const id = String(++ids), r = { kind, answered: false, at: Date.now() }
  m.requests.set(id, r)
  counted(kind)
  let timer
  try {
    const late = new Promise((resolve, reject) => (timer = setTimeout(() => reject(new Error(`no answer within ${PATIENCE_MS / 1000} s`)), PATIENCE_MS)))
    await Promise.race([action(id), late])
    r.answered = true
    times.push(Date.now() - r.at)
  } catch (x) {
    m.errors.push(`${kind}: ${x.message}`)
  } finally {
    clearTimeout(timer)
  }
}

const expect = (what, got, wanted) => {
  if (got !== wanted) throw new Error(`${what} was ${JSON.stringify(got)} instead of ${JSON.stringify(wanted)}`)
}

async function h1(m, agent, target, options = {}) {
  const r = await call({ microvmId: m.id, endpoint: m.endpoint }, target, { auth: await m.auth(), agent, ...options })
  expect('the status', r.status, 200)
  return r.body
}

async function h2(m, session, target, body) {
  const headers = { ':path': target, ':method': body ? 'POST' : 'GET', ':authority': m.endpoint, 'x-aws-proxy-auth': await m.auth() }
  return new Promise((resolve, reject) => {
    const st = session.request(headers, { endStream: !body }), parts = []
    let status
    st.on('response', (h) => (status = h[':status']))
    st.on('data', (d) => parts.push(d))
    st.on('error', reject)
    st.on('end', () => (status === 200 ? resolve(Buffer.concat(parts)) : reject(new Error(`the status was ${status}`))))
    if (body) st.end(body)
  })
}

async function webSocket(m, id) {
  const ws = new WebSocket(`wss://${edgeHost}:${edgePort}/echo?id=${id}`, { ca: e.ca, servername: m.name, headers: { host: m.endpoint, 'x-aws-proxy-auth': await m.auth() } })
  const inbox = []
  let wake = () => {}, failure
  ws.on('message', (d) => (inbox.push(String(d)), wake()))
  ws.on('error', (x) => ((failure = x), wake()))
  ws.on('close', (code) => ((failure ??= new Error(`closed with ${code}`)), wake()))
  ws.on('open', () => wake())
  const until = async (ready) => {
    while (!ready() && !failure) await new Promise((resolve) => (wake = resolve))
    if (failure) throw failure
  }
  try {
    await until(() => ws.readyState === WebSocket.OPEN)
    for (let i = Math.floor(between(2, 8)); i > 0 && !over; i--) {
      const text = `message ${i} of ${id}`
      ws.send(text)
      await until(() => inbox.length > 0)
      expect('the echo', inbox.shift(), text)
      await sleep(rng() < 0.1 ? between(5000, 30_000) : between(100, 3000))
    }
    expect('what came besides', inbox.length, 0)
    if (failure) throw failure
  } finally {
    ws.close()
  }
}

// A call of gRPC: so many messages, each answered before the next is sent.
async function rpc(m, c, id, messages) {
  const metadata = new grpc.Metadata()
  for (const [k, v] of Object.entries({ 'x-aws-proxy-auth': await m.auth(), 'x-aws-proxy-force-h2': 'true', 'x-aws-proxy-port': '9090' })) metadata.set(k, v)
  const stream = c.rpc.echo(metadata)
  const inbox = []
  let wake = () => {}, status
  stream.on('data', (d) => (inbox.push(d), wake()))
  stream.on('error', () => {})
  stream.on('status', (s) => ((status = s), wake()))
  const until = async (ready) => {
    while (!ready() && !status) await new Promise((resolve) => (wake = resolve))
  }
  for (let i = 0; i < messages && !status && !(over && i > 0); i++) {
    if (i > 0) await sleep(rng() < 0.1 ? between(5000, 30_000) : between(100, 2000))
    const data = Buffer.concat([Buffer.from(`${id}:`), randomBytes(Math.floor(between(0, 100_000)))])
    stream.write(data)
    await until(() => inbox.length > 0)
    if (!status) expect('the echo', sha256(inbox.shift()), sha256(data))
  }
  stream.end()
  await until(() => false)
  if (status.code !== grpc.status.OK) throw new Error(`gRPC status ${status.code}: ${status.details}`)
  expect('what came besides', inbox.length, 0)
}
const raw = { requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b }
const Rpc = grpc.makeGenericClientConstructor({ echo: { path: '/soak/Echo', requestStream: true, responseStream: true, ...raw } }, 'soak')

const KINDS = {
  'h1.post': (m, c) => request(m, 'h1.post', async (id) => {
    const body = randomBytes(Math.floor(between(0, 50_000)))
    expect('the sum', String(await h1(m, c.agent, `/add?id=${id}`, { method: 'POST', body, headers: rng() < 0.5 ? { 'transfer-encoding': 'chunked' } : {} })), sha256(body))
  }),
  'h1.take': (m, c) => request(m, 'h1.take', async (id) => {
    const size = Math.floor(between(0, 500_000))
    expect('the size', (await h1(m, c.agent, `/take?id=${id}&size=${size}`)).length, size)
  }),
  'h2.post': (m, c) => request(m, 'h2.post', async (id) => {
    const body = randomBytes(Math.floor(between(1, 50_000)))
    expect('the sum', String(await h2(m, c.session, `/add?id=${id}`, body)), sha256(body))
  }),
  'h2.many': (m, c) => Promise.all(Array.from({ length: 5 }, () => request(m, 'h2.many', async (id) => {
    expect('the size', (await h2(m, c.session, `/take?id=${id}&size=5000`)).length, 5000)
  }))),
  'tls.post': (m, c) => request(m, 'tls.post', async (id) => {
    const body = randomBytes(Math.floor(between(0, 50_000)))
    expect('the sum', String(await h1(m, c.agent, `/add?id=${id}`, { method: 'POST', body, port: 9443 })), sha256(body))
  }),
  'rpc.unary': (m, c) => request(m, 'rpc.unary', (id) => rpc(m, c, id, 1)),
  'rpc.stream': (m, c) => request(m, 'rpc.stream', (id) => rpc(m, c, id, Math.floor(between(2, 8)))),
  slow: (m, c) => request(m, 'slow', async (id) => expect('the answer', String(await h2(m, c.session, `/slow?id=${id}&ms=${Math.floor(between(100, 4000))}`)), 'slept')),
  events: (m, c) => request(m, 'events', async (id) => {
    const n = Math.floor(between(1, 20))
    const target = `/ticks?id=${id}&count=${n}`
    // An event stream that falls asleep goes on when somebody wakes it.
    const visitor = setInterval(() => h1(m, undefined, '/seen').catch(() => {}), 15_000)
    const got = await (rng() < 0.5 ? h1(m, c.agent, target) : h2(m, c.session, target)).finally(() => clearInterval(visitor))
    expect('the events', String(got), Array.from({ length: n }, (_, i) => `data: ${i}\n\n`).join(''))
  }),
  websocket: (m) => request(m, 'websocket', (id) => webSocket(m, id)),
  exec: (m) => request(m, 'exec', async (id) => {
    const r = await cli('exec', m.id, '--', 'echo', id)
    expect('the output', r.stdout, `${id}\n`)
  }),
}
const CHOICE = ['h1.post', 'h1.post', 'h1.take', 'h1.take', 'h2.post', 'h2.post', 'h2.many', 'h2.many', 'tls.post', 'rpc.unary', 'rpc.stream', 'slow', 'events', 'websocket']

async function converse(m) {
  const c = { agent: new https.Agent({ keepAlive: true, maxSockets: 2 }) }
  const connect = () => {
    c.session = http2.connect(`https://${edgeHost}:${edgePort}`, { ca: e.ca, servername: m.name })
    // A connection that the edge ended between two requests is no failure; requests on it are.
    c.session.on('error', () => {})
  }
  connect()
  c.rpc = new Rpc(`${edgeHost}:${edgePort}`, grpc.credentials.createSsl(e.ca), { 'grpc.ssl_target_name_override': m.name, 'grpc.default_authority': m.endpoint, 'grpc.enable_retries': 0 })
  while (!over && !m.dead) {
    if (c.session.closed || c.session.destroyed) connect()
    await KINDS[rng() < 0.02 ? 'exec' : pick(CHOICE)](m, c)
    if (m.errors.length > 0 && (await stateOf(m)).state === 'TERMINATED') m.dead = true
    if (over || m.dead) break
    // Now and then nobody talks for longer than any idle time.
    const pause = rng() < 0.03 ? between(60_000, 110_000) : between(200, 5000)
    for (const until = Date.now() + pause; Date.now() < until && !over; ) await sleep(200)
  }
  c.rpc.close()
  c.session.destroy()
  c.agent.destroy()
}

// What happens to them. -------------------------------------------------------------------------------------------------------

async function suspendSome() {
  while (!over) {
    await sleep(between(0, 2 * SUSPEND_EVERY_S * 1000))
    const m = pick(fleet)
    if (over || m.dead) continue
    try {
      await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: m.id }))
      counted('suspends')
    } catch (x) {
      // It may be on its way to another state.
      if (!['ConflictException', 'ValidationException'].includes(x.name)) violated(`SuspendMicrovm of ${m.id}: ${x.name}: ${x.message}`)
    }
  }
}

async function killSome(arn) {
  for (let next = Date.now() + KILL_EVERY_S * 1000; !over; await sleep(500)) {
    if (Date.now() < next) continue
    next += KILL_EVERY_S * 1000
    const killed = await inside(KILL_A_VMM)
    if (!killed.includes('killed')) continue
    kills++
    converse(await launch(arn)).catch((x) => violated(x.stack))
  }
}

async function watchMemory() {
  while (!over) {
    memory.push(Number((await inside(rss('$(pgrep -x stasisd)'))).trim()))
    for (const until = Date.now() + 10_000; Date.now() < until && !over; ) await sleep(500)
  }
}

// The account. ----------------------------------------------------------------------------------------------------------------

async function settle(m) {
  const s = await stateOf(m)
  if (s.state === 'TERMINATED') {
    ended.push(m)
    return
  }
  for (const x of m.errors) violated(`${m.id} lives, and a client saw an error: ${x}`)
  const seen = JSON.parse((await h1(m, undefined, '/seen')).toString())
  for (const [id, r] of m.requests) {
    const n = r.kind === 'exec' ? 1 : (seen[id] ?? 0)
    if (r.answered && n !== 1) violated(`${m.id}: request ${id} (${r.kind}) was answered, and counted ${n} times`)
    if (n > 1) counted('doubled')
    if (r.answered && n < 1) counted('lost')
  }
}

const figure = (name, value, unit) => console.log(`${name} ${value} ${unit}`)
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)]

console.log(`machine ${os.cpus()[0].model.trim().replace(/ /g, '_')} ${os.cpus().length} cores, engine ${e.mode}, seed ${seed}`)
mkdirSync(process.env.STASIS_HOME, { recursive: true })
for await (const page of api.paginateListMicrovms({ client }, {}))
  for (const m of page.items) if (m.state !== 'TERMINATED') await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
const arn = await image()
for (let i = 0; i < count; i++) await launch(arn)
console.log(`# ${count} microVMs run`)
const started = Date.now()
const talks = fleet.map((m) => converse(m))
const others = [suspendSome(), killSome(arn), watchMemory()]
while ((Date.now() - started) / 1000 < seconds) {
  await sleep(Math.min(30_000, seconds * 1000))
  console.log(`# ${Math.round((Date.now() - started) / 1000)} s: ${ids} requests, ${times.length} answered, ${counts.suspends ?? 0} suspends, ${kills} kills, stasisd ${memory.at(-1)} KiB`)
}
over = true
await Promise.all(others)
// Whoever waits for one that sleeps is answered when it is awake again.
const settledBy = Date.now() + PATIENCE_MS
for (const m of fleet) if ((await stateOf(m)).state === 'SUSPENDED') await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: m.id })).catch(() => {})
await Promise.race([Promise.all(talks), sleep(settledBy - Date.now())])
for (const m of fleet) await settle(m)
if (ended.length > kills) violated(`${ended.length} microVMs ended, and ${kills} were killed`)
const log = await inside('true; cat /proc/$(pgrep -x stasisd)/status | grep -E "VmHWM|Threads"')
const third = Math.floor(memory.length / 3)
const middle = median(memory.slice(third, 2 * third + 1)), late = median(memory.slice(2 * third))
if (memory.length >= 6 && late > middle * 1.1 + 1024) violated(`stasisd grew from ${middle} KiB in the middle third to ${late} KiB in the last`)

times.sort((a, b) => a - b)
for (const kind of Object.keys(KINDS)) figure(`soak.${kind}`, counts[kind] ?? 0, 'requests')
figure('soak.requests', ids, 'requests')
figure('soak.answered', times.length, 'requests')
figure('soak.errors.on_killed', ended.reduce((n, m) => n + m.errors.length, 0), 'requests')
figure('soak.failures', fleet.filter((m) => !ended.includes(m)).reduce((n, m) => n + m.errors.length, 0), 'requests')
figure('soak.lost', counts.lost ?? 0, 'requests')
figure('soak.doubled', counts.doubled ?? 0, 'requests')
figure('soak.suspends', counts.suspends ?? 0, 'suspends')
figure('soak.kills', kills, 'microVMs')
figure('soak.p50', times[Math.floor(times.length / 2)], 'ms')
figure('soak.p99', times[Math.floor(times.length * 0.99)], 'ms')
figure('soak.stasisd.rss.middle', middle, 'KiB')
figure('soak.stasisd.rss.late', late, 'KiB')
console.log(log.trim().replace(/^/gm, '# '))
for (const m of fleet) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.id })).catch(() => {})
for (let i = 0; i < 50 && (await client.send(new api.DeleteMicrovmImageCommand({ imageIdentifier: arn })).then(() => false, () => true)); i++) await sleep(200)
await run(process.env.STASIS ?? path.join(root, 'build/stage/bin/stasis'), ['down']).catch(() => {})
console.log(violations.length === 0 ? 'ok: every request is accounted for' : `${violations.length} violations`)
process.exit(violations.length === 0 ? 0 : 1)
