// Access: keys and their policies, roles, temporary credentials, signatures in both forms.
import assert from 'node:assert/strict'
import { createHash, createHmac } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import * as s3 from '@aws-sdk/client-s3'
import { SignatureV4 } from '@smithy/signature-v4'
import { call, credentials, otherCredentials, region, sign, start } from './server.mjs'

const account = '000000000000'
const imageArn = (name, owner = account) => `arn:aws:lambda:us-east-1:${owner}:microvm-image:${name}`
const connector = (name) => `arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:${name}`
const role = (name) => `arn:aws:iam::${account}:role/${name}`
const allow = (Action, Resource = '*') => ({ Statement: [{ Effect: 'Allow', Action, Resource }] })
let server, operator

// What the SDK's signer wants of a hash.
class Sha256 {
  constructor(key) {
    this.hash = key === undefined ? createHash('sha256') : createHmac('sha256', key)
  }
  update(data) {
    this.hash.update(data)
  }
  async digest() {
    return new Uint8Array(this.hash.digest())
  }
}

before(async () => {
  server = await start()
  operator = server.client()
  for (const name of ['app', 'other'])
    await send(operator, 'CreateMicrovmImage', { name, baseImageArn: 'debian', buildRoleArn: role('build'), codeArtifact: { uri: 's3://code/key' } })
})
after(() => server.stop())

const send = (client, name, input = {}) => client.send(new api[name + 'Command'](input))
const operate = (method, target, body, key = credentials) => call(server, method, '/_stasis/' + target, { key, body: body === undefined ? '' : JSON.stringify(body) })
async function makeKey(more = {}) {
  const r = await operate('POST', 'keys', more)
  assert.equal(r.status, 201, r.text)
  return { ...r.json, credentials: { accessKeyId: r.json.accessKeyId, secretAccessKey: r.json.secretAccessKey } }
}
const clientOf = async (policy, more = {}) => server.client({ credentials: (await makeKey({ policy, ...more })).credentials })
const denied = (promise, action, resource, who) =>
  assert.rejects(promise, (e) => {
    assert.equal(e.name, 'AccessDeniedException', e.message)
    assert.equal(e.$metadata.httpStatusCode, 403)
    assert.ok(e.message.includes(` is not authorized to perform: ${action} on resource: ${resource} `), e.message)
    if (who) assert.ok(e.message.startsWith(`User: ${who} is`), e.message)
    return true
  })

test('keys are made, shown once, listed, disabled and removed', async () => {
  const key = await makeKey({ name: 'ci', account: '222222222222' })
  assert.match(key.accessKeyId, /^AKIA[A-Z2-7]{16}$/)
  assert.equal(key.secretAccessKey.length, 40)
  assert.deepEqual([key.account, key.name, key.enabled, key.configured], ['222222222222', 'ci', true, false])
  const shown = await operate('GET', 'keys/' + key.accessKeyId)
  assert.equal(shown.json.secretAccessKey, undefined)
  assert.ok(!shown.text.includes(key.secretAccessKey))
  const list = (await operate('GET', 'keys')).json.items
  assert.deepEqual(list.find((k) => k.accessKeyId === credentials.accessKeyId).configured, true)
  assert.ok(list.some((k) => k.accessKeyId === key.accessKeyId))
  const client = server.client({ credentials: key.credentials })
  assert.deepEqual((await send(client, 'ListMicrovms')).items, [])
  assert.equal((await operate('PATCH', 'keys/' + key.accessKeyId, { enabled: false })).json.enabled, false)
  await assert.rejects(send(client, 'ListMicrovms'), { name: 'UnrecognizedClientException' })
  await assert.rejects(server.s3({ credentials: key.credentials }).send(new s3.ListBucketsCommand({})), { name: 'InvalidAccessKeyId' })
  await operate('PATCH', 'keys/' + key.accessKeyId, { enabled: true, policy: allow('lambda:GetMicrovm') })
  await denied(send(client, 'ListMicrovms'), 'lambda:ListMicrovms', '*', 'arn:aws:iam::222222222222:user/ci')
  assert.equal((await operate('DELETE', 'keys/' + key.accessKeyId)).status, 200)
  assert.equal((await operate('DELETE', 'keys/' + key.accessKeyId)).status, 404)
  await assert.rejects(send(client, 'ListMicrovms'), { name: 'UnrecognizedClientException' })
  assert.equal(statSync(path.join(server.folder, 'stasis.db')).mode & 0o777, 0o600)
})

