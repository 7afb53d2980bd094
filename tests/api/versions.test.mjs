// Image versions: updates, activation, deletion, which version is launched, and what is refused meanwhile.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { arnOf, connector, fails, gone, request, sender, settled, until, version } from './client.mjs'
import { call, start } from './server.mjs'

let server, client
before(async () => {
  server = await start()
  client = server.client()
})
after(() => server.stop())

const send = sender(() => client)
const update = (name, more = {}) => send('UpdateMicrovmImage', { imageIdentifier: arnOf(name), ...version(more) })
const get = (name) => send('GetMicrovmImage', { imageIdentifier: arnOf(name) })
const getVersion = (name, imageVersion) => send('GetMicrovmImageVersion', { imageIdentifier: arnOf(name), imageVersion })
const setStatus = (name, imageVersion, status) => send('UpdateMicrovmImageVersion', { imageIdentifier: arnOf(name), imageVersion, status })
const removeVersion = (name, imageVersion) => send('DeleteMicrovmImageVersion', { imageIdentifier: arnOf(name), imageVersion })
const run = (name, more = {}) => send('RunMicrovm', { imageIdentifier: arnOf(name), ...more })
const busy = (promise) => fails(promise, 'ConflictException', /^MicroVM Image is already in state: UPDATING$/, 409)
async function list(name) {
  const all = []
  for await (const page of api.paginateListMicrovmImageVersions({ client, pageSize: 2 }, { imageIdentifier: arnOf(name) })) all.push(...page.items)
  return all
}
const folder = async (name, v) => path.join(server.folder, 'images', (await call(server, 'GET', '/2025-09-09/microvm-images/' + arnOf(name))).json.id, v)

test('an update replaces the whole configuration and builds the next version', async () => {
  const hooks = { port: 80, microvmImageHooks: { ready: 'ENABLED' } }
  await send('CreateMicrovmImage', request('full', { description: 'old', hooks, environmentVariables: { A: 'b' }, resources: [{ minimumMemoryInMiB: 512 }],
    additionalOsCapabilities: ['ALL'], logging: { disabled: {} }, egressNetworkConnectors: [connector('NO_EGRESS')], tags: { k: 'v' } }))
  const before = await get('full')
  const body = JSON.stringify({ ...version({ codeArtifact: { uri: 's3://bucket/new.zip' } }), name: 'ignored', tags: { also: 'ignored' } })
  const { status, json: r } = await call(server, 'PUT', '/2025-09-09/microvm-images/' + encodeURIComponent(arnOf('full')), { body })
  assert.equal(status, 200)
  assert.equal(r.state, 'UPDATING')
  assert.equal(r.imageVersion, '2.0')
  assert.equal(r.latestActiveImageVersion, '1.0')
  assert.equal(r.latestFailedImageVersion, null)
  assert.equal(r.name, 'full')
  assert.equal(r.createdAt, before.createdAt / 1000)
  assert.ok(r.updatedAt >= r.createdAt)
  assert.ok(!('tags' in r))
  assert.match(r.id, /^[0-9a-f-]{36}$/)
  assert.deepEqual(r.codeArtifact, { uri: 's3://bucket/new.zip' })
  assert.deepEqual(r.resources, [{ minimumMemoryInMiB: 2048 }])
  assert.deepEqual(r.egressNetworkConnectors, [connector('INTERNET_EGRESS')])
  assert.equal(r.baseImageVersion, '1.0')
  for (const m of ['description', 'hooks', 'environmentVariables', 'additionalOsCapabilities', 'logging', 'cpuConfigurations', 'buildPhaseOverrides',
    'roleConfiguration']) assert.equal(r[m], null, m)
  const image = await get('full')
  assert.equal(image.state, 'UPDATED')
  assert.equal(image.latestActiveImageVersion, '2.0')
  assert.deepEqual(image.tags, { k: 'v' })
  const [second, first] = await list('full')
  assert.equal(second.imageVersion, '2.0')
  assert.equal(second.hooks ?? null, null)
  assert.equal(first.imageVersion, '1.0')
  assert.deepEqual(first.hooks.microvmImageHooks, { ready: 'ENABLED' })
  assert.deepEqual(first.environmentVariables, { A: 'b' })
  const one = await getVersion('full', '1')
  delete one.$metadata
  assert.deepEqual(one, first)
})

