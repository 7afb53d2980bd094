// The operator's own calls below /_stasis/: metrics, tokens, public ports.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { call, start } from './server.mjs'

let server, client
const arnOf = (name) => `arn:aws:lambda:us-east-1:000000000000:microvm-image:${name}`
const send = (name, input) => client.send(new api[name + 'Command'](input))
const image = (name) => send('CreateMicrovmImage', { name, baseImageArn: 'debian', buildRoleArn: 'arn:aws:iam::000000000000:role/r', codeArtifact: { uri: 's3://bucket/key' } })
before(async () => {
  server = await start()
  client = server.client()
})
after(() => server.stop())

const METRICS_TOKEN = 'a-token-for-prometheus' // of tests/unit/api_server.c

test('metrics: signed, or with the configured token; not otherwise', async () => {
  const get = (authorization) => fetch(server.api + '/_stasis/metrics', { headers: authorization ? { authorization } : {} })
  const signed = await call(server, 'GET', '/_stasis/metrics')
  assert.equal(signed.status, 200)
  assert.match(signed.headers.get('content-type'), /^text\/plain; version=0\.0\.4/)
  assert.match(signed.text, /^stasis_microvms\{state="running"\} 0$/m)
  assert.match(signed.text, /^stasis_edge_requests_total\{class="2xx"\} 0$/m)
  const scraped = await get(`Bearer ${METRICS_TOKEN}`)
  assert.equal(scraped.status, 200)
  assert.match(await scraped.text(), /^stasis_uptime_seconds \d+$/m)
  for (const bad of [undefined, 'Bearer', 'Bearer ', `Bearer ${METRICS_TOKEN}x`, `Bearer ${METRICS_TOKEN.slice(1)}`, `Basic ${METRICS_TOKEN}`]) assert.equal((await get(bad)).status, 403, String(bad))
  // It opens nothing else.
  assert.equal((await fetch(server.api + '/_stasis/status', { headers: { authorization: `Bearer ${METRICS_TOKEN}` } })).status, 403)
})

test('session tokens: for microVMs that exist, and only signed', async () => {
  const missing = await call(server, 'POST', '/_stasis/microvms/microvm-00000000-0000-4000-8000-000000000000/session-token')
  assert.deepEqual([missing.status, missing.errorType], [404, 'ResourceNotFoundException'])
  assert.equal((await fetch(server.api + '/_stasis/microvms/microvm-00000000-0000-4000-8000-000000000000/session-token', { method: 'POST' })).status, 403)
})

test('tokens are revoked, and the key that seals them is renewed', async () => {
  await image('app')
  const { microvmId } = await send('RunMicrovm', { imageIdentifier: arnOf('app') })
  const mint = async () => (await send('CreateMicrovmAuthToken', { microvmIdentifier: microvmId, expirationInMinutes: 5, allowedPorts: [{ port: 80 }] })).authToken['X-aws-proxy-auth']
  const kid = (token) => JSON.parse(Buffer.from(token.split('.')[0], 'base64url')).kid
  const first = await mint()
  assert.equal((await call(server, 'POST', `/_stasis/microvms/${microvmId}/revoke-tokens`)).status, 200)
  const second = await mint()
  assert.equal(kid(first), kid(second))
  assert.equal((await call(server, 'POST', '/_stasis/token-keys')).status, 200)
  assert.notEqual(kid(await mint()), kid(first))
  assert.equal((await call(server, 'POST', '/_stasis/microvms/microvm-00000000-0000-4000-8000-000000000000/revoke-tokens')).status, 404)
  let r
  for (let i = 0; i < 20 && r?.status !== 409; i++) r = await call(server, 'POST', '/_stasis/token-keys')
  assert.equal(r.status, 409)
  assert.match(r.text, /try again in an hour/)
})

test('ports of an image are public when an operator says so, and not after its deletion', async () => {
  const name = 'with-public-ports'
  const at = (port = '') => `/_stasis/images/${encodeURIComponent(arnOf(name))}/public-ports${port === '' ? '' : '/' + port}`
  const create = () => image(name)
  assert.equal((await call(server, 'GET', at())).status, 404)
  await create()
  assert.deepEqual((await call(server, 'GET', at())).json, { imageArn: arnOf(name), publicPorts: [] })
  assert.deepEqual((await call(server, 'PUT', at(9000))).json.publicPorts, [9000])
  assert.deepEqual((await call(server, 'PUT', at(80))).json.publicPorts, [80, 9000])
  assert.deepEqual((await call(server, 'PUT', at(80))).json.publicPorts, [80, 9000])
  for (const bad of ['0', '65536', 'x', '1x', '-1']) assert.equal((await call(server, 'PUT', at(bad))).status, 400, bad)
  await server.kill()
  server = await start(server.folder)
  client = server.client()
  assert.deepEqual((await call(server, 'DELETE', at(80))).json.publicPorts, [9000])
  assert.deepEqual((await call(server, 'DELETE', at(80))).json.publicPorts, [9000])
  for (let p = 1; p < 16; p++) await call(server, 'PUT', at(p))
  const r = await call(server, 'PUT', at(100))
  assert.equal(r.status, 400)
  assert.match(r.text, /at most 16 public ports/)
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf(name) })
  while ((await call(server, 'GET', at())).status !== 404) await new Promise((x) => setTimeout(x, 10))
  await create()
  assert.deepEqual((await call(server, 'GET', at())).json.publicPorts, [])
  // A key without the operator's actions may do none of this.
  const { json } = await call(server, 'POST', '/_stasis/keys', { body: '{}' })
  const key = { accessKeyId: json.accessKeyId, secretAccessKey: json.secretAccessKey }
  for (const [method, target] of [['PUT', at(1)], ['GET', at()], ['POST', '/_stasis/token-keys']]) assert.equal((await call(server, method, target, { key })).status, 403, target)
})
