// TagResource, UntagResource, ListTags: merging, limits, and errors in the shape of the service's older API.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { arnOf, base, fails, request, sender } from './client.mjs'
import { call, otherCredentials, start } from './server.mjs'

let server, client
before(async () => {
  server = await start()
  client = server.client()
  await send('CreateMicrovmImage', request('tagged', { tags: { first: '1' } }))
  await send('CreateMicrovmImage', request('bare'))
})
after(() => server.stop())

const send = sender(() => client)
const Resource = arnOf('tagged')
const tags = async (arn = Resource) => (await send('ListTags', { Resource: arn })).Tags

test('tags are merged, read everywhere, and removed', async () => {
  assert.deepEqual(await tags(), { first: '1' })
  assert.deepEqual(await tags(arnOf('bare')), {})
  assert.equal((await send('TagResource', { Resource, Tags: { first: 'one', 'a b': '', 'ключ': 'значение=@x/y' } })).$metadata.httpStatusCode, 204)
  const all = { first: 'one', 'a b': '', 'ключ': 'значение=@x/y' }
  assert.deepEqual(await tags(), all)
  assert.deepEqual((await send('GetMicrovmImage', { imageIdentifier: Resource })).tags, all)
  assert.deepEqual((await send('GetMicrovmImageVersion', { imageIdentifier: Resource, imageVersion: '1.0' })).tags, all)
  assert.equal((await send('UntagResource', { Resource, TagKeys: ['a b', 'ключ', 'never there'] })).$metadata.httpStatusCode, 204)
  await send('UntagResource', { Resource, TagKeys: ['a b'] })
  assert.deepEqual(await tags(), { first: 'one' })
  await send('TagResource', { Resource, Tags: {} })
  assert.deepEqual(await tags(), { first: 'one' })
})

test('answers without a body, and ARNs raw or encoded', async () => {
  for (const arn of [Resource, encodeURIComponent(Resource)]) {
    const r = await call(server, 'POST', '/2017-03-31/tags/' + arn, { body: JSON.stringify({ Tags: { k: 'v' } }) })
    assert.equal(r.status, 204)
    assert.equal(r.text, '')
    assert.equal(r.headers.get('content-length'), null)
    assert.deepEqual((await call(server, 'GET', '/2017-03-31/tags/' + arn)).json, { Tags: { first: 'one', k: 'v' } })
    assert.equal((await call(server, 'DELETE', '/2017-03-31/tags/' + arn + '?tagKeys=k&tagKeys=l')).status, 204)
  }
  assert.deepEqual(await tags(), { first: 'one' })
})

test('tags are refused in the older API’s words', async () => {
  const refused = (promise, message, name = 'InvalidParameterValueException', status = 400) => fails(promise, name, message, status)
  const set = (Tags, arn = Resource) => send('TagResource', { Resource: arn, Tags })
  await refused(set({ 'a!': 'x' }), "Value 'a!' at 'Tags.key' failed to satisfy constraint: Member must satisfy regular expression pattern")
  await refused(set({ a: '!' }), "at 'Tags.a.member'")
  await refused(set({ ['k'.repeat(129)]: '' }), 'length less than or equal to 128')
  await refused(set({ k: 'v'.repeat(257) }), 'length less than or equal to 256')
  await refused(set({ '': 'v' }), 'length greater than or equal to 1')
  await refused(set({ 'aws:k': 'v' }), "Tag keys that begin with 'aws:' are reserved: aws:k")
  await refused(send('UntagResource', { Resource, TagKeys: ['aws:k'] }), 'reserved')
  await refused(send('UntagResource', { Resource, TagKeys: [] }), "at 'TagKeys' failed to satisfy constraint: Member must have length greater than or equal to 1")
  await refused(set({ a: 'b' }, 'nonsense'), 'Invalid resource ARN: nonsense')
  await refused(set({ a: 'b' }, 'arn:aws:lambda:us-east-1:000000000000:microvm:x'), 'Invalid resource ARN')
  await refused(set({ a: 'b' }, 'arn:aws:lambda:us-east-1:000000000000:function:x'), 'Invalid resource ARN')
  await refused(set({ a: 'b' }, base), 'lambda:TagResource', 'AccessDeniedException', 403) // a base image is nobody's to tag
  for (const [operation, more] of [['TagResource', { Tags: { a: 'b' } }], ['UntagResource', { TagKeys: ['a'] }], ['ListTags', {}]]) {
    await refused(send(operation, { Resource: arnOf('nobody'), ...more }), arnOf('nobody'), 'ResourceNotFoundException', 404)
    await refused(send(operation, { Resource, ...more }, server.client({ credentials: otherCredentials })), `lambda:${operation} on resource: ${Resource}`,
      'AccessDeniedException', 403)
  }
  const r = await call(server, 'POST', '/2017-03-31/tags/' + Resource, { body: '{}' })
  assert.equal(r.errorType, 'InvalidParameterValueException')
  assert.deepEqual(r.json, { Type: 'User', message: "1 validation error detected: Value null at 'Tags' failed to satisfy constraint: Member must not be null" })
  const unread = await call(server, 'POST', '/2017-03-31/tags/' + Resource, { body: '{"Tags":' })
  assert.equal(unread.errorType, 'InvalidParameterValueException')
  assert.deepEqual(await tags(), { first: 'one' })
})

test('at most 50 tags', async () => {
  const many = (n, from = 0) => Object.fromEntries(Array.from({ length: n }, (_, i) => [`k${i + from}`, 'v']))
  await fails(send('CreateMicrovmImage', request('too-many', { tags: many(51) })), 'ValidationException', "at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50")
  await fails(send('CreateMicrovmImage', request('too-many', { tags: { 'aws:x': 'y' } })), 'ValidationException', 'reserved')
  await send('TagResource', { Resource: arnOf('bare'), Tags: many(50) })
  await fails(send('TagResource', { Resource: arnOf('bare'), Tags: { more: '' } }), 'InvalidParameterValueException', 'A resource can have at most 50 tags', 400)
  await send('TagResource', { Resource: arnOf('bare'), Tags: { k0: 'changed' } })
  assert.equal((await tags(arnOf('bare'))).k0, 'changed')
})

test('changes at once all count', async () => {
  await send('CreateMicrovmImage', request('parallel'))
  await Promise.all(Array.from({ length: 20 }, (_, i) => send('TagResource', { Resource: arnOf('parallel'), Tags: { [`t${i}`]: `${i}` } })))
  assert.equal(Object.keys(await tags(arnOf('parallel'))).length, 20)
})