test('what an update refuses', async () => {
  const path = '/2025-09-09/microvm-images/' + arnOf('full')
  const r = await call(server, 'PUT', path, { body: JSON.stringify({ resources: [{ minimumMemoryInMiB: 1 }], clientToken: '' }) })
  assert.equal(r.errorType, 'ValidationException')
  for (const m of ['baseImageArn', 'buildRoleArn', 'codeArtifact']) assert.ok(r.json.message.includes(`Value null at '${m}' failed`), r.json.message)
  assert.match(r.json.message, /^4 validation errors detected/)
  await fails(update('full', { resources: [{ minimumMemoryInMiB: 1000 }] }), 'ValidationException', 'The requested memory size of 1000 MiB is not supported')
  await fails(update('full', { hooks: { microvmHooks: { run: 'ENABLED' } } }), 'ValidationException', 'The ready (/ready) MicroVM image hook must be enabled')
  await fails(update('full', { egressNetworkConnectors: ['x'] }), 'ValidationException', 'Malformed network connector ARN')
  await fails(update('nobody'), 'ResourceNotFoundException', `MicroVMImage not found for MicroVMImageID: ${arnOf('nobody')}`, 404)
  assert.equal((await list('full')).length, 2)
  assert.equal((await get('full')).state, 'UPDATED')
})

test('what is wrong with the path is reported with what is wrong with the body', async () => {
  const long = 'x'.repeat(300), at = (p) => `/2025-09-09/${p}`
  const wrong = async (method, path, body, count, ...parts) => {
    const r = await call(server, method, at(path), { ...(body && { body: JSON.stringify(body) }) })
    assert.deepEqual([r.status, r.errorType], [400, 'ValidationException'])
    assert.match(r.json.message, new RegExp(`^${count} validation errors? detected: `))
    for (const p of parts) assert.ok(r.json.message.includes(p), r.json.message)
  }
  const tooLong = (name) => `at '${name}' failed to satisfy constraint: Member must have length less than or equal to 256`
  await wrong('PUT', `microvm-images/${long}`, { ...version(), codeArtifact: undefined }, 2, tooLong('imageIdentifier'), "Value null at 'codeArtifact'")
  await wrong('PATCH', `microvm-images/${long}/versions/1%200`, { status: 'LIVELY' }, 3, tooLong('imageIdentifier'), "Value '1 0' at 'imageVersion'", "Value 'LIVELY' at 'status'")
  await wrong('POST', `microvms/${long}/auth-token`, { expirationInMinutes: 5, allowedPorts: [] }, 2, tooLong('microvmIdentifier'), "'allowedPorts'")
  await wrong('POST', `microvms/${long}/suspend`, null, 1, tooLong('microvmIdentifier'))
  await wrong('GET', `microvm-images/${long}/versions`, null, 1, tooLong('imageIdentifier'))
  await wrong('GET', 'microvms/%ff', null, 1, "'microvmIdentifier'", 'UTF-8')
})

