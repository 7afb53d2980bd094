// The endpoint: who gets in, what is answered when not, and that bytes pass unharmed both ways.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import https from 'node:https'
import { after, before, test } from 'node:test'
import { certificate } from '../certificate.mjs'
import { api, build, call, cli, engine, removeImage, token, waitState } from './engine.mjs'

const server = `
import hashlib, http.server, json, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def reply(self, status, body, headers=()):
        self.send_response(status)
        for k, v in headers: self.send_header(k, v)
        self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def read_body(self):
        if self.headers.get('Transfer-Encoding') == 'chunked':
            parts = []
            while True:
                n = int(self.rfile.readline(), 16)
                parts.append(self.rfile.read(n)); self.rfile.readline()
                if n == 0: return b''.join(parts)
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    def do_GET(self):
        if self.path.startswith('/stream'):
            self.send_response(200); self.send_header('Transfer-Encoding', 'chunked'); self.end_headers()
            for i in range(5):
                data = b'data: %d\\n\\n' % i
                self.wfile.write(b'%x\\r\\n%s\\r\\n' % (len(data), data)); self.wfile.flush(); time.sleep(0.2)
            self.wfile.write(b'0\\r\\n\\r\\n')
        elif self.path.startswith('/credentials'):
            self.reply(200, json.dumps(credentials()).encode())
        elif self.path.startswith('/big'):
            self.reply(200, b'0123456789abcdef' * (1 << 18))
        else:
            self.reply(200, json.dumps({'path': self.path, 'headers': dict(self.headers), 'peer': self.client_address[0],
                'caps': next(l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff'))}).encode())
    def do_POST(self):
        self.reply(200, hashlib.sha256(self.read_body()).hexdigest().encode())
    def do_HEAD(self):
        self.send_response(200); self.send_header('Content-Length', '12345'); self.end_headers()
def credentials():
    import urllib.request
    def ask(path, method='GET', **headers):
        request = urllib.request.Request('http://169.254.169.254/latest/' + path, method=method, headers={k.replace('_', '-'): v for k, v in headers.items()})
        return urllib.request.urlopen(request, timeout=5).read().decode()
    try:
        token = ask('api/token', 'PUT', X_aws_ec2_metadata_token_ttl_seconds='60')
        role = ask('meta-data/iam/security-credentials/', X_aws_ec2_metadata_token=token)
        return {'role': role, **json.loads(ask('meta-data/iam/security-credentials/' + role, X_aws_ec2_metadata_token=token))}
    except Exception as e:
        return {'error': str(e)}
import threading
other = http.server.ThreadingHTTPServer(('127.0.0.1', 9000), H)
threading.Thread(target=other.serve_forever, daemon=True).start()
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('certificate.pem', 'key.pem')
secure = http.server.ThreadingHTTPServer(('127.0.0.1', 9443), H)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
threading.Thread(target=secure.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), H).serve_forever()
`
let image, m, n

before(async () => {
  const { client } = await engine()
  const { key, cert } = certificate()
  image = await build('e2e-endpoint', {
    Dockerfile: 'FROM stasis/python\nWORKDIR /app\nCOPY . .\nENV STASIS_TLS=9443\nCMD ["python3", "server.py"]\n',
    'server.py': server,
    'key.pem': key,
    'certificate.pem': cert,
  })
  assert.equal(image.image.state, 'CREATED', image.reason)
  m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, executionRoleArn: 'arn:aws:iam::000000000000:role/worker' }))
  n = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn }))
  await waitState(m.microvmId, 'RUNNING')
  await waitState(n.microvmId, 'RUNNING')
})

after(async () => {
  const { client } = await engine()
  for (const x of [m, n]) if (x) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: x.microvmId }))
  for (const x of [m, n]) if (x) await waitState(x.microvmId, 'TERMINATED')
  if (image) await removeImage(image.arn)
})

test('no token, a broken one, one for another microVM: 403 with the service\'s words', async () => {
  let r = await call(m, '/', { auth: null })
  assert.deepEqual([r.status, String(r.body)], [403, 'Request missing authentication'])
  r = await call(m, '/', { auth: 'nonsense' })
  assert.deepEqual([r.status, String(r.body)], [403, 'Request missing authentication'])
  r = await call(m, '/', { auth: await token(n.microvmId) })
  assert.deepEqual([r.status, String(r.body)], [403, 'Token authentication failed'])
  r = await call({ ...m, endpoint: m.endpoint.replace(/^[^.]+/, '00000000-0000-4000-8000-000000000000') }, '/', { auth: await token(m.microvmId) })
  assert.deepEqual([r.status, String(r.body)], [403, 'Token authentication failed'])
})

test('ports: the default, by header, not allowed, not a port, nobody listening', async () => {
  const auth = await token(m.microvmId, [{ port: 8080 }, { range: { startPort: 9000, endPort: 9001 } }])
  assert.equal((await call(m, '/', { auth })).status, 200)
  assert.equal((await call(m, '/', { auth, port: 9000 })).status, 200)
  const none = await call(m, '/', { auth, port: 9001 })
  assert.deepEqual([none.status, String(none.body)], [502, ''])
  const denied = await call(m, '/', { auth, port: 9002 })
  assert.deepEqual([denied.status, String(denied.body)], [403, 'Access to port denied'])
  for (const bad of ['x', '0', '65536', '-1', '80 80']) assert.equal((await call(m, '/', { auth, port: bad })).status, 400, bad)
})

