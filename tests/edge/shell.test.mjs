// Shells, programs and files through the edge, with a guest agent and a container that are real but run on this host: clients are `ws`, node's
// HTTP/2 and the command line itself. Needs root, crun and cgroup v2, as in a guest; skipped without.
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import WebSocket from 'ws'
import { RUNNING, listen, start, until } from './host.mjs'

const root = path.resolve(import.meta.dirname, '../..')
const built = (name) => ['build-san', 'build'].map((b) => path.join(root, b, name)).find(existsSync)
const MICROVM = 'microvm-10000000-0000-4000-8000-000000000001'
const PROGRAMS = ['bash', 'cat', 'ls', 'stty', 'sleep', 'sha256sum', 'id', 'env', 'sh']

let folder, agent, edge, api, usable = process.getuid() === 0 && existsSync('/usr/bin/crun')

// A root file system of a few of this host's programs and what they are linked with.
function makeImage(image) {
  for (const d of ['bin', 'etc', 'proc', 'tmp', 'data', '.stasis']) mkdirSync(path.join(image, d), { recursive: true })
  for (const name of PROGRAMS) {
    const from = execFileSync('sh', ['-c', `readlink -f "$(command -v ${name})"`], { encoding: 'utf8' }).trim()
    copyFileSync(from, path.join(image, 'bin', name))
    for (const [, lib] of execFileSync('ldd', [from], { encoding: 'utf8' }).matchAll(/(\/\S+)/g)) {
      mkdirSync(path.dirname(path.join(image, lib)), { recursive: true })
      copyFileSync(lib, path.join(image, lib))
    }
  }
  writeFileSync(path.join(image, 'etc/passwd'), 'root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/data:/bin/sh\n')
  writeFileSync(path.join(image, '.stasis/config.json'), JSON.stringify({ architecture: 'amd64', os: 'linux', config: { Cmd: ['/bin/sleep', '1000'], Env: ['PATH=/bin'], WorkingDir: '/data' } }))
}

function call(socket, request) {
  return new Promise((resolve, reject) => {
    const s = net.connect(socket)
    const body = Buffer.from(JSON.stringify({ id: 1, ...request })), head = Buffer.alloc(4)
    head.writeUInt32LE(body.length)
    s.on('error', reject)
    s.once('data', (d) => {
      resolve(JSON.parse(d.subarray(4)))
      s.destroy()
    })
    s.write(Buffer.concat([head, body]))
  })
}

async function startAgent() {
  const image = path.join(folder, 'image'), at = path.join(folder, 'agent')
  makeImage(image)
  const script = `umount -l /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$0" --serve-unix "${at}" --image "${image}" --run "${folder}/run"`
  agent = spawn('unshare', ['-m', 'sh', '-c', script, built('src/guest/stasis-init')], { stdio: ['ignore', 'ignore', 'pipe'] })
  let log = ''
  agent.stderr.on('data', (d) => (log += d))
  agent.on('exit', () => (agent.ended = true))
  await until(() => existsSync(`${at}.control`) || agent.ended, 'the agent').catch(() => {})
  const started = agent.ended ? { ok: false } : await call(`${at}.control`, { op: 'start', disk: 'image', capabilities: 'all' })
  if (!started.ok) return false
  return at
}

before(async () => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'shell-test-'))
  const at = usable && (await startAgent())
  usable = !!at
  if (!usable) return
  process.env.STASIS_AGENT_STREAMS = `${at}.streams`
  edge = await start(1)
  // As much of the API as the command line asks for; it has no microVMs that this edge knows.
  api = http.createServer((q, r) => {
    r.setHeader('content-type', 'application/json')
    if (q.url.endsWith('/session-token')) return r.end(JSON.stringify({ authToken: { 'X-aws-proxy-auth': edge.token('shell') } }))
    r.end(JSON.stringify({ microvmId: MICROVM, endpoint: edge.authority() }))
  })
  const port = await listen(api)
  const home = path.join(folder, 'home')
  mkdirSync(home)
  copyFileSync(path.join(edge.folder, 'tls/ca.pem'), path.join(home, 'ca.pem'))
  Object.assign(process.env, { STASIS_HOME: home, STASIS_API: `http://127.0.0.1:${port}`, STASIS_EDGE: `127.0.0.1:${edge.port}`, STASIS_ACCESS_KEY_ID: 'AKIAIOSFODNN7EXAMPLE', STASIS_SECRET_ACCESS_KEY: 'x' })
})
after(async () => {
  api?.close()
  await edge?.stop()
  if (agent && !agent.ended) {
    await call(path.join(folder, 'agent.control'), { op: 'poweroff' }).catch(() => {})
    const app = Number(readFileSync(path.join(folder, 'run/app.pid'), 'utf8'))
    try {
      process.kill(app, 'SIGKILL')
    } catch {}
    agent.kill('SIGTERM')
  }
  rmSync(folder, { recursive: true, force: true })
})