test('while a version is built the old one runs, and every other change is refused', async () => {
  await send('CreateMicrovmImage', request('busy'))
  await update('busy', { description: 'pending' })
  assert.equal((await get('busy')).state, 'UPDATING')
  assert.equal((await getVersion('busy', '2.0')).state, 'PENDING')
  assert.equal((await getVersion('busy', '2.0')).status, 'INACTIVE')
  await busy(update('busy'))
  await busy(setStatus('busy', '1.0', 'INACTIVE'))
  await busy(removeVersion('busy', '1.0'))
  await busy(removeVersion('busy', '2.0'))
  await fails(send('DeleteMicrovmImage', { imageIdentifier: arnOf('busy') }), 'ValidationException', 'Cannot delete MicroVM image in its current state', 400)
  assert.equal((await run('busy')).imageVersion, '1.0')
  await fails(run('busy', { imageVersion: '2.0' }), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('busy')} and version 2.0`, 404)
  // Tags are no change of what is built.
  await send('TagResource', { Resource: arnOf('busy'), Tags: { while: 'building' } })
})

test('tags that are set while a version is built stay', async () => {
  await send('CreateMicrovmImage', request('slow-tags'))
  await send('TagResource', { Resource: arnOf('slow-tags'), Tags: { k: 'v' } })
  assert.equal((await get('slow-tags')).state, 'CREATING')
  await settled(send, arnOf('slow-tags'))
  await update('slow-tags', { description: 'slow' })
  await send('TagResource', { Resource: arnOf('slow-tags'), Tags: { l: 'w' } })
  assert.deepEqual((await settled(send, arnOf('slow-tags'))).tags, { k: 'v', l: 'w' })
})

test('a failed update leaves the image as it was, and a version to delete', async () => {
  await send('CreateMicrovmImage', request('hopes'))
  assert.equal((await update('hopes', { description: 'failing' })).state, 'UPDATING')
  const image = await get('hopes')
  assert.equal(image.state, 'UPDATE_FAILED')
  assert.equal(image.latestActiveImageVersion, '1.0')
  assert.equal(image.latestFailedImageVersion, '2.0')
  const v = await getVersion('hopes', '2.0')
  assert.deepEqual([v.state, v.status, v.stateReason], ['FAILED', 'INACTIVE', 'The container image build failed.'])
  assert.equal((await run('hopes')).imageVersion, '1.0')
  await fails(setStatus('hopes', '2.0', 'ACTIVE'), 'ValidationException', 'Only a version in state SUCCESSFUL can be ACTIVE', 400)
  assert.equal((await update('hopes')).imageVersion, '3.0')
  assert.deepEqual((await list('hopes')).map((x) => [x.imageVersion, x.state, x.status]),
    [['3.0', 'SUCCESSFUL', 'ACTIVE'], ['2.0', 'FAILED', 'INACTIVE'], ['1.0', 'SUCCESSFUL', 'ACTIVE']])
  await removeVersion('hopes', '2')
  await settled(send, arnOf('hopes'))
  assert.equal((await get('hopes')).latestFailedImageVersion ?? null, null)
})

test('an image whose first build failed is mended by an update', async () => {
  await send('CreateMicrovmImage', request('failing-first'))
  assert.equal((await get('failing-first')).state, 'CREATE_FAILED')
  await fails(run('failing-first'), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('failing-first')}`)
  await update('failing-first', { description: 'good' })
  assert.equal((await get('failing-first')).state, 'UPDATED')
  assert.equal((await run('failing-first')).imageVersion, '2.0')
})

