// What the tests of images and microVMs share: requests, names, and waiting for what goes on behind an answer.
import assert from 'node:assert/strict'
import * as api from '@aws-sdk/client-lambda-microvms'

export const role = 'arn:aws:iam::000000000000:role/build'
export const base = 'arn:aws:lambda:us-east-1:aws:microvm-image:debian'
export const arnOf = (name) => `arn:aws:lambda:us-east-1:000000000000:microvm-image:${name}`
export const connector = (name) => `arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:${name}`
export const version = (more = {}) => ({ baseImageArn: base, buildRoleArn: role, codeArtifact: { uri: 's3://bucket/app.zip' }, ...more })
export const request = (name, more = {}) => ({ name, ...version(more) })

// `client` gives the client to use, unless a call names another.
export const sender = (client) => (name, input, c = client()) => c.send(new api[name + 'Command'](input))

export const fails = (promise, name, message, status) =>
  assert.rejects(promise, (e) => {
    assert.equal(e.name, name, e.message)
    if (message) assert.match(e.message, message instanceof RegExp ? message : new RegExp(message.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')))
    if (status) assert.equal(e.$metadata.httpStatusCode, status)
    return true
  })

export async function until(what, check, timeout = 10000) {
  for (const end = Date.now() + timeout; ; await new Promise((r) => setTimeout(r, 20))) {
    const value = await check()
    if (value) return value
    if (Date.now() > end) throw new Error(`time-out: ${what}`)
  }
}

// The image once nothing of it is under way.
export const settled = (send, imageIdentifier) =>
  until(`${imageIdentifier} at rest`, async () => {
    const image = await send('GetMicrovmImage', { imageIdentifier })
    return !image.state.endsWith('ING') && image
  })

export const gone = (send, imageIdentifier) =>
  until(`${imageIdentifier} gone`, () => send('GetMicrovmImage', { imageIdentifier }).then(() => false, (e) => e.name === 'ResourceNotFoundException'))
