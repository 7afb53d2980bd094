// The artifact store, with the real AWS SDK's S3 client, its multipart upload, presigned URLs, curl's own signatures, and by hand.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import * as aws from '@aws-sdk/client-s3'
import { Upload } from '@aws-sdk/lib-storage'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { credentials, otherCredentials, sign, start } from './server.mjs'

let server, s3
const Bucket = 'things'
const send = (name, input, c = s3) => c.send(new aws[name + 'Command'](input))
const text = async (r) => r.Body.transformToString()
const fails = (promise, name, status) =>
  assert.rejects(promise, (e) => {
    assert.equal(e.name, name, e.message)
    if (status) assert.equal(e.$metadata.httpStatusCode, status)
    return true
  })
before(async () => {
  server = await start()
  s3 = server.s3()
  await send('CreateBucket', { Bucket })
})
after(() => server.stop())

async function signed(method, target, { body = '', headers = {}, payload } = {}) {
  const url = server.artifacts + target
  const all = sign({ method, url, body, service: 's3', headers, payload })
  delete all.host
  const r = await fetch(url, { method, headers: all, body: body === '' ? undefined : body, duplex: 'half' })
  return { status: r.status, headers: r.headers, text: await r.text() }
}

test('buckets', async () => {
  await send('CreateBucket', { Bucket: 'another.bucket-1', CreateBucketConfiguration: { LocationConstraint: 'eu-west-1' } })
  await send('HeadBucket', { Bucket: 'another.bucket-1' })
  const { Buckets } = await send('ListBuckets', {})
  assert.deepEqual(Buckets.map((b) => b.Name), ['another.bucket-1', Bucket])
  assert.ok(Math.abs(Buckets[0].CreationDate - Date.now()) < 60000)
  await fails(send('CreateBucket', { Bucket }), 'BucketAlreadyOwnedByYou', 409)
  const other = server.s3({ credentials: otherCredentials })
  await fails(send('CreateBucket', { Bucket }, other), 'BucketAlreadyExists', 409)
  assert.deepEqual((await send('ListBuckets', {}, other)).Buckets ?? [], [])
  await fails(send('PutObject', { Bucket, Key: 'x', Body: 'x' }, other), 'AccessDenied', 403)
  await fails(send('GetObject', { Bucket: 'no-such-bucket', Key: 'x' }), 'NoSuchBucket', 404)
  for (const bad of ['Ab', 'UPPER', 'a..b', '-abc', 'x_y', 'a'.repeat(64)]) {
    const r = await signed('PUT', '/' + bad)
    assert.equal(r.status, 400, bad)
    assert.match(r.text, /InvalidBucketName/)
  }
  assert.equal((await send('GetBucketLocation', { Bucket })).LocationConstraint ?? undefined, undefined)
  await send('DeleteBucket', { Bucket: 'another.bucket-1' })
  await fails(send('HeadBucket', { Bucket: 'another.bucket-1' }), 'NotFound', 404)
})

test('objects of all sizes and kinds of key', async () => {
  const keys = ['plain', 'with/slash/../and..dots', 'späce and+plus%20&<>"\'', '\u{1f600}/日本', 'a'.repeat(1024), '/leading', 'trailing/', 'x?y=z#w', '...', 'a\tb']
  for (const [i, Key] of keys.entries()) {
    const Body = randomBytes([0, 1, 8191, 65536, 70000, 1 << 20, 5, 6, 7, 8][i])
    const put = await send('PutObject', { Bucket, Key, Body, ContentType: 'text/x-test', Metadata: { some: 'value' } })
    assert.equal(put.ETag, `"${createHash('md5').update(Body).digest('hex')}"`)
    const got = await send('GetObject', { Bucket, Key })
    assert.ok(Body.equals(Buffer.from(await got.Body.transformToByteArray())), Key)
    assert.equal(got.ContentType, 'text/x-test')
    assert.deepEqual(got.Metadata, { some: 'value' })
    const head = await send('HeadObject', { Bucket, Key })
    assert.equal(head.ContentLength, Body.length)
    assert.ok(Math.abs(head.LastModified - Date.now()) < 60000)
    await send('DeleteObject', { Bucket, Key })
    await fails(send('GetObject', { Bucket, Key }), 'NoSuchKey', 404)
    await fails(send('HeadObject', { Bucket, Key }), 'NotFound', 404)
    await send('DeleteObject', { Bucket, Key })
  }
  assert.equal((await signed('PUT', `/${Bucket}/${'a'.repeat(1025)}`, { body: 'x' })).status, 400)
  assert.equal((await signed('PUT', `/${Bucket}/%ff`, { body: 'x' })).status, 400)
  assert.equal((await signed('PUT', `/${Bucket}/a%00b`, { body: 'x' })).status, 400)
})