test('what is wrong with a key is said', async () => {
  const refused = async (body, message, status = 400) => {
    const r = await operate('POST', 'keys', body)
    assert.equal(r.status, status)
    assert.ok(r.json.message.includes(message), r.text)
  }
  await refused({ account: '12' }, 'twelve digits')
  await refused({ name: 'a b' }, 'letters, digits')
  await refused({ nonsense: 1 }, "Unknown member 'nonsense'")
  await refused({ policy: [] }, 'policy')
  await refused({ policy: allow('RunMicrovm') }, 'lambda:RunMicrovm')
  await refused({ policy: { Statement: [{ Effect: 'Allow', Action: '*', Resource: '*', Condition: {} }] } }, '"Condition" is not supported')
  await refused({ operator: true, policy: allow('*') }, 'exclude each other')
  for (const [method, body] of [['PATCH', { enabled: false }], ['DELETE', undefined]]) {
    const r = await operate(method, 'keys/' + credentials.accessKeyId, body)
    assert.equal(r.status, 409)
    assert.match(r.json.message, /comes from the configuration/)
  }
  const second = await makeKey({ operator: true })
  const own = await operate('DELETE', 'keys/' + second.accessKeyId, undefined, second.credentials)
  assert.equal(own.status, 409)
  assert.match(own.json.message, /signs this very call/)
  assert.equal((await operate('PATCH', 'keys/none', {})).status, 404)
})

test('only operators may call /_stasis/, and everybody his own logs', async () => {
  const key = await makeKey()
  for (const [method, target] of [['GET', 'status'], ['GET', 'keys'], ['POST', 'keys'], ['DELETE', 'keys/x'], ['GET', 'roles'], ['POST', 'shutdown']]) {
    const r = await operate(method, target, undefined, key.credentials)
    assert.equal(r.status, 403, target)
    assert.match(r.json.message, /is not authorized to perform: stasis:Operate on resource: \* because/)
  }
  const second = await makeKey({ operator: true })
  assert.equal((await operate('GET', 'status', undefined, second.credentials)).status, 200)
  const log = `images/${encodeURIComponent(imageArn('app'))}/versions/1.0/stages`
  assert.equal((await operate('GET', log, undefined, key.credentials)).status, 200)
  const limited = await makeKey({ policy: allow('*') })
  const r = await operate('GET', log, undefined, limited.credentials)
  assert.equal(r.status, 403)
  assert.match(r.json.message, /stasis:GetLogs on resource: arn:aws:lambda:us-east-1:000000000000:microvm-image:app /)
  const granted = await makeKey({ policy: allow(['stasis:GetLogs'], imageArn('app')) })
  assert.equal((await operate('GET', log, undefined, granted.credentials)).status, 200)
})

