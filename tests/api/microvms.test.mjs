// Operations on microVMs and tokens, and the operator's own calls.
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync, appendFileSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { call, otherCredentials, start } from './server.mjs'

let server, client
const arnOf = (name) => `arn:aws:lambda:us-east-1:000000000000:microvm-image:${name}`
const connector = (name) => `arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:${name}`
const send = (name, input, c = client) => c.send(new api[name + 'Command'](input))
const fails = (promise, name, message, status) =>
  assert.rejects(promise, (e) => {
    assert.equal(e.name, name, e.message)
    if (message) assert.ok(e.message.includes(message), e.message)
    if (status) assert.equal(e.$metadata.httpStatusCode, status)
    return true
  })
async function image(name, more = {}) {
  await send('CreateMicrovmImage', { name, baseImageArn: 'arn:aws:lambda:us-east-1:aws:microvm-image:python', buildRoleArn: 'arn:aws:iam::000000000000:role/r',
    codeArtifact: { uri: 's3://bucket/key' }, ...more })
  return arnOf(name)
}
const run = (more = {}) => send('RunMicrovm', { imageIdentifier: arnOf('app'), ...more })

before(async () => {
  server = await start()
  client = server.client()
  await image('app')
  await image('hooked', { hooks: { port: 8080, microvmHooks: { run: 'ENABLED' }, microvmImageHooks: { ready: 'ENABLED' } } })
  await image('pending-app')
})
after(() => server.stop())

test('run answers with the defaults of the service', async () => {
  const r = await run()
  assert.equal(r.$metadata.httpStatusCode, 200)
  assert.equal(r.state, 'PENDING')
  assert.match(r.microvmId, /^microvm-[0-9a-f-]{36}$/)
  assert.match(r.endpoint, /^[0-9a-f-]{36}\.microvm\.localhost:7443$/)
  assert.ok(!r.endpoint.startsWith(r.microvmId.slice(8)))
  assert.equal(r.imageArn, arnOf('app'))
  assert.equal(r.imageVersion, '1.0')
  assert.equal(r.maximumDurationInSeconds, 28800)
  assert.deepEqual(r.ingressNetworkConnectors, [connector('HTTP_INGRESS')])
  assert.deepEqual(r.egressNetworkConnectors, [connector('INTERNET_EGRESS')])
  const raw = await call(server, 'GET', '/2025-09-09/microvms/' + r.microvmId)
  for (const m of ['executionRoleArn', 'idlePolicy', 'terminatedAt', 'stateReason', 'terminationReasonCode']) assert.equal(raw.json[m], null, m)
  assert.equal(raw.json.state, 'RUNNING')
  assert.equal(Object.keys(raw.json).length, 14)
})

test('run with everything', async () => {
  const idlePolicy = { maxIdleDurationSeconds: 60, suspendedDurationSeconds: 0, autoResumeEnabled: true }
  const r = await send('RunMicrovm', { imageIdentifier: arnOf('hooked'), imageVersion: '1', idlePolicy, runHookPayload: 'é'.repeat(4096), maximumDurationInSeconds: 60,
    ingressNetworkConnectors: [connector('HTTP_INGRESS'), connector('SHELL_INGRESS')], egressNetworkConnectors: [connector('NO_EGRESS')],
    executionRoleArn: 'arn:aws:iam::000000000000:role/exec', logging: { cloudWatch: { logGroup: 'g' } } })
  const m = await send('GetMicrovm', { microvmIdentifier: r.microvmId })
  assert.deepEqual(m.idlePolicy, idlePolicy)
  assert.equal(m.maximumDurationInSeconds, 60)
  assert.deepEqual(m.egressNetworkConnectors, [connector('NO_EGRESS')])
  assert.equal(m.executionRoleArn, 'arn:aws:iam::000000000000:role/exec')
  assert.equal(m.runHookPayload, undefined)
})

test('what run refuses', async () => {
  await fails(send('RunMicrovm', { imageIdentifier: 'app' }), 'ValidationException', "Malformed ARN - doesn't start with 'arn:'", 400)
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('none') }), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('none')}`, 404)
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('pending-app') }), 'ResourceNotFoundException', 'No active version found')
  await fails(run({ imageVersion: '2.0' }), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('app')} and version 2.0`)
  await fails(run({ imageVersion: '1.0000000000000000' }), 'ResourceNotFoundException', 'No active version')
  await fails(run({ runHookPayload: 'x' }), 'ValidationException', 'The run hook must be enabled in the MicroVM image to pass the run hook payload')
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('hooked'), runHookPayload: 'x'.repeat(4097) }), 'ValidationException',
    "1 validation error detected: Value at 'runHookPayload' failed to satisfy constraint: Member must have length less than or equal to 4096")
  await fails(run({ maximumDurationInSeconds: 28801 }), 'ValidationException', "Value '28801' at 'maximumDurationInSeconds'")
  await fails(run({ idlePolicy: { maxIdleDurationSeconds: 59 } }), 'ValidationException', '3 validation errors detected')
  await fails(run({ ingressNetworkConnectors: [connector('INTERNET_EGRESS')] }), 'ValidationException', 'Unrecognized managed network connector ARN')
  await fails(run({ ingressNetworkConnectors: Array(11).fill(connector('HTTP_INGRESS')) }), 'ValidationException', 'less than or equal to 10')
  await fails(run({ egressNetworkConnectors: ['arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1'] }), 'ResourceNotFoundException', 'connector')
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('app') }, server.client({ credentials: otherCredentials })), 'AccessDeniedException')
})

