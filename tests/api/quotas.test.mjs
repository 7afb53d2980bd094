// Quotas of accounts, the rates of calls, and the host's room; admission under fire.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { call, otherCredentials, start } from './server.mjs'

const account = '000000000000'
const imageArn = (name, owner = account) => `arn:aws:lambda:us-east-1:${owner}:microvm-image:${name}`
const send = (client, name, input = {}) => client.send(new api[name + 'Command'](input))
let server, client

const create = (c, name, more = {}) =>
  send(c, 'CreateMicrovmImage', { name, baseImageArn: 'debian', buildRoleArn: `arn:aws:iam::${account}:role/build`, codeArtifact: { uri: 's3://code/key' },
    resources: [{ minimumMemoryInMiB: 512 }], ...more })
const run = (name = 'app', c = client) => send(c, 'RunMicrovm', { imageIdentifier: imageArn(name) })
const terminate = ({ microvmId }) => send(client, 'TerminateMicrovm', { microvmIdentifier: microvmId })
const exceeded = (message) => (e) => {
  assert.equal(e.name, 'ServiceQuotaExceededException', e.message)
  assert.equal(e.$metadata.httpStatusCode, 402)
  assert.equal(e.message, message)
  return true
}
const memory = exceeded('The base maximum allocated memory limit has been reached for this account.')
// How many of the calls were admitted; the others must have been refused for that reason.
async function admitted(calls, refusal) {
  const results = await Promise.allSettled(calls)
  for (const r of results) if (r.status === 'rejected') refusal(r.reason)
  return results.filter((r) => r.status === 'fulfilled').map((r) => r.value)
}

// Deletion goes on behind the answer.
async function gone(get) {
  for (;;) {
    try {
      await get()
    } catch (e) {
      if (e.name === 'ResourceNotFoundException') return
      throw e
    }
    await new Promise((r) => setTimeout(r, 20))
  }
}

before(async () => {
  server = await start(undefined, {
    quotas: {
      default: { images: 1 },
      [account]: { memoryMib: 4096, images: 4, versions: 3, concurrentBuilds: 2 },
    },
    hostMemoryMib: 6144,
    hostReserveMib: 0,
  })
  client = server.client()
  await create(client, 'app')
})
after(() => server.stop())

test('memory of an account, running and suspended; 40 at once get exactly what there is', async () => {
  const got = await admitted(Array.from({ length: 40 }, () => run()), memory)
  assert.equal(got.length, 8)
  await send(client, 'SuspendMicrovm', { microvmIdentifier: got[0].microvmId })
  await assert.rejects(run(), memory)
  const raw = await call(server, 'POST', '/2025-09-09/microvms', { body: JSON.stringify({ imageIdentifier: imageArn('app') }) })
  assert.equal(raw.status, 402)
  assert.deepEqual(raw.json, { message: 'The base maximum allocated memory limit has been reached for this account.', resourceType: null, resourceId: null,
    serviceCode: null, quotaCode: null })
  await terminate(got[0])
  await terminate(got[1])
  const again = await admitted(Array.from({ length: 20 }, () => run()), memory)
  assert.equal(again.length, 2)
  // What was refused is nowhere.
  const living = (await send(client, 'ListMicrovms', { maxResults: 50 })).items.filter((m) => m.state !== 'TERMINATED')
  assert.equal(living.length, 8)
  await Promise.all([...got.slice(2), ...again].map(terminate))
})

test('a larger image takes more of it, and another account has its own', async () => {
  await create(client, 'large', { resources: [{ minimumMemoryInMiB: 2048 }] })
  const got = await admitted(Array.from({ length: 5 }, () => run('large')), memory)
  assert.equal(got.length, 2)
  await assert.rejects(run('app'), memory)
  await Promise.all(got.map(terminate))
})

test('no room on the host: InsufficientCapacityException', async () => {
  const other = server.client({ credentials: otherCredentials })
  await create(other, 'big', { resources: [{ minimumMemoryInMiB: 2048 }] })
  const full = (e) => {
    assert.equal(e.name, 'InsufficientCapacityException', e.message)
    assert.equal(e.$metadata.httpStatusCode, 500)
    assert.match(e.message, /not enough memory/)
    return true
  }
  const big = (c = other) => send(c, 'RunMicrovm', { imageIdentifier: imageArn('big', '111111111111') })
  const got = await admitted(Array.from({ length: 12 }, () => big()), full)
  assert.equal(got.length, 3)
  await assert.rejects(run(), full)
  // One that sleeps takes nothing of the host.
  await send(other, 'SuspendMicrovm', { microvmIdentifier: got[0].microvmId })
  await terminate(await run())
  for (const m of got) await send(other, 'TerminateMicrovm', { microvmIdentifier: m.microvmId })
})