test('an object is replaced whole, and nothing of the old one stays', async () => {
  await send('PutObject', { Bucket, Key: 'replaced', Body: 'one' })
  await Promise.all(Array.from({ length: 20 }, (_, i) => send('PutObject', { Bucket, Key: 'replaced', Body: `body ${i} `.repeat(1000) })))
  const body = await text(await send('GetObject', { Bucket, Key: 'replaced' }))
  assert.match(body, /^(body \d+ )\1{999}$/)
  assert.equal(readdirSync(path.join(server.folder, 'artifacts', Bucket)).length, 1)
  await send('DeleteObject', { Bucket, Key: 'replaced' })
  assert.equal(readdirSync(path.join(server.folder, 'artifacts', Bucket)).length, 0)
})

test('every checksum of the SDK, and streams of unknown hash', async () => {
  for (const ChecksumAlgorithm of ['CRC32', 'SHA1', 'SHA256', 'CRC32C']) {
    await send('PutObject', { Bucket, Key: 'sum', Body: 'hello', ChecksumAlgorithm })
    const r = await send('GetObject', { Bucket, Key: 'sum', ChecksumMode: 'ENABLED' })
    assert.equal(await text(r), 'hello')
    assert.ok(r['Checksum' + ChecksumAlgorithm], ChecksumAlgorithm)
  }
  const body = randomBytes(300000)
  const stream = Readable.from([body.subarray(0, 100), body.subarray(100, 200000), body.subarray(200000)])
  await send('PutObject', { Bucket, Key: 'stream', Body: stream, ContentLength: body.length })
  assert.ok(body.equals(Buffer.from(await (await send('GetObject', { Bucket, Key: 'stream' })).Body.transformToByteArray())))
  const wrong = await signed('PUT', `/${Bucket}/wrong`, { body: 'hello', headers: { 'x-amz-checksum-crc32': 'AAAAAA==' } })
  assert.equal(wrong.status, 400)
  assert.match(wrong.text, /<Code>BadDigest/)
  const md5 = await signed('PUT', `/${Bucket}/wrong`, { body: 'hello', headers: { 'content-md5': Buffer.alloc(16).toString('base64') } })
  assert.match(md5.text, /<Code>BadDigest/)
  assert.match((await signed('PUT', `/${Bucket}/wrong`, { body: 'hello', headers: { 'content-md5': 'x' } })).text, /<Code>InvalidDigest/)
  const hash = await signed('PUT', `/${Bucket}/wrong`, { body: 'hello', payload: createHash('sha256').update('other').digest('hex') })
  assert.match(hash.text, /XAmzContentSHA256Mismatch/)
  await fails(send('GetObject', { Bucket, Key: 'wrong' }), 'NoSuchKey')
  assert.equal((await signed('PUT', `/${Bucket}/unsigned`, { body: 'x', payload: 'UNSIGNED-PAYLOAD' })).status, 200)
  assert.equal((await signed('PUT', `/${Bucket}/unsigned`, { body: 'x', payload: 'WHATEVER' })).status, 400)
  assert.equal((await fetch(`${server.artifacts}/${Bucket}/unsigned`)).status, 403)
})