test('clientToken makes run idempotent', async () => {
  const clientToken = 'run-1'
  const [a, ...rest] = await Promise.all(Array.from({ length: 8 }, () => run({ clientToken })))
  for (const b of rest) assert.equal(b.microvmId, a.microvmId)
  await send('TerminateMicrovm', { microvmIdentifier: a.microvmId })
  const later = await run({ clientToken })
  delete a.$metadata, delete later.$metadata
  assert.deepEqual(later, a)
  await fails(run({ clientToken, maximumDurationInSeconds: 5 }), 'ConflictException', undefined, 409)
})

test('the life of a microVM', async () => {
  const { microvmId: microvmIdentifier } = await run()
  const state = async () => (await send('GetMicrovm', { microvmIdentifier })).state
  assert.deepEqual(Object.keys(await send('SuspendMicrovm', { microvmIdentifier })), ['$metadata'])
  assert.equal(await state(), 'SUSPENDED')
  await send('ResumeMicrovm', { microvmIdentifier })
  assert.equal(await state(), 'RUNNING')
  await send('TerminateMicrovm', { microvmIdentifier })
  await send('TerminateMicrovm', { microvmIdentifier })
  const m = await send('GetMicrovm', { microvmIdentifier })
  assert.equal(m.state, 'TERMINATED')
  assert.equal(m.stateReason, 'Success.')
  assert.ok(m.terminatedAt instanceof Date)
  for (const name of ['SuspendMicrovm', 'ResumeMicrovm'])
    await fails(send(name, { microvmIdentifier }), 'ValidationException', `The MicroVM ${microvmIdentifier} has been terminated and its state cannot be changed.`, 400)
  for (const name of ['GetMicrovm', 'SuspendMicrovm', 'ResumeMicrovm', 'TerminateMicrovm']) {
    await fails(send(name, { microvmIdentifier: 'microvm-none' }), 'ResourceNotFoundException', 'MicroVM not found: microvm-none', 404)
    await fails(send(name, { microvmIdentifier }, server.client({ credentials: otherCredentials })), 'ResourceNotFoundException')
  }
  const raw = await call(server, 'GET', '/2025-09-09/microvms/microvm-none')
  assert.deepEqual(raw.json, { message: 'MicroVM not found: microvm-none', resourceType: null, resourceId: null })
})

test('microVMs are listed by image and version', async () => {
  await image('listed')
  const ids = []
  for (let i = 0; i < 5; i++) ids.unshift((await send('RunMicrovm', { imageIdentifier: arnOf('listed') })).microvmId)
  const got = []
  for await (const page of api.paginateListMicrovms({ client, pageSize: 2 }, { imageIdentifier: arnOf('listed') })) got.push(...page.items)
  assert.deepEqual(got.map((i) => i.microvmId), ids)
  assert.deepEqual(Object.keys(got[0]).sort(), ['imageArn', 'imageVersion', 'microvmId', 'startedAt', 'state'])
  assert.equal((await send('ListMicrovms', { imageIdentifier: arnOf('listed'), imageVersion: '1' })).items.length, 5)
  assert.equal((await send('ListMicrovms', { imageIdentifier: arnOf('listed'), imageVersion: '3.0' })).items.length, 0)
  await fails(send('ListMicrovms', { imageIdentifier: 'listed' }), 'ValidationException', 'Invalid ARN format')
  assert.equal((await send('ListMicrovms', {}, server.client({ credentials: otherCredentials }))).items.length, 0)
})

test('tokens', async () => {
  const { microvmId: microvmIdentifier } = await run()
  const mint = (expirationInMinutes, allowedPorts) => send('CreateMicrovmAuthToken', { microvmIdentifier, expirationInMinutes, allowedPorts })
  const { authToken } = await mint(60, [{ port: 8080 }, { range: { startPort: 1, endPort: 9 } }])
  const token = authToken['X-aws-proxy-auth']
  assert.equal(token.split('.').length, 5)
  assert.equal(JSON.parse(Buffer.from(token.split('.')[0], 'base64url')).enc, 'A256GCM')
  assert.equal((await mint(1, [{ allPorts: {} }])).authToken['X-aws-proxy-auth'].length, token.length)
  await fails(mint(61, [{ port: 1 }]), 'ValidationException', 'ExpirationMinutes 61 exceeded max allowed of 60.')
  await fails(mint(0, [{ port: 0 }]), 'ValidationException', '2 validation errors')
  await fails(mint(5, []), 'ValidationException', 'greater than or equal to 1')
  await fails(mint(5, [{ range: { startPort: 9, endPort: 1 } }]), 'ValidationException')
  const body = JSON.stringify({ expirationInMinutes: 5, allowedPorts: [{ allPorts: true }] })
  const r = await call(server, 'POST', `/2025-09-09/microvms/${microvmIdentifier}/auth-token`, { body })
  assert.equal(r.status, 400)
  assert.equal(r.json.message, 'Expected null')
  await send('SuspendMicrovm', { microvmIdentifier })
  await mint(5, [{ port: 1 }])
  await send('TerminateMicrovm', { microvmIdentifier })
  await fails(mint(5, [{ port: 1 }]), 'ValidationException', 'terminated')
})