test('each operation needs its action on its resource', async () => {
  const none = await clientOf(allow('logs:*'))
  const { microvmId } = await send(operator, 'RunMicrovm', { imageIdentifier: imageArn('app') })
  const arn = imageArn('app')
  const cases = [
    ['CreateMicrovmImage', { name: 'new', baseImageArn: 'debian', buildRoleArn: role('build'), codeArtifact: { uri: 's3://code/key' } }, imageArn('new')],
    ['GetMicrovmImage', { imageIdentifier: arn }, arn],
    ['DeleteMicrovmImage', { imageIdentifier: arn }, arn],
    ['ListMicrovmImages', {}, '*'],
    ['GetMicrovmImageVersion', { imageIdentifier: arn, imageVersion: '1.0' }, arn],
    ['ListMicrovmImageBuilds', { imageIdentifier: arn, imageVersion: '1.0' }, arn],
    ['GetMicrovmImageBuild', { imageIdentifier: arn, imageVersion: '1.0', buildId: '0'.repeat(8) + '-0000-4000-8000-000000000000' }, arn],
    ['UpdateMicrovmImage', { imageIdentifier: arn, baseImageArn: 'debian', buildRoleArn: role('build'), codeArtifact: { uri: 's3://code/key' } }, arn],
    ['ListMicrovmImageVersions', { imageIdentifier: arn }, arn],
    ['UpdateMicrovmImageVersion', { imageIdentifier: arn, imageVersion: '1.0', status: 'ACTIVE' }, arn],
    ['DeleteMicrovmImageVersion', { imageIdentifier: arn, imageVersion: '1.0' }, arn],
    ['ListManagedMicrovmImages', {}, '*'],
    ['ListManagedMicrovmImageVersions', { imageIdentifier: 'arn:aws:lambda:us-east-1:aws:microvm-image:debian' }, '*'],
    ['TagResource', { Resource: arn, Tags: { a: 'b' } }, arn],
    ['UntagResource', { Resource: arn, TagKeys: ['a'] }, arn],
    ['ListTags', { Resource: arn }, arn],
    ['CreateMicrovmShellAuthToken', { microvmIdentifier: microvmId, expirationInMinutes: 5 }, arn],
    ['RunMicrovm', { imageIdentifier: arn }, arn],
    ['GetMicrovm', { microvmIdentifier: microvmId }, arn],
    ['ListMicrovms', {}, '*'],
    ['SuspendMicrovm', { microvmIdentifier: microvmId }, arn],
    ['ResumeMicrovm', { microvmIdentifier: microvmId }, arn],
    ['TerminateMicrovm', { microvmIdentifier: microvmId }, arn],
    ['CreateMicrovmAuthToken', { microvmIdentifier: microvmId, expirationInMinutes: 5, allowedPorts: [{ port: 1 }] }, arn],
  ]
  for (const [name, input, resource] of cases) await denied(send(none, name, input), 'lambda:' + name, resource)
  // The one that has exactly the action may do exactly that.
  for (const [name, input, resource] of cases.filter(([n]) => /^(Get|List)/.test(n) && n !== 'GetMicrovmImageBuild')) {
    await send(await clientOf(allow('lambda:' + name, resource)), name, input)
    if (resource !== '*') await denied(send(await clientOf(allow('lambda:' + name, imageArn('other'))), name, input), 'lambda:' + name, resource)
  }
  assert.equal((await send(operator, 'GetMicrovm', { microvmIdentifier: microvmId })).state, 'RUNNING')
})

test('policies are about images: wildcards, versions, explicit denials, other spellings', async () => {
  const client = await clientOf({
    Statement: [
      { Effect: 'Allow', Action: 'lambda:*', Resource: imageArn('*') },
      { Effect: 'Deny', Action: 'lambda:Get*', Resource: imageArn('oth*') },
    ],
  })
  await send(client, 'GetMicrovmImage', { imageIdentifier: imageArn('app') })
  await assert.rejects(send(client, 'GetMicrovmImage', { imageIdentifier: imageArn('other') }), /with an explicit deny in an identity-based policy/)
  for (const spelling of [imageArn('other') + ':1.0', 'arn:aws-cn:lambda:eu-west-1:000000000000:microvm-image:other'])
    await assert.rejects(send(client, 'GetMicrovmImage', { imageIdentifier: spelling }), { name: 'AccessDeniedException' })
  await denied(send(client, 'ListMicrovmImages'), 'lambda:ListMicrovmImages', '*')
  const version = await clientOf(allow('lambda:GetMicrovmImageVersion', imageArn('app') + ':1.0'))
  await send(version, 'GetMicrovmImageVersion', { imageIdentifier: imageArn('app'), imageVersion: '1.0' })
  await denied(send(version, 'GetMicrovmImageVersion', { imageIdentifier: imageArn('app'), imageVersion: '2.0' }), 'lambda:GetMicrovmImageVersion', imageArn('app'))
  // Another account's image stays out of reach, whatever the policy.
  const foreign = server.client({ credentials: otherCredentials })
  await assert.rejects(send(foreign, 'GetMicrovmImage', { imageIdentifier: imageArn('app') }), { name: 'AccessDeniedException' })
  // A malformed body is still reported as that.
  const runner = await clientOf(allow('lambda:RunMicrovm', imageArn('app')))
  await assert.rejects(send(runner, 'RunMicrovm', { maximumDurationInSeconds: 0 }), { name: 'ValidationException' })
})