const lookup = (h, o, f) => (o.all ? f(null, [{ address: '127.0.0.1', family: 4 }]) : f(null, '127.0.0.1', 4))
const open = (target, { port = true, headers } = {}) =>
  new WebSocket(`wss://${edge.authority()}${target}`, headers ? [] : [`lambda-microvms.authentication.${edge.token('shell')}`, 'lambda-microvms', ...(port ? ['lambda-microvms.port.8022'] : [])], { ca: edge.ca, lookup, headers })

// What a channel says: texts as objects, binary as one string, and its end.
function listenTo(s) {
  const seen = { texts: [], shown: '', closed: undefined }
  s.on('message', (d, binary) => (binary ? (seen.shown += d.toString('utf8')) : seen.texts.push(JSON.parse(d))))
  s.on('close', (code, reason) => (seen.closed = [code, String(reason)]))
  s.on('error', (e) => (seen.error = e))
  return seen
}

test('a shell as the service gives it: both paths, session_init, prompt, resize, unknown JSON typed, close 1000', async (t) => {
  if (!usable) return t.skip()
  for (const [target, port] of [['/shell', true], ['/', false]]) {
    const s = open(target, { port })
    const seen = listenTo(s)
    await once(s, 'open')
    assert.equal(s.protocol, 'lambda-microvms')
    await until(() => seen.shown.includes('λ $ '), 'the prompt')
    assert.equal(seen.texts.length, 1)
    assert.equal(seen.texts[0].type, 'session_init')
    assert.match(seen.texts[0].session_id, /^[0-9a-f-]{36}$/)
    s.send(Buffer.from('stty size; echo "$TERM $(id -u) $PWD"\r'))
    await until(() => seen.shown.includes('0 0\r\nxterm 0 /data\r\n'), 'what the shell is')
    s.send(JSON.stringify({ type: 'resize', cols: 101, rows: 37 }))
    s.send(Buffer.from('stty size\r'))
    await until(() => seen.shown.includes('37 101\r\n'), 'the new size')
    s.send('{"type":"nothing"}')
    await until(() => seen.shown.includes('{"type":"nothing"}'), 'unknown JSON on the command line')
    s.send(Buffer.from('\x15exit 3\r'))
    await until(() => seen.closed, 'the end')
    assert.deepEqual(seen.closed, [1000, 'shell exited'])
  }
})

test('a shell\'s token is good for sessions only, and for WebSockets only', async (t) => {
  if (!usable) return t.skip()
  const status = await new Promise((resolve, reject) => {
    const q = https.get({ host: edge.name(RUNNING), port: edge.port, path: '/shell', ca: edge.ca, lookup, headers: { 'x-aws-proxy-auth': edge.token('shell') } }, (r) => resolve(r.statusCode))
    q.on('error', reject)
  })
  assert.equal(status, 502)
  const [error] = await once(open('/nowhere'), 'error')
  assert.match(error.message, /404/)
  const s = open('/shell', { headers: { 'x-aws-proxy-auth': edge.token() } })
  const [refused] = await once(s, 'error')
  assert.match(refused.message, /502/)
})