test('the newest active version is launched; inactive ones are not, pinned or not', async () => {
  await send('CreateMicrovmImage', request('choice'))
  await update('choice')
  await update('choice')
  assert.equal((await run('choice')).imageVersion, '3.0')
  assert.equal((await run('choice', { imageVersion: '1' })).imageVersion, '1.0')
  const patched = await setStatus('choice', '3', 'INACTIVE')
  assert.equal(patched.imageVersion, '3.0')
  assert.equal(patched.status, 'INACTIVE')
  assert.equal(patched.state, 'SUCCESSFUL')
  delete patched.$metadata
  assert.deepEqual(patched, (({ $metadata, ...v }) => v)(await getVersion('choice', '3.0')))
  assert.equal((await get('choice')).latestActiveImageVersion, '2.0')
  assert.equal((await run('choice')).imageVersion, '2.0')
  await fails(run('choice', { imageVersion: '3.0' }), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('choice')} and version 3.0`, 404)
  await setStatus('choice', '2.0', 'INACTIVE')
  await setStatus('choice', '1.0', 'INACTIVE')
  assert.equal((await get('choice')).latestActiveImageVersion ?? null, null)
  await fails(run('choice'), 'ResourceNotFoundException', `No active version found for MicroVM image ${arnOf('choice')}`, 404)
  await setStatus('choice', '2.0', 'ACTIVE')
  await setStatus('choice', '2.0', 'ACTIVE')
  assert.equal((await get('choice')).latestActiveImageVersion, '2.0')
  // What runs is not touched by any of it.
  const { items } = await send('ListMicrovms', { imageIdentifier: arnOf('choice'), imageVersion: '3.0' })
  assert.deepEqual(items.map((m) => m.state), ['RUNNING'])
})

test('what a status can be', async () => {
  await fails(setStatus('choice', '1.0', 'RETIRED'), 'ValidationException',
    "Value 'RETIRED' at 'status' failed to satisfy constraint: Member must satisfy enum value set: [ACTIVE, INACTIVE]", 400)
  await fails(setStatus('choice', '1.0', undefined), 'ValidationException', "Value null at 'status' failed", 400)
  for (const v of ['9.0', '0', 'x', '1.1', '1'.repeat(40)])
    await fails(setStatus('choice', v, 'ACTIVE'), 'ResourceNotFoundException', `MicroVMImage not found for MicroVMImage: ${arnOf('choice')}, Version:`, 404)
})

test('a version is deleted with its files, behind the answer', async () => {
  await send('CreateMicrovmImage', request('shrink'))
  await update('shrink')
  await update('shrink')
  const gone = await folder('shrink', '3.0')
  assert.ok(existsSync(path.join(gone, 'memory')))
  const r = await removeVersion('shrink', '3')
  assert.deepEqual([r.imageIdentifier, r.imageVersion, r.state], [arnOf('shrink'), '3.0', 'DELETING'])
  const image = await settled(send, arnOf('shrink'))
  assert.equal(image.state, 'UPDATED')
  assert.equal(image.latestActiveImageVersion, '2.0')
  assert.ok(!existsSync(gone))
  assert.ok(existsSync(await folder('shrink', '2.0')))
  await fails(getVersion('shrink', '3.0'), 'ResourceNotFoundException', `MicroVMImage not found for MicroVMImage: ${arnOf('shrink')}, Version: 3.0`, 404)
  await fails(send('ListMicrovmImageBuilds', { imageIdentifier: arnOf('shrink'), imageVersion: '3.0' }), 'ResourceNotFoundException')
  // Once more is no error, and a number is never given twice.
  assert.equal((await removeVersion('shrink', '3.0')).state, 'DELETED')
  await fails(removeVersion('shrink', '4.0'), 'ResourceNotFoundException', 'Version: 4.0', 404)
  assert.equal((await update('shrink')).imageVersion, '4.0')
  await removeVersion('shrink', '4.0')
  await settled(send, arnOf('shrink'))
  await removeVersion('shrink', '1.0')
  await settled(send, arnOf('shrink'))
  await fails(removeVersion('shrink', '2.0'), 'ValidationException', 'This is the last version. Please delete the entire image', 400)
  assert.deepEqual((await list('shrink')).map((v) => v.imageVersion), ['2.0'])
})

test('a version with living microVMs is not deleted', async () => {
  await send('CreateMicrovmImage', request('inhabited'))
  const { microvmId: microvmIdentifier } = await run('inhabited')
  await update('inhabited')
  await fails(removeVersion('inhabited', '1.0'), 'ValidationException', 'Cannot delete microvm image version with running microvms.', 400)
  assert.equal((await get('inhabited')).state, 'UPDATED')
  await setStatus('inhabited', '1.0', 'INACTIVE')
  await fails(removeVersion('inhabited', '1.0'), 'ValidationException', 'with running microvms')
  await send('TerminateMicrovm', { microvmIdentifier })
  await removeVersion('inhabited', '1.0')
  await settled(send, arnOf('inhabited'))
  assert.equal((await send('GetMicrovm', { microvmIdentifier })).imageVersion, '1.0')
})

test('of many changes at once one wins, and the others are told', async () => {
  await send('CreateMicrovmImage', request('crowd'))
  for (let round = 0; round < 3; round++) {
    const results = await Promise.allSettled(Array.from({ length: 8 }, () => update('crowd', { description: 'slow' })))
    assert.equal(results.filter((r) => r.status === 'fulfilled').length, 1)
    for (const { reason } of results.filter((r) => r.reason)) assert.match(reason.message, /^MicroVM Image is already in state: UPDATING$/)
    assert.equal((await settled(send, arnOf('crowd'))).latestActiveImageVersion, `${round + 2}.0`)
  }
  const deletions = await Promise.allSettled(['1.0', '2.0', '3.0', '4.0'].map((v) => removeVersion('crowd', v)))
  assert.ok(deletions.some((r) => r.value?.state === 'DELETING'))
  await settled(send, arnOf('crowd'))
  assert.ok((await list('crowd')).length >= 1)
})

test('a restart fails what was being built and finishes what was being deleted', async () => {
  await send('CreateMicrovmImage', request('pending-new'))
  await send('CreateMicrovmImage', request('cut'))
  await update('cut', { description: 'pending' })
  const { id } = (await call(server, 'GET', '/2025-09-09/microvm-images/' + arnOf('cut'))).json
  const stray = path.join(server.folder, 'images', id, '7.0')
  mkdirSync(stray)
  await server.kill()
  server = await start(server.folder)
  client = server.client()
  assert.equal((await get('pending-new')).state, 'CREATE_FAILED')
  const image = await get('cut')
  assert.equal(image.state, 'UPDATE_FAILED')
  assert.equal(image.latestActiveImageVersion, '1.0')
  const v = await getVersion('cut', '2.0')
  assert.equal(v.state, 'FAILED')
  assert.match(v.stateReason, /^INTERNAL_PLATFORM_ERROR: The engine stopped while the image was being built/)
  const { items } = await send('ListMicrovmImageBuilds', { imageIdentifier: arnOf('cut'), imageVersion: '2.0' })
  assert.equal(items[0].buildState, 'FAILED')
  assert.ok(!existsSync(stray))
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf('pending-new') })
  await gone(send, arnOf('pending-new'))
})

test('deletions that SIGKILL cuts off are finished by the next start', { timeout: 60000 }, async () => {
  for (let round = 0; round < 4; round++) {
    await send('CreateMicrovmImage', request(`doomed-${round}`))
    await update(`doomed-${round}`)
    await send('CreateMicrovmImage', request(`whole-${round}`))
    const kept = await folder(`doomed-${round}`, '1.0'), removed = await folder(`doomed-${round}`, '2.0'), whole = await folder(`whole-${round}`, '1.0')
    // What is to be removed is large enough to be met half-way.
    for (let i = 0; i < 500; i++) for (const f of [removed, whole]) mkdirSync(path.join(f, `d${i}`))
    await Promise.all([removeVersion(`doomed-${round}`, '2.0'), send('DeleteMicrovmImage', { imageIdentifier: arnOf(`whole-${round}`) })])
    await server.kill()
    server = await start(server.folder)
    client = server.client()
    await gone(send, arnOf(`whole-${round}`))
    assert.equal((await settled(send, arnOf(`doomed-${round}`))).state, 'UPDATED')
    assert.deepEqual((await list(`doomed-${round}`)).map((v) => v.imageVersion), ['1.0'])
    assert.ok(existsSync(kept))
    assert.ok(!existsSync(removed))
    assert.ok(!existsSync(path.dirname(whole)))
  }
})

test('what cannot be removed is DELETE_FAILED, says why, and can be deleted again', async () => {
  await send('CreateMicrovmImage', request('stuck'))
  await update('stuck')
  const removed = await folder('stuck', '2.0')
  // A mount point cannot be removed.
  mkdirSync(path.join(removed, 'mounted'))
  try {
    execFileSync('mount', ['-t', 'tmpfs', 'none', path.join(removed, 'mounted')], { stdio: 'ignore' })
  } catch {
    return // takes root
  }
  try {
    await removeVersion('stuck', '2.0')
    assert.equal((await settled(send, arnOf('stuck'))).state, 'UPDATE_FAILED')
    const v = await getVersion('stuck', '2.0')
    assert.equal(v.state, 'DELETE_FAILED')
    assert.match(v.stateReason, /^cannot remove .*busy/)
    assert.equal((await get('stuck')).latestActiveImageVersion, '1.0')
    await fails(run('stuck', { imageVersion: '2.0' }), 'ResourceNotFoundException', 'No active version found')
    await send('DeleteMicrovmImage', { imageIdentifier: arnOf('stuck') })
    await until('DELETE_FAILED', async () => (await get('stuck')).state === 'DELETE_FAILED')
    await fails(update('stuck'), 'ConflictException', 'MicroVM Image is already in state: DELETE_FAILED', 409)
    await fails(run('stuck'), 'ResourceNotFoundException', 'No active version found')
    await fails(send('CreateMicrovmImage', request('stuck')), 'ValidationException', 'already exists')
  } finally {
    execFileSync('umount', [path.join(removed, 'mounted')])
  }
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf('stuck') })
  await gone(send, arnOf('stuck'))
})