test('running needs the connectors, and the role if there is one', async () => {
  const run = (client, more = {}) => send(client, 'RunMicrovm', { imageIdentifier: imageArn('app'), ...more })
  const only = await clientOf(allow('lambda:RunMicrovm'))
  await denied(run(only), 'lambda:PassNetworkConnector', connector('HTTP_INGRESS'))
  const half = await clientOf({ Statement: [allow('lambda:RunMicrovm').Statement[0], allow('lambda:PassNetworkConnector', [connector('HTTP_INGRESS'), connector('NO_EGRESS')]).Statement[0]] })
  await denied(run(half), 'lambda:PassNetworkConnector', connector('INTERNET_EGRESS'))
  await denied(run(half, { ingressNetworkConnectors: [connector('SHELL_INGRESS')] }), 'lambda:PassNetworkConnector', connector('SHELL_INGRESS'))
  await run(half, { egressNetworkConnectors: [connector('NO_EGRESS')] })
  const full = await clientOf(allow('lambda:*'))
  await run(full)
  await denied(run(full, { executionRoleArn: role('worker') }), 'iam:PassRole', role('worker'))
  const input = { name: 'denied', baseImageArn: 'debian', buildRoleArn: role('build'), codeArtifact: { uri: 's3://code/key' } }
  await denied(send(full, 'CreateMicrovmImage', input), 'iam:PassRole', role('build'))
  const passing = await clientOf({ Statement: [allow('lambda:CreateMicrovmImage', imageArn('made-*')).Statement[0], allow('iam:PassRole', role('build')).Statement[0]] })
  await denied(send(passing, 'CreateMicrovmImage', input), 'lambda:CreateMicrovmImage', imageArn('denied'))
  await denied(send(full, 'UpdateMicrovmImage', { ...input, name: undefined, imageIdentifier: imageArn('app') }), 'iam:PassRole', role('build'))
  await denied(send(passing, 'CreateMicrovmImage', { ...input, name: 'made-1', egressNetworkConnectors: [connector('NO_EGRESS')] }), 'lambda:PassNetworkConnector', connector('NO_EGRESS'))
  await send(passing, 'CreateMicrovmImage', { ...input, name: 'made-1' })
})

