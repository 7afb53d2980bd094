// Network connectors: the operations of lambda-core, and connectors in the lists of images and microVMs. There is no SDK of lambda-core for
// JavaScript: its requests are made by hand, as the service's model binds them.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import { call, credentials, otherCredentials, start } from './server.mjs'

const networks = { 'subnet-a': { cidrs: ['10.20.0.0/16'] }, 'subnet-b': { cidrs: ['10.30.0.0/16'] } }
for (let i = 0; i < 16; i++) networks[`subnet-many${i}`] = { cidrs: ['10.40.0.0/16'] }
const OperatorRole = 'arn:aws:iam::000000000000:role/operator'
const vpc = (SubnetIds, more = {}) => ({ VpcEgressConfiguration: { SubnetIds, NetworkProtocol: 'IPv4', AssociatedComputeResourceTypes: ['MicroVm'], ...more } })
let server, client, tokens = 0

const core = (method, rest, body, o = {}) =>
  call(server, method, '/2026-04-04/network-connectors' + rest, { body: body === undefined ? '' : JSON.stringify(body), ...o })
const id = (x) => '/' + encodeURIComponent(x)
const request = (Name, SubnetIds, more = {}) => ({ Name, Configuration: vpc(SubnetIds), OperatorRole, ClientToken: `token-${tokens++}`, ...more })
async function create(name, subnets = ['subnet-a'], more) {
  const r = await core('POST', '', request(name, subnets, more))
  assert.equal(r.status, 202, r.text)
  return r.json
}
const get = async (x) => (await core('GET', id(x))).json
// Until the connector has left the states of passage.
async function settled(x) {
  for (;;) {
    const k = await get(x)
    if (!['PENDING', 'DELETING'].includes(k.State) && k.LastUpdateStatus !== 'InProgress') return k
    await new Promise((r) => setTimeout(r, 10))
  }
}
async function made(name, subnets, more) {
  await create(name, subnets, more)
  return settled(name)
}
function refused(r, status, name, message) {
  assert.equal(r.status, status, r.text)
  assert.equal(r.errorType, name)
  assert.deepEqual(Object.keys(r.json).sort(), ['Message', 'Type'])
  assert.equal(r.json.Type, 'User')
  assert.ok(r.json.Message.includes(message), r.json.Message)
}

const arnOf = (name) => `arn:aws:lambda:us-east-1:000000000000:microvm-image:${name}`
const managed = (name) => `arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:${name}`
const send = (name, input, c = client) => c.send(new api[name + 'Command'](input))
const fails = (promise, name, message, status) =>
  assert.rejects(promise, (e) => {
    assert.equal(e.name, name, e.message)
    assert.ok(e.message.includes(message), e.message)
    if (status) assert.equal(e.$metadata.httpStatusCode, status)
    return true
  })
const image = (name, more = {}) =>
  send('CreateMicrovmImage', { name, baseImageArn: 'arn:aws:lambda:us-east-1:aws:microvm-image:python', buildRoleArn: 'arn:aws:iam::000000000000:role/r',
    codeArtifact: { uri: 's3://bucket/key' }, ...more })
const run = (more = {}) => send('RunMicrovm', { imageIdentifier: arnOf('app'), ...more })

before(async () => {
  server = await start(undefined, { networks })
  client = server.client()
  await image('app')
})
after(() => server.stop())

