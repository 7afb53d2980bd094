// Logs: by position, by time, followed, kept after the end, and pushed in the shape of CloudWatch Logs to a server of the test's own.
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import { test } from 'node:test'
import * as aws from '@aws-sdk/client-lambda-microvms'
import { call, raw, sign, start, verifySignature } from './server.mjs'

const role = 'arn:aws:iam::000000000000:role/execution'
const hooks = { port: 8080, microvmHooks: { run: 'ENABLED' }, microvmImageHooks: { ready: 'ENABLED' } }
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
async function until(check, ms = 20000) {
  for (const end = Date.now() + ms; ; await sleep(20)) {
    const got = await check()
    if (got) return got
    assert.ok(Date.now() < end, 'it did not happen')
  }
}

async function withServer(config, run, folder) {
  const server = await start(folder, config)
  const c = server.client()
  const send = (name, input) => c.send(new aws[name + 'Command'](input))
  const image = await send('CreateMicrovmImage', { name: 'app', baseImageArn: 'arn:aws:lambda:us-east-1:aws:microvm-image:debian', codeArtifact: { uri: 's3://bucket/key' },
    buildRoleArn: role, hooks })
  const microvm = async (o) => (await send('RunMicrovm', { imageIdentifier: image.imageArn, ...o })).microvmId
  const log = (id, query = '') => call(server, 'GET', `/_stasis/microvms/${id}/log?${query}`)
  try {
    await run({ server, send, image, microvm, log })
  } finally {
    await server.stop()
  }
}
const text = (log) => log.replace(/^\S+ /gm, '')

// Follows a log; what has come so far, and whether it has ended.
function follow(server, target) {
  const url = server.api + target
  const headers = sign({ method: 'GET', url })
  const f = { got: '', ended: false }
  f.request = http.get(url, { headers }, (r) => {
    f.status = r.statusCode
    r.setEncoding('utf8').on('data', (d) => (f.got += d)).on('end', () => (f.ended = true)).on('error', () => {})
  }).on('error', () => {})
  return f
}

test('logs by position and by time', () => withServer({}, async ({ server, send, image, microvm, log }) => {
  const id = await microvm()
  let r = await log(id)
  assert.equal(text(r.text), 'stdout running\n')
  assert.equal(r.headers.get('x-stasis-complete'), 'false')
  const next = r.headers.get('x-stasis-next-offset')
  assert.equal(Number(next), r.text.length)
  await sleep(20)
  const between = Date.now()
  await send('SuspendMicrovm', { microvmIdentifier: id })
  assert.equal(text((await log(id, `offset=${next}`)).text), 'stderr suspended\n')
  assert.equal(text((await log(id, `since=${between}`)).text), 'stderr suspended\n')
  assert.equal(text((await log(id, `until=${between}`)).text), 'stdout running\n')
  for (const bad of ['offset=x', 'offset=-1', 'since=yesterday', 'follow=1', 'follow=true&until=5']) assert.equal((await log(id, bad)).status, 400, bad)
  await send('TerminateMicrovm', { microvmIdentifier: id })
  r = await log(id)
  assert.equal(text(r.text), 'stdout running\nstderr suspended\n') // kept
  assert.equal(r.headers.get('x-stasis-complete'), 'true')
  r = await call(server, 'GET', `/_stasis/images/${image.imageArn}/versions/1.0/log`)
  assert.equal(text(r.text), 'stdout STEP 1/1: FROM stasis/debian\nstasis the image is ready\n')
  assert.equal(r.headers.get('x-stasis-complete'), 'true')
}))

test('a log is followed until its microVM has ended, also while it sleeps', () => withServer({}, async ({ server, send, microvm, log }) => {
  const id = await microvm()
  const f = follow(server, `/_stasis/microvms/${id}/log?follow=true`)
  await until(() => f.got.includes('running'))
  for (const [name, word] of [['SuspendMicrovm', 'suspended'], ['ResumeMicrovm', 'resumed']]) {
    await send(name, { microvmIdentifier: id })
    await until(() => f.got.includes(word))
  }
  assert.equal(f.ended, false)
  await send('TerminateMicrovm', { microvmIdentifier: id })
  await until(() => f.ended)
  assert.equal(f.got, (await log(id)).text)
  // Of one that has ended, all at once; for HTTP/1.0 until the connection ends.
  const again = follow(server, `/_stasis/microvms/${id}/log?follow=true`)
  await until(() => again.ended)
  assert.equal(again.got, f.got)
  const url = `${server.api}/_stasis/microvms/${id}/log?follow=true`
  const headers = Object.entries(sign({ method: 'GET', url })).map(([k, v]) => `${k}: ${v}\r\n`).join('')
  const old = await raw(server.api, `GET /_stasis/microvms/${id}/log?follow=true HTTP/1.0\r\n${headers}\r\n`)
  assert.equal(old.split('\r\n\r\n')[1], f.got)
}))

