// Operations on images, with the real AWS SDK and by hand where the SDK would not send it.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { existsSync } from 'node:fs'
import path from 'node:path'
import * as api from '@aws-sdk/client-lambda-microvms'
import { arnOf, base, fails, gone, request, sender, version } from './client.mjs'
import { call, otherCredentials, start } from './server.mjs'

let server, client
before(async () => {
  server = await start()
  client = server.client()
})
after(() => server.stop())

const send = sender(() => client)

test('an image is created with the defaults of the service', async () => {
  const r = await send('CreateMicrovmImage', request('first', { tags: { team: 'a b' } }))
  assert.equal(r.$metadata.httpStatusCode, 201)
  assert.equal(r.imageArn, arnOf('first'))
  assert.equal(r.state, 'CREATING')
  assert.equal(r.imageVersion, '1.0')
  assert.equal(r.baseImageVersion, '1.0')
  assert.deepEqual(r.resources, [{ minimumMemoryInMiB: 2048 }])
  assert.deepEqual(r.egressNetworkConnectors, ['arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS'])
  assert.deepEqual(r.tags, { team: 'a b' })
  assert.ok(Math.abs(r.createdAt.getTime() - Date.now()) < 10000)
})

test('unset members are null and unmodelled ones are there', async () => {
  const body = JSON.stringify(request('raw'))
  const r = await call(server, 'POST', '/2025-09-09/microvm-images', { body })
  assert.equal(r.status, 201)
  for (const m of ['description', 'logging', 'cpuConfigurations', 'additionalOsCapabilities', 'hooks', 'environmentVariables', 'latestActiveImageVersion',
    'latestFailedImageVersion', 'updatedAt', 'tags', 'buildPhaseOverrides', 'roleConfiguration']) assert.equal(r.json[m], null, m)
  assert.match(r.json.id, /^[0-9a-f-]{36}$/)
  assert.match(r.text, /"createdAt":\d{10}\.\d{1,3}[,}]/)
  assert.equal(r.headers.get('content-type'), 'application/json')
  assert.ok(r.headers.get('x-amzn-requestid'))
})

test('an image, its version and its build are read back', async () => {
  const hooks = { port: 9000, microvmHooks: { run: 'ENABLED', runTimeoutInSeconds: 5 }, microvmImageHooks: { ready: 'ENABLED' } }
  const given = request('readback', { description: 'what', hooks, environmentVariables: { A: 'b' }, resources: [{ minimumMemoryInMiB: 512 }],
    cpuConfigurations: [{ architecture: 'X86_64' }], additionalOsCapabilities: ['ALL'], logging: { disabled: {} } })
  await send('CreateMicrovmImage', given)
  const imageIdentifier = arnOf('readback')
  const image = await send('GetMicrovmImage', { imageIdentifier })
  assert.equal(image.state, 'CREATED')
  assert.equal(image.latestActiveImageVersion, '1.0')
  assert.deepEqual(image.tags, {})
  for (const imageVersion of ['1.0', '1']) {
    const v = await send('GetMicrovmImageVersion', { imageIdentifier, imageVersion })
    assert.equal(v.state, 'SUCCESSFUL')
    assert.equal(v.status, 'ACTIVE')
    for (const m of ['description', 'hooks', 'environmentVariables', 'resources', 'cpuConfigurations', 'additionalOsCapabilities', 'logging', 'codeArtifact',
      'buildRoleArn', 'baseImageArn']) assert.deepEqual(v[m], given[m], m)
  }
  const { items } = await send('ListMicrovmImageBuilds', { imageIdentifier, imageVersion: '1.0' })
  assert.equal(items.length, 1)
  assert.equal(items[0].architecture, 'X86_64')
  assert.equal(items[0].buildState, 'SUCCESSFUL')
  const b = await send('GetMicrovmImageBuild', { imageIdentifier, imageVersion: '1.0', buildId: items[0].buildId })
  assert.deepEqual(b.snapshotBuild, { memorySnapshotSizeInBytes: 0, codeInstallSizeInBytes: 1000, diskSnapshotSizeInBytes: 0 })
  await fails(send('GetMicrovmImageBuild', { imageIdentifier, imageVersion: '1.0', buildId: 'x' }), 'ResourceNotFoundException', 'build not found')
  await fails(send('GetMicrovmImageVersion', { imageIdentifier, imageVersion: '2.0' }), 'ResourceNotFoundException',
    `MicroVMImage not found for MicroVMImage: ${imageIdentifier}, Version: 2.0`, 404)
})