test('a program: streams apart, input to its end, exit code; failures with their code', async (t) => {
  if (!usable) return t.skip()
  const s = open('/_stasis/exec')
  const parts = { 1: [], 2: [] }
  const seen = listenTo(s)
  s.on('message', (d, binary) => binary && parts[d[0]].push(d.subarray(1)))
  await once(s, 'open')
  s.send(JSON.stringify({ op: 'exec', args: ['sh', '-c', 'cat; echo err >&2; exit 9'] }))
  const data = randomBytes(1_000_000)
  for (let i = 0; i < data.length; i += 50_000) s.send(data.subarray(i, i + 50_000))
  s.send('{"type":"end"}')
  await until(() => seen.closed, 'the end')
  assert.ok(Buffer.concat(parts[1]).equals(data))
  assert.equal(String(Buffer.concat(parts[2])), 'err\n')
  assert.deepEqual(seen.texts[1], { type: 'exit', exitCode: 9 })
  assert.deepEqual(seen.closed, [1000, 'program exited'])
  const f = open('/_stasis/exec')
  const failed = listenTo(f)
  await once(f, 'open')
  f.send(JSON.stringify({ op: 'exec', args: ['nothing-here'] }))
  await until(() => failed.closed, 'the failure')
  assert.equal(failed.texts[1].code, 'NOT_FOUND')
  assert.deepEqual(failed.closed, [1011, 'NOT_FOUND'])
})

test('over HTTP/2 as well (RFC 8441)', async (t) => {
  if (!usable) return t.skip()
  const client = edge.h2()
  await once(client, 'remoteSettings')
  const stream = client.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/shell', 'sec-websocket-version': '13', 'sec-websocket-protocol': `lambda-microvms, lambda-microvms.authentication.${edge.token('shell')}` }, { endStream: false })
  let got = ''
  stream.on('data', (d) => (got += d))
  const [response] = await once(stream, 'response')
  assert.equal(response[':status'], 200)
  assert.equal(response['sec-websocket-protocol'], 'lambda-microvms')
  await until(() => got.includes('session_init') && got.includes('λ $ '), 'the prompt')
  stream.close()
  client.destroy()
})

// The command line. --------------------------------------------------------------------------------------------------------------

function stasis(args, { input, timeout = 20000, program = built('src/cli/stasis'), binary } = {}) {
  return new Promise((resolve) => {
    const p = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] })
    const out = [], err = []
    const timer = setTimeout(() => p.kill('SIGKILL'), timeout)
    p.stdout.on('data', (d) => out.push(d))
    p.stderr.on('data', (d) => err.push(d))
    p.stdin.on('error', () => {})
    p.on('close', (code, signal) => {
      clearTimeout(timer)
      const stdout = Buffer.concat(out)
      resolve({ code: code ?? signal, stdout: binary ? stdout : String(stdout), stderr: String(Buffer.concat(err)) })
    })
    if (input === undefined || Buffer.isBuffer(input) || typeof input === 'string') p.stdin.end(input)
    else input(p)
  })
}

test('stasis exec: exit codes, streams, variables, user, folder', async (t) => {
  if (!usable) return t.skip()
  let r = await stasis(['exec', MICROVM, '--', 'sh', '-c', 'echo out; echo err >&2; exit 42'])
  assert.deepEqual(r, { code: 42, stdout: 'out\n', stderr: 'err\n' })
  // Without -i there is no input; options behind the id; options of the program's own.
  r = await stasis(['exec', MICROVM, '--user', 'user', '--folder', '/bin', '--env', 'A=b c', 'sh', '-c', 'cat; id -u; echo "$PWD $A $HOME"'], { input: 'never read' })
  assert.deepEqual(r, { code: 0, stdout: '1000\n/bin b c /data\n', stderr: '' })
  r = await stasis(['exec', MICROVM, 'nothing-here'])
  assert.equal(r.code, 127)
  assert.match(r.stderr, /NOT_FOUND: cannot run nothing-here: No such file/)
  r = await stasis(['exec', MICROVM, '/etc/passwd'])
  assert.equal(r.code, 126)
  r = await stasis(['exec', MICROVM, '--user', 'who', 'id'])
  assert.equal(r.code, 1)
  assert.match(r.stderr, /USER_NOT_FOUND/)
  r = await stasis(['exec', MICROVM])
  assert.equal(r.code, 2)
})

test('stasis exec -i: any bytes, both ways at once, and signals', async (t) => {
  if (!usable) return t.skip()
  const data = randomBytes(8_000_000)
  const r = await stasis(['exec', '-i', MICROVM, '--', 'cat'], { input: data, binary: true })
  assert.equal(r.code, 0)
  assert.ok(r.stdout.equals(data))
  const s = await stasis(['exec', '-i', MICROVM, '--', 'sh', '-c', 'trap "echo trapped; exit 5" TERM; echo ready; while :; do sleep 0.05; done'], {
    input: (p) => p.stdout.once('data', () => p.kill('SIGTERM')),
  })
  assert.deepEqual([s.code, s.stdout], [5, 'ready\ntrapped\n'])
})