test('create, get and delete', async () => {
  const Tags = { team: 'a', 'with space': 'é' }
  const made = await create('first', ['subnet-a', 'subnet-b'], { Tags, Configuration: vpc(['subnet-a', 'subnet-b'], { SecurityGroupIds: ['sg-1'] }) })
  assert.match(made.Id, /^nc-[0-9a-f-]{36}$/)
  assert.equal(made.Arn, `arn:aws:lambda:us-east-1:000000000000:network-connector:${made.Id}`)
  assert.deepEqual(Object.keys(made).sort(), ['Arn', 'Configuration', 'Id', 'Name', 'OperatorRole', 'State'])
  assert.equal(made.State, 'PENDING')
  assert.deepEqual(made.Configuration, vpc(['subnet-a', 'subnet-b'], { SecurityGroupIds: ['sg-1'] }))
  const k = await settled('first')
  assert.equal(k.State, 'ACTIVE')
  assert.equal(k.Version, 1)
  assert.match(k.LastModified, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
  assert.ok(Math.abs(new Date(k.LastModified) - Date.now()) < 60000)
  for (const absent of ['StateReasonCode', 'LastUpdateStatus', 'LastUpdateStatusReason']) assert.ok(!(absent in k), absent)
  for (const x of [made.Id, made.Arn, made.Arn + ':1']) assert.deepEqual(await get(x), k)
  assert.equal((await core('GET', '/' + made.Arn)).status, 200) // raw colons
  refused(await core('GET', id(made.Arn + ':2')), 404, 'ResourceNotFoundException', 'Network connector not found')
  let r = await core('DELETE', id('first'))
  assert.equal(r.status, 202)
  assert.deepEqual(r.json, { ...made, State: 'DELETING' })
  while ((await core('GET', id(made.Id))).status !== 404);
  // Deleting again is no error, by what names it for ever; the name itself is free.
  assert.equal((await core('DELETE', id(made.Arn))).status, 202)
  refused(await core('DELETE', id('first')), 404, 'ResourceNotFoundException', 'Network connector not found: first')
  assert.notEqual((await create('first')).Id, made.Id)
})

test('tags', async () => {
  const { Arn } = await create('tagged', undefined, { Tags: { a: '1' } })
  const tags = async () => (await call(server, 'GET', '/2017-03-31/tags' + id(Arn))).json.Tags
  assert.deepEqual(await tags(), { a: '1' })
  const r = await call(server, 'POST', '/2017-03-31/tags' + id(Arn), { body: JSON.stringify({ Tags: { a: '2', b: '3' } }) })
  assert.equal(r.status, 204, r.text)
  await settled('tagged')
  assert.deepEqual(await tags(), { a: '2', b: '3' })
  assert.equal((await call(server, 'DELETE', '/2017-03-31/tags' + id(Arn) + '?tagKeys=a')).status, 204)
  assert.deepEqual(await tags(), { b: '3' })
  const many = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`k${i}`, '']))
  assert.match((await call(server, 'POST', '/2017-03-31/tags' + id(Arn), { body: JSON.stringify({ Tags: many }) })).json.message, /at most 50 tags/)
  await core('DELETE', id(Arn))
  while ((await core('GET', id(Arn))).status !== 404);
  assert.equal((await call(server, 'GET', '/2017-03-31/tags' + id(Arn))).errorType, 'ResourceNotFoundException')
})