test('ranges and conditions', async () => {
  await send('PutObject', { Bucket, Key: 'range', Body: '0123456789' })
  const get = async (Range) => send('GetObject', { Bucket, Key: 'range', Range })
  for (const [Range, body, range] of [['bytes=0-3', '0123', '0-3'], ['bytes=7-', '789', '7-9'], ['bytes=-2', '89', '8-9'], ['bytes=5-500', '56789', '5-9'],
    ['bytes=-500', '0123456789', '0-9']]) {
    const r = await get(Range)
    assert.equal(r.$metadata.httpStatusCode, 206)
    assert.equal(await text(r), body)
    assert.equal(r.ContentRange, `bytes ${range}/10`)
  }
  for (const Range of ['bytes=0-1,3-4', 'bytes=5-2', 'lines=1-2', 'bytes=x']) {
    const r = await get(Range)
    assert.equal(r.$metadata.httpStatusCode, 200)
    assert.equal(await text(r), '0123456789')
  }
  await fails(get('bytes=10-'), 'InvalidRange', 416)
  await fails(get('bytes=-0'), 'InvalidRange', 416)
  const { ETag } = await send('HeadObject', { Bucket, Key: 'range' })
  await assert.rejects(send('GetObject', { Bucket, Key: 'range', IfNoneMatch: ETag }), (e) => e.$metadata.httpStatusCode === 304)
  await fails(send('GetObject', { Bucket, Key: 'range', IfMatch: '"no"' }), 'PreconditionFailed', 412)
  const notModified = (e) => e.$metadata.httpStatusCode === 304
  const hour = 3600e3
  await assert.rejects(send('GetObject', { Bucket, Key: 'range', IfModifiedSince: new Date(Date.now() + hour) }), notModified)
  assert.equal(await text(await send('GetObject', { Bucket, Key: 'range', IfModifiedSince: new Date(Date.now() - hour) })), '0123456789')
  await fails(send('GetObject', { Bucket, Key: 'range', IfUnmodifiedSince: new Date(Date.now() - hour) }), 'PreconditionFailed', 412)
  assert.equal(await text(await send('GetObject', { Bucket, Key: 'range', IfMatch: ETag, IfUnmodifiedSince: new Date(Date.now() - hour) })), '0123456789')
})

test('conditional writes and deletions', async () => {
  const put = (o) => send('PutObject', { Bucket, Key: 'conditional', Body: 'x', ...o })
  await fails(put({ IfMatch: '"d41d8cd98f00b204e9800998ecf8427e"' }), 'NoSuchKey', 404)
  const { ETag } = await put({ IfNoneMatch: '*' })
  await fails(put({ IfNoneMatch: '*' }), 'PreconditionFailed', 412)
  await fails(put({ IfMatch: '"d41d8cd98f00b204e9800998ecf8427e"' }), 'PreconditionFailed', 412)
  const second = await put({ IfMatch: ETag, Body: 'y' })
  await fails(put({ IfNoneMatch: ETag }), 'NotImplemented', 501)
  const results = await Promise.allSettled(Array.from({ length: 8 }, (_, i) => put({ IfMatch: second.ETag, Body: 'z' + i })))
  assert.equal(results.filter((r) => r.status === 'fulfilled').length, 1)
  await fails(send('DeleteObject', { Bucket, Key: 'conditional', IfMatch: ETag }), 'PreconditionFailed', 412)
  await send('DeleteObject', { Bucket, Key: 'conditional', IfMatch: results.find((r) => r.status === 'fulfilled').value.ETag })
  await fails(send('HeadObject', { Bucket, Key: 'conditional' }), 'NotFound', 404)
  const { UploadId } = await send('CreateMultipartUpload', { Bucket, Key: 'conditional' })
  const part = await send('UploadPart', { Bucket, Key: 'conditional', UploadId, PartNumber: 1, Body: 'x' })
  const complete = (o) => send('CompleteMultipartUpload', { Bucket, Key: 'conditional', UploadId, MultipartUpload: { Parts: [{ PartNumber: 1, ETag: part.ETag }] }, ...o })
  await fails(complete({ IfMatch: '"no"' }), 'NoSuchKey', 404)
  await fails(complete({ ChecksumCRC32: 'AAAAAA==', ChecksumType: 'FULL_OBJECT' }), 'BadDigest', 400)
  await complete({ IfNoneMatch: '*', ChecksumCRC32: 'jNwWgw==', ChecksumType: 'FULL_OBJECT' })
})