test('ARNs in paths come encoded or raw', async () => {
  for (const arn of [arnOf('readback'), encodeURIComponent(arnOf('readback'))]) {
    const r = await call(server, 'GET', '/2025-09-09/microvm-images/' + arn)
    assert.equal(r.status, 200, r.text)
    assert.equal(r.json.name, 'readback')
  }
  assert.equal((await call(server, 'GET', '/2025-09-09/microvm-images/' + arnOf('a/b'))).status, 404)
})

test('a failed build says why', async () => {
  await send('CreateMicrovmImage', request('failing-one'))
  const image = await send('GetMicrovmImage', { imageIdentifier: arnOf('failing-one') })
  assert.equal(image.state, 'CREATE_FAILED')
  assert.equal(image.latestFailedImageVersion, '1.0')
  assert.equal(image.latestActiveImageVersion ?? null, null)
  const { items } = await send('ListMicrovmImageBuilds', { imageIdentifier: arnOf('failing-one'), imageVersion: '1.0' })
  assert.equal(items[0].stateReason, 'The container image build failed.')
  const b = await call(server, 'GET', `/2025-09-09/microvm-images/${arnOf('failing-one')}/versions/1.0/builds/${items[0].buildId}`)
  assert.equal(b.json.snapshotBuild, null)
})

test('all violations are reported at once', async () => {
  const bad = { name: 'no spaces here', codeArtifact: {}, resources: [{}], hooks: { port: 0, microvmHooks: { run: 'YES', runTimeoutInSeconds: 61 } },
    environmentVariables: { 'a b': 'x'.repeat(4097) }, egressNetworkConnectors: ['a', 'b'], cpuConfigurations: [{ architecture: 'VAX' }], clientToken: '' }
  const r = await call(server, 'POST', '/2025-09-09/microvm-images', { body: JSON.stringify(bad) })
  assert.equal(r.status, 400)
  assert.equal(r.errorType, 'ValidationException')
  const m = r.json.message
  assert.match(m, /^13 validation errors detected: /)
  for (const part of [
    "Value 'no spaces here' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+",
    "Value null at 'baseImageArn' failed to satisfy constraint: Member must not be null",
    "Value null at 'buildRoleArn' failed to satisfy constraint: Member must not be null",
    "Value at 'codeArtifact' failed to satisfy constraint: Member must have exactly one of its members set",
    "Value null at 'resources.1.member.minimumMemoryInMiB' failed to satisfy constraint: Member must not be null",
    "Value '0' at 'hooks.port' failed to satisfy constraint: Member must have value greater than or equal to 1",
    "Value 'YES' at 'hooks.microvmHooks.run' failed to satisfy constraint: Member must satisfy enum value set: [ENABLED, DISABLED]",
    "Value '61' at 'hooks.microvmHooks.runTimeoutInSeconds' failed to satisfy constraint: Member must have value less than or equal to 60",
    "Value at 'environmentVariables.a b.member' failed to satisfy constraint: Member must have length less than or equal to 4096",
    "at 'egressNetworkConnectors' failed to satisfy constraint: Member must have length less than or equal to 1",
    "Value 'VAX' at 'cpuConfigurations.1.member.architecture' failed to satisfy constraint: Member must satisfy enum value set: [ARM_64, X86_64]",
    "Value '' at 'clientToken' failed to satisfy constraint: Member must have length greater than or equal to 1",
  ]) assert.ok(m.includes(part), part + '\nnot in\n' + m)
  await fails(send('CreateMicrovmImage', request('x'.repeat(65))), 'ValidationException', /^1 validation error detected: .*less than or equal to 64$/)
})

test('rules between members', async () => {
  const cases = [
    [{ resources: [{ minimumMemoryInMiB: 1000 }] },
      `The requested memory size of 1000 MiB is not supported by base MicroVM image ${base}. Supported memory sizes in MiB are: [512, 1024, 2048, 4096, 8192].`],
    [{ baseImageVersion: '9' }, `No managed MicroVM Image with arn ${base} and version 9 is available`],
    [{ baseImageArn: base + 'x' }, 'No managed MicroVM Image with arn'],
    [{ codeArtifact: { uri: '000000000000.dkr.ecr.us-east-1.amazonaws.com/x' } }, 's3://<bucket>/<key>'],
    [{ codeArtifact: { uri: 's3://bucket' } }, 's3://<bucket>/<key>'],
    [{ codeArtifact: { uri: 's3://Bucket/../x' } }, 's3://<bucket>/<key>'],
    [{ hooks: { port: 1, microvmHooks: { suspend: 'ENABLED' } } },
      'The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook (run, resume, suspend, or terminate) is enabled.'],
    [{ hooks: { microvmImageHooks: { ready: 'ENABLED' } } }, 'port'],
    [{ egressNetworkConnectors: ['nonsense'] }, 'Malformed network connector ARN'],
    [{ egressNetworkConnectors: ['arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS'] },
      'Unrecognized managed network connector ARN: arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS'],
  ]
  for (const [more, message] of cases) await fails(send('CreateMicrovmImage', request('rules', more)), 'ValidationException', message, 400)
  await fails(send('GetMicrovmImage', { imageIdentifier: arnOf('rules') }), 'ResourceNotFoundException',
    `MicroVMImage not found for MicroVMImageID: ${arnOf('rules')}`, 404)
})

