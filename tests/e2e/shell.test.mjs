// Shells, programs and files in a real microVM, by the command line, and across a sleep.
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { api, build, cli, engine, removeImage, sleep, stasis, waitState } from './engine.mjs'

let image, m, folder

before(async () => {
  const { client } = await engine()
  folder = mkdtempSync(path.join(os.tmpdir(), 'e2e-shell-'))
  image = await build('e2e-shell', { Dockerfile: 'FROM stasis/debian\nWORKDIR /srv\nCMD ["sleep", "infinity"]\n' })
  assert.equal(image.image.state, 'CREATED', image.reason)
  m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn, idlePolicy: { maxIdleDurationSeconds: 600, suspendedDurationSeconds: 600, autoResumeEnabled: true } }))
  await waitState(m.microvmId, 'RUNNING')
})

after(async () => {
  const { client } = await engine()
  if (m) {
    await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
    for (let n = 0; (await client.send(new api.GetMicrovmCommand({ microvmIdentifier: m.microvmId }))).state !== 'TERMINATED' && n < 300; n++) await sleep(100)
  }
  if (image) await removeImage(image.arn)
  rmSync(folder, { recursive: true, force: true })
})

test('stasis exec: output, error output, exit code; also when the microVM has to be woken for it', async () => {
  const started = Date.now()
  let r = await cli('exec', m.microvmId, '--', 'sh', '-c', 'pwd; id -u; echo err >&2; exit 42')
  console.log(`# exec took ${Date.now() - started} ms`)
  assert.deepEqual([r.code, r.stdout, r.stderr], [42, '/srv\n0\n', 'err\n'])
  assert.equal((await cli('exec', m.microvmId, 'nothing-here')).code, 127)
  r = await cli('exec', m.microvmId, '--', 'sh', '-c', 'echo kept > /run/mark; cat /proc/1/comm')
  assert.equal(r.stdout, 'sleep\n')
  assert.equal((await cli('suspend', m.microvmId)).code, 0)
  await waitState(m.microvmId, 'SUSPENDED')
  r = await cli('exec', m.microvmId, 'cat', '/run/mark')
  assert.deepEqual([r.code, r.stdout], [0, 'kept\n'])
})

test('stasis cp: a folder in and out again', async () => {
  const here = path.join(folder, 'here'), big = randomBytes(2_000_000)
  mkdirSync(path.join(here, 'sub'), { recursive: true })
  writeFileSync(path.join(here, 'big'), big)
  writeFileSync(path.join(here, 'sub/run'), '#!/bin/sh\necho ran\n', { mode: 0o755 })
  let r = await cli('cp', here, `${m.microvmId}:/srv`)
  assert.deepEqual([r.code, r.stderr], [0, ''])
  r = await cli('exec', m.microvmId, '--', 'sh', '-c', 'sha256sum < here/big; here/sub/run')
  assert.ok(r.stdout.startsWith(createHash('sha256').update(big).digest('hex')))
  assert.ok(r.stdout.endsWith('ran\n'))
  r = await cli('cp', `${m.microvmId}:/srv/here`, path.join(folder, 'back'))
  assert.deepEqual([r.code, r.stderr], [0, ''])
  execFileSync('diff', ['-r', here, path.join(folder, 'back')])
})

test('stasis shell: a terminal with the prompt, its size and the exit code', async () => {
  const p = spawn('script', ['-qec', `stty rows 33 cols 99; ${stasis} shell ${m.microvmId}; echo "code=$?"`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'] })
  const steps = [['λ $ ', 'stty size\r'], ['33 99', 'exit 7\r']]
  let all = ''
  p.stdout.on('data', (d) => {
    all += d
    while (steps.length && all.includes(steps[0][0])) p.stdin.write(steps.shift()[1])
  })
  const timer = setTimeout(() => p.kill('SIGKILL'), 60_000)
  await new Promise((resolve) => p.on('close', resolve))
  clearTimeout(timer)
  assert.match(all, /code=7/)
})