test('the artifact store obeys as well', async () => {
  const store = server.s3()
  await store.send(new s3.CreateBucketCommand({ Bucket: 'guarded' }))
  for (const Key of ['a/1', 'a/2', 'b/1']) await store.send(new s3.PutObjectCommand({ Bucket: 'guarded', Key, Body: Key }))
  const of = async (policy) => server.s3({ credentials: (await makeKey({ policy, name: 's3' })).credentials })
  const refused = (promise, action, resource) =>
    assert.rejects(promise, (e) => {
      assert.equal(e.name, 'AccessDenied', e.message)
      assert.ok(e.message.startsWith(`User: arn:aws:iam::000000000000:user/s3 is not authorized to perform: ${action} on resource: ${resource} `), e.message)
      return true
    })
  const none = await of(allow('lambda:*'))
  const Bucket = 'guarded', object = 'arn:aws:s3:::guarded/a/1', bucket = 'arn:aws:s3:::guarded'
  await refused(none.send(new s3.ListBucketsCommand({})), 's3:ListAllMyBuckets', '*')
  await refused(none.send(new s3.CreateBucketCommand({ Bucket: 'mine-now' })), 's3:CreateBucket', 'arn:aws:s3:::mine-now')
  await refused(none.send(new s3.DeleteBucketCommand({ Bucket })), 's3:DeleteBucket', bucket)
  await refused(none.send(new s3.ListObjectsV2Command({ Bucket })), 's3:ListBucket', bucket)
  await refused(none.send(new s3.GetBucketLocationCommand({ Bucket })), 's3:GetBucketLocation', bucket)
  await refused(none.send(new s3.GetObjectCommand({ Bucket, Key: 'a/1' })), 's3:GetObject', object)
  await refused(none.send(new s3.PutObjectCommand({ Bucket, Key: 'a/1', Body: 'x' })), 's3:PutObject', object)
  await refused(none.send(new s3.DeleteObjectCommand({ Bucket, Key: 'a/1' })), 's3:DeleteObject', object)
  await refused(none.send(new s3.CreateMultipartUploadCommand({ Bucket, Key: 'a/1' })), 's3:PutObject', object)
  await refused(none.send(new s3.AbortMultipartUploadCommand({ Bucket, Key: 'a/1', UploadId: 'x' })), 's3:AbortMultipartUpload', object)
  await refused(none.send(new s3.CopyObjectCommand({ Bucket, Key: 'a/3', CopySource: 'guarded/a/1' })), 's3:PutObject', 'arn:aws:s3:::guarded/a/3')
  const writer = await of(allow(['s3:PutObject', 's3:DeleteObject'], 'arn:aws:s3:::guarded/a/*'))
  await refused(writer.send(new s3.CopyObjectCommand({ Bucket, Key: 'a/3', CopySource: '/guarded/b%2F1' })), 's3:GetObject', 'arn:aws:s3:::guarded/b/1')
  await assert.rejects(none.send(new s3.HeadObjectCommand({ Bucket, Key: 'a/1' })), (e) => e.$metadata.httpStatusCode === 403)
  await writer.send(new s3.PutObjectCommand({ Bucket, Key: 'a/2', Body: 'new' }))
  const r = await writer.send(new s3.DeleteObjectsCommand({ Bucket, Delete: { Objects: [{ Key: 'a/2' }, { Key: 'b/1' }] } }))
  assert.deepEqual(r.Deleted.map((d) => d.Key), ['a/2'])
  assert.deepEqual(r.Errors.map((d) => [d.Key, d.Code]), [['b/1', 'AccessDenied']])
  const reader = await of(allow('s3:GetObject', 'arn:aws:s3:::guarded/*'))
  assert.equal(await (await reader.send(new s3.GetObjectCommand({ Bucket, Key: 'b/1' }))).Body.transformToString(), 'b/1')
})

