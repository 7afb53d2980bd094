// Sleep as an application's users meet it: connections, streams and requests outlive it, a crowd at the door of a sleeper is let in one by one, and the
// application says itself when it works and when it wants to sleep.
import assert from 'node:assert/strict'
import http2 from 'node:http2'
import https from 'node:https'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import WebSocket from 'ws'
import { ask } from '../edge/host.mjs'
import { api, build, call, cli, engine, removeImage, root, sleep, token, waitState } from './engine.mjs'

// Counts every request by its id, answers slowly when asked to, ticks, and echoes over WebSocket.
const server = `
import base64, hashlib, http.server, json, socketserver, struct, threading, time, urllib.parse
seen, lock, started = {}, threading.Lock(), time.monotonic()
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path); q = dict(urllib.parse.parse_qsl(url.query))
        if url.path == '/seen': return self.reply(seen)
        if url.path == '/slow':
            time.sleep(float(q['seconds'])); return self.reply({'slept': q['seconds'], 'port': self.client_address[1]})
        if url.path == '/ticks':
            self.send_response(200); self.send_header('Content-Type', 'text/event-stream'); self.send_header('Transfer-Encoding', 'chunked'); self.end_headers()
            for i in range(int(q['count'])):
                data = b'data: %d\\n\\n' % i
                self.wfile.write(b'%x\\r\\n%s\\r\\n' % (len(data), data)); time.sleep(0.1)
            return self.wfile.write(b'0\\r\\n\\r\\n')
        if url.path == '/echo': return self.echo()
        self.reply({'port': self.client_address[1]})
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        with lock: seen[body] = seen.get(body, 0) + 1
        self.reply({'id': body})
    def echo(self):
        accept = base64.b64encode(hashlib.sha1((self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()).decode()
        self.wfile.write(('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: %s\\r\\n\\r\\n' % accept).encode())
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8: return
            size, mask = head[1] & 127, self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            self.wfile.write(bytes([0x81, size]) + data)
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
Server(('127.0.0.1', 8080), H).serve_forever()
`
let image, worker
const running = []

const launch = async (of, idlePolicy) => {
  const { client } = await engine()
  const m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: of.arn, idlePolicy }))
  running.push(m)
  await waitState(m.microvmId, 'RUNNING')
  return m
}
const policy = { maxIdleDurationSeconds: 600, suspendedDurationSeconds: 600, autoResumeEnabled: true }
const suspend = async (m) => {
  const { client } = await engine()
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: m.microvmId }))
  await waitState(m.microvmId, 'SUSPENDED')
}

before(async () => {
  image = await build('e2e-sleep', {
    Dockerfile: 'FROM stasis/python\nWORKDIR /app\nCOPY server.py .\nCMD ["python3", "server.py"]\n',
    'server.py': server,
  })
  assert.equal(image.image.state, 'CREATED', image.reason)
})

after(async () => {
  const { client } = await engine()
  for (const m of running) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId })).catch(() => {})
  for (const m of running) await waitState(m.microvmId, 'TERMINATED').catch(() => {})
  for (const i of [image, worker]) if (i) await removeImage(i.arn)
})

test('WebSocket, event stream and kept connection go on after a sleep as if nothing had been', async () => {
  const m = await launch(image, policy)
  const e = await engine()
  const [host, port] = e.edge.split(':')
  const auth = await token(m.microvmId)
  const agent = new https.Agent({ keepAlive: true, maxSockets: 1 })
  const before = JSON.parse((await call(m, '/', { auth, agent })).body)

  const ws = new WebSocket(`wss://${host}:${port}/echo`, { ca: e.ca, servername: m.endpoint.split(':')[0], headers: { host: m.endpoint, 'x-aws-proxy-auth': auth } })
  await new Promise((resolve, reject) => ws.on('open', resolve).on('error', reject))
  const echo = (text) =>
    new Promise((resolve, reject) => {
      ws.once('message', (data) => resolve(String(data)))
      ws.once('close', (code) => reject(new Error(`closed with ${code}`)))
      ws.send(text)
    })
  assert.equal(await echo('before'), 'before')

  const ticks = new Promise((resolve, reject) => {
    let all = ''
    https
      .get({ host, port, ca: e.ca, servername: m.endpoint.split(':')[0], path: '/ticks?count=50', headers: { host: m.endpoint, 'x-aws-proxy-auth': auth } }, (r) => {
        r.on('data', (d) => (all += d))
        r.on('end', () => resolve(all))
        r.on('error', reject)
      })
      .on('error', reject)
  })
  await sleep(1000)
  await suspend(m)
  await sleep(1500)
  const started = Date.now()
  assert.equal(await echo('after'), 'after') // which woke it
  console.log(`# a message of a WebSocket that woke its microVM was answered after ${Date.now() - started} ms`)
  assert.equal(await ticks, Array.from({ length: 50 }, (_, i) => `data: ${i}\n\n`).join(''))
  const again = JSON.parse((await call(m, '/', { auth, agent })).body)
  assert.ok(before.port > 0 && again.port > 0)
  ws.close()
  agent.destroy()
})

