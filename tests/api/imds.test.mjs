// The guest agent's metadata service with the client that AWS's SDKs use: they find credentials by themselves.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { fromInstanceMetadata } from '@smithy/credential-provider-imds'

const root = path.resolve(import.meta.dirname, '../..')
const program = ['build-san/src/guest/stasis-init', 'build/src/guest/stasis-init'].map((p) => path.join(root, p)).find(existsSync)
const port = 20000 + (process.pid % 20000)
const folder = mkdtempSync(path.join(os.tmpdir(), 'imds-'))
let agent, control

// One request to the agent's control port.
const ask = (request) =>
  new Promise((resolve, reject) => {
    let got = Buffer.alloc(0)
    const body = Buffer.from(JSON.stringify(request)), size = Buffer.alloc(4)
    size.writeUInt32LE(body.length)
    control.once('error', reject)
    control.on('data', function take(data) {
      got = Buffer.concat([got, data])
      if (got.length < 4 || got.length < 4 + got.readUInt32LE()) return
      control.off('data', take)
      resolve(JSON.parse(got.subarray(4)))
    })
    control.write(Buffer.concat([size, body]))
  })
const iso = (ms) => new Date(ms).toISOString().replace(/\.\d+Z/, 'Z')
const credentials = (accessKeyId, minutes = 55) => ({ accessKeyId, secretAccessKey: 'secret', token: 'token', lastUpdated: iso(Date.now()), expiration: iso(Date.now() + minutes * 60000) })
const resume = (more) => ask({ id: 1, op: 'resume', entropy: '00'.repeat(32), realtimeNs: 1, generation: 'clone', ...more })

before(async () => {
  process.env.AWS_EC2_METADATA_SERVICE_ENDPOINT = `http://127.0.0.1:${port}`
  process.env.AWS_EC2_METADATA_V1_DISABLED = 'true'
  agent = spawn(program, ['--serve-unix', path.join(folder, 'agent'), '--run', path.join(folder, 'run'), '--imds-port', String(port)], { stdio: 'inherit' })
  for (let i = 0; i < 500 && !existsSync(path.join(folder, 'agent.streams')); i++) await new Promise((r) => setTimeout(r, 10))
  control = net.connect(path.join(folder, 'agent.control'))
})
after(async () => {
  await ask({ id: 2, op: 'poweroff' })
  const code = await new Promise((r) => (agent.exitCode === null ? agent.on('exit', r) : r(agent.exitCode)))
  rmSync(folder, { recursive: true })
  assert.equal(code, 0)
})

test('the SDK finds what the microVM was given, and nothing before', async () => {
  const provider = () => fromInstanceMetadata({ timeout: 2000, maxRetries: 0 })()
  await assert.rejects(provider())
  assert.equal((await resume({ credentials: credentials('ASIAFIRST') })).ok, true)
  const c = await provider()
  assert.equal(c.accessKeyId, 'ASIAFIRST')
  assert.equal(c.secretAccessKey, 'secret')
  assert.equal(c.sessionToken, 'token')
  assert.ok(Math.abs(c.expiration - Date.now() - 55 * 60000) < 5000)
  assert.equal((await ask({ id: 3, op: 'credentials', credentials: credentials('ASIASECOND') })).ok, true)
  assert.equal((await provider()).accessKeyId, 'ASIASECOND')
  assert.equal((await resume({})).ok, true)
  await assert.rejects(provider())
})
