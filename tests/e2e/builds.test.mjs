// Builds: what Dockerfiles may do, and what the user is told when they fail. Nothing stays behind either way.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { after, test } from 'node:test'
import { api, build, call, cli, engine, inside, removeImage, sleep, update, waitState } from './engine.mjs'

const made = []
const attempt = async (name, files, more) => {
  const result = await build(name, files, more)
  made.push(result.arn)
  return result
}

after(async () => {
  for (const arn of made) await removeImage(arn).catch(() => {})
})

// A server in shell on busybox-less Debian would need a tool; python is there.
const server = `
import http.server, json, os, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        out = json.dumps({'env': dict(os.environ), 'uid': os.getuid(), 'gid': os.getgid(), 'groups': os.getgroups(), 'cwd': os.getcwd(),
            'pid': os.getpid(), 'argv': sys.argv, 'files': {f: [os.stat(f).st_uid, os.stat(f).st_gid, oct(os.stat(f).st_mode), open(f).read() if os.path.isfile(f) else None]
            for f in sorted(os.listdir('.'))}, 'caps': [l for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNew'))]}).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(out))); self.end_headers(); self.wfile.write(out)
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), H).serve_forever()
`

test('multi-stage, COPY --from and --chown, ARG, ENV, USER, WORKDIR, ENTRYPOINT and CMD, .dockerignore', async () => {
  const image = await attempt(
    'e2e-multi',
    {
      Dockerfile: `FROM stasis/debian AS build
ARG WHAT=default
RUN mkdir /made && echo "made $WHAT" > /made/result && chmod 640 /made/result
FROM stasis/python
ARG NAME=app
RUN groupadd -g 1234 people && useradd -u 1234 -g 1234 -G users someone
WORKDIR /srv/$NAME
COPY --from=build --chown=1234:1234 /made/ ./
COPY --chown=someone:people . .
ENV COLOUR="dark blue"
USER someone
ENTRYPOINT ["python3", "server.py"]
CMD ["one", "two words"]
`,
      'server.py': server,
      'kept.txt': 'kept',
      'left.out': 'left out',
      '.dockerignore': '*.out\nDockerfile\n.dockerignore\n',
    },
    { environmentVariables: { GREETING: 'hello', EMPTY: '' } },
  )
  assert.equal(image.image.state, 'CREATED', image.reason)
  const { client } = await engine()
  const m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn }))
  const answer = await call(m, '/')
  assert.equal(answer.status, 200, String(answer.body))
  const got = JSON.parse(answer.body)
  assert.equal(got.uid, 1234)
  assert.equal(got.gid, 1234)
  assert.equal(got.cwd, '/srv/app')
  assert.equal(got.pid, 1)
  assert.deepEqual(got.argv, ['server.py', 'one', 'two words'])
  assert.deepEqual(Object.keys(got.files).sort(), ['kept.txt', 'result', 'server.py'])
  assert.deepEqual(got.files.result, [1234, 1234, '0o100640', 'made default\n'])
  assert.equal(got.env.COLOUR, 'dark blue')
  assert.equal(got.env.GREETING, 'hello')
  assert.equal(got.env.AWS_LAMBDA_MICROVM_IMAGE_NAME, 'e2e-multi')
  assert.equal(got.env.AWS_LAMBDA_MICROVM_IMAGE_ARN, image.arn)
  assert.equal(got.env.AWS_LAMBDA_MICROVM_IMAGE_VERSION, '1.0')
  assert.ok(got.caps.some((l) => /^CapEff:\s*0+$/.test(l.trim())), 'a user that is not root has no effective capabilities')
  await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
  await waitState(m.microvmId, 'TERMINATED')
})

test('root has all capabilities when asked for, and an update that does not ask builds a version without, beside what runs', async () => {
  const { client } = await engine()
  const files = { Dockerfile: 'FROM stasis/python\nWORKDIR /app\nCOPY server.py .\nCMD ["python3", "server.py"]\n', 'server.py': server }
  const image = await attempt('e2e-caps-all', files, { additionalOsCapabilities: ['ALL'] })
  assert.equal(image.image.state, 'CREATED', image.reason)
  const m = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn }))
  const got = JSON.parse((await call(m, '/')).body)
  const effective = (o) => o.caps.find((l) => l.startsWith('CapEff')).split(/\s+/)[1]
  assert.equal(effective(got), '000001ffffffffff')

  const { updated, done } = await update(image.arn, files)
  assert.deepEqual([updated.state, updated.imageVersion, updated.latestActiveImageVersion], ['UPDATING', '2.0', '1.0'])
  const old = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn }))
  assert.equal(old.imageVersion, '1.0')
  assert.equal((await call(old, '/')).status, 200)
  await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: old.microvmId }))
  const second = await done
  assert.equal(second.image.state, 'UPDATED', second.reason)
  const n = await client.send(new api.RunMicrovmCommand({ imageIdentifier: image.arn }))
  assert.equal(n.imageVersion, '2.0')
  const now = JSON.parse((await call(n, '/')).body)
  assert.equal(now.env.AWS_LAMBDA_MICROVM_IMAGE_VERSION, '2.0')
  assert.equal(effective(now), '00000000a80425fb')
  assert.equal((await call(m, '/')).status, 200) // still of the first version
  await assert.rejects(client.send(new api.DeleteMicrovmImageVersionCommand({ imageIdentifier: image.arn, imageVersion: '1.0' })), /with running microvms/)
  for (const { microvmId } of [m, n]) await client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: microvmId }))
  for (const { microvmId } of [m, n, old]) await waitState(microvmId, 'TERMINATED')
  const { id } = (await cli('image', 'show', 'e2e-caps-all', '--json').then((r) => JSON.parse(r.stdout))).image
  const folder = `/var/lib/stasis/images/${id}`
  assert.deepEqual((await inside(`ls ${folder}`)).trim().split('\n'), ['1.0', '2.0'])
  assert.equal((await cli('image', 'rm', 'e2e-caps-all:1.0')).code, 0)
  assert.deepEqual((await inside(`ls ${folder}`)).trim().split('\n'), ['2.0'])
})