test('those who follow and go away leave no trace, and there is a limit of them', () => withServer({}, async ({ server, microvm }) => {
  const id = await microvm()
  const one = () => follow(server, `/_stasis/microvms/${id}/log?follow=true`)
  for (let round = 0; round < 3; round++) {
    const all = Array.from({ length: 64 }, one)
    await until(() => all.every((f) => f.got.includes('running')))
    const over = one()
    await until(() => over.status)
    assert.equal(over.status, 429)
    for (const f of all) f.request.destroy()
    await until(async () => {
      const f = one()
      await until(() => f.status)
      f.request.destroy()
      return f.status === 200
    })
  }
  one() // which does not keep the server from ending
}))

test('logs of ended microVMs go when their time or their room is over', async () => {
  await withServer({ logRetentionSeconds: 1 }, async ({ server, send, microvm, log }) => {
    const id = await microvm()
    const folder = path.join(server.folder, 'logs', id.slice(8))
    await send('TerminateMicrovm', { microvmIdentifier: id })
    assert.ok(existsSync(folder))
    await until(() => !existsSync(folder))
    const r = await log(id)
    assert.deepEqual([r.text, r.headers.get('x-stasis-kept'), r.headers.get('x-stasis-complete')], ['', 'false', 'true'])
  })
  await withServer({ logTotalBytes: 100_000 }, async ({ server, send, microvm }) => {
    const ids = []
    for (let i = 0; i < 4; i++) {
      ids.push(await microvm({ runHookPayload: `1000 ${'x'.repeat(10)}` })) // about 43,000 bytes
      await send('TerminateMicrovm', { microvmIdentifier: ids[i] })
    }
    assert.deepEqual(ids.map((id) => existsSync(path.join(server.folder, 'logs', id.slice(8)))), [false, false, true, true])
  })
})

// A CloudWatch Logs that checks signatures and keeps what it is given. `fail(operation, number)` may give an error to answer with.
async function cloudwatch(run, fail = () => null) {
  const groups = new Map(), calls = []
  const key = { accessKeyId: 'AKIDLOGS', secretAccessKey: 'logs/secret' }
  const s = http.createServer((q, r) => {
    const chunks = []
    q.on('data', (d) => chunks.push(d)).on('end', () => {
      const body = Buffer.concat(chunks), operation = q.headers['x-amz-target'].replace('Logs_20140328.', '')
      const answer = (status, o) => (r.writeHead(status, { 'content-type': 'application/x-amz-json-1.1' }), r.end(JSON.stringify(o)))
      try {
        assert.equal(q.method, 'POST')
        assert.equal(q.headers['content-type'], 'application/x-amz-json-1.1')
        verifySignature({ method: q.method, url: `http://${q.headers.host}${q.url}`, headers: q.headers, body }, { service: 'logs', region: 'eu-west-1', key })
      } catch (e) {
        calls.push(e)
        return answer(400, { __type: 'InvalidSignatureException', message: e.message })
      }
      const { logGroupName: group, logStreamName: stream, logEvents } = JSON.parse(body)
      calls.push(operation)
      const error = fail(operation, calls.length)
      if (error) return answer(...error)
      const named = (name) => answer(400, { __type: `com.amazonaws.logs#${name}`, message: name })
      if (operation === 'CreateLogGroup') return groups.has(group) ? named('ResourceAlreadyExistsException') : (groups.set(group, new Map()), answer(200, {}))
      const streams = groups.get(group)
      if (!streams) return named('ResourceNotFoundException')
      if (operation === 'CreateLogStream') return streams.has(stream) ? named('ResourceAlreadyExistsException') : (streams.set(stream, []), answer(200, {}))
      if (operation !== 'PutLogEvents') return named('UnknownOperationException')
      if (!streams.has(stream)) return named('ResourceNotFoundException')
      if (logEvents.length < 1 || logEvents.length > 10000 || logEvents.some((e, i) => !e.message || (i > 0 && e.timestamp < logEvents[i - 1].timestamp)) ||
        logEvents.reduce((n, e) => n + Buffer.byteLength(e.message) + 26, 0) > 1048576) return named('InvalidParameterException')
      streams.get(stream).push(...logEvents)
      answer(200, { nextSequenceToken: '1' })
    })
  })
  await new Promise((resolve) => s.listen(0, '127.0.0.1', resolve))
  const messages = (group, stream) => (groups.get(group)?.get(stream) ?? []).map((e) => e.message)
  const config = { cloudWatchEndpoint: `http://127.0.0.1:${s.address().port}`, cloudWatchAccessKeyId: key.accessKeyId, cloudWatchSecretAccessKey: key.secretAccessKey,
    cloudWatchRegion: 'eu-west-1' }
  try {
    await run({ config, groups, calls, messages })
  } finally {
    s.closeAllConnections()
    s.close()
  }
  assert.deepEqual(calls.filter((c) => c instanceof Error), [])
}
const day = () => new Date().toISOString().slice(0, 10).replaceAll('-', '/')