test('what create refuses', async () => {
  const refuses = async (change, message, name = 'InvalidParameterValueException', status = 400) =>
    refused(await core('POST', '', { ...request('refused', ['subnet-a']), ...change }), status, name, message)
  await refuses({ ClientToken: undefined }, 'ClientToken is a required field')
  await refuses({ OperatorRole: undefined }, 'OperatorRole is a required field')
  await refuses({ Configuration: vpc(['subnet-a'], { NetworkProtocol: undefined }) }, 'NetworkProtocol is a required field')
  await refuses({ Configuration: vpc(['subnet-a'], { AssociatedComputeResourceTypes: undefined }) }, 'AssociatedComputeResourceTypes is a required field')
  await refuses({ Name: undefined, Configuration: undefined }, "2 validation errors detected: Value null at 'name' failed to satisfy constraint: Member must not be null; Value null at 'configuration'")
  await refuses({ Name: 'a b' }, "Value 'a b' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+")
  await refuses({ Name: 'x'.repeat(65) }, 'less than or equal to 64')
  await refuses({ ClientToken: 'x'.repeat(65) }, "at 'clientToken'")
  await refuses({ OperatorRole: 'role' }, "at 'operatorRole'")
  await refuses({ Configuration: {} }, "at 'configuration' failed to satisfy constraint: Member must have exactly one of its members set")
  await refuses({ Configuration: vpc([]) }, "at 'configuration.vpcEgressConfiguration.subnetIds'")
  await refuses({ Configuration: vpc(Array(17).fill('subnet-a')) }, 'less than or equal to 16')
  await refuses({ Configuration: vpc(['vpc-1']) }, 'subnet-[0-9a-z]*')
  await refuses({ Configuration: vpc(['subnet-a'], { SecurityGroupIds: Array(6).fill('sg-1') }) }, 'less than or equal to 5')
  await refuses({ Configuration: vpc(['subnet-a'], { SecurityGroupIds: ['x'] }) }, 'sg-[0-9a-zA-Z]*')
  await refuses({ Configuration: vpc(['subnet-a'], { NetworkProtocol: 'IPv6' }) }, 'enum value set: [IPv4, DualStack]')
  await refuses({ Configuration: vpc(['subnet-a'], { AssociatedComputeResourceTypes: ['Function'] }) }, 'enum value set: [MicroVm]')
  await refuses({ Configuration: vpc('subnet-a') }, 'Expected list or null')
  await refuses({ Tags: { 'a\n': 'b' } }, "at 'tags.key'")
  refused(await core('POST', '', undefined, { body: '{' }), 400, 'InvalidParameterValueException', 'could not be parsed')
  await create('taken')
  await refuses({ Name: 'taken' }, "A network connector with the name 'taken' already exists", 'ResourceConflictException', 409)
  for (const x of ['no such', 'x'.repeat(141), 'arn:aws:lambda:us-east-1:000000000000:microvm-image:a', 'arn:aws:lambda:us-east-1:000000000000:network-connector:a:b', '%2e%2e'])
    refused(await core('GET', id(x)), 400, 'InvalidParameterValueException', 'Invalid network connector identifier')
  refused(await core('GET', id('none')), 404, 'ResourceNotFoundException', 'Network connector not found: none')
})

test('a subnet that the operator has not configured fails the connector', async () => {
  const k = await made('lost', ['subnet-a', 'subnet-unknown'])
  assert.equal(k.State, 'FAILED')
  assert.equal(k.StateReasonCode, 'InvalidSubnet')
  assert.match(k.StateReason, /subnet-unknown/)
  refused(await core('PUT', id('lost'), { Configuration: vpc(['subnet-a']) }), 409, 'ResourceConflictException', 'cannot be updated')
  await fails(run({ egressNetworkConnectors: [k.Arn] }), 'ValidationException', `Network connector ${k.Arn} is FAILED; it must be ACTIVE`, 400)
  assert.equal((await core('DELETE', id('lost'))).status, 202)
})

test('ClientToken makes create idempotent, also when the connector is gone', async () => {
  const body = request('again', ['subnet-a'])
  const answers = await Promise.all(Array.from({ length: 6 }, () => core('POST', '', body)))
  for (const r of answers) assert.deepEqual([r.status, r.json], [202, answers[0].json])
  refused(await core('POST', '', { ...body, Configuration: vpc(['subnet-b']) }), 409, 'ResourceConflictException', 'client token was used before')
  await settled('again')
  await core('DELETE', id('again'))
  while ((await core('GET', id('again'))).status !== 404);
  assert.deepEqual((await core('POST', '', body)).json, answers[0].json)
  assert.equal((await core('GET', id('again'))).status, 404)
  assert.equal((await core('POST', '', body, { key: otherCredentials })).status, 202)
})