test('temporary credentials have the rights of their role, as long as the microVM lives', async () => {
  const policy = { Statement: [allow('lambda:GetMicrovm', imageArn('app')).Statement[0], allow('s3:GetObject', 'arn:aws:s3:::guarded/*').Statement[0]] }
  const run = async (executionRoleArn) => {
    const m = await send(operator, 'RunMicrovm', { imageIdentifier: imageArn('app'), executionRoleArn })
    return { ...m, credentials: JSON.parse(readFileSync(path.join(server.folder, `credentials-${m.microvmId}.json`))) }
  }
  // Without any role defined every name is accepted, and has no rights.
  const opaque = await run(role('worker'))
  assert.match(opaque.credentials.accessKeyId, /^ASIA[A-Z2-7]{16}$/)
  const get = (m, credentials = m.credentials) => send(server.client({ credentials }), 'GetMicrovm', { microvmIdentifier: m.microvmId })
  const who = (m, name = 'worker') => `arn:aws:sts::000000000000:assumed-role/${name}/${m.microvmId}`
  await denied(get(opaque), 'lambda:GetMicrovm', imageArn('app'), who(opaque))
  assert.equal((await operate('PUT', 'roles/' + encodeURIComponent(role('worker')), { policy })).status, 201)
  await get(opaque)
  const m = await run(role('worker'))
  await get(m)
  await denied(send(server.client({ credentials: m.credentials }), 'TerminateMicrovm', { microvmIdentifier: m.microvmId }), 'lambda:TerminateMicrovm', imageArn('app'), who(m))
  const store = (c) => server.s3({ credentials: c })
  await store(m.credentials).send(new s3.GetObjectCommand({ Bucket: 'guarded', Key: 'b/1' }))
  await assert.rejects(store(m.credentials).send(new s3.PutObjectCommand({ Bucket: 'guarded', Key: 'b/1', Body: '' })), { name: 'AccessDenied' })
  assert.equal((await operate('GET', 'status', undefined, m.credentials)).status, 403)
  // Without the token, with another's, with a broken one.
  const unrecognized = { name: 'UnrecognizedClientException' }
  await assert.rejects(get(m, { ...m.credentials, sessionToken: undefined }), unrecognized)
  await assert.rejects(get(m, { ...m.credentials, sessionToken: opaque.credentials.sessionToken }), unrecognized)
  await assert.rejects(get(m, { ...m.credentials, sessionToken: 'x' }), unrecognized)
  await assert.rejects(get(m, { ...credentials, sessionToken: m.credentials.sessionToken }), unrecognized)
  await assert.rejects(get(m, { ...m.credentials, secretAccessKey: 'x' }), { name: 'InvalidSignatureException' })
  await assert.rejects(store({ ...m.credentials, sessionToken: 'x' }).send(new s3.ListBucketsCommand({})), { name: 'InvalidToken' })
  // Now that there are roles, only they may be named.
  const unknown = send(operator, 'RunMicrovm', { imageIdentifier: imageArn('app'), executionRoleArn: role('unknown') })
  await denied(unknown, 'iam:PassRole', role('unknown'), 'arn:aws:iam::000000000000:root')
  const image = { name: 'with-role', baseImageArn: 'debian', buildRoleArn: role('build'), codeArtifact: { uri: 's3://guarded/b/1' } }
  await denied(send(operator, 'CreateMicrovmImage', image), 'iam:PassRole', role('build'))
  await operate('PUT', 'roles/' + encodeURIComponent(role('build')), { policy: allow('s3:GetObject', 'arn:aws:s3:::guarded/*') })
  await denied(send(operator, 'CreateMicrovmImage', { ...image, codeArtifact: { uri: 's3://elsewhere/b' } }), 's3:GetObject', 'arn:aws:s3:::elsewhere/b', role('build'))
  await send(operator, 'CreateMicrovmImage', image)
  // Expired, and over with the microVM.
  await operate('PUT', 'roles/' + encodeURIComponent(role('expired')), { policy })
  const late = await run(role('expired'))
  await assert.rejects(get(late), { name: 'ExpiredTokenException', message: 'The security token included in the request is expired' })
  await assert.rejects(store(late.credentials).send(new s3.ListBucketsCommand({})), { name: 'ExpiredToken' })
  await get(m)
  await send(operator, 'TerminateMicrovm', { microvmIdentifier: m.microvmId })
  await assert.rejects(get(m), { name: 'ExpiredTokenException' })
  // A role that is taken away takes the rights along.
  await get(opaque)
  assert.equal((await operate('DELETE', 'roles/' + encodeURIComponent(role('worker')))).status, 200)
  await denied(get(opaque), 'lambda:GetMicrovm', imageArn('app'))
})

test('roles are listed, replaced and removed', async () => {
  const list = (await operate('GET', 'roles')).json.items.map((r) => r.roleArn)
  assert.deepEqual(list, [role('build'), role('expired')])
  const one = 'roles/' + encodeURIComponent(role('build'))
  assert.equal((await operate('PUT', one, { policy: allow('s3:*') })).status, 200)
  assert.deepEqual((await operate('GET', one)).json.policy, allow('s3:*'))
  assert.equal((await operate('PUT', 'roles/build', { policy: allow('s3:*') })).status, 400)
  assert.match((await operate('PUT', one, {})).json.message, /"policy" is missing/)
  assert.match((await operate('PUT', one, { policy: {} })).json.message, /Statement/)
  for (const name of ['build', 'expired']) await operate('DELETE', 'roles/' + encodeURIComponent(role(name)))
  assert.equal((await operate('DELETE', one)).status, 404)
  // And every name is accepted again.
  await send(operator, 'RunMicrovm', { imageIdentifier: imageArn('app'), executionRoleArn: role('any') })
})

