// The life of microVMs: built, launched twice, called, suspended to nothing, woken with their state, terminated.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { api, build, call, cli, engine, inside, removeImage, root, sleep, token, waitState } from './engine.mjs'

const example = path.join(root, 'examples/python-sandbox')
let image, a, b

const python = async (microvm, code, options) => {
  const r = await call(microvm, '/run', { method: 'POST', body: code, ...options })
  assert.equal(r.status, 200, `POST /run answered ${r.status}: ${r.body}`)
  const answer = JSON.parse(r.body)
  assert.equal(answer.error, null)
  return answer.result
}

before(async () => {
  const { client } = await engine()
  const left = await client.send(new api.ListMicrovmImagesCommand({}))
  for (const i of left.items.filter((i) => i.name.startsWith('e2e-'))) await removeImage(i.imageArn).catch(() => {})
})

after(async () => {
  const { client } = await engine()
  for (const m of [a, b]) if (m) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId })).catch(() => {})
})

test('an image is built from a Dockerfile', async () => {
  image = await build(
    'e2e-sandbox',
    { Dockerfile: readFileSync(path.join(example, 'Dockerfile')), 'server.py': readFileSync(path.join(example, 'server.py')) },
    { hooks: { port: 8080, microvmImageHooks: { ready: 'ENABLED' }, microvmHooks: { run: 'ENABLED' } } },
  )
  assert.equal(image.image.state, 'CREATED', image.reason)
  assert.equal(image.image.latestActiveImageVersion, '1.0')
  assert.equal(image.build.buildState, 'SUCCESSFUL')
  const { client } = await engine()
  const details = await client.send(
    new api.GetMicrovmImageBuildCommand({ imageIdentifier: image.arn, imageVersion: '1.0', buildId: image.build.buildId }),
  )
  assert.ok(details.snapshotBuild.memorySnapshotSizeInBytes > 1 << 20)
  assert.ok(details.snapshotBuild.memorySnapshotSizeInBytes < 1 << 30)
})

test('two microVMs are launched from it and answer at endpoints of their own', async () => {
  const { client } = await engine()
  const idlePolicy = { maxIdleDurationSeconds: 600, suspendedDurationSeconds: 3600, autoResumeEnabled: true }
  a = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, idlePolicy }))
  assert.equal(a.state, 'PENDING')
  assert.match(a.microvmId, /^microvm-[0-9a-f-]{36}$/)
  assert.equal(a.maximumDurationInSeconds, 28800)
  b = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, idlePolicy }))
  assert.notEqual(a.endpoint, b.endpoint)
  assert.equal(await python(a, 'x = "alpha"; open("/tmp/note", "w").write(x); x'), "'alpha'")
  assert.equal(await python(b, 'x = "beta"; open("/tmp/note", "w").write(x); x'), "'beta'")
  await waitState(a.microvmId, 'RUNNING')
})

test('copies draw different secrets and know the time', async () => {
  const code = 'import secrets, random, time; (secrets.token_hex(16), random.random(), time.time())'
  const [one, two] = await Promise.all([python(a, code), python(b, code)])
  const parse = (s) => s.slice(1, -1).split(', ')
  assert.notEqual(parse(one)[0], parse(two)[0])
  assert.notEqual(parse(one)[1], parse(two)[1])
  assert.ok(Math.abs(Number(parse(one)[2]) - Date.now() / 1000) < 5, `the clock says ${parse(one)[2]}`)
})

test('suspended ones leave no process', async () => {
  const { client } = await engine()
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: a.microvmId }))
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: b.microvmId }))
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: b.microvmId })) // again: the same answer
  await waitState(a.microvmId, 'SUSPENDED')
  await waitState(b.microvmId, 'SUSPENDED')
  await sleep(1500)
  // Empty VMMs wait for the next launch; one that holds a microVM has its memory.
  const running = await client.send(new api.ListMicrovmsCommand({}))
  const awake = running.items.filter((m) => !['SUSPENDED', 'TERMINATED'].includes(m.state)).length
  const list = 'for p in $(pgrep -x stasis-vmm); do grep VmRSS /proc/$p/status; done; true'
  const large = (await inside(list)).split('\n').filter((l) => Number(l.split(/\s+/)[1]) > 8192)
  assert.equal(large.length, awake, `${large.length} VMMs hold memory, ${awake} microVMs are awake`)
})

