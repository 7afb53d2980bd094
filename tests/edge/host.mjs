// Starts the real edge as a program of its own (tests/unit/test_edge_host.c), in front of servers of the test on this host.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import http2 from 'node:http2'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import tls from 'node:tls'

const root = path.resolve(import.meta.dirname, '../..')
// The sanitized build, where there is one, finds more.
const candidates = [process.env.STASIS_EDGE_HOST, 'build-san/tests/unit/test_edge_host', 'build/tests/unit/test_edge_host']

const endpoint = (n) => `00000000-0000-4000-8000-00000000000${n}`
export const RUNNING = endpoint(1), SUSPENDED = endpoint(2), ASLEEP = endpoint(3), FAILED = endpoint(5)

// For clients of node's: every name is this host.
export const loopback = (name, o, done) => done(null, o.all ? [{ address: '127.0.0.1', family: 4 }] : '127.0.0.1', 4)

// `port`: of the server that guest port 8080 leads to; other ports lead to themselves. MicroVMs have two processors. `configuration`: of the engine.
// `tls`: guest ports where the application speaks TLS.
export async function start(port, { wakeMs = 300, configuration = {}, tls: secure = [] } = {}) {
  const program = candidates.filter(Boolean).map((p) => path.resolve(root, p)).find(existsSync)
  if (!program) throw new Error('test_edge_host is not built: ninja -C build tests/unit/test_edge_host')
  const folder = mkdtempSync(path.join(os.tmpdir(), 'edge-test-'))
  const child = spawn(program, [folder, '0', String(port), String(wakeMs), JSON.stringify(configuration)], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, EDGE_HOST_TLS: secure.join(',') } })
  let log = ''
  child.stderr.on('data', (d) => (log = (log + d).slice(-1_000_000)))
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve(code ?? signal)))
  const lines = createInterface(child.stdout)
  const line = await new Promise((resolve, reject) => {
    lines.once('line', resolve)
    ended.then((code) => reject(new Error(`test_edge_host ended with ${code}: ${log}`)))
  })
  const at = Number(line)
  const ca = readFileSync(path.join(folder, 'tls/ca.pem'))
  const tokens = Object.fromEntries(readFileSync(path.join(folder, 'token'), 'utf8').trim().split('\n').map((l) => l.split(' ')))
  const name = (e) => `${e}.microvm.localhost`
  return {
    port: at, ca, folder, pid: child.pid,
    log: () => log,
    token: (e = RUNNING) => tokens[e],
    name,
    authority: (e = RUNNING) => `${name(e)}:${at}`,
    // A socket after the handshake.
    tls: (alpn = ['http/1.1'], e = RUNNING) =>
      new Promise((resolve, reject) => {
        const s = tls.connect({ host: '127.0.0.1', port: at, ca, servername: name(e), ALPNProtocols: alpn }, () => resolve(s))
        s.once('error', reject)
      }),
    h2: (e = RUNNING, o = {}) => http2.connect(`https://${name(e)}:${at}`, { ca, lookup: loopback, ...o }),
    // All microVMs; they wake again when the edge asks for it.
    sleep() {
      const asleep = once(lines, 'line')
      child.kill('SIGUSR1')
      return asleep
    },
    // Every handle must be closed and every route given back: otherwise the edge does not end, or says so.
    async stop() {
      child.kill('SIGTERM')
      const timer = setTimeout(() => child.kill('SIGKILL'), 20000)
      const code = await ended
      clearTimeout(timer)
      rmSync(folder, { recursive: true, force: true })
      if (code !== 0) throw new Error(`test_edge_host ended with ${code}:\n${log.slice(-6000)}`)
    },
  }
}

// A request over HTTP/2, to its end. `body`: sent whole; `write`: gets the stream instead.
export function ask(session, headers, { body, write, token, endStream } = {}) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':method': body === undefined && !write ? 'GET' : 'POST', ...headers }, { endStream: endStream ?? (body === undefined && !write), ...(token && {}) })
    const r = { interim: [], chunks: [], trailers: undefined }
    stream.on('headers', (h) => r.interim.push(h))
    stream.on('response', (h) => {
      r.headers = h
      r.status = h[':status']
    })
    stream.on('trailers', (t) => (r.trailers = t))
    stream.on('data', (d) => r.chunks.push(d))
    stream.on('error', (e) => (r.error = e))
    stream.on('close', () => {
      r.code = stream.rstCode
      r.body = Buffer.concat(r.chunks)
      if (r.status === undefined && !r.error) reject(new Error(`the stream was closed with ${r.code}`))
      else resolve(r)
    })
    if (write) write(stream)
    else if (body !== undefined) stream.end(body)
  })
}

export const listen = (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)))
export const until = async (fine, what, ms = 10000) => {
  for (const end = Date.now() + ms; !fine(); ) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await new Promise((r) => setTimeout(r, 5))
  }
}