test('logs are pushed: build and microVM, under the names of the service', () => cloudwatch(({ config, groups, messages }) =>
  withServer(config, async ({ send, microvm }) => {
    const before = Date.now(), group = '/aws/lambda-microvms/app'
    const id = await microvm({ executionRoleArn: role, runHookPayload: 'first\nsecond ü\n\nlast without end' })
    const silent = await microvm({ executionRoleArn: role, logging: { disabled: {} } })
    const roleless = await microvm()
    const own = await microvm({ executionRoleArn: role, logging: { cloudWatch: { logGroup: 'my/group', logStream: 'my stream' } } })
    const stream = `${day()}[1.0]${id}`
    await until(() => messages(group, stream).length >= 3 && messages('my/group', 'my stream').length === 1)
    assert.deepEqual(messages(group, stream), ['first', 'second ü', ' '])
    for (const e of groups.get(group).get(stream)) assert.ok(e.timestamp >= before - 1000 && e.timestamp <= Date.now())
    await send('TerminateMicrovm', { microvmIdentifier: id })
    await until(() => messages(group, stream).length === 4)
    assert.equal(messages(group, stream)[3], 'last without end')
    const streams = [...groups.get(group).keys()]
    assert.ok(!streams.some((s) => s.includes(silent) || s.includes(roleless) || s.includes(own)))
    const build = streams.find((s) => s.startsWith(`${day()}[1.0]build-`))
    assert.deepEqual(messages(group, build), ['STEP 1/1: FROM stasis/debian', 'the image is ready'])
  })))

test('without a role, when the operator wants it so', () => cloudwatch(({ config, messages }) =>
  withServer({ ...config, cloudWatchRuntime: 'always' }, async ({ microvm }) => {
    const id = await microvm()
    await until(() => messages('/aws/lambda-microvms/app', `${day()}[1.0]${id}`).length === 1)
  })))

test('many lines come in batches, in order and once', () => cloudwatch(({ config, calls, messages }) =>
  withServer(config, async ({ microvm }) => {
    const id = await microvm({ executionRoleArn: role, runHookPayload: `20000 ${'y'.repeat(20)}` })
    const stream = `${day()}[1.0]${id}`
    await until(() => messages('/aws/lambda-microvms/app', stream).length >= 20000, 40000)
    assert.deepEqual(messages('/aws/lambda-microvms/app', stream), Array(20000).fill('y'.repeat(20)))
    assert.ok(calls.filter((c) => c === 'PutLogEvents').length < 40)
  })))

test('an endpoint that fails is tried again later, and nothing is lost or doubled', () =>
  cloudwatch(({ config, messages }) => withServer(config, async ({ server, microvm }) => {
    const id = await microvm({ executionRoleArn: role, runHookPayload: 'kept\n' })
    await until(() => messages('/aws/lambda-microvms/app', `${day()}[1.0]${id}`).length > 0)
    assert.deepEqual(messages('/aws/lambda-microvms/app', `${day()}[1.0]${id}`), ['kept'])
    assert.match(server.log(), /push\.failed .*ThrottlingException/)
    await until(() => /push\.works/.test(server.log()))
  }), (operation, n) => (n <= 2 ? [n === 1 ? 400 : 503, { __type: 'ThrottlingException', message: 'slow down' }] : null)))

test('what the limit of the log took away before it was pushed is said', () => {
  let up = false
  return cloudwatch(({ config, messages }) => withServer({ ...config, microvmLogBytes: 65536 }, async ({ server, microvm }) => {
    const id = await microvm({ executionRoleArn: role, runHookPayload: `5000 ${'z'.repeat(50)}` })
    await until(() => /push\.failed/.test(server.log()))
    up = true
    const got = await until(() => { const m = messages('/aws/lambda-microvms/app', `${day()}[1.0]${id}`); return m.length > 1 && m })
    assert.match(got[0], /^\(\d+ bytes of output were dropped before they could be pushed\)$/)
    assert.match(server.log(), /push\.dropped .*bytes=\d+/)
  }), () => (up ? null : [500, {}]))
})
