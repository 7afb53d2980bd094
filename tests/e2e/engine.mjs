// What the end-to-end tests share: the engine (started by the real `stasis up`), clients of the real AWS SDK, requests to endpoints.
import { execFile, execFileSync, spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import https from 'node:https'
import path from 'node:path'
import { promisify } from 'node:util'
import { LambdaMicrovmsClient } from '@aws-sdk/client-lambda-microvms'
import * as api from '@aws-sdk/client-lambda-microvms'
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'

export const root = path.resolve(import.meta.dirname, '../..')
export const stasis = process.env.STASIS ?? path.join(root, 'build/stage/bin/stasis')
export const home = (process.env.STASIS_HOME ??= path.join(root, 'build/test-home'))
const run = promisify(execFile)

// Runs the command line; returns { code, stdout, stderr } and never throws.
export async function cli(...args) {
  try {
    const { stdout, stderr } = await run(stasis, args, { maxBuffer: 64 << 20, timeout: 900_000 })
    return { code: 0, stdout, stderr }
  } catch (e) {
    return { code: e.code, stdout: e.stdout, stderr: e.stderr }
  }
}

let started
// What the engine's operator configures: a network that is this host's loopback, as the machine sees it, and else nothing.
const operator = { networks: { 'subnet-host': { cidrs: ['10.0.2.2'] } } }

// Starts the engine once for all tests of a file; `stasis up` finds a running one.
export function engine() {
  started ??= (async () => {
    mkdirSync(home, { recursive: true, mode: 0o700 })
    writeFileSync(path.join(home, 'operator.json'), JSON.stringify(operator))
    execFileSync(stasis, ['up', '--port-base', '17400'], { stdio: ['ignore', 'ignore', 'inherit'], timeout: 300_000 })
    const e = JSON.parse(readFileSync(path.join(home, 'engine.json'), 'utf8'))
    const credentials = { accessKeyId: e.accessKeyId, secretAccessKey: e.secretAccessKey }
    return {
      ...e,
      credentials,
      ca: readFileSync(path.join(home, 'ca.pem')),
      client: new LambdaMicrovmsClient({ endpoint: e.api, region: e.region, credentials, maxAttempts: 1 }),
      s3: new S3Client({ endpoint: e.artifacts, region: e.region, credentials, forcePathStyle: true }),
    }
  })()
  return started
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// Zips a map of { name: content or { content, mode } } with the ordinary zip tool and uploads it. Returns its s3:// URI.
export async function artifact(name, files) {
  const { mkdtempSync, mkdirSync, writeFileSync, rmSync } = await import('node:fs')
  const { s3 } = await engine()
  let body = files
  if (!Buffer.isBuffer(files)) {
    const folder = mkdtempSync(path.join(process.env.TMPDIR ?? '/tmp', 'artifact-'))
    for (const [file, given] of Object.entries(files)) {
      const { content, mode } = typeof given === 'object' && !Buffer.isBuffer(given) ? given : { content: given, mode: 0o644 }
      mkdirSync(path.dirname(path.join(folder, file)), { recursive: true })
      writeFileSync(path.join(folder, file), content, { mode })
    }
    execFileSync('zip', ['-q', '-r', '-X', path.join(folder, '..', path.basename(folder) + '.zip'), '.'], { cwd: folder })
    body = readFileSync(folder + '.zip')
    rmSync(folder, { recursive: true })
    rmSync(folder + '.zip')
  }
  try {
    await s3.send(new CreateBucketCommand({ Bucket: 'e2e' }))
  } catch (e) {
    if (!/BucketAlready/.test(e.name)) throw e
  }
  await s3.send(new PutObjectCommand({ Bucket: 'e2e', Key: `${name}.zip`, Body: body }))
  return `s3://e2e/${name}.zip`
}

// Creates an image and waits for the end of its build. Returns { image, version, build, reason, arn }.
export async function build(name, files, more = {}) {
  const { client, region, account } = await engine()
  const uri = await artifact(name, files)
  const created = await client.send(
    new api.CreateMicrovmImageCommand({
      name,
      baseImageArn: `arn:aws:lambda:${region}:aws:microvm-image:debian`,
      buildRoleArn: `arn:aws:iam::${account}:role/build`,
      codeArtifact: { uri },
      resources: [{ minimumMemoryInMiB: 512 }],
      ...more,
    }),
  )
  return ended(created)
}

// The same for the next version of an image that there is.
export async function update(arn, files, more = {}) {
  const { client, region, account } = await engine()
  const updated = await client.send(
    new api.UpdateMicrovmImageCommand({
      imageIdentifier: arn,
      baseImageArn: `arn:aws:lambda:${region}:aws:microvm-image:debian`,
      buildRoleArn: `arn:aws:iam::${account}:role/build`,
      codeArtifact: { uri: await artifact(arn.split(':').pop(), files) },
      resources: [{ minimumMemoryInMiB: 512 }],
      ...more,
    }),
  )
  return { updated, done: ended(updated) }
}

async function ended(created) {
  const { client } = await engine()
  const { imageArn: arn, imageVersion } = created
  for (;;) {
    const image = await client.send(new api.GetMicrovmImageCommand({ imageIdentifier: arn }))
    if (!image.state.endsWith('ING')) {
      const builds = await client.send(new api.ListMicrovmImageBuildsCommand({ imageIdentifier: arn, imageVersion }))
      return { arn, created, image, build: builds.items[0], reason: builds.items[0]?.stateReason }
    }
    await sleep(200)
  }
}

export async function removeImage(arn) {
  const { client } = await engine()
  await client.send(new api.DeleteMicrovmImageCommand({ imageIdentifier: arn }))
  for (;;) {
    try {
      await client.send(new api.GetMicrovmImageCommand({ imageIdentifier: arn }))
    } catch (e) {
      if (e.name === 'ResourceNotFoundException') return
      throw e
    }
    await sleep(100)
  }
}

export async function waitState(id, ...states) {
  const { client } = await engine()
  for (let i = 0; i < 1200; i++) {
    const m = await client.send(new api.GetMicrovmCommand({ microvmIdentifier: id }))
    if (states.includes(m.state)) return m
    if (m.state === 'TERMINATED') throw new Error(`${id} is TERMINATED: ${m.stateReason}`)
    await sleep(50)
  }
  throw new Error(`${id} did not reach ${states} in 60 s`)
}

export async function token(id, allowedPorts = [{ allPorts: {} }]) {
  const { client } = await engine()
  const t = await client.send(new api.CreateMicrovmAuthTokenCommand({ microvmIdentifier: id, expirationInMinutes: 5, allowedPorts }))
  return t.authToken['X-aws-proxy-auth']
}

// One HTTPS request to an endpoint. Returns { status, headers, body }.
export async function call(microvm, pathname, { method = 'GET', body, headers = {}, auth, port, agent } = {}) {
  const e = await engine()
  const [address, edgePort] = e.edge.split(':')
  const [host] = microvm.endpoint.split(':')
  const authorization = auth === undefined ? await token(microvm.microvmId) : auth
  return new Promise((resolve, reject) => {
    const r = https.request(
      {
        host: address,
        port: edgePort,
        servername: host,
        ca: e.ca,
        agent,
        method,
        path: pathname,
        headers: {
          host: microvm.endpoint,
          ...(authorization === null ? {} : { 'x-aws-proxy-auth': authorization }),
          ...(port ? { 'x-aws-proxy-port': port } : {}),
          ...headers,
        },
      },
      (answer) => {
        const parts = []
        answer.on('data', (d) => parts.push(d))
        answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(parts) }))
        answer.on('error', reject)
      },
    )
    r.on('error', reject)
    r.end(body)
  })
}

// Runs a shell command inside the place where the engine's processes are (the machine, or this host). Returns its output.
export async function inside(command) {
  const e = await engine()
  if (e.mode === 'host') return (await run('sh', ['-c', command])).stdout
  return (await run(stasis, ['machine', 'exec', command])).stdout
}

export { api, spawn }