test('update', async () => {
  const k = await made('changing')
  let r = await core('PUT', id('changing'), { Configuration: k.Configuration, ClientToken: 'u1' })
  assert.equal(r.status, 202)
  assert.equal(r.json.LastUpdateStatus, 'Successful')
  assert.equal(r.json.LastUpdateStatusReason, 'No configuration changes detected')
  const body = { Configuration: vpc(['subnet-b']), OperatorRole: OperatorRole + '2', ClientToken: 'u2' }
  r = await core('PUT', id(k.Arn), body)
  assert.equal(r.status, 202)
  assert.equal(r.json.LastUpdateStatus, 'InProgress')
  assert.ok(r.json.LastModified >= k.LastModified)
  let now = await settled('changing')
  assert.deepEqual([now.State, now.Version, now.LastUpdateStatus], ['ACTIVE', 2, 'Successful'])
  assert.deepEqual([now.Configuration, now.OperatorRole], [body.Configuration, body.OperatorRole])
  assert.deepEqual((await core('PUT', id(k.Arn), body)).json, r.json) // the same token and parameters
  assert.equal((await get('changing')).Version, 2)
  refused(await core('PUT', id(k.Arn), { ...body, OperatorRole }), 409, 'ResourceConflictException', 'client token was used before')
  r = await core('PUT', id('changing'), { Configuration: vpc(['subnet-unknown']) })
  assert.equal(r.status, 202)
  now = await settled('changing')
  assert.deepEqual([now.State, now.Version, now.LastUpdateStatus, now.LastUpdateStatusReasonCode], ['ACTIVE', 2, 'Failed', 'InvalidSubnet'])
  assert.match(now.LastUpdateStatusReason, /subnet-unknown/)
  assert.deepEqual(now.Configuration, body.Configuration)
  refused(await core('PUT', id('changing'), { Configuration: vpc(['subnet-a'], { NetworkProtocol: undefined }) }), 400, 'InvalidParameterValueException', 'NetworkProtocol is a required field')
  refused(await core('PUT', id('none'), {}), 404, 'ResourceNotFoundException', 'not found')
})

test('lists are paged, filtered and bound to their query', async () => {
  const key = otherCredentials
  const list = (query) => core('GET', query, undefined, { key })
  for (let i = 0; i < 5; i++) assert.equal((await core('POST', '', request(`listed-${i}`, [i === 0 ? 'subnet-unknown' : 'subnet-a']), { key })).status, 202)
  while ((await list('?State=PENDING')).json.NetworkConnectors.length > 0);
  const all = (await list('')).json
  assert.deepEqual(Object.keys(all), ['NetworkConnectors']) // no NextMarker
  const names = all.NetworkConnectors.map((k) => k.Name)
  assert.deepEqual(names.slice(0, 5), ['listed-4', 'listed-3', 'listed-2', 'listed-1', 'listed-0'])
  assert.deepEqual(Object.keys(all.NetworkConnectors[0]).sort(), ['Arn', 'Id', 'LastModified', 'Name', 'State', 'Type'])
  assert.equal(all.NetworkConnectors[0].Type, 'VPC_EGRESS')
  const got = []
  let marker = '', pages = 0
  do {
    const r = await list(`?MaxItems=2&State=ACTIVE${marker && '&Marker=' + encodeURIComponent(marker)}`)
    assert.equal(r.status, 200, r.text)
    got.push(...r.json.NetworkConnectors.map((k) => k.Name))
    marker = r.json.NextMarker ?? ''
    pages++
    if (pages === 1) {
      refused(await list(`?MaxItems=2&State=FAILED&Marker=${encodeURIComponent(marker)}`), 400, 'InvalidParameterValueException', 'Invalid Marker')
      refused(await core('GET', `?State=ACTIVE&Marker=${encodeURIComponent(marker)}`), 400, 'InvalidParameterValueException', 'Invalid Marker')
    }
  } while (marker)
  assert.deepEqual(got, names.filter((n) => n !== 'listed-0'))
  assert.ok(pages >= 2)
  assert.deepEqual((await list('?State=FAILED')).json.NetworkConnectors.map((k) => k.Name), ['listed-0'])
  assert.equal((await list('?MaxItems=100')).status, 200)
  refused(await list('?MaxItems=101'), 400, 'InvalidParameterValueException', "Value '101' at 'maxItems' failed to satisfy constraint: Member must have value less than or equal to 100")
  refused(await list('?MaxItems=0'), 400, 'InvalidParameterValueException', 'greater than or equal to 1')
  refused(await list('?State=GONE'), 400, 'InvalidParameterValueException', 'enum value set')
  // Each account has its own.
  const arn = all.NetworkConnectors[0].Arn
  refused(await core('GET', id(arn)), 403, 'AccessDeniedException', 'lambda:GetNetworkConnector')
  refused(await core('GET', id('listed-4')), 404, 'ResourceNotFoundException', 'not found')
  await fails(run({ egressNetworkConnectors: [arn] }), 'AccessDeniedException', 'is not authorized', 403)
})