// A terminal for the command line, by util-linux's script.
test('stasis shell: a raw terminal that is put back, its size, the exit code', async (t) => {
  if (!usable) return t.skip()
  const program = built('src/cli/stasis')
  const line = `stty rows 33 cols 99; before=$(stty -g); ${program} shell ${MICROVM}; echo "code=$?"; test "$before" = "$(stty -g)" && echo put-back`
  const r = await stasis(['-qec', line, '/dev/null'], {
    program: 'script',
    input: (p) => {
      let all = ''
      const steps = [['λ $ ', 'stty size\r'], ['33 99', 'echo $((40 + 2))\r'], ['42', 'exit 7\r']]
      p.stdout.on('data', (d) => {
        all += d
        while (steps.length && all.includes(steps[0][0])) p.stdin.write(steps.shift()[1])
      })
    },
  })
  assert.match(r.stdout, /code=7\r?\nput-back/)
  // Ended from outside in the midst of it, it puts the terminal back as well.
  const pid = path.join(folder, 'pid')
  const ended = await stasis(['-qec', `before=$(stty -g); sh -c 'echo $$ > ${pid}; exec ${program} shell ${MICROVM}'; echo "code=$?"; test "$before" = "$(stty -g)" && echo put-back`, '/dev/null'], {
    program: 'script',
    input: (p) => {
      let all = ''
      p.stdout.on('data', (d) => {
        if (!all.includes('λ $ ') && (all += d).includes('λ $ ')) process.kill(Number(readFileSync(pid, 'utf8')), 'SIGTERM')
      })
    },
  })
  assert.match(ended.stdout, /code=143\r?\nput-back/)
})

test('stasis cp: files and folders both ways', async (t) => {
  if (!usable) return t.skip()
  const here = path.join(folder, 'here'), back = path.join(folder, 'back')
  mkdirSync(path.join(here, 'sub'), { recursive: true })
  mkdirSync(back)
  const big = randomBytes(3_000_000)
  writeFileSync(path.join(here, 'big'), big)
  writeFileSync(path.join(here, 'sub/run'), '#!/bin/sh\necho ran\n', { mode: 0o750 })
  symlinkSync('sub/run', path.join(here, 'link'))
  const copy = async (...args) => {
    const r = await stasis(['cp', ...args])
    assert.deepEqual(r, { code: 0, stdout: '', stderr: '' }, `cp ${args}`)
  }
  await copy(here, `${MICROVM}:/data`) // into a folder
  await copy(here, `${MICROVM}:/data/named`) // under a name
  await copy(path.join(here, 'big'), `${MICROVM}:/data/one`, '--user', 'user')
  let r = await stasis(['exec', MICROVM, 'sh', '-c', 'sha256sum < here/big; named/link; ls -ln one; ls -l named/sub/run'])
  assert.equal(r.code, 0)
  assert.ok(r.stdout.includes(createHash('sha256').update(big).digest('hex')))
  assert.match(r.stdout, /ran\n/)
  assert.match(r.stdout, /^-rw-r--r-- 1 1000 1000 3000000 /m)
  assert.match(r.stdout, /^-rwxr-x--- 1 /m)
  await copy(`${MICROVM}:/data/named`, back)
  await copy(`${MICROVM}:/data/one`, path.join(back, 'renamed'))
  execFileSync('diff', ['-r', '--no-dereference', here, path.join(back, 'named')])
  assert.ok(readFileSync(path.join(back, 'renamed')).equals(big))
  assert.equal(statSync(path.join(back, 'named/sub/run')).mode & 0o777, 0o750)
  // What cannot be is said, on either side.
  r = await stasis(['cp', `${MICROVM}:/nowhere`, back])
  assert.equal(r.code, 1)
  assert.match(r.stderr, /cannot open \/nowhere: No such file/)
  r = await stasis(['cp', here, `${MICROVM}:/nowhere/x`])
  assert.match(r.stderr, /there is no folder \/nowhere/)
  r = await stasis(['cp', `${MICROVM}:/data/one`, path.join(folder, 'none/x')])
  assert.match(r.stderr, /there is no folder/)
  r = await stasis(['cp', path.join(folder, 'none'), `${MICROVM}:/data`])
  assert.match(r.stderr, /cannot look at/)
  r = await stasis(['cp', here, back])
  assert.equal(r.code, 2)
})
