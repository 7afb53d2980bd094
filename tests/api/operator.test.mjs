// The operator's own calls below /_stasis/: metrics and tokens for sessions.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { call, start } from './server.mjs'

let server
before(async () => (server = await start()))
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
