// Client tokens: the same call is answered the same way, whatever happened in between; another call with the token is refused.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { arnOf, fails, gone, request, sender, settled, version } from './client.mjs'
import { call, otherCredentials, start } from './server.mjs'

let server, client
before(async () => {
  server = await start()
  client = server.client()
  await send('CreateMicrovmImage', request('app'))
})
after(() => server.stop())

const send = sender(() => client)
const plain = ({ $metadata, ...r }) => r
const update = (name, more) => send('UpdateMicrovmImage', { imageIdentifier: arnOf(name), ...version(more) })
async function restart() {
  await server.kill()
  server = await start(server.folder)
  client = server.client()
}

test('creation: same token, same answer, also when the image has changed, is gone, or is there anew, and after a restart', async () => {
  const create = (more) => send('CreateMicrovmImage', request('once', { clientToken: 'c', tags: { k: 'v' }, ...more }))
  const first = plain(await create())
  assert.equal(first.state, 'CREATING')
  assert.deepEqual(plain(await create()), first)
  await update('once', { description: 'failing' })
  await send('TagResource', { Resource: arnOf('once'), Tags: { k: 'w' } })
  assert.deepEqual(plain(await create()), first)
  await fails(create({ description: 'another' }), 'ConflictException', 'The client token was used before with other parameters', 409)
  await fails(create({ name: 'twice' }), 'ConflictException')
  await restart()
  assert.deepEqual(plain(await create()), first)
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf('once') })
  await gone(send, arnOf('once'))
  assert.deepEqual(plain(await create()), first)
  await fails(send('GetMicrovmImage', { imageIdentifier: arnOf('once') }), 'ResourceNotFoundException')
  await send('CreateMicrovmImage', request('once', { clientToken: 'another' }))
  assert.deepEqual(plain(await create()), first)
  await restart()
  assert.deepEqual(plain(await create()), first)
  assert.equal((await settled(send, arnOf('once'))).state, 'CREATED')
  const raw = await call(server, 'POST', '/2025-09-09/microvm-images', { body: JSON.stringify(request('once', { clientToken: 'c', tags: { k: 'v' } })) })
  assert.equal(raw.status, 201)
  assert.equal(raw.json.createdAt, first.createdAt / 1000)
})

test('update: one version for one token', async () => {
  const once = plain(await update('app', { clientToken: 'u' }))
  assert.equal(once.imageVersion, '2.0')
  assert.equal(once.state, 'UPDATING')
  assert.deepEqual(plain(await update('app', { clientToken: 'u' })), once)
  assert.equal((await update('app', { clientToken: 'v' })).imageVersion, '3.0')
  assert.deepEqual(plain(await update('app', { clientToken: 'u' })), once)
  await fails(update('app', { clientToken: 'u', description: 'x' }), 'ConflictException', undefined, 409)
  await send('CreateMicrovmImage', request('app2'))
  await fails(update('app2', { clientToken: 'u' }), 'ConflictException', undefined, 409) // another image is another parameter
  // Also while the image would refuse a new update.
  const busy = plain(await update('app2', { clientToken: 'b', description: 'pending' }))
  assert.deepEqual(plain(await update('app2', { clientToken: 'b', description: 'pending' })), busy)
  await restart()
  assert.deepEqual(plain(await update('app2', { clientToken: 'b', description: 'pending' })), busy)
  assert.equal((await settled(send, arnOf('app2'))).state, 'UPDATE_FAILED')
})

test('run: one microVM for one token', async () => {
  const run = (more) => send('RunMicrovm', { imageIdentifier: arnOf('app'), clientToken: 'r', ...more })
  const first = plain(await run())
  assert.equal(first.state, 'PENDING')
  await send('TerminateMicrovm', { microvmIdentifier: first.microvmId })
  await restart()
  assert.deepEqual(plain(await run()), first)
  await fails(run({ maximumDurationInSeconds: 60 }), 'ConflictException', undefined, 409)
  await send('CreateMicrovmImage', request('short'))
  const short = (more) => send('RunMicrovm', { imageIdentifier: arnOf('short'), clientToken: 's', ...more })
  const { microvmId } = await short()
  await send('TerminateMicrovm', { microvmIdentifier: microvmId })
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf('short') })
  await gone(send, arnOf('short'))
  assert.equal((await short()).microvmId, microvmId)
  await fails(short({ clientToken: 's2' }), 'ResourceNotFoundException', 'No active version found')
})