const hopeless = [
  ['a RUN that fails', { Dockerfile: 'FROM stasis/debian\nRUN echo before && ls /no/such/place\nCMD ["true"]\n' }, /RUN|ls|exit/i],
  ['no Dockerfile', { 'app.py': 'print(1)' }, /Dockerfile/],
  ['a Dockerfile in a subfolder', { 'inner/Dockerfile': 'FROM stasis/debian\n' }, /Dockerfile/],
  ['a broken zip', Buffer.from('PK\x03\x04 this is no zip at all'.repeat(50)), /zip|archive/i],
  ['an empty artifact', Buffer.alloc(0), /zip|archive|empty/i],
  ['a Dockerfile that is none', { Dockerfile: 'HELLO world\n' }, /no FROM statement/],
  ['neither CMD nor ENTRYPOINT', { Dockerfile: 'FROM stasis/debian\n' }, /CMD|ENTRYPOINT/],
  ['nonsense in STASIS_BUSY', { Dockerfile: 'FROM stasis/debian\nENV STASIS_BUSY="lease,disk"\nCMD ["sleep", "infinity"]\n' }, /STASIS_BUSY holds "disk"/],
  ['an application that ends', { Dockerfile: 'FROM stasis/debian\nCMD ["sh", "-c", "echo goodbye; exit 7"]\n' }, /7/],
  ['an application that is not there', { Dockerfile: 'FROM stasis/debian\nCMD ["/no/such/program"]\n' }, /no\/such\/program|not found|no such file/i],
]
for (const [what, files, reason] of hopeless)
  test(`a build with ${what} fails and says why`, async () => {
    const r = await attempt(`e2e-bad-${hopeless.findIndex((h) => h[0] === what)}`, files)
    assert.equal(r.image.state, 'CREATE_FAILED')
    assert.equal(r.image.latestFailedImageVersion, '1.0')
    assert.equal(r.build.buildState, 'FAILED')
    assert.match(r.reason ?? '', reason)
  })

test('a zip bomb fails and says why', async () => {
  // What compresses to 4 MiB.
  execFileSync('sh', ['-c', 'rm -rf /tmp/stasis-bomb* && mkdir /tmp/stasis-bomb && cd /tmp/stasis-bomb && truncate -s 4200M zeros && printf "FROM stasis/debian\\nCOPY . /\\n" > Dockerfile && zip -q -1 ../stasis-bomb.zip zeros Dockerfile'])
  const { readFileSync } = await import('node:fs')
  const r = await attempt('e2e-bad-bomb', readFileSync('/tmp/stasis-bomb.zip'))
  execFileSync('rm', ['-rf', '/tmp/stasis-bomb', '/tmp/stasis-bomb.zip'])
  assert.equal(r.build.buildState, 'FAILED')
  assert.match(r.reason, /unpacks to more than 4096 MiB/)
})

test('a ready hook that never answers fails and says why', async () => {
  const r = await attempt(
    'e2e-bad-ready',
    { Dockerfile: 'FROM stasis/debian\nCMD ["sleep", "1000"]\n' },
    { hooks: { port: 8080, microvmImageHooks: { ready: 'ENABLED', readyTimeoutInSeconds: 3 } } },
  )
  assert.equal(r.build.buildState, 'FAILED')
  assert.match(r.reason, /Ready hook invocation timed out after PT3S/)
})

test('an artifact that does not exist fails and says why', async () => {
  const { client, region, account } = await engine()
  const created = await client.send(
    new api.CreateMicrovmImageCommand({
      name: 'e2e-bad-missing',
      baseImageArn: `arn:aws:lambda:${region}:aws:microvm-image:debian`,
      buildRoleArn: `arn:aws:iam::${account}:role/build`,
      codeArtifact: { uri: 's3://e2e/there-is-no-such.zip' },
    }),
  )
  made.push(created.imageArn)
  for (;;) {
    const image = await client.send(new api.GetMicrovmImageCommand({ imageIdentifier: created.imageArn }))
    if (image.state === 'CREATING') continue
    assert.equal(image.state, 'CREATE_FAILED')
    const builds = await client.send(new api.ListMicrovmImageBuildsCommand({ imageIdentifier: created.imageArn, imageVersion: '1.0' }))
    assert.match(builds.items[0].stateReason, /S3_NO_SUCH_KEY|there-is-no-such/)
    return
  }
})

test('the build output can be read with the command line', async () => {
  const { stdout, code } = await cli('image', 'logs', 'e2e-bad-0')
  assert.equal(code, 0)
  assert.match(stdout, /before/)
  assert.match(stdout, /no\/such\/place/)
})

test('failed builds leave no disks behind', async () => {
  // Other test files may build at the same time.
  for (let i = 0; ; i++) {
    const files = await inside('find /var/lib/stasis/images /var/lib/stasis/builder -name "*.tmp*" -o -name "scratch*" -o -name "artifact*"')
    if (files === '') return
    assert.ok(i < 120, `left: ${files}`)
    await sleep(500)
  }
})
