// The command line's work on images, against the real API.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { arnOf } from './client.mjs'
import { credentials, start } from './server.mjs'

let server, home, source
const program = ['build-san', 'build'].map((b) => path.resolve(import.meta.dirname, '../..', b, 'src/cli/stasis')).find(existsSync)
before(async () => {
  server = await start()
  home = mkdtempSync(path.join(os.tmpdir(), 'cli-test-'))
  source = mkdtempSync(path.join(os.tmpdir(), 'cli-test-'))
  writeFileSync(path.join(source, 'Dockerfile'), 'FROM stasis/debian\nCMD ["sleep", "1d"]\n')
})
after(async () => {
  await server.stop()
  for (const f of [home, source]) rmSync(f, { recursive: true })
})

// Runs the command line; gives { code, out, err } and never throws.
const stasis = (...args) =>
  new Promise((resolve) =>
    execFile(program, args, { env: { PATH: process.env.PATH, STASIS_HOME: home, STASIS_API: server.api, STASIS_ARTIFACTS: server.artifacts,
      STASIS_ACCESS_KEY_ID: credentials.accessKeyId, STASIS_SECRET_ACCESS_KEY: credentials.secretAccessKey } },
    (e, out, err) => resolve({ code: e?.code ?? 0, out, err })))
async function fine(...args) {
  const r = await stasis(...args)
  assert.equal(r.code, 0, `${args.join(' ')}: ${r.err}`)
  return r.out
}
const json = async (...args) => JSON.parse(await fine(...args, '--json'))
const refused = async (code, message, ...args) => {
  const r = await stasis(...args)
  assert.equal(r.code, code, `${args.join(' ')}: ${r.out}${r.err}`)
  assert.match(r.err, message)
}
const rows = (out) => out.trim().split('\n').slice(1).map((l) => l.split(/ {2,}/))

test('an image is created, updated, listed and shown', async () => {
  assert.equal(await fine('image', 'create', 'app', source, '--memory', '512', '--env', 'A=b'), arnOf('app') + '\n')
  const image = await json('image', 'update', 'app', source, '--description', 'second')
  assert.equal(image.state, 'UPDATED')
  assert.equal(image.latestActiveImageVersion, '2.0')
  await refused(1, /The container image build failed/, 'image', 'update', 'app', source, '--description', 'failing')
  assert.deepEqual(rows(await fine('image', 'versions', 'app')).map((r) => r.slice(0, 3).concat(r[4] || [])), [
    ['3.0', 'FAILED', 'INACTIVE', 'The container image build failed.'], ['2.0', 'SUCCESSFUL', 'ACTIVE'], ['1.0', 'SUCCESSFUL', 'ACTIVE']])
  const versions = await json('image', 'versions', arnOf('app'))
  assert.deepEqual(versions.map((v) => v.resources[0].minimumMemoryInMiB), [2048, 2048, 512]) // nothing is taken over
  assert.deepEqual(versions.map((v) => v.environmentVariables), [null, null, { A: 'b' }])
  assert.deepEqual(rows(await fine('image', 'ls')).map((r) => r.slice(0, 3)), [['app', 'UPDATE_FAILED', '2.0']])
  assert.equal((await json('image', 'show', 'app')).version.imageVersion, '3.0')
  assert.equal((await json('image', 'show', 'app:1.0')).version.imageVersion, '1.0')
  assert.equal((await json('image', 'show', arnOf('app') + ':2')).version.imageVersion, '2.0')
  assert.match(await fine('image', 'show', 'app:2'), /version +2 \(SUCCESSFUL, ACTIVE\)/)
  await fine('image', 'logs', 'app:2.0')
  await refused(4, /MicroVMImage not found/, 'image', 'update', 'none', source)
  await refused(2, /takes a name and a source/, 'image', 'update', 'app')
})

test('versions are activated, deactivated and deleted', async () => {
  assert.equal(await fine('image', 'deactivate', 'app:2.0'), 'app:2.0 is INACTIVE\n')
  assert.equal((await json('image', 'show', 'app')).image.latestActiveImageVersion, '1.0')
  assert.equal((await json('image', 'activate', 'app:2')).status, 'ACTIVE')
  await refused(1, /Only a version in state SUCCESSFUL can be ACTIVE/, 'image', 'activate', 'app:3.0')
  await refused(4, /Version: 9.0/, 'image', 'activate', 'app:9.0')
  await refused(2, /takes a name and a version/, 'image', 'activate', 'app')
  assert.equal(await fine('image', 'rm', 'app:3.0'), '')
  assert.equal((await json('image', 'rm', arnOf('app') + ':2.0')).imageVersion, '2.0')
  assert.equal((await json('image', 'rm', 'app:2.0')).state, 'DELETED')
  await refused(1, /This is the last version. Please delete the entire image/, 'image', 'rm', 'app:1.0')
  await refused(4, /Version: 7.0/, 'image', 'rm', 'app:7.0')
  assert.equal((await json('image', 'versions', 'app')).length, 1)
})

test('images are tagged', async () => {
  assert.equal(await fine('image', 'tag', 'app'), '')
  assert.equal(await fine('image', 'tag', 'app', 'team=a b', 'empty=', 'ü=€'), 'team=a b\nempty=\nü=€\n')
  assert.deepEqual(await json('image', 'tag', 'app', 'team=c', '--remove', 'empty', '--remove', 'ü', '--remove', 'none'), { team: 'c' })
  await refused(2, /a tag is KEY=VALUE, not 'team'/, 'image', 'tag', 'app', 'team')
  await refused(2, /takes a name/, 'image', 'tag')
  await refused(1, /reserved/, 'image', 'tag', 'app', 'aws:x=y')
  await refused(4, /not found/, 'image', 'tag', 'none', 'a=b')
})

test('an image is deleted, when nothing runs from it', async () => {
  await refused(4, /No active version found/, 'run', 'app:2.0')
  const id = (await json('run', 'app:1.0')).microvmId
  await refused(1, /Cannot delete microvm image with running microvms/, 'image', 'rm', 'app')
  await fine('terminate', id)
  await fine('image', 'rm', 'app')
  await refused(4, /not found/, 'image', 'show', 'app')
  assert.equal(await fine('image', 'ls'), 'NAME  STATE  VERSION  CREATED\n')
})

test('each command explains itself', async () => {
  for (const c of ['create', 'update', 'ls', 'versions', 'show', 'logs', 'activate', 'deactivate', 'tag', 'rm'])
    assert.match(await fine('image', c, '--help'), new RegExp(`^usage: stasis image ${c}`))
  assert.match(await fine('image', '--help'), /update <name>/)
})