test('copies', async () => {
  await send('CreateBucket', { Bucket: 'copies' })
  const body = randomBytes(100000), Key = 'from/a b+ü'
  const source = await send('PutObject', { Bucket, Key, Body: body, ContentType: 'text/x', Metadata: { some: 'value' }, ChecksumAlgorithm: 'SHA256' })
  const copy = (o) => send('CopyObject', { Bucket: 'copies', Key: 'to', CopySource: encodeURIComponent(`${Bucket}/${Key}`), ...o })
  const { CopyObjectResult } = await copy()
  assert.equal(CopyObjectResult.ETag, source.ETag)
  assert.ok(Math.abs(CopyObjectResult.LastModified - Date.now()) < 60000)
  const got = await send('GetObject', { Bucket: 'copies', Key: 'to', ChecksumMode: 'ENABLED' })
  assert.ok(body.equals(Buffer.from(await got.Body.transformToByteArray())))
  assert.deepEqual([got.ContentType, got.Metadata, got.ChecksumSHA256], ['text/x', { some: 'value' }, source.ChecksumSHA256])
  await copy({ MetadataDirective: 'REPLACE', Metadata: { other: 'one' }, ContentType: 'text/y', CopySourceIfMatch: source.ETag })
  assert.deepEqual((await send('HeadObject', { Bucket: 'copies', Key: 'to' })).Metadata, { other: 'one' })
  await fails(copy({ CopySourceIfNoneMatch: source.ETag }), 'PreconditionFailed', 412)
  await fails(copy({ IfNoneMatch: '*' }), 'PreconditionFailed', 412)
  await fails(send('CopyObject', { Bucket, Key, CopySource: encodeURIComponent(`/${Bucket}/${Key}`) }), 'InvalidRequest', 400)
  await send('CopyObject', { Bucket, Key, CopySource: encodeURIComponent(`/${Bucket}/${Key}`), MetadataDirective: 'REPLACE' })
  assert.deepEqual((await send('HeadObject', { Bucket, Key })).Metadata, {})
  await fails(copy({ CopySource: `${Bucket}/none` }), 'NoSuchKey', 404)
  await fails(copy({ CopySource: 'no-such-bucket/none' }), 'NoSuchBucket', 404)
  for (const CopySource of [Bucket, `${Bucket}/`, `${Bucket}/${encodeURIComponent(Key)}?versionId=abc`, '/', 'arn:aws:s3:us-east-1:1:accesspoint/x/object/y'])
    await fails(copy({ CopySource }), 'InvalidArgument', 400)
  const other = server.s3({ credentials: otherCredentials })
  await send('CreateBucket', { Bucket: 'others' }, other)
  await fails(send('CopyObject', { Bucket: 'others', Key: 'x', CopySource: encodeURIComponent(`${Bucket}/${Key}`) }, other), 'AccessDenied', 403)
  await fails(copy({ CopySource: 'others/x' }), 'AccessDenied', 403)

  const { UploadId } = await send('CreateMultipartUpload', { Bucket: 'copies', Key: 'parts' })
  const part = (PartNumber, CopySourceRange) =>
    send('UploadPartCopy', { Bucket: 'copies', Key: 'parts', UploadId, PartNumber, CopySource: encodeURIComponent(`${Bucket}/${Key}`), CopySourceRange })
  const one = await part(1, 'bytes=10-19')
  for (const bad of ['bytes=5-4', 'bytes=0-100000', 'bytes=0-', 'x=0-1']) await fails(part(2, bad), 'InvalidArgument', 400)
  await send('CompleteMultipartUpload', { Bucket: 'copies', Key: 'parts', UploadId, MultipartUpload: { Parts: [{ PartNumber: 1, ETag: one.CopyPartResult.ETag }] } })
  assert.ok(body.subarray(10, 20).equals(Buffer.from(await (await send('GetObject', { Bucket: 'copies', Key: 'parts' })).Body.transformToByteArray())))
})