test('AWS base image and our NO_EGRESS are accepted', async () => {
  const no = 'arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:NO_EGRESS'
  const r = await send('CreateMicrovmImage', request('aws-base', { baseImageArn: 'arn:aws:lambda:eu-west-1:aws:microvm-image:al2023-1', baseImageVersion: '1',
    egressNetworkConnectors: [no] }))
  assert.deepEqual(r.egressNetworkConnectors, [no])
  assert.equal(r.baseImageVersion, '1.0')
})

test('a name is taken once per account', async () => {
  await fails(send('CreateMicrovmImage', request('first')), 'ValidationException', "A MicroVM image with the name 'first' already exists in this account", 400)
  const other = server.client({ credentials: otherCredentials })
  const r = await send('CreateMicrovmImage', request('first'), other)
  assert.equal(r.imageArn, 'arn:aws:lambda:us-east-1:111111111111:microvm-image:first')
  await fails(send('GetMicrovmImage', { imageIdentifier: arnOf('first') }, other), 'AccessDeniedException', 'lambda:GetMicrovmImage', 403)
})

test('clientToken makes creation idempotent', async () => {
  const first = await send('CreateMicrovmImage', request('token-image', { clientToken: 'tok-1' }))
  const again = await send('CreateMicrovmImage', request('token-image', { clientToken: 'tok-1' }))
  delete first.$metadata, delete again.$metadata
  assert.deepEqual(again, first)
  await fails(send('CreateMicrovmImage', request('token-image', { clientToken: 'tok-1', description: 'x' })), 'ConflictException', undefined, 409)
  const both = await Promise.all(Array.from({ length: 10 }, () => send('CreateMicrovmImage', request('token-race', { clientToken: 'tok-2' }))))
  assert.equal(new Set(both.map((r) => r.createdAt.getTime())).size, 1)
})

test('images are listed newest first, in pages that cannot be forged', async () => {
  for (let i = 0; i < 7; i++) await send('CreateMicrovmImage', request(`page-${i}`))
  const names = []
  for await (const page of api.paginateListMicrovmImages({ client, pageSize: 3 }, {})) names.push(...page.items.map((i) => i.name))
  assert.deepEqual(names.slice(0, 7), [6, 5, 4, 3, 2, 1, 0].map((i) => `page-${i}`))
  assert.equal(new Set(names).size, names.length)
  const { nextToken, items } = await send('ListMicrovmImages', { maxResults: 1 })
  assert.equal(items.length, 1)
  for (const bad of [nextToken + 'A', nextToken.slice(1), 'x', '='])
    await fails(send('ListMicrovmImages', { maxResults: 1, nextToken: bad }), 'ValidationException', 'nextToken')
  const flipped = nextToken.slice(0, 20) + (nextToken[20] === 'A' ? 'B' : 'A') + nextToken.slice(21)
  await fails(send('ListMicrovmImages', { nextToken: flipped }), 'ValidationException', 'nextToken')
  await fails(send('ListMicrovmImages', { nextToken, nameFilter: 'page' }), 'ValidationException', 'nextToken')
  await fails(send('ListMicrovms', { nextToken }), 'ValidationException', 'nextToken')
  await fails(send('ListMicrovmImages', { nextToken }, server.client({ credentials: otherCredentials })), 'ValidationException', 'nextToken')
  await fails(send('ListMicrovmImages', { maxResults: 51 }), 'ValidationException',
    "1 validation error detected: Value '51' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 50")
  await fails(send('ListMicrovmImages', { maxResults: 0 }), 'ValidationException', 'greater than or equal to 1')
  // The filter applies to a page that was cut before.
  const filtered = await send('ListMicrovmImages', { maxResults: 2, nameFilter: 'page-0' })
  assert.deepEqual(filtered.items, [])
  assert.ok(filtered.nextToken)
  const last = await call(server, 'GET', '/2025-09-09/microvm-images')
  assert.equal(last.json.nextToken, null)
})