test('images and builds', async () => {
  // app and large are there; two more fit, of which two may be in their builds at once.
  const builds = exceeded('The maximum number of concurrent MicroVM image builds has been reached for this account.')
  const images = exceeded('The maximum number of MicroVM images has been reached for this account.')
  const either = (e) => (e.message.includes('builds') ? builds(e) : images(e))
  const got = await admitted(Array.from({ length: 10 }, (_, i) => create(client, `pending-${i}`)), either)
  assert.equal(got.length, 2)
  await assert.rejects(create(client, 'more'), images)
  await send(client, 'DeleteMicrovmImage', { imageIdentifier: imageArn('large') })
  await gone(() => send(client, 'GetMicrovmImage', { imageIdentifier: imageArn('large') }))
  await assert.rejects(create(client, 'more'), builds)
  const other = server.client({ credentials: otherCredentials })
  await assert.rejects(create(other, 'second'), images)
})

test('versions of an image', async () => {
  const update = () =>
    send(client, 'UpdateMicrovmImage', { imageIdentifier: imageArn('app'), baseImageArn: 'debian', buildRoleArn: `arn:aws:iam::${account}:role/build`,
      codeArtifact: { uri: 's3://code/key' } })
  await update().then(assert.fail, exceeded('The maximum number of concurrent MicroVM image builds has been reached for this account.'))
  await server.kill()
  server = await start(server.folder, { quotas: { default: { versions: 3 } } })
  client = server.client()
  await update()
  await update()
  await assert.rejects(update(), exceeded('The maximum number of versions has been reached for this MicroVM image.'))
  await send(client, 'DeleteMicrovmImageVersion', { imageIdentifier: imageArn('app'), imageVersion: '1.0' })
  await gone(() => send(client, 'GetMicrovmImageVersion', { imageIdentifier: imageArn('app'), imageVersion: '1.0' }))
  await update()
  await server.kill()
  server = await start(server.folder, { quotas: { default: { callsPerSecond: { GetMicrovmImage: 2, ListManagedMicrovmImages: 0.5, '*': 1000 } } } })
  client = server.client()
})

test('calls per second: 429 with Retry-After, and the SDK tries again by itself', async () => {
  const get = (c = client) => send(c, 'GetMicrovmImage', { imageIdentifier: imageArn('app') })
  const throttled = (e) => {
    assert.equal(e.name, 'ThrottlingException', e.message)
    assert.equal(e.$metadata.httpStatusCode, 429)
    assert.ok(e.retryAfterSeconds >= 1)
    return true
  }
  await new Promise((r) => setTimeout(r, 1000))
  const got = await admitted(Array.from({ length: 12 }, () => get()), throttled)
  assert.ok(got.length >= 2 && got.length <= 4, `${got.length} of 12`)
  // Others are not held up.
  await send(client, 'ListMicrovms')
  const slow = await call(server, 'GET', '/2025-09-09/managed-microvm-images')
  assert.equal(slow.status, 200)
  const raw = await call(server, 'GET', '/2025-09-09/managed-microvm-images')
  assert.equal(raw.status, 429)
  assert.equal(raw.errorType, 'ThrottlingException')
  assert.equal(raw.headers.get('retry-after'), '2')
  assert.deepEqual(raw.json, { message: 'Rate exceeded', serviceCode: null, quotaCode: null })
  const begun = Date.now()
  const patient = server.client({ maxAttempts: 6 })
  const answers = await Promise.all(Array.from({ length: 5 }, () => get(patient)))
  assert.ok(answers.every((a) => a.name === 'app'))
  assert.ok(answers.some((a) => a.$metadata.attempts > 1))
  assert.ok(Date.now() - begun >= 900, 'the rate held')
})

test('a configuration that is wrong is refused by name', async () => {
  for (const [quotas, message] of [
    [{ nobody: {} }, /"quotas" must be an object from accounts .* not "nobody"/],
    [{ default: { memory: 1 } }, /default: unknown member "memory"/],
    [{ default: { images: -1 } }, /default: "images" must be a whole number/],
    [{ [account]: { callsPerSecond: { RunMicrovm: 0 } } }, /000000000000: calls per second of "RunMicrovm"/],
    [{ default: { callsPerSecond: 5 } }, /"callsPerSecond" must be an object/],
  ])
    await assert.rejects(start(undefined, { quotas }), message)
})