test('an account has at most 100', async () => {
  const key = otherCredentials
  for (let i = 0; ; i++) {
    const r = await core('POST', '', request(`filler-${i}`, ['subnet-a']), { key })
    if (r.status === 202) continue
    refused(r, 400, 'NetworkConnectorLimitExceededException', 'limit of 100 network connectors')
    break
  }
  const { json } = await core('GET', '?MaxItems=100', undefined, { key })
  assert.equal(json.NetworkConnectors.length, 100)
  while ((await core('DELETE', id('filler-0'), undefined, { key })).status === 409);
  while ((await core('GET', id('filler-0'), undefined, { key })).status !== 404);
  assert.equal((await core('POST', '', request('filler-more', ['subnet-a']), { key })).status, 202)
})

test('unsigned and unknown requests have the form of lambda-core', async () => {
  const r = await fetch(server.api + '/2026-04-04/network-connectors')
  assert.equal(r.status, 403)
  assert.equal((await r.json()).Message, 'Missing Authentication Token')
  assert.equal((await call(server, 'POST', '/2026-04-04/network-connectors/x')).status, 404)
})

test('run and images take connectors of the account', async () => {
  const one = await made('one'), two = await made('two', ['subnet-b', 'subnet-a'])
  const { microvmId } = await run({ egressNetworkConnectors: [one.Arn, two.Arn, managed('INTERNET_EGRESS')] })
  const m = await send('GetMicrovm', { microvmIdentifier: microvmId })
  assert.deepEqual(m.egressNetworkConnectors, [one.Arn, two.Arn, managed('INTERNET_EGRESS')])
  await image('vpc-app', { egressNetworkConnectors: [two.Arn + ':1'] })
  const inherits = await send('RunMicrovm', { imageIdentifier: arnOf('vpc-app'), egressNetworkConnectors: [] })
  assert.deepEqual(inherits.egressNetworkConnectors, [two.Arn + ':1'])

  // In use: not deleted, not even by the version that names it.
  for (const k of [one, two]) refused(await core('DELETE', id(k.Arn)), 409, 'ResourceConflictException', `Cannot delete network connector ${k.Arn}`)
  await send('TerminateMicrovm', { microvmIdentifier: microvmId })
  assert.equal((await core('DELETE', id('one'))).status, 202)
  await fails(run({ egressNetworkConnectors: [one.Arn] }), 'ResourceNotFoundException', `Network connector not found: ${one.Arn}`, 404)
  await send('TerminateMicrovm', { microvmIdentifier: inherits.microvmId })
  refused(await core('DELETE', id('two')), 409, 'ResourceConflictException', '0 MicroVMs and 1 image versions use it')
  await send('DeleteMicrovmImage', { imageIdentifier: arnOf('vpc-app') })
  assert.equal((await core('DELETE', id('two'))).status, 202)
})