test('uploads under way, and their parts, are listed', async () => {
  await send('CreateBucket', { Bucket: 'uploads' })
  const ids = []
  for (const Key of ['a/1', 'a/2', 'b', 'b', 'c&d']) ids.push((await send('CreateMultipartUpload', { Bucket: 'uploads', Key })).UploadId)
  const list = (o) => send('ListMultipartUploads', { Bucket: 'uploads', ...o })
  const all = await list()
  assert.deepEqual(all.Uploads.map((u) => u.Key), ['a/1', 'a/2', 'b', 'b', 'c&d'])
  assert.deepEqual(new Set(all.Uploads.map((u) => u.UploadId)), new Set(ids))
  assert.deepEqual((await list({ Prefix: 'b' })).Uploads.length, 2)
  for (const Delimiter of [undefined, '/']) {
    for (const MaxUploads of [1, 2, 3]) {
      const keys = [], prefixes = []
      let page = {}
      do {
        page = await list({ MaxUploads, Delimiter, KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker })
        keys.push(...(page.Uploads ?? []).map((u) => u.Key))
        prefixes.push(...(page.CommonPrefixes ?? []).map((p) => p.Prefix))
      } while (page.IsTruncated)
      assert.deepEqual([keys, prefixes], Delimiter ? [['b', 'b', 'c&d'], ['a/']] : [['a/1', 'a/2', 'b', 'b', 'c&d'], []])
    }
  }
  assert.deepEqual((await list({ KeyMarker: 'b' })).Uploads.map((u) => u.Key), ['c&d'])
  const Key = 'a/1', UploadId = ids[0]
  for (const PartNumber of [3, 1, 7]) await send('UploadPart', { Bucket: 'uploads', Key, UploadId, PartNumber, Body: 'x'.repeat(PartNumber) })
  const parts = []
  for await (const page of aws.paginateListParts({ client: s3, pageSize: 2 }, { Bucket: 'uploads', Key, UploadId })) parts.push(...page.Parts)
  assert.deepEqual(parts.map((p) => [p.PartNumber, p.Size]), [[1, 1], [3, 3], [7, 7]])
  assert.ok(parts.every((p) => /^"[0-9a-f]{32}"$/.test(p.ETag) && Math.abs(p.LastModified - Date.now()) < 60000))
  await fails(send('ListParts', { Bucket: 'uploads', Key, UploadId: 'none' }), 'NoSuchUpload', 404)
  await send('DeleteBucket', { Bucket: 'uploads' }) // which forgets them
})

test('the store has a size, and says when it is full', async () => {
  const small = await start(undefined, { artifactStoreLimitBytes: 1 << 20 })
  const c = small.s3()
  const full = (p) => fails(p, 'QuotaExceeded', 403)
  const put = (Key, size) => send('PutObject', { Bucket, Key, Body: Buffer.alloc(size) }, c)
  await send('CreateBucket', { Bucket }, c)
  await put('a', 600000)
  await full(put('b', 500000))
  await full(send('CopyObject', { Bucket, Key: 'b', CopySource: `${Bucket}/a` }, c))
  await put('b', 400000)
  assert.deepEqual((await send('ListObjectsV2', { Bucket }, c)).Contents.map((o) => o.Key), ['a', 'b'])
  assert.equal(readdirSync(path.join(small.folder, 'artifacts', Bucket)).length, 2)
  await send('DeleteObject', { Bucket, Key: 'a' }, c)
  const { UploadId } = await send('CreateMultipartUpload', { Bucket, Key: 'c' }, c)
  const part = () => send('UploadPart', { Bucket, Key: 'c', UploadId, PartNumber: 1, Body: Buffer.alloc(600000) }, c)
  const { ETag } = await part()
  await full(part())
  await send('CompleteMultipartUpload', { Bucket, Key: 'c', UploadId, MultipartUpload: { Parts: [{ PartNumber: 1, ETag }] } }, c)
  await full(put('d', 100000))
  await small.stop()
})

