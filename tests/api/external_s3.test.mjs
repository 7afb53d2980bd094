// Artifacts in S3-compatible stores that are not ours: s3rver, a second implementation, and small servers that misbehave on purpose.
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import * as api from '@aws-sdk/client-lambda-microvms'
import S3rver from 's3rver'
import { region, start, verifySignature } from './server.mjs'

const secret = { s3AccessKeyId: 'S3RVER', s3SecretAccessKey: 'S3RVER' }
let other, folder, endpoint
const zip = Buffer.alloc(100_000, 'zip')

before(async () => {
  folder = mkdtempSync(path.join(os.tmpdir(), 's3rver-'))
  other = new S3rver({ address: '127.0.0.1', port: 0, silent: true, directory: folder, resetOnClose: true, serviceEndpoint: 'localhost' })
  const { port } = await other.run()
  endpoint = `http://localhost:${port}`
  const s3 = new S3Client({ endpoint: `http://127.0.0.1:${port}`, region, forcePathStyle: true, credentials: { accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER' },
    requestChecksumCalculation: 'WHEN_REQUIRED' })
  await s3.send(new CreateBucketCommand({ Bucket: 'external' }))
  await s3.send(new PutObjectCommand({ Bucket: 'external', Key: 'dir/ü +&.zip', Body: zip }))
})
after(async () => {
  await other.close()
  rmSync(folder, { recursive: true, force: true })
})

// Builds an image (the stand-in reads its artifact, as a build does first) and gives back its size or why it could not be read.
async function read(config, ...uris) {
  const server = await start(undefined, config)
  const c = server.client()
  const got = []
  for (const [i, uri] of uris.entries()) {
    const arn = 'arn:aws:lambda:us-east-1:aws:microvm-image:debian'
    const image = await c.send(new api.CreateMicrovmImageCommand({ name: `fetched-${i}`, baseImageArn: arn, codeArtifact: { uri },
      buildRoleArn: 'arn:aws:iam::000000000000:role/build' }))
    const { items } = await c.send(new api.ListMicrovmImageBuildsCommand({ imageIdentifier: image.imageArn, imageVersion: '1.0' }))
    const build = await c.send(new api.GetMicrovmImageBuildCommand({ imageIdentifier: image.imageArn, imageVersion: '1.0', buildId: items[0].buildId }))
    got.push(build.stateReason || Number(build.snapshotBuild.codeInstallSizeInBytes))
  }
  await server.stop()
  return got
}

for (const s3Addressing of ['path', 'virtual']) {
  test(`another implementation, ${s3Addressing} style`, async () => {
    const s3Endpoint = s3Addressing === 'path' ? endpoint : endpoint.replace('localhost', 's3.localhost')
    const [size, key, bucket] = await read({ s3Endpoint, s3Addressing, ...secret }, 's3://external/dir/ü +&.zip', 's3://external/none',
      's3://no-such-bucket/none')
    assert.equal(size, zip.length)
    assert.match(key, /^S3_NO_SUCH_KEY: /)
    assert.match(bucket, /^S3_NO_SUCH_BUCKET: /)
    const [denied] = await read({ s3Endpoint, s3Addressing, ...secret, s3AccessKeyId: 'WRONG' }, 's3://external/dir/ü +&.zip')
    assert.match(denied, /^S3_ACCESS_DENIED: .*InvalidAccessKeyId.*s3AccessKeyId/)
  })
}

// Answers each request by `answer(request, response, number of the request)`.
async function misbehaving(answer, run) {
  let n = 0
  const s = http.createServer((q, r) => answer(q, r, ++n))
  await new Promise((resolve) => s.listen(0, '127.0.0.1', resolve))
  try {
    return await run(`http://127.0.0.1:${s.address().port}`, () => n)
  } finally {
    s.closeAllConnections()
    s.close()
  }
}
const document = (code) => `<?xml version="1.0"?><Error><Code>${code}</Code><Message>no</Message></Error>`

// s3rver looks at the key alone: signatures are computed anew here.
test('requests are signed for the configured region', async () => {
  for (const s3Addressing of ['path', 'virtual']) {
    const seen = []
    await misbehaving((q, r) => (seen.push({ method: q.method, url: `http://${q.headers.host}${q.url}`, headers: q.headers }), r.end('x')), (e) =>
      read({ s3Endpoint: e.replace('127.0.0.1', 'localhost'), s3Addressing, s3Region: 'eu-central-1', s3AccessKeyId: 'AKIDOTHER', s3SecretAccessKey: 'other/secret' },
        's3://bucket/ü +&/x'))
    assert.equal(seen.length, 1)
    assert.equal(new URL(seen[0].url).pathname, (s3Addressing === 'path' ? '/bucket' : '') + '/%C3%BC%20%2B%26/x')
    assert.equal(new URL(seen[0].url).hostname, s3Addressing === 'path' ? 'localhost' : 'bucket.localhost')
    verifySignature(seen[0], { service: 's3', region: 'eu-central-1', key: { accessKeyId: 'AKIDOTHER', secretAccessKey: 'other/secret' } })
  }
})

test('what an endpoint refuses is named as the service names it', async () => {
  for (const [status, code, expected] of [[403, 'AccessDenied', /^S3_ACCESS_DENIED: .*AccessDenied/], [403, 'RequestTimeTooSkewed', /^S3_ACCESS_DENIED: .*clocks/],
    [400, 'AuthorizationHeaderMalformed', /^S3_CROSS_REGION_ACCESS_DENIED: /], [403, 'InvalidObjectState', /^S3_INVALID_OBJECT: .*archived/],
    [404, '', /^S3_NO_SUCH_KEY: /], [418, 'Teapot', /^INTERNAL_PLATFORM_ERROR: .*418.*Teapot/], [403, '<script>', /^S3_ACCESS_DENIED: .*without a reason/]]) {
    const [reason] = await misbehaving((q, r) => (r.writeHead(status), r.end(document(code))), (s3Endpoint) => read({ s3Endpoint, ...secret }, 's3://external/x'))
    assert.match(reason, expected)
  }
})

test('redirects are not followed', async () => {
  await misbehaving((q, r) => (r.writeHead(200), r.end('elsewhere')), (elsewhere, count) =>
    misbehaving((q, r) => (r.writeHead(307, { location: elsewhere + q.url }), r.end()), async (s3Endpoint) => {
      const [reason] = await read({ s3Endpoint, ...secret }, 's3://external/x')
      assert.match(reason, /^S3_CROSS_REGION_ACCESS_DENIED: /)
      assert.equal(count(), 0)
    }))
})

test('what may pass is tried again, what has begun wrong begins anew', async () => {
  const [size] = await misbehaving((q, r, n) => {
    if (n === 1) return r.writeHead(503), r.end(document('SlowDown'))
    r.writeHead(200, { 'content-length': 1000 })
    if (n === 2) return r.write('half'), setTimeout(() => r.destroy(), 20)
    r.end(Buffer.alloc(1000))
  }, (s3Endpoint) => read({ s3Endpoint, ...secret }, 's3://external/x'))
  assert.equal(size, 1000)
  const [reason] = await misbehaving((q, r) => (r.writeHead(500), r.end()), async (s3Endpoint, count) => {
    const got = await read({ s3Endpoint, ...secret }, 's3://external/x')
    assert.equal(count(), 3)
    return got
  })
  assert.match(reason, /^INTERNAL_PLATFORM_ERROR: .*500/)
})

test('an artifact beyond the limit is refused, announced or not', async () => {
  for (const headers of [{ 'content-length': 3 << 20 }, {}]) {
    const [reason] = await misbehaving((q, r) => (r.writeHead(200, headers), r.end(Buffer.alloc(3 << 20))), async (s3Endpoint, count) => {
      const got = await read({ s3Endpoint, artifactLimitBytes: 1 << 20, ...secret }, 's3://external/x')
      assert.equal(count(), 1)
      return got
    })
    assert.match(reason, /^S3_INVALID_OBJECT: .*artifactLimitBytes/)
  }
})