test('which connectors go together', async () => {
  const many = await made('many', Array.from({ length: 16 }, (_, i) => `subnet-many${i}`)), extra = await made('extra')
  const own = extra.Arn
  await run({ egressNetworkConnectors: [many.Arn] })
  await fails(run({ egressNetworkConnectors: [many.Arn, own] }), 'ValidationException', '17 subnets together; at most 16')
  await fails(run({ egressNetworkConnectors: [managed('NO_EGRESS'), own] }), 'ValidationException', 'NO_EGRESS cannot be combined with other egress network connectors')
  await fails(run({ egressNetworkConnectors: [managed('INTERNET_EGRESS'), managed('NO_EGRESS')] }), 'ValidationException', 'NO_EGRESS cannot be combined')
  await fails(run({ ingressNetworkConnectors: [managed('NO_INGRESS'), managed('HTTP_INGRESS')] }), 'ValidationException', 'NO_INGRESS cannot be combined')
  await fails(run({ ingressNetworkConnectors: [own] }), 'ValidationException', 'An ingress network connector must be one of the service')
  await fails(run({ egressNetworkConnectors: [managed('HTTP_INGRESS')] }), 'ValidationException', `Unrecognized managed network connector ARN: ${managed('HTTP_INGRESS')}`)
  for (const x of ['x', 'NO_EGRESS', 'arn:aws:lambda:us-east-1:000000000000:microvm-image:a', own.replace(':lambda:', ':s3:')])
    await fails(run({ egressNetworkConnectors: [x] }), 'ValidationException', 'Malformed network connector ARN', 400)
  await fails(run({ egressNetworkConnectors: [own.replace(/nc-.*/, 'nc-00000000-0000-4000-8000-000000000000')] }), 'ResourceNotFoundException', 'Network connector not found')
  await fails(image('two-egress', { egressNetworkConnectors: [own, managed('INTERNET_EGRESS')] }), 'ValidationException', 'less than or equal to 1')
  // As the service, Run takes what only a shell's token is refused for.
  await run({ ingressNetworkConnectors: [managed('ALL_INGRESS'), managed('SHELL_INGRESS')] })
  const { microvmId } = await run({ ingressNetworkConnectors: [managed('NO_INGRESS')] })
  const t = await send('CreateMicrovmAuthToken', { microvmIdentifier: microvmId, expirationInMinutes: 1, allowedPorts: [{ allPorts: {} }] })
  assert.ok(t.authToken['X-aws-proxy-auth'])
})

test('deleting and using a connector exclude each other', async () => {
  for (let round = 0; round < 12; round++) {
    const { Arn } = await made(`race-${round}`)
    const runs = [], deletes = []
    for (let i = 0; i < 4; i++) {
      runs.push(run({ egressNetworkConnectors: [Arn] }).then((m) => m.microvmId, (e) => (assert.ok(['ValidationException', 'ResourceNotFoundException'].includes(e.name), `${e.name}: ${e.message}`), null)))
      deletes.push(core('DELETE', id(Arn)))
    }
    const ids = (await Promise.all(runs)).filter(Boolean), deleted = (await Promise.all(deletes)).some((r) => r.status === 202)
    assert.ok(!deleted || ids.length === 0, `${ids.length} microVMs run with a connector that is deleted`)
    for (const microvmIdentifier of ids) await send('TerminateMicrovm', { microvmIdentifier })
  }
})

test('the command line', async () => {
  const root = path.resolve(import.meta.dirname, '../..')
  const program = ['build-san/src/cli/stasis', 'build/src/cli/stasis'].map((p) => path.join(root, p)).find(existsSync)
  const env = { ...process.env, STASIS_HOME: server.folder, STASIS_API: server.api, STASIS_ACCESS_KEY_ID: credentials.accessKeyId, STASIS_SECRET_ACCESS_KEY: credentials.secretAccessKey }
  const cli = (...args) => new Promise((resolve) => execFile(program, args, { env }, (e, stdout, stderr) => resolve({ code: e?.code ?? 0, stdout, stderr })))
  let r = await cli('connector', 'create', 'by-hand', '--subnet', 'subnet-a', '--subnet', 'subnet-b')
  assert.equal(r.code, 0, r.stderr)
  const { Arn } = await get('by-hand')
  assert.equal(r.stdout.trim(), Arn)
  r = await cli('connector', 'create', 'failing', '--subnet', 'subnet-unknown')
  assert.equal(r.code, 1)
  assert.match(r.stderr, /InvalidSubnet: The subnet subnet-unknown does not exist/)
  r = await cli('connector', 'ls')
  assert.match(r.stdout, /by-hand +ACTIVE +nc-/)
  assert.match(r.stdout, /failing +FAILED +nc-/)
  r = await cli('connector', 'show', 'by-hand')
  assert.match(r.stdout, /state {6}ACTIVE\n(.*\n)*subnets {4}subnet-a, subnet-b\n/)
  r = await cli('run', 'app', '--egress', 'by-hand', '--egress', 'internet', '--ingress', 'none', '--json')
  assert.equal(r.code, 0, r.stderr)
  const m = JSON.parse(r.stdout)
  assert.deepEqual(m.egressNetworkConnectors, [Arn, managed('INTERNET_EGRESS')])
  assert.deepEqual(m.ingressNetworkConnectors, [managed('NO_INGRESS')])
  assert.match((await cli('show', m.microvmId)).stdout, /ingress {4}NO_INGRESS\negress {5}nc-[-0-9a-f]+, INTERNET_EGRESS\n/)
  r = await cli('connector', 'rm', 'by-hand')
  assert.equal(r.code, 1)
  assert.match(r.stderr, /Cannot delete network connector/)
  await send('TerminateMicrovm', { microvmIdentifier: m.microvmId })
  assert.equal((await cli('connector', 'rm', 'by-hand')).code, 0)
  assert.equal((await cli('connector', 'show', 'by-hand')).code, 4)
  assert.equal((await cli('run', 'app', '--egress', 'by-hand')).code, 4)
  assert.equal((await cli('run', 'app', '--ingress', 'some')).code, 2)
})