test('a request wakes one, the API the other; values and files are there', async () => {
  const { client } = await engine()
  assert.equal(await python(a, 'x + open("/tmp/note").read()'), "'alphaalpha'")
  await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: b.microvmId }))
  await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: b.microvmId }))
  await waitState(b.microvmId, 'RUNNING')
  assert.equal(await python(b, 'x + open("/tmp/note").read()'), "'betabeta'")
  assert.ok(Math.abs(Number(await python(b, 'time.time()')) - Date.now() / 1000) < 5)
})

test('a second sleep keeps what came after the first', async () => {
  const { client } = await engine()
  await python(a, 'y = [i * i for i in range(100000)]; open("/var/tmp/big", "wb").write(b"z" * 5000000)')
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: a.microvmId }))
  await waitState(a.microvmId, 'SUSPENDED')
  assert.equal(await python(a, '(x, sum(y), len(open("/var/tmp/big", "rb").read()))'), "('alpha', 333328333350000, 5000000)")
})

test('requests that come while it sleeps are all answered', async () => {
  const { client } = await engine()
  await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: b.microvmId }))
  const auth = await token(b.microvmId)
  const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => python(b, `${i} + len(x)`, { auth })))
  assert.deepEqual(answers, Array.from({ length: 20 }, (_, i) => String(i + 4)))
})

test('connectors say what a microVM reaches, and what reaches it', async () => {
  const { client, region, mode } = await engine()
  const managed = (name) => `arn:aws:lambda:${region}:aws:network-connector:aws-network-connector:${name}`
  const listener = createServer((s) => s.destroy()).listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const run = (more) => client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, ...more }))
  await cli('connector', 'rm', 'e2e-host')
  const made = await cli('connector', 'create', 'e2e-host', '--subnet', 'subnet-host')
  assert.equal(made.code, 0, made.stderr)
  const [none, vpc, shut] = await Promise.all([
    run({ egressNetworkConnectors: [managed('NO_EGRESS')] }),
    run({ egressNetworkConnectors: [made.stdout.trim()] }),
    run({ ingressNetworkConnectors: [managed('NO_INGRESS')] }),
  ])
  // The errno of a connection: 0, ENETUNREACH (101), or EAGAIN (11) when nothing came back.
  const reach = async (m, host, port) =>
    Number(await python(m, `import socket; s = socket.socket(); s.settimeout(3); s.connect_ex(("${host}", ${port}))`))
  const { port } = listener.address()
  try {
    assert.equal(await reach(none, '10.0.2.2', port), 101)
    assert.equal(await reach(a, '10.0.2.2', port), 11) // the internet is not this host's loopback
    assert.equal(await reach(vpc, '192.0.2.1', 80), 101)
    if (mode === 'machine') assert.equal(await reach(vpc, '10.0.2.2', port), 0)
    await client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: vpc.microvmId }))
    await client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: vpc.microvmId }))
    assert.equal(await reach(vpc, '192.0.2.1', 80), 101)
    if (mode === 'machine') assert.equal(await reach(vpc, '10.0.2.2', port), 0)
    const refused = await call(shut, '/')
    assert.equal(refused.status, 403)
    assert.equal(String(refused.body), 'Ingress denied by network connectors')
  } finally {
    listener.close()
    for (const m of [none, vpc, shut]) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
  }
  await waitState(vpc.microvmId, 'TERMINATED')
  assert.equal((await cli('connector', 'rm', 'e2e-host')).code, 0)
})

test('terminated ones are gone, and stay listed', async () => {
  const { client } = await engine()
  const auth = await token(a.microvmId)
  for (const m of [a, b]) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
  const ended = await waitState(a.microvmId, 'TERMINATED')
  await waitState(b.microvmId, 'TERMINATED')
  assert.equal(ended.stateReason, 'Success.')
  assert.ok(ended.terminatedAt instanceof Date)
  assert.equal((await call(a, '/', { auth })).status, 502)
  await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: a.microvmId }))
  await assert.rejects(client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: a.microvmId })), {
    name: 'ValidationException',
    message: `The MicroVM ${a.microvmId} has been terminated and its state cannot be changed.`,
  })
  const list = await client.send(new api.ListMicrovmsCommand({ imageIdentifier: image.arn }))
  const listed = list.items.map((m) => m.microvmId)
  for (const m of [a, b]) assert.ok(listed.includes(m.microvmId), String(listed))
  const files = await inside('ls /var/lib/stasis/microvms')
  for (const m of [a, b]) assert.ok(!files.includes(m.microvmId.slice(8)), files)
})

test('the image is deleted', async () => {
  const count = async () => Number(await inside('ls /var/lib/stasis/images | wc -l'))
  const before = await count()
  await removeImage(image.arn)
  assert.equal(await count(), before - 1)
})
