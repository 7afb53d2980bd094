// Starts the API and the artifact store with stand-ins for builds and microVMs (tests/unit/api_server.c), and makes clients of the real AWS SDK.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash, createHmac } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { LambdaMicrovmsClient } from '@aws-sdk/client-lambda-microvms'
import { S3Client } from '@aws-sdk/client-s3'

const root = path.resolve(import.meta.dirname, '../..')
// The sanitized build, where there is one, finds more.
const candidates = [process.env.STASIS_API_SERVER, 'build-san/tests/unit/api_server', 'build/tests/unit/api_server']
export const credentials = { accessKeyId: 'AKIDSTASISTEST000001', secretAccessKey: 'secret/one+two=three' }
export const otherCredentials = { accessKeyId: 'AKIDSTASISTEST000002', secretAccessKey: 'another' }
export const region = 'us-east-1'

// `folder`: the state of a server that ran before; `configuration`: members of the engine's configuration.
export async function start(folder = mkdtempSync(path.join(os.tmpdir(), 'api-test-')), configuration = {}) {
  const program = candidates.filter(Boolean).map((p) => path.resolve(root, p)).find(existsSync)
  if (!program) throw new Error('api_server is not built: ninja -C build tests/unit/api_server')
  const child = spawn(program, [folder, JSON.stringify({ artifactLimitBytes: 64 << 20, ...configuration })], { stdio: ['pipe', 'pipe', 'pipe'] })
  let log = ''
  child.stderr.on('data', (d) => (log += d))
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve(code ?? signal)))
  const line = await new Promise((resolve, reject) => {
    createInterface(child.stdout).once('line', resolve)
    ended.then((code) => reject(new Error(`api_server ended with ${code}: ${log}`)))
  })
  const { api, artifacts } = JSON.parse(line)
  return {
    api,
    artifacts,
    folder,
    pid: child.pid,
    log: () => log,
    client: (o = {}) => new LambdaMicrovmsClient({ endpoint: api, region, credentials, maxAttempts: 1, ...o }),
    s3: (o = {}) => new S3Client({ endpoint: artifacts, region, credentials, maxAttempts: 1, forcePathStyle: true, ...o }),
    async kill() {
      child.kill('SIGKILL')
      await ended
    },
    async stop() {
      child.kill('SIGTERM')
      const code = await ended
      rmSync(folder, { recursive: true, force: true })
      if (code !== 0) throw new Error(`api_server ended with ${code}:\n${log.slice(-4000)}`)
    },
  }
}

const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const hmac = (key, text) => createHmac('sha256', key).update(text).digest()
const encode = (s) => encodeURIComponent(s).replace(/[!'()*]/g, (c) => '%' + c.charCodeAt(0).toString(16).toUpperCase())

// Signs by hand, for requests that the SDK would not make. Returns the headers to send.
export function sign({ method, url, body = '', service = 'lambda', key = credentials, headers = {}, payload, date = new Date(), region: where = region }) {
  const u = new URL(url)
  const amzDate = date.toISOString().replace(/[-:]|\.\d{3}/g, '')
  const day = amzDate.slice(0, 8)
  const hash = payload ?? sha256(body)
  const all = { host: u.host, 'x-amz-date': amzDate, ...(service === 's3' ? { 'x-amz-content-sha256': hash } : {}), ...headers }
  const names = Object.keys(all).map((n) => n.toLowerCase()).sort()
  const value = (n) => String(Object.entries(all).find(([k]) => k.toLowerCase() === n)[1]).trim().replace(/ +/g, ' ')
  const uri = service === 's3' ? u.pathname : u.pathname.split('/').map(encode).join('/')
  const query = [...u.search.slice(1).split('&')].filter(Boolean).map((p) => {
    const [k, v = ''] = p.split(/=(.*)/s)
    return [encode(decodeURIComponent(k)), encode(decodeURIComponent(v))]
  }).sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] < b[1] ? -1 : 1)).map((p) => p.join('=')).join('&')
  const canonical = [method, uri, query, ...names.map((n) => `${n}:${value(n)}`), '', names.join(';'), hash].join('\n')
  const scope = `${day}/${where}/${service}/aws4_request`
  const text = ['AWS4-HMAC-SHA256', amzDate, scope, sha256(canonical)].join('\n')
  const k = hmac(hmac(hmac(hmac('AWS4' + key.secretAccessKey, day), where), service), 'aws4_request')
  const signature = createHmac('sha256', k).update(text).digest('hex')
  return { ...all, authorization: `AWS4-HMAC-SHA256 Credential=${key.accessKeyId}/${scope}, SignedHeaders=${names.join(';')}, Signature=${signature}` }
}

// Checks a request that somebody else signed (method, url, headers in lower case, body), by signing it anew.
export function verifySignature({ method, url, headers, body = '' }, { service, key, region }) {
  const [, names] = /SignedHeaders=([^,]*)/.exec(headers.authorization)
  for (const needed of ['host', 'x-amz-date', ...Object.keys(headers).filter((n) => n.startsWith('x-amz-'))]) assert.ok(names.split(';').includes(needed), needed)
  const date = new Date(headers['x-amz-date'].replace(/(....)(..)(..)T(..)(..)(..)Z/, '$1-$2-$3T$4:$5:$6Z'))
  assert.ok(Math.abs(date - Date.now()) < 300e3)
  const signed = Object.fromEntries(names.split(';').map((n) => [n, headers[n]]))
  const again = sign({ method, url, body, service, key, headers: signed, payload: headers['x-amz-content-sha256'], date, region })
  assert.equal(headers.authorization.replace(/, */g, ', '), again.authorization)
}

export async function call(server, method, target, { body = '', ...o } = {}) {
  const url = server.api + target
  const headers = sign({ method, url, body, ...o })
  delete headers.host
  const r = await fetch(url, { method, headers, body: body === '' ? undefined : body })
  const text = await r.text()
  let json
  try {
    json = JSON.parse(text)
  } catch {}
  return { status: r.status, headers: r.headers, text, json, errorType: r.headers.get('x-amzn-errortype') }
}

// Sends bytes as they are and gives back everything that comes until the connection ends (or `until` matches).
export function raw(url, pieces, { until, pause = 0, timeout = 20000 } = {}) {
  const u = new URL(url)
  return new Promise((resolve, reject) => {
    const socket = net.connect(Number(u.port), u.hostname)
    let got = ''
    const timer = setTimeout(() => (socket.destroy(), reject(new Error('time-out, got: ' + got))), timeout)
    const done = () => (clearTimeout(timer), socket.destroy(), resolve(got))
    socket.on('data', (d) => ((got += d.toString('latin1')), until?.test(got) && done()))
    socket.on('error', done)
    socket.on('close', done)
    ;(async () => {
      for (const p of [pieces].flat()) {
        socket.write(p, 'latin1')
        if (pause) await new Promise((r) => setTimeout(r, pause))
      }
    })()
  })
}