test('connectors survive, and follow the networks that there are', async () => {
  const k = await made('survivor', ['subnet-b'])
  const pending = await create('interrupted', ['subnet-a'])
  await server.kill()
  server = await start(server.folder, { networks: { 'subnet-a': networks['subnet-a'] } })
  client = server.client()
  assert.equal((await settled(pending.Id)).State, 'ACTIVE')
  let now
  while ((now = await get(k.Arn)).State === 'ACTIVE');
  assert.deepEqual([now.State, now.StateReasonCode], ['INACTIVE', 'InvalidSubnet'])
  await fails(run({ egressNetworkConnectors: [k.Arn] }), 'ValidationException', 'is INACTIVE; it must be ACTIVE')
  await server.kill()
  server = await start(server.folder, { networks })
  client = server.client()
  while ((now = await get(k.Arn)).State === 'INACTIVE');
  assert.deepEqual([now.State, now.StateReasonCode], ['ACTIVE', undefined])
  await run({ egressNetworkConnectors: [k.Arn] })
})

test('each operation needs its action, on the connector', async () => {
  const allow = (Action, Resource = '*') => ({ Statement: [{ Effect: 'Allow', Action, Resource }] })
  const keyOf = async (policy) => {
    const { json } = await call(server, 'POST', '/_stasis/keys', { body: JSON.stringify({ policy }) })
    return { accessKeyId: json.accessKeyId, secretAccessKey: json.secretAccessKey }
  }
  const { Arn, Id } = await made('guarded')
  const denied = (r, action, resource) => refused(r, 403, 'AccessDeniedException', ` is not authorized to perform: lambda:${action} on resource: ${resource} `)
  const none = { key: await keyOf(allow('logs:*')) }
  denied(await core('POST', '', request('more', ['subnet-a']), none), 'CreateNetworkConnector', '*')
  denied(await core('GET', '', undefined, none), 'ListNetworkConnectors', '*')
  for (const spelling of ['guarded', Id, Arn]) {
    denied(await core('GET', id(spelling), undefined, none), 'GetNetworkConnector', Arn)
    denied(await core('PUT', id(spelling), { Configuration: vpc(['subnet-b']) }, none), 'UpdateNetworkConnector', Arn)
    denied(await core('DELETE', id(spelling), undefined, none), 'DeleteNetworkConnector', Arn)
  }
  const reader = { key: await keyOf(allow('lambda:GetNetworkConnector', Arn)) }
  assert.equal((await core('GET', id('guarded'), undefined, reader)).json.Id, Id)
  denied(await core('DELETE', id('guarded'), undefined, reader), 'DeleteNetworkConnector', Arn)
  assert.equal((await core('GET', id('nothing-here'), undefined, reader)).status, 404)
  assert.equal((await get('guarded')).State, 'ACTIVE')
})