test('listing by prefix, delimiter and pages', async () => {
  await send('CreateBucket', { Bucket: 'listing' })
  const keys = ['a', 'a/1', 'a/2', 'a/b/1', 'a/b/2', 'a0', 'b/', 'b/x', 'c&d', 'ü', 'z/z/z'].sort((x, y) => Buffer.compare(Buffer.from(x), Buffer.from(y)))
  await Promise.all(keys.map((Key) => send('PutObject', { Bucket: 'listing', Key, Body: Key })))
  for (const MaxKeys of [1, 2, 3, 1000]) {
    const got = []
    for await (const page of aws.paginateListObjectsV2({ client: s3, pageSize: MaxKeys }, { Bucket: 'listing' })) got.push(...page.Contents.map((o) => o.Key))
    assert.deepEqual(got, keys)
    const contents = [], prefixes = []
    for await (const page of aws.paginateListObjectsV2({ client: s3, pageSize: MaxKeys }, { Bucket: 'listing', Delimiter: '/' })) {
      contents.push(...(page.Contents ?? []).map((o) => o.Key))
      prefixes.push(...(page.CommonPrefixes ?? []).map((o) => o.Prefix))
    }
    assert.deepEqual(contents, ['a', 'a0', 'c&d', 'ü'])
    assert.deepEqual(prefixes, ['a/', 'b/', 'z/'])
  }
  const list = (o) => send('ListObjectsV2', { Bucket: 'listing', ...o })
  assert.deepEqual((await list({ Prefix: 'a/' })).Contents.map((o) => o.Key), ['a/1', 'a/2', 'a/b/1', 'a/b/2'])
  assert.deepEqual((await list({ Prefix: 'a/', Delimiter: '/' })).CommonPrefixes, [{ Prefix: 'a/b/' }])
  assert.deepEqual((await list({ StartAfter: 'b/' })).Contents.map((o) => o.Key), ['b/x', 'c&d', 'z/z/z', 'ü'])
  assert.deepEqual((await list({ Prefix: 'nothing' })).KeyCount, 0)
  assert.deepEqual((await list({ EncodingType: 'url', Prefix: 'c' })).Contents.map((o) => o.Key), ['c%26d'])
  assert.equal((await list({ MaxKeys: 0 })).IsTruncated, false)
  await fails(list({ ContinuationToken: '!' }), 'InvalidArgument', 400)
  const v1 = await send('ListObjects', { Bucket: 'listing', MaxKeys: 2 })
  assert.deepEqual(v1.Contents.map((o) => o.Key), ['a', 'a/1'])
  assert.equal(v1.NextMarker, 'a/1')
  await fails(send('DeleteBucket', { Bucket: 'listing' }), 'BucketNotEmpty', 409)
  const deleted = await send('DeleteObjects', { Bucket: 'listing', Delete: { Objects: [...keys, 'missing'].map((Key) => ({ Key })) } })
  assert.equal(deleted.Deleted.length, keys.length + 1)
  assert.equal((await list({})).KeyCount, 0)
  await send('DeleteBucket', { Bucket: 'listing' })
})

test('DeleteObjects refuses what is no such document', async () => {
  for (const body of ['', '<Delete>', '<Delete></Delete>', '<Delete><Object><Key></Key></Object></Delete>', '<!DOCTYPE x [<!ENTITY a "b">]><Delete/>',
    '<Delete><Object><Key>&a;</Key></Object></Delete>', '<a>'.repeat(100), '<Delete>' + '<Object><Key>x</Key></Object>'.repeat(1001) + '</Delete>']) {
    const r = await signed('POST', `/${Bucket}?delete=`, { body })
    assert.equal(r.status, 400, body.slice(0, 50))
    assert.match(r.text, /<Code>MalformedXML/)
  }
})

test('multipart upload by lib-storage and by hand', async () => {
  const body = randomBytes(13 * 1024 * 1024 + 17)
  const upload = new Upload({ client: s3, params: { Bucket, Key: 'big', Body: body, ContentType: 'application/zip' }, partSize: 5 << 20, queueSize: 3 })
  const done = await upload.done()
  assert.match(done.ETag, /^"[0-9a-f]{32}-3"$/)
  const got = await send('GetObject', { Bucket, Key: 'big' })
  assert.equal(got.ContentType, 'application/zip')
  assert.ok(body.equals(Buffer.from(await got.Body.transformToByteArray())))

  const Key = 'parts'
  const { UploadId } = await send('CreateMultipartUpload', { Bucket, Key })
  const part = (PartNumber, Body) => send('UploadPart', { Bucket, Key, UploadId, PartNumber, Body })
  const small = (await part(1, 'small')).ETag, last = (await part(3, 'last')).ETag
  const complete = (Parts) => send('CompleteMultipartUpload', { Bucket, Key, UploadId, MultipartUpload: { Parts } })
  await fails(complete([{ PartNumber: 1, ETag: small }, { PartNumber: 3, ETag: last }]), 'EntityTooSmall', 400)
  await fails(complete([{ PartNumber: 3, ETag: last }, { PartNumber: 1, ETag: small }]), 'InvalidPartOrder', 400)
  await fails(complete([{ PartNumber: 2, ETag: last }]), 'InvalidPart', 400)
  await fails(complete([{ PartNumber: 3, ETag: small }]), 'InvalidPart', 400)
  const large = (await part(1, Buffer.alloc(5 << 20, 'a'))).ETag
  await fails(send('GetObject', { Bucket, Key }), 'NoSuchKey')
  await complete([{ PartNumber: 1, ETag: large }, { PartNumber: 3, ETag: last }])
  assert.equal((await send('HeadObject', { Bucket, Key })).ContentLength, (5 << 20) + 4)
  await fails(complete([{ PartNumber: 3, ETag: last }]), 'NoSuchUpload', 404)
  const aborted = await send('CreateMultipartUpload', { Bucket, Key: 'aborted' })
  await send('UploadPart', { Bucket, Key: 'aborted', UploadId: aborted.UploadId, PartNumber: 1, Body: 'x' })
  await send('AbortMultipartUpload', { Bucket, Key: 'aborted', UploadId: aborted.UploadId })
  await fails(send('UploadPart', { Bucket, Key: 'aborted', UploadId: aborted.UploadId, PartNumber: 1, Body: 'x' }), 'NoSuchUpload')
  await fails(send('UploadPart', { Bucket, Key: 'aborted', UploadId: 'x', PartNumber: 10001, Body: 'x' }), 'InvalidArgument')
  await send('DeleteObjects', { Bucket, Delete: { Objects: [{ Key }, { Key: 'big' }], Quiet: true } })
})

