// What was acknowledged is there after SIGKILL at any moment, and what was not is whole or absent.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { after, test } from 'node:test'
import * as api from '@aws-sdk/client-lambda-microvms'
import * as aws from '@aws-sdk/client-s3'
import { start } from './server.mjs'

let server
after(() => server?.kill())

test('nothing acknowledged is lost by SIGKILL', { timeout: 120000 }, async () => {
  server = await start()
  const images = new Set(), microvms = new Set(), objects = new Map()
  await server.s3().send(new aws.CreateBucketCommand({ Bucket: 'crash' }))
  for (let round = 0; round < 4; round++) {
    const client = server.client(), s3 = server.s3()
    let going = true
    const writers = Array.from({ length: 6 }, async (_, w) => {
      for (let i = 0; going; i++) {
        try {
          const name = `image-${round}-${w}-${i}`
          const { imageArn } = await client.send(new api.CreateMicrovmImageCommand({ name, baseImageArn: 'debian', buildRoleArn: 'arn:aws:iam::000000000000:role/r',
            codeArtifact: { uri: 's3://crash/x' } }))
          images.add(imageArn)
          const { microvmId } = await client.send(new api.RunMicrovmCommand({ imageIdentifier: imageArn }))
          microvms.add(microvmId)
          const Key = `object-${w}`, Body = `${round} ${w} ${i} `.repeat(2000)
          objects.set(Key, [...(objects.get(Key) ?? [undefined]).slice(-1), Body]) // the old one or this one
          await s3.send(new aws.PutObjectCommand({ Bucket: 'crash', Key, Body }))
          objects.set(Key, [Body])
        } catch (e) {
          if (going) throw e
        }
      }
    })
    await new Promise((r) => setTimeout(r, 300 + Math.random() * 700))
    going = false
    await server.kill()
    await Promise.all(writers)
    server = await start(server.folder)
    const reader = server.client(), store = server.s3()
    for (const imageIdentifier of images) await reader.send(new api.GetMicrovmImageCommand({ imageIdentifier }))
    for (const microvmIdentifier of microvms) await reader.send(new api.GetMicrovmCommand({ microvmIdentifier }))
    for (const [Key, possible] of objects) {
      let body, etag
      try {
        const r = await store.send(new aws.GetObjectCommand({ Bucket: 'crash', Key }))
        body = await r.Body.transformToString()
        etag = r.ETag
      } catch (e) {
        if (e.name !== 'NoSuchKey') throw e
      }
      assert.ok(possible.includes(body), `${Key}: ${body?.slice(0, 20)} is none of ${possible.map((p) => p?.slice(0, 20))}`)
      if (body !== undefined) assert.equal(etag, `"${createHash('md5').update(body).digest('hex')}"`)
      objects.set(Key, [body])
    }
    const { KeyCount } = await store.send(new aws.ListObjectsV2Command({ Bucket: 'crash' }))
    assert.equal(readdirSync(path.join(server.folder, 'artifacts', 'crash')).length, KeyCount)
  }
  assert.ok(images.size > 20 && microvms.size > 20 && objects.size > 0)
  await server.stop()
})
