// The artifact store with AWS's own command line: what people type.
import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { credentials, region, start } from './server.mjs'

const version = (() => {
  try {
    return execFileSync('aws', ['--version'], { encoding: 'utf8' })
  } catch {
    return null
  }
})()
const skip = version === null && "AWS's command line is not installed (Debian package awscli)"
let server, folder, env
const run = promisify(execFile)
const file = (name) => path.join(folder, name)

async function aws(...args) {
  const { stdout } = await run('aws', args, { env, maxBuffer: 16 << 20 })
  return stdout
}
const refused = (code, ...args) => assert.rejects(aws(...args), (e) => (assert.match(e.stderr, code), true))

before(async () => {
  server = await start()
  folder = mkdtempSync(path.join(os.tmpdir(), 's3-cli-'))
  // Version 1 of the tool presigns with the old signature unless told not to.
  writeFileSync(file('config'), '[default]\nregion = us-east-1\ns3 =\n  addressing_style = path\n  signature_version = s3v4\n')
  env = {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    AWS_CONFIG_FILE: file('config'),
    AWS_SHARED_CREDENTIALS_FILE: file('none'),
    AWS_ACCESS_KEY_ID: credentials.accessKeyId,
    AWS_SECRET_ACCESS_KEY: credentials.secretAccessKey,
    AWS_DEFAULT_REGION: region,
    AWS_ENDPOINT_URL_S3: server.artifacts,
    AWS_MAX_ATTEMPTS: '1',
    AWS_PAGER: '',
  }
  // Version 2 of Debian 12 knows no endpoint in the environment.
  if (version?.startsWith('aws-cli/2.9')) {
    const real = execFileSync('sh', ['-c', 'command -v aws'], { encoding: 'utf8' }).trim()
    mkdirSync(file('bin'))
    writeFileSync(file('bin/aws'), `#!/bin/sh\nexec ${real} --endpoint-url ${server.artifacts} "$@"\n`, { mode: 0o755 })
    env.PATH = `${file('bin')}:${env.PATH}`
  }
})
after(async () => {
  rmSync(folder, { recursive: true, force: true })
  await server.stop()
})

test('mb, cp both ways, ls, mv, rm, rb', { skip }, async () => {
  const small = randomBytes(1000), large = randomBytes((17 << 20) + 5) // beyond the tool's 8 MiB it sends parts
  writeFileSync(file('small'), small)
  writeFileSync(file('large'), large)
  await aws('s3', 'mb', 's3://cli-things')
  await aws('s3', 'cp', file('small'), 's3://cli-things/dir/small file')
  await aws('s3', 'cp', file('large'), 's3://cli-things/large', '--metadata', 'a=b')
  assert.match(await aws('s3', 'ls'), / cli-things\n/)
  assert.match(await aws('s3', 'ls', 's3://cli-things'), / PRE dir\/\n.* 17825797 large\n/)
  assert.match(await aws('s3', 'ls', 's3://cli-things', '--recursive', '--summarize'), /1000 dir\/small file\n.*large\n[^]*Total Objects: 2/)
  assert.equal(JSON.parse(await aws('s3api', 'head-object', '--bucket', 'cli-things', '--key', 'large', '--output', 'json')).Metadata.a, 'b')
  // From key to key: one small, one in parts.
  await aws('s3', 'cp', 's3://cli-things/dir/small file', 's3://cli-things/copy')
  await aws('s3', 'mv', 's3://cli-things/large', 's3://cli-things/moved')
  await aws('s3', 'cp', 's3://cli-things/copy', file('copy'))
  await aws('s3', 'cp', 's3://cli-things/moved', file('moved'))
  assert.ok(small.equals(readFileSync(file('copy'))))
  assert.ok(large.equals(readFileSync(file('moved'))))
  assert.equal(await run('sh', ['-c', 'echo -n piped | aws s3 cp - s3://cli-things/piped && aws s3 cp s3://cli-things/piped -'], { env }).then((r) => r.stdout), 'piped')
  await refused(/404|Not Found/, 's3', 'cp', 's3://cli-things/none', file('none'))
  await refused(/NoSuchBucket/, 's3', 'ls', 's3://cli-no-such-bucket')
  await refused(/BucketNotEmpty/, 's3', 'rb', 's3://cli-things')
  await aws('s3', 'rm', 's3://cli-things/dir', '--recursive')
  await aws('s3', 'rb', 's3://cli-things', '--force')
  assert.doesNotMatch(await aws('s3', 'ls'), /cli-things/)
})

test('sync both ways, with what changed and what went', { skip }, async () => {
  mkdirSync(file('from/b'), { recursive: true })
  for (const [name, text] of [['a', 'one'], ['b/c', 'two'], ['b/ü &+', 'three']]) writeFileSync(file('from/' + name), text)
  await aws('s3', 'mb', 's3://cli-sync')
  assert.equal((await aws('s3', 'sync', file('from'), 's3://cli-sync/x')).match(/upload:/g).length, 3)
  assert.equal(await aws('s3', 'sync', file('from'), 's3://cli-sync/x'), '')
  rmSync(file('from/a'))
  writeFileSync(file('from/b/c'), 'longer')
  const second = await aws('s3', 'sync', file('from'), 's3://cli-sync/x', '--delete')
  assert.match(second, /delete: s3:\/\/cli-sync\/x\/a/)
  assert.equal(second.match(/upload:/g).length, 1)
  await aws('s3', 'sync', 's3://cli-sync/x', 's3://cli-sync/y')
  await aws('s3', 'sync', 's3://cli-sync/y', file('to'))
  assert.equal(readFileSync(file('to/b/c'), 'utf8'), 'longer')
  assert.equal(readFileSync(file('to/b/ü &+'), 'utf8'), 'three')
  const url = (await aws('s3', 'presign', 's3://cli-sync/y/b/c', '--expires-in', '60')).trim()
  assert.equal(await (await fetch(url)).text(), 'longer')
  await aws('s3', 'rb', 's3://cli-sync', '--force')
})

test('s3api: uploads, their parts, and where a bucket lies', { skip }, async () => {
  const json = async (...args) => JSON.parse((await aws('s3api', ...args, '--output', 'json')) || '{}')
  await json('create-bucket', '--bucket', 'cli-api')
  writeFileSync(file('part'), 'part')
  const { UploadId } = await json('create-multipart-upload', '--bucket', 'cli-api', '--key', 'k')
  await json('upload-part', '--bucket', 'cli-api', '--key', 'k', '--upload-id', UploadId, '--part-number', '1', '--body', file('part'))
  assert.equal((await json('list-multipart-uploads', '--bucket', 'cli-api')).Uploads[0].UploadId, UploadId)
  assert.equal((await json('list-parts', '--bucket', 'cli-api', '--key', 'k', '--upload-id', UploadId)).Parts[0].Size, 4)
  await json('abort-multipart-upload', '--bucket', 'cli-api', '--key', 'k', '--upload-id', UploadId)
  assert.equal((await json('list-multipart-uploads', '--bucket', 'cli-api')).Uploads, undefined)
  assert.equal((await json('get-bucket-location', '--bucket', 'cli-api')).LocationConstraint, null)
  await refused(/NotImplemented/, 's3api', 'put-object', '--bucket', 'cli-api', '--key', 'k', '--tagging', 'a=b')
  await json('delete-bucket', '--bucket', 'cli-api')
})