test('too large is refused, before and while it comes', async () => {
  await fails(send('PutObject', { Bucket, Key: 'large', Body: Buffer.alloc((64 << 20) + 1) }), 'EntityTooLarge', 400)
  const before = readdirSync(path.join(server.folder, 'artifacts', Bucket)).length
  const url = `${server.artifacts}/${Bucket}/large`
  const headers = sign({ method: 'PUT', url, service: 's3', payload: 'UNSIGNED-PAYLOAD' })
  const status = await new Promise((resolve, reject) => {
    const q = http.request(url, { method: 'PUT', headers: { ...headers, 'transfer-encoding': 'chunked' } }, (r) => (r.resume(), resolve(r.statusCode)))
    q.on('error', (e) => (e.code === 'EPIPE' || e.code === 'ECONNRESET' ? undefined : reject(e)))
    const piece = Buffer.alloc(1 << 20)
    let n = 0
    const more = () => {
      while (n++ < 70) if (!q.write(piece)) return q.once('drain', more)
      q.end()
    }
    more()
  })
  assert.equal(status, 400)
  assert.equal(readdirSync(path.join(server.folder, 'artifacts', Bucket)).length, before)
})

test('what the store does not do it refuses, and does not let pass', async () => {
  const put = (o) => send('PutObject', { Bucket, Key: 'refused', Body: 'x', ...o })
  for (const o of [{ Tagging: 'a=b' }, { ACL: 'public-read' }, { ServerSideEncryption: 'AES256' }, { GrantRead: 'id=1' }, { ObjectLockLegalHoldStatus: 'ON' }])
    await fails(put(o), 'NotImplemented', 501)
  await fails(put({ StorageClass: 'GLACIER' }), 'InvalidStorageClass', 400)
  await fails(put({ ExpectedBucketOwner: '111111111111' }), 'AccessDenied', 403)
  await fails(send('HeadObject', { Bucket, Key: 'refused' }), 'NotFound', 404)
  await put({ ACL: 'private', StorageClass: 'STANDARD', ExpectedBucketOwner: '000000000000' })
  await fails(send('GetObject', { Bucket, Key: 'refused', PartNumber: 1 }), 'NotImplemented', 501)
  assert.deepEqual((await send('GetObjectTagging', { Bucket, Key: 'refused' })).TagSet, [])
  await fails(send('GetObjectTagging', { Bucket, Key: 'none' }), 'NoSuchKey', 404)
  assert.equal((await send('GetBucketVersioning', { Bucket })).Status, undefined)
  await send('DeleteObject', { Bucket, Key: 'refused' })
})

test('buckets are listed in pages and by prefix', async () => {
  for (const name of ['page-1', 'page-2', 'page-3']) await send('CreateBucket', { Bucket: name })
  const names = []
  for await (const page of aws.paginateListBuckets({ client: s3, pageSize: 2 }, { Prefix: 'page-' })) names.push(...page.Buckets.map((b) => b.Name))
  assert.deepEqual(names, ['page-1', 'page-2', 'page-3'])
  for (const name of names) await send('DeleteBucket', { Bucket: name })
})