test('a token belongs to its account and its operation', async () => {
  const clientToken = 'shared'
  await send('CreateMicrovmImage', request('mine', { clientToken }))
  const other = server.client({ credentials: otherCredentials })
  const theirs = await send('CreateMicrovmImage', request('mine', { clientToken }), other)
  assert.match(theirs.imageArn, /:111111111111:/)
  assert.equal((await update('mine', { clientToken })).imageVersion, '2.0')
  assert.equal((await send('RunMicrovm', { imageIdentifier: arnOf('mine'), clientToken })).imageVersion, '2.0')
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('mine'), clientToken }, other), 'AccessDeniedException')
})

test('a call that failed leaves its token free', async () => {
  const clientToken = 'é'.repeat(128)
  await fails(send('CreateMicrovmImage', request('app', { clientToken })), 'ValidationException', 'already exists')
  await fails(send('CreateMicrovmImage', request('fresh', { clientToken, resources: [{ minimumMemoryInMiB: 1 }] })), 'ValidationException')
  const made = await send('CreateMicrovmImage', request('fresh', { clientToken }))
  assert.equal(made.name, 'fresh')
  await fails(send('CreateMicrovmImage', request('fresh', { clientToken: clientToken + 'x' })), 'ValidationException', "at 'clientToken'")
  await fails(send('RunMicrovm', { imageIdentifier: arnOf('app'), imageVersion: '9.0', clientToken: 'f' }), 'ResourceNotFoundException')
  await send('RunMicrovm', { imageIdentifier: arnOf('app'), clientToken: 'f' })
})

test('calls at once with one token make one thing', async () => {
  const many = (f) => Promise.all(Array.from({ length: 12 }, f))
  const runs = await many(() => send('RunMicrovm', { imageIdentifier: arnOf('app'), clientToken: 'many' }))
  assert.equal(new Set(runs.map((r) => r.microvmId)).size, 1)
  const updates = await many(() => update('app', { clientToken: 'many', description: 'slow' }))
  assert.equal(new Set(updates.map((r) => r.imageVersion)).size, 1)
  await settled(send, arnOf('app'))
})

// What a client does that got no answer: it asks again with the same token.
test('retries over SIGKILL make each thing once', { timeout: 120000 }, async () => {
  const tokens = [], answers = new Map()
  const list = async () => {
    const all = []
    for await (const page of api.paginateListMicrovms({ client }, { imageIdentifier: arnOf('retried') })) all.push(...page.items.map((m) => m.microvmId))
    return all
  }
  const ask = (clientToken) => send('RunMicrovm', { imageIdentifier: arnOf('retried'), clientToken })
  await send('CreateMicrovmImage', request('retried'))
  for (let round = 0; round < 4; round++) {
    let going = true
    const writers = Array.from({ length: 6 }, async (_, w) => {
      for (let i = 0; going; i++) {
        const token = `${round}-${w}-${i}`
        tokens.push(token)
        try {
          answers.set(token, (await ask(token)).microvmId)
        } catch (e) {
          if (going) throw e
        }
      }
    })
    await new Promise((r) => setTimeout(r, 200 + Math.random() * 500))
    going = false
    await restart()
    await Promise.all(writers)
    for (const token of tokens) {
      const { microvmId } = await ask(token)
      assert.equal(answers.get(token) ?? microvmId, microvmId)
      answers.set(token, microvmId)
    }
    assert.deepEqual(new Set(await list()), new Set(answers.values()))
    assert.equal((await list()).length, tokens.length)
  }
  assert.ok(tokens.length > 20)
})