test('builds are filtered', async () => {
  const list = async (filter) => (await send('ListMicrovmImageBuilds', { imageIdentifier: arnOf('readback'), imageVersion: '1', ...filter })).items.length
  for (const [filter, n] of [[{ architecture: 'X86_64' }, 1], [{ architecture: 'ARM_64' }, 0], [{ chipset: 'X86_64' }, 1], [{ chipset: 'GRAVITON' }, 0],
    [{ chipsetGeneration: '1' }, 1], [{ chipsetGeneration: '4' }, 0], [{ architecture: 'X86_64', chipset: 'X86_64', chipsetGeneration: '1' }, 1]])
    assert.equal(await list(filter), n, JSON.stringify(filter))
  await fails(list({ architecture: 'VAX', chipset: 'Z80' }), 'ValidationException', "2 validation errors detected: Value 'VAX' at 'architecture' failed to " +
    "satisfy constraint: Member must satisfy enum value set: [ARM_64, X86_64]; Value 'Z80' at 'chipset' failed to satisfy constraint: Member must satisfy " +
    'enum value set: [GRAVITON, X86_64]', 400)
  const sizes = []
  for await (const page of api.paginateListMicrovmImageBuilds({ client, pageSize: 1 }, { imageIdentifier: arnOf('readback'), imageVersion: '1.0' }))
    sizes.push(page.items.length)
  assert.deepEqual(sizes, [1])
})

test('what was written for ARM_64 builds for what Stasis runs, and is told so', async () => {
  const cpuConfigurations = [{ architecture: 'ARM_64' }]
  const r = await send('CreateMicrovmImage', request('arm', { cpuConfigurations }))
  assert.deepEqual(r.cpuConfigurations, cpuConfigurations)
  const { items } = await send('ListMicrovmImageBuilds', { imageIdentifier: arnOf('arm'), imageVersion: '1.0' })
  assert.deepEqual(items.map((b) => [b.architecture, b.buildState]), [['X86_64', 'SUCCESSFUL']])
})

test('managed images and their versions', async () => {
  const { items } = await send('ListManagedMicrovmImages', {})
  assert.deepEqual(items.map((i) => i.imageArn.split(':').pop()), ['debian', 'python', 'al2023-1'])
  const names = []
  for await (const page of api.paginateListManagedMicrovmImages({ client, pageSize: 2 }, {})) names.push(page.items.length)
  assert.deepEqual(names, [2, 1])
  for (const { imageArn, createdAt } of items) {
    const found = []
    for await (const page of api.paginateListManagedMicrovmImageVersions({ client }, { imageIdentifier: imageArn })) found.push(...page.items)
    assert.deepEqual(found, [{ imageArn, imageVersion: '1', createdAt, status: 'AVAILABLE', updatedAt: createdAt }])
    await send('CreateMicrovmImage', request('managed-' + imageArn.split(':').pop(), { baseImageArn: imageArn, baseImageVersion: found[0].imageVersion }))
  }
  await fails(send('ListManagedMicrovmImageVersions', { imageIdentifier: base + 'x' }), 'ResourceNotFoundException',
    `MicroVMImage not found for MicroVMImageID: ${base}x`, 404)
  await fails(send('ListManagedMicrovmImageVersions', { imageIdentifier: arnOf('readback') }), 'ResourceNotFoundException', undefined, 404)
  await fails(send('ListManagedMicrovmImageVersions', { imageIdentifier: 'debian' }), 'ValidationException', 'Invalid ARN format: debian', 400)
})

test('an image is deleted, unless it is being built; its name is taken until it is gone', async () => {
  await send('CreateMicrovmImage', request('pending-one'))
  await fails(send('DeleteMicrovmImage', { imageIdentifier: arnOf('pending-one') }), 'ValidationException',
    `Cannot delete MicroVM image in its current state: ${arnOf('pending-one')}`, 400)
  await fails(send('UpdateMicrovmImage', { imageIdentifier: arnOf('pending-one'), ...version() }), 'ConflictException', 'MicroVM Image is already in state: CREATING', 409)
  const { id } = (await call(server, 'GET', '/2025-09-09/microvm-images/' + arnOf('first'))).json
  const folder = path.join(server.folder, 'images', id)
  assert.ok(existsSync(path.join(folder, '1.0', 'disk.ext4')))
  const r = await send('DeleteMicrovmImage', { imageIdentifier: arnOf('first') })
  assert.equal(r.state, 'DELETING')
  assert.equal(r.imageIdentifier, arnOf('first'))
  await gone(send, arnOf('first'))
  assert.ok(!existsSync(folder))
  for (const operation of ['GetMicrovmImage', 'DeleteMicrovmImage'])
    await fails(send(operation, { imageIdentifier: arnOf('first') }), 'ResourceNotFoundException', `MicroVMImage not found for MicroVMImageID: ${arnOf('first')}`, 404)
  assert.equal((await send('CreateMicrovmImage', request('first'))).imageVersion, '1.0')
})