test('the application sees the request, but not what is Stasis\'s own', async () => {
  const r = await call(m, '/some/path?q=1', { headers: { traceparent: '00-abc', 'x-aws-proxy-other': 'x', connection: 'close, x-hop', 'x-hop': '1' } })
  const got = JSON.parse(r.body)
  const headers = Object.fromEntries(Object.entries(got.headers).map(([k, v]) => [k.toLowerCase(), v]))
  assert.equal(got.path, '/some/path?q=1')
  assert.equal(got.peer, '127.0.0.1')
  assert.equal(got.caps, '00000000a80425fb', 'root has the default capabilities of containers')
  assert.equal(headers.host, m.endpoint)
  assert.equal(headers.traceparent, '00-abc')
  assert.match(headers['x-amzn-requestid'], /^[0-9a-f-]{36}$/)
  for (const h of Object.keys(headers)) assert.ok(!h.startsWith('x-aws-proxy') && !h.startsWith('x-forwarded') && h !== 'x-hop', h)
})

test('bodies pass unharmed: lengths, chunks, large ones both ways', async () => {
  const auth = await token(m.microvmId)
  for (const size of [0, 1, 1000, 65536, 3_000_000]) {
    const body = randomBytes(size)
    const sum = createHash('sha256').update(body).digest('hex')
    assert.equal(String((await call(m, '/', { auth, method: 'POST', body })).body), sum, `${size} bytes`)
    const chunked = await call(m, '/', { auth, method: 'POST', body, headers: { 'transfer-encoding': 'chunked' } })
    assert.equal(String(chunked.body), sum, `${size} bytes, chunked`)
  }
  const big = await call(m, '/big', { auth })
  assert.equal(createHash('sha256').update(big.body).digest('hex'), createHash('sha256').update('0123456789abcdef'.repeat(1 << 18)).digest('hex'))
})

test('an application that speaks TLS at a port that its image names, before and after a sleep', async () => {
  const { client } = await engine()
  const auth = await token(m.microvmId)
  const agent = new https.Agent({ keepAlive: true, maxSockets: 1 })
  for (const asleep of [false, true]) {
    if (asleep) {
      await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: m.microvmId }))
      await waitState(m.microvmId, 'SUSPENDED')
      await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: m.microvmId }))
    }
    const r = await call(m, '/secret?a=1', { auth, port: 9443, agent })
    assert.equal(r.status, 200)
    assert.equal(JSON.parse(String(r.body)).path, '/secret?a=1')
    const body = randomBytes(300_000)
    assert.equal(String((await call(m, '/', { auth, port: 9443, agent, method: 'POST', body })).body), createHash('sha256').update(body).digest('hex'))
  }
  agent.destroy()
})

test('HEAD, keep-alive, streaming as it comes', async () => {
  const auth = await token(m.microvmId)
  const agent = new https.Agent({ keepAlive: true, maxSockets: 1 })
  const head = await call(m, '/', { auth, method: 'HEAD', agent })
  assert.deepEqual([head.status, head.headers['content-length'], head.body.length], [200, '12345', 0])
  for (let i = 0; i < 10; i++) assert.equal((await call(m, `/${i}`, { auth, agent })).status, 200)
  const e = await engine()
  const [host, port] = e.edge.split(':')
  const times = await new Promise((resolve, reject) => {
    const seen = []
    https
      .get({ host, port, agent, ca: e.ca, servername: m.endpoint.split(':')[0], path: '/stream', headers: { host: m.endpoint, 'x-aws-proxy-auth': auth } }, (r) => {
        r.on('data', () => seen.push(Date.now()))
        r.on('end', () => resolve(seen))
      })
      .on('error', reject)
  })
  assert.ok(times.length >= 4 && times.at(-1) - times[0] > 400, 'events came one by one')
  agent.destroy()
})

test('100 requests at once are all answered', async () => {
  const auth = await token(m.microvmId)
  const all = await Promise.all(Array.from({ length: 100 }, (_, i) => call(m, `/${i}`, { auth })))
  assert.ok(all.every((r) => r.status === 200))
})

test('a microVM with a role finds its credentials, one without finds nothing', async () => {
  const e = await engine()
  const found = JSON.parse((await call(m, '/credentials')).body)
  assert.equal(found.role, 'execution_role', found.error)
  assert.equal(found.Code, 'Success')
  assert.ok(Date.parse(found.Expiration) > Date.now() + 50 * 60000)
  const none = JSON.parse((await call(n, '/credentials')).body)
  assert.match(none.error, /refused|unreachable|timed out/i)
  const credentials = { accessKeyId: found.AccessKeyId, secretAccessKey: found.SecretAccessKey, sessionToken: found.Token }
  const client = new api.LambdaMicrovmsClient({ endpoint: e.api, region: e.region, credentials, maxAttempts: 1 })
  const get = () => client.send(new api.GetMicrovmCommand({ microvmIdentifier: m.microvmId }))
  await assert.rejects(get(), { name: 'AccessDeniedException', message: new RegExp(`assumed-role/worker/${m.microvmId} is not authorized`) })
  for (const role of ['worker', 'build']) {
    const r = await cli('role', 'create', role, '--allow', 'lambda:GetMicrovm', '--allow', 's3:GetObject')
    assert.equal(r.code, 0, r.stderr)
  }
  assert.equal((await get()).microvmId, m.microvmId)
  assert.equal((await cli('role', 'rm', 'worker', 'build')).code, 0)
  await assert.rejects(get(), { name: 'AccessDeniedException' })
})

test('stasis curl and stasis logs', async () => {
  const r = await cli('curl', m.microvmId, '/from-cli')
  assert.equal(r.code, 0, r.stderr)
  assert.equal(JSON.parse(r.stdout).path, '/from-cli')
  const logs = await cli('logs', m.microvmId)
  assert.equal(logs.code, 0, logs.stderr)
  assert.match(logs.stdout, /GET \/from-cli/)
})
