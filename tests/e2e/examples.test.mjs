// Every example of docs/endpoint.md works as it stands there: only names are put in.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import WebSocket from 'ws'
import { commands, examples } from '../docs.mjs'
import { api, build, engine, home, removeImage, stasis, token, waitState } from './engine.mjs'

// What the examples suppose: pages at 8080, a chat over WebSockets at 9000.
const server = `
import base64, hashlib, http.server, threading
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '6'); self.end_headers(); self.wfile.write(b'a page')
class Chat(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        key = self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
        self.send_response(101)
        for k, v in (('Upgrade', 'websocket'), ('Connection', 'Upgrade'), ('Sec-WebSocket-Accept', base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()),
                     ('Sec-WebSocket-Protocol', self.headers['Sec-WebSocket-Protocol'])): self.send_header(k, v)
        self.end_headers(); self.wfile.write(b'\\x81\\x05hello\\x88\\x00'); self.close_connection = True
threading.Thread(target=http.server.ThreadingHTTPServer(('127.0.0.1', 9000), Chat).serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), Pages).serve_forever()
`
const blocks = examples('endpoint.md')
const kinds = { shell: /^(stasis|curl|tar) /, dockerfile: /^ENV /, browser: /^new WebSocket\(/, session: /^\{"op"/, grpc: /^const client = new Client\(/ }
const kind = (block) => Object.keys(kinds).find((k) => kinds[k].test(block))
const of = (k) => blocks.filter((b) => kind(b) === k)
let image, m, folder, address, names

before(async () => {
  const { client, edge, region } = await engine()
  folder = mkdtempSync(path.join(os.tmpdir(), 'e2e-examples-'))
  image = await build('my-site', { Dockerfile: `FROM stasis/python\nCOPY server.py .\n${of('dockerfile').join('\n')}\nCMD ["python3", "server.py"]\n`, 'server.py': server })
  assert.equal(image.image.state, 'CREATED', image.reason)
  m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, ingressNetworkConnectors: [`arn:aws:lambda:${region}:aws:network-connector:aws-network-connector:ALL_INGRESS`] }))
  await waitState(m.microvmId, 'RUNNING')
  address = `${m.endpoint.split(':')[0]}:${edge.split(':')[1]}`
  names = (text) => text.replaceAll('<microvm>', m.microvmId).replaceAll('<endpoint>', address).replace(/(~\/\.local\/state\/stasis\/)?ca\.pem/g, path.join(home, 'ca.pem'))
})

after(async () => {
  const { client } = await engine()
  if (m) {
    await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
    await waitState(m.microvmId, 'TERMINATED')
  }
  if (image) await removeImage(image.arn)
  rmSync(folder, { recursive: true, force: true })
})

const socket = async (url, protocols) => {
  const { ca } = await engine()
  return new WebSocket(url, protocols, { ca, lookup: (h, o, f) => (o.all ? f(null, [{ address: '127.0.0.1', family: 4 }]) : f(null, '127.0.0.1', 4)) })
}

test('there is no example that nobody runs', () => {
  assert.deepEqual(blocks.filter((b) => kind(b) === undefined), [])
  for (const k of Object.keys(kinds)) assert.ok(of(k).length > 0, k)
})

test('commands', async () => {
  writeFileSync(path.join(folder, '.curlrc'), 'fail\nsilent\nshow-error\n')
  mkdirSync(path.join(folder, 'folder'))
  writeFileSync(path.join(folder, 'folder/result'), 'forty-two')
  const env = { ...process.env, PATH: `${path.dirname(stasis)}:${process.env.PATH}`, STASIS_HOME: home, CURL_HOME: folder, TOKEN: await token(m.microvmId) }
  const run = (command, input) =>
    new Promise((resolve) => {
      const child = execFile('bash', ['-o', 'pipefail', '-c', command], { cwd: folder, env, timeout: 60_000 }, (error, stdout, stderr) => resolve({ code: error ? error.code : 0, stdout, stderr }))
      child.stdin.on('error', () => {})
      child.stdin.end(input)
    })
  for (const line of of('shell').flatMap(commands).map(names)) {
    // A shell wants a terminal, and somebody who leaves it.
    const shell = line.startsWith('stasis shell')
    const r = await run(shell ? `script -qec '${line}' /dev/null` : line, shell ? 'exit\n' : '')
    assert.equal(r.code, 0, `${line}: ${r.stdout}${r.stderr}`)
    if (/curl/.test(line)) assert.equal(r.stdout, 'a page', line)
  }
  assert.equal(readFileSync(path.join(folder, 'result'), 'utf8'), 'forty-two')
})

test('a WebSocket of a browser', async () => {
  for (const text of of('browser')) {
    const made = []
    class Browser {
      constructor(...given) {
        made.push(given)
      }
    }
    new Function('WebSocket', 'token', names(text))(Browser, await token(m.microvmId))
    const s = await socket(...made[0])
    const [data] = await once(s, 'message')
    assert.deepEqual([String(data), s.protocol], ['hello', 'chat'])
    await once(s, 'close')
  }
})

test('a program with its input and output', async () => {
  const { client } = await engine()
  const { authToken } = await client.send(new api.CreateMicrovmShellAuthTokenCommand({ microvmIdentifier: m.microvmId, expirationInMinutes: 5 }))
  for (const text of of('session')) {
    const s = await socket(`wss://${address}/_stasis/exec`, ['lambda-microvms', `lambda-microvms.authentication.${authToken['X-aws-proxy-auth']}`])
    const texts = []
    let output = ''
    s.on('message', (data, binary) => (binary ? (output += data.subarray(1)) : texts.push(JSON.parse(String(data)))))
    await once(s, 'open')
    s.send(text)
    s.send(Buffer.from('through cat'))
    s.send('{"type":"end"}')
    const [code] = await once(s, 'close')
    assert.deepEqual([code, output, texts.at(-1)], [1000, 'through cat', { type: 'exit', exitCode: 3 }])
  }
})