test('shell tokens', async () => {
  const mint = (microvmIdentifier, expirationInMinutes = 5) => send('CreateMicrovmShellAuthToken', { microvmIdentifier, expirationInMinutes })
  const refused = 'Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.'
  const { microvmId: plain } = await run()
  await fails(mint(plain), 'ValidationException', refused, 400)
  await fails(mint((await run({ ingressNetworkConnectors: [connector('NO_INGRESS')] })).microvmId), 'ValidationException', refused)
  const lists = [['SHELL_INGRESS'], ['HTTP_INGRESS', 'SHELL_INGRESS'], ['ALL_INGRESS']]
  let id
  for (const list of lists) {
    id = (await run({ ingressNetworkConnectors: list.map(connector) })).microvmId
    const { authToken } = await mint(id, 60)
    const token = authToken['X-aws-proxy-auth']
    assert.deepEqual(JSON.parse(Buffer.from(token.split('.')[0], 'base64url')).enc, 'A256GCM')
    assert.equal(token.split('.').length, 5)
  }
  await fails(mint(id, 61), 'ValidationException', 'ExpirationMinutes 61 exceeded max allowed of 60.', 400)
  await fails(mint(id, 0), 'ValidationException', "Value '0' at 'expirationInMinutes' failed")
  await fails(mint(id, null), 'ValidationException', "Value null at 'expirationInMinutes' failed")
  await fails(mint('microvm-none'), 'ResourceNotFoundException', 'MicroVM not found: microvm-none', 404)
  await fails(send('CreateMicrovmShellAuthToken', { microvmIdentifier: id, expirationInMinutes: 5 }, server.client({ credentials: otherCredentials })),
    'ResourceNotFoundException')
  await send('SuspendMicrovm', { microvmIdentifier: id })
  await mint(id)
  await send('TerminateMicrovm', { microvmIdentifier: id })
  await fails(mint(id), 'ValidationException', 'terminated', 400)
})

test('the operator sees health, certificate, status and stages', async () => {
  const health = await (await fetch(server.api + '/_stasis/health')).json()
  assert.deepEqual(health, { status: 'ok', version: '0.0.0-test' })
  assert.match(await (await fetch(server.api + '/_stasis/ca.pem')).text(), /BEGIN CERTIFICATE/)
  assert.equal((await fetch(server.api + '/_stasis/status')).status, 403)
  const status = await call(server, 'GET', '/_stasis/status')
  assert.ok(status.json.images >= 3 && status.json.microvms.running >= 1)
  const stages = await call(server, 'GET', `/_stasis/images/${encodeURIComponent(arnOf('app'))}/versions/1.0/stages`)
  assert.equal(stages.json.stages[0].name, 'build.container')
  assert.equal(stages.json.stages[0].durationUs, 1500000)
})

test('logs are followed by offset', async () => {
  const { microvmId } = await run()
  const folder = path.join(server.folder, 'microvms', microvmId.slice(8))
  const get = (offset) => call(server, 'GET', `/_stasis/microvms/${microvmId}/log?offset=${offset}`)
  let r = await get(0)
  assert.equal(r.status, 200)
  assert.equal(r.text, '')
  assert.equal(r.headers.get('x-stasis-complete'), 'false')
  mkdirSync(folder, { recursive: true })
  writeFileSync(path.join(folder, 'app.log'), 'one\n')
  r = await get(0)
  assert.equal(r.text, 'one\n')
  assert.equal(r.headers.get('x-stasis-next-offset'), '4')
  appendFileSync(path.join(folder, 'app.log'), 'x'.repeat(300000))
  let offset = 4, size = 0
  for (; (r = await get(offset)).text.length > 0; offset = Number(r.headers.get('x-stasis-next-offset'))) size += r.text.length
  assert.equal(size, 300000)
  await send('TerminateMicrovm', { microvmIdentifier: microvmId })
  assert.equal((await get(offset)).headers.get('x-stasis-complete'), 'true')
  assert.equal((await get('x')).status, 400)
  assert.equal((await get('-1')).status, 400)
  const { json } = await call(server, 'GET', '/2025-09-09/microvm-images/' + arnOf('app'))
  mkdirSync(path.join(server.folder, 'images', json.id, '1.0'), { recursive: true })
  writeFileSync(path.join(server.folder, 'images', json.id, '1.0', 'build.log'), 'STEP 1\n')
  r = await call(server, 'GET', `/_stasis/images/${arnOf('app')}/versions/1.0/log?offset=5`)
  assert.equal(r.text, '1\n')
  assert.equal(r.headers.get('x-stasis-complete'), 'true')
})