test('an image with a living microVM is not deleted, whoever comes first', async () => {
  const imageIdentifier = arnOf('lived-in')
  await send('CreateMicrovmImage', request('lived-in'))
  const { microvmId: microvmIdentifier } = await send('RunMicrovm', { imageIdentifier })
  await fails(send('DeleteMicrovmImage', { imageIdentifier }), 'ValidationException', 'Cannot delete microvm image with running microvms.', 400)
  await send('SuspendMicrovm', { microvmIdentifier })
  await fails(send('DeleteMicrovmImage', { imageIdentifier }), 'ValidationException', 'Cannot delete microvm image with running microvms.', 400)
  await send('TerminateMicrovm', { microvmIdentifier })
  await send('DeleteMicrovmImage', { imageIdentifier })
  await gone(send, imageIdentifier)
  assert.equal((await send('GetMicrovm', { microvmIdentifier })).imageArn, imageIdentifier)
  for (let i = 0; i < 10; i++) {
    await send('CreateMicrovmImage', request('lived-in'))
    const calls = Array.from({ length: 4 }, () => () => send('RunMicrovm', { imageIdentifier }))
    calls.splice(i % 5, 0, () => send('DeleteMicrovmImage', { imageIdentifier }))
    const results = await Promise.allSettled(calls.map((c) => c()))
    const launched = results.filter((r) => r.value?.microvmId).map((r) => r.value.microvmId)
    const refused = results.filter((r) => r.reason).map((r) => r.reason)
    for (const e of refused) assert.match(e.message, /^(Cannot delete microvm image with running microvms\.|No active version found for MicroVM image .*)$/)
    // Either it was deleted, and nothing was launched from it, or something was, and it is there.
    assert.equal(results.some((r) => r.value?.state === 'DELETING'), launched.length === 0)
    if (launched.length > 0) {
      await send('GetMicrovmImage', { imageIdentifier })
      for (const microvmIdentifier of launched) await send('TerminateMicrovm', { microvmIdentifier })
      await send('DeleteMicrovmImage', { imageIdentifier })
    }
    await gone(send, imageIdentifier)
  }
})

test('an image is named by its ARN, and by nothing else', async () => {
  const slash = 'arn:aws:lambda:us-east-1:000000000000:microvm-image/readback'
  const calls = [['GetMicrovmImage', {}], ['DeleteMicrovmImage', {}], ['UpdateMicrovmImage', version()], ['ListMicrovmImageVersions', {}], ['ListMicrovms', {}],
    ['GetMicrovmImageVersion', { imageVersion: '1.0' }], ['UpdateMicrovmImageVersion', { imageVersion: '1.0', status: 'ACTIVE' }],
    ['DeleteMicrovmImageVersion', { imageVersion: '1.0' }], ['ListMicrovmImageBuilds', { imageVersion: '1.0' }],
    ['GetMicrovmImageBuild', { imageVersion: '1.0', buildId: 'x' }]]
  for (const [operation, more] of calls) {
    for (const bad of ['readback', arnOf('readback') + ':1.0', arnOf('x'.repeat(65)), 'arn:aws:lambda:us-east-1:000000000000:function:readback'])
      await fails(send(operation, { ...more, imageIdentifier: bad }), 'ValidationException', `Invalid ARN format: ${bad}`, 400)
    await fails(send(operation, { ...more, imageIdentifier: slash }), 'AccessDeniedException', `lambda:${operation} on resource: ${slash}`, 403)
    await fails(send(operation, { ...more, imageIdentifier: arnOf('readback') }, server.client({ credentials: otherCredentials })), 'AccessDeniedException',
      `User: arn:aws:iam::111111111111:root is not authorized to perform: lambda:${operation} on resource: ${arnOf('readback')}`, 403)
    await fails(send(operation, { ...more, imageIdentifier: arnOf('nobody') }), 'ResourceNotFoundException',
      `MicroVMImage not found for MicroVMImageID: ${arnOf('nobody')}`, 404)
  }
})

test('operations that are not there say so', async () => {
  const r = await call(server, 'GET', '/2015-03-31/functions')
  assert.equal(r.errorType, 'UnknownOperationException')
  assert.equal(r.status, 404)
})