test('presigned URLs and virtual-host addressing', async () => {
  const put = await getSignedUrl(s3, new aws.PutObjectCommand({ Bucket, Key: 'pre signed' }), { expiresIn: 60 })
  assert.equal((await fetch(put, { method: 'PUT', body: 'presigned' })).status, 200)
  const get = await getSignedUrl(s3, new aws.GetObjectCommand({ Bucket, Key: 'pre signed', ResponseContentType: 'text/html' }), { expiresIn: 60 })
  const r = await fetch(get)
  assert.equal(await r.text(), 'presigned')
  assert.equal(r.headers.get('content-type'), 'text/html')
  assert.equal((await fetch(get.replace('pre%20signed', 'other'))).status, 403)
  const old = await getSignedUrl(s3, new aws.GetObjectCommand({ Bucket, Key: 'pre signed' }), { expiresIn: 60, signingDate: new Date(Date.now() - 3600e3) })
  assert.match(await (await fetch(old)).text(), /Request has expired/)
  const port = new URL(server.artifacts).port
  const host = `${Bucket}.localhost:${port}`
  const headers = sign({ method: 'GET', url: `http://${host}/pre%20signed`, service: 's3' })
  const body = await new Promise((resolve, reject) =>
    http.get({ host: '127.0.0.1', port, path: '/pre%20signed', headers }, (a) => { let t = ''; a.on('data', (d) => (t += d)); a.on('end', () => resolve(t)) }).on('error', reject))
  assert.equal(body, 'presigned')
  // The SDK's own form of it, and a domain of the operator's. Names below localhost may not resolve: the connection goes to the address itself.
  const virtual = async (on, domain) => {
    const c = on.s3({ forcePathStyle: false, endpoint: `http://${domain}:${new URL(on.artifacts).port}` })
    c.config.requestHandler = { handle: (q) => new Promise((resolve, reject) => {
      const r = http.request({ host: '127.0.0.1', port: q.port, method: q.method, path: q.path + (q.query ? '?' + Object.entries(q.query).map(([k, v]) => `${k}=${v}`).join('&') : ''),
        headers: { ...q.headers, host: `${q.hostname}:${q.port}` } }, (a) => resolve({ response: { statusCode: a.statusCode, headers: a.headers, body: a } }))
      r.on('error', reject).end(q.body)
    }), destroy() {} }
    await send('PutObject', { Bucket, Key: 'by host', Body: 'virtual' }, c)
    assert.equal(await text(await send('GetObject', { Bucket, Key: 'by host' })), 'virtual')
  }
  await virtual(server, 'localhost')
  await virtual(server, 's3.localhost')
  const own = await start(undefined, { artifactsDomain: 'artifacts.example.org' })
  const before = s3
  s3 = own.s3()
  await send('CreateBucket', { Bucket })
  await virtual(own, 'artifacts.example.org')
  s3 = before
  await own.stop()
})

test('curl signs by itself', () => {
  const file = path.join(server.folder, 'upload.bin')
  writeFileSync(file, randomBytes(200000))
  const curl = (...args) =>
    execFileSync('curl', ['-sS', '--fail-with-body', '--aws-sigv4', 'aws:amz:us-east-1:s3', '--user', `${credentials.accessKeyId}:${credentials.secretAccessKey}`,
      ...args], { encoding: 'latin1' })
  const url = `${server.artifacts}/${Bucket}/from-curl`
  curl('-T', file, url, '-H', 'x-amz-content-sha256: UNSIGNED-PAYLOAD')
  assert.equal(curl(url), readFileSync(file, 'latin1'))
  assert.match(curl(`${server.artifacts}/${Bucket}?list-type=2`), /<Key>from-curl<\/Key>/)
})

test('what is not there says so', async () => {
  assert.equal((await signed('GET', `/${Bucket}?acl=`)).status, 501)
  assert.equal((await signed('PUT', `/${Bucket}/x?tagging=`, { body: 'x' })).status, 501)
  assert.equal((await signed('PATCH', `/${Bucket}/x`)).status, 405)
  assert.equal((await signed('POST', '/')).status, 405)
})