test('presigned requests, also with temporary credentials', async () => {
  const { hostname, port } = new URL(server.api)
  const presign = (key, { method = 'GET', pathname = '/2025-09-09/microvms', query = {}, ...o } = {}) =>
    new SignatureV4({ service: 'lambda', region, credentials: key, sha256: Sha256 }).presign(
      { method, protocol: 'http:', hostname, port: Number(port), path: pathname, query, headers: { host: `${hostname}:${port}` } }, { expiresIn: 60, ...o })
  const get = async (r) => {
    const query = Object.entries(r.query).map(([k, v]) => `${encodeURIComponent(k)}=${encodeURIComponent(v)}`).join('&')
    const answer = await fetch(`${server.api}${r.path}?${query}`, { method: r.method })
    return { status: answer.status, type: answer.headers.get('x-amzn-errortype'), json: await answer.json() }
  }
  assert.equal((await get(await presign(credentials))).status, 200)
  assert.equal((await get(await presign(credentials, { query: { maxResults: '1' } }))).json.items.length, 1)
  const old = (s) => ({ signingDate: new Date(Date.now() - s * 1000) })
  assert.equal((await get(await presign(credentials, old(50)))).status, 200)
  assert.equal((await get(await presign(credentials, { ...old(50), expiresIn: 40 }))).type, 'InvalidSignatureException')
  assert.equal((await get(await presign(credentials, { ...old(-400) }))).type, 'InvalidSignatureException')
  const changed = await presign(credentials)
  changed.query.maxResults = '2'
  assert.equal((await get(changed)).type, 'InvalidSignatureException')
  await operate('PUT', 'roles/' + encodeURIComponent(role('worker')), { policy: allow('lambda:ListMicrovms') })
  const m = await send(operator, 'RunMicrovm', { imageIdentifier: imageArn('app'), executionRoleArn: role('worker') })
  const temporary = JSON.parse(readFileSync(path.join(server.folder, `credentials-${m.microvmId}.json`)))
  const r = await presign(temporary)
  assert.ok(r.query['X-Amz-Security-Token'])
  assert.equal((await get(r)).status, 200)
  await operate('DELETE', 'roles/' + encodeURIComponent(role('worker')))
})

test('the signed body is the one that counts, and there is none unsigned', async () => {
  const method = 'POST', target = '/2025-09-09/microvms', body = JSON.stringify({ imageIdentifier: imageArn('app') })
  const post = async (signed, sent) => {
    const headers = sign({ method, url: server.api + target, body: signed.body ?? body, ...signed })
    delete headers.host
    const r = await fetch(server.api + target, { method, headers, body: sent })
    return [r.status, r.headers.get('x-amzn-errortype')]
  }
  assert.deepEqual(await post({}, body), [200, null])
  assert.deepEqual(await post({}, body + ' '), [403, 'InvalidSignatureException'])
  for (const payload of ['UNSIGNED-PAYLOAD', 'STREAMING-UNSIGNED-PAYLOAD-TRAILER'])
    assert.deepEqual(await post({ payload, headers: { 'x-amz-content-sha256': payload } }, body), [403, 'InvalidSignatureException'])
  const sum = await post({ headers: { 'x-amz-content-sha256': '0'.repeat(64) } }, body)
  assert.deepEqual(sum, [403, 'InvalidSignatureException'])
})

test('keys and roles outlive a restart; those of a configuration go with it', async () => {
  const kept = await makeKey({ policy: allow('lambda:ListMicrovms') })
  await operate('PUT', 'roles/' + encodeURIComponent(role('mine')), { policy: allow('s3:*') })
  await server.kill()
  const roles = { [role('configured')]: allow('s3:GetObject') }
  server = await start(server.folder, { roles })
  const client = server.client({ credentials: kept.credentials })
  await send(client, 'ListMicrovms')
  await denied(send(client, 'ListMicrovmImages'), 'lambda:ListMicrovmImages', '*')
  const list = (await operate('GET', 'roles')).json.items
  assert.deepEqual(list.map((r) => [r.roleArn, r.configured]), [[role('configured'), true], [role('mine'), false]])
  assert.equal((await operate('DELETE', 'roles/' + encodeURIComponent(role('configured')))).status, 409)
  await server.kill()
  server = await start(server.folder)
  assert.deepEqual((await operate('GET', 'roles')).json.items.map((r) => r.roleArn), [role('mine')])
  await assert.rejects(start(undefined, { roles: { x: allow('*') } }), /"roles": "x" must be an ARN/)
  await assert.rejects(start(undefined, { roles: { [role('r')]: allow('nonsense') } }), /"roles", arn:aws:iam::000000000000:role\/r: statement 1/)
})