test('requests under way when a suspend is asked for finish first, or sleep along and are answered', async () => {
  const { client } = await engine()
  const m = await launch(image, policy)
  const auth = await token(m.microvmId)
  const short = call(m, '/slow?seconds=2', { auth }), long = call(m, '/slow?seconds=9', { auth })
  await sleep(500)
  await suspend(m)
  assert.equal((await short).status, 200)
  assert.equal(await Promise.race([long.then(() => 'answered'), sleep(1500).then(() => 'waits')]), 'waits')
  await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: m.microvmId }))
  const late = await long
  assert.deepEqual([late.status, JSON.parse(late.body).slept], [200, '9'])
})

test('1000 requests that come at once while it sleeps are each delivered once, and answered', async () => {
  const m = await launch(image, policy)
  const auth = await token(m.microvmId)
  const ids = Array.from({ length: 1000 }, (_, i) => `request ${i}`)
  const e = await engine()
  const [host, port] = e.edge.split(':')
  const connect = () => http2.connect(`https://${host}:${port}`, { ca: e.ca, servername: m.endpoint.split(':')[0] })
  const sessions = Array.from({ length: 10 }, connect)
  await Promise.all(sessions.map((s) => new Promise((resolve, reject) => s.on('connect', resolve).on('error', reject))))
  await suspend(m)
  const started = Date.now()
  const headers = { ':path': '/', ':authority': m.endpoint, 'x-aws-proxy-auth': auth }
  const answers = await Promise.all(ids.map((id, i) => ask(sessions[i % 10], { ...headers, 'content-length': id.length }, { body: id })))
  for (const s of sessions) s.close()
  console.log(`# 1000 requests at a sleeping microVM were answered after ${Date.now() - started} ms`)
  const statuses = {}
  for (const a of answers) statuses[a.status ?? a.error] = (statuses[a.status ?? a.error] ?? 0) + 1
  assert.deepEqual(statuses, { 200: 1000 })
  assert.deepEqual(answers.map((a) => JSON.parse(a.body).id), ids)
  const seen = JSON.parse((await call(m, '/seen', { auth })).body)
  assert.deepEqual(seen, Object.fromEntries(ids.map((id) => [id, 1])))
})

test('a lease keeps it awake beyond its idle time, and it sleeps at once when it asks to; its port 80 is its own', async () => {
  const example = path.join(root, 'examples/night-worker')
  worker = await build('e2e-worker', { Dockerfile: readFileSync(path.join(example, 'Dockerfile')), 'worker.py': readFileSync(path.join(example, 'worker.py')) })
  assert.equal(worker.image.state, 'CREATED', worker.reason)
  const m = await launch(worker, { ...policy, maxIdleDurationSeconds: 60 })
  const started = Date.now()
  const job = await call(m, '/jobs?seconds=70', { method: 'POST', port: 80 })
  assert.deepEqual([job.status, JSON.parse(job.body)], [202, { job: 1 }])
  await sleep(66_000 - (Date.now() - started))
  const { client } = await engine()
  const state = async () => (await client.send(new api.GetMicrovmCommand({ microvmIdentifier: m.microvmId }))).state
  assert.equal(await state(), 'RUNNING', '66 s after the last byte, with an idle time of 60 s')
  await waitState(m.microvmId, 'SUSPENDED')
  const after = (Date.now() - started) / 1000
  assert.ok(after < 100, `it slept ${after} s after the job began: by its own wish`)
  const answer = await call(m, '/', { port: 80 })
  assert.deepEqual(JSON.parse(answer.body), { running: [], done: [1] })
  const log = await cli('logs', m.microvmId)
  assert.match(log.stdout, /POST/)
})
