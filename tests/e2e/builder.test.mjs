// The build program with the real builder disk and base images, but natively (tests/e2e/builder-native): what it makes of good zips, and
// what it says about bad ones. Needs root, for loop devices and mounts; without, all of it is skipped.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, test } from 'node:test'

const root = join(import.meta.dirname ?? dirname(new URL(import.meta.url).pathname), '../..')
const assets = process.env.STASIS_ASSETS ?? join(root, 'build/stage/lib/stasis/assets')
const program = process.env.STASIS_BUILD_PROGRAM
const skip =
  process.getuid() !== 0 ? 'needs root' : !existsSync(join(assets, 'bases.ext4')) ? `no assets in ${assets}` : false
const work = mkdtempSync(join(tmpdir(), 'stasis-builder.'))
after(() => rmSync(work, { recursive: true, force: true }))

const table = Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1
  return n >>> 0
})
const crc32 = (bytes) => ~bytes.reduce((c, b) => table[(c ^ b) & 255] ^ (c >>> 8), -1) >>> 0

// A zip without compression, so that any name, mode and damage can be written. entries: [name, content, mode].
function zip(entries) {
  const local = []
  const central = []
  let at = 0
  for (const [name, content, mode = 0o100644] of entries) {
    const n = Buffer.from(name)
    const data = Buffer.from(content)
    const common = Buffer.alloc(26)
    common.writeUInt16LE(20, 0)
    common.writeUInt16LE(0x800, 2)
    common.writeUInt32LE(0x5a215a21, 6)
    common.writeUInt32LE(crc32(data), 10)
    common.writeUInt32LE(data.length, 14)
    common.writeUInt32LE(data.length, 18)
    common.writeUInt16LE(n.length, 22)
    const rest = Buffer.alloc(14)
    rest.writeUInt32LE((mode << 16) >>> 0, 6)
    rest.writeUInt32LE(at, 10)
    local.push(Buffer.from('PK\x03\x04'), common, n, data)
    central.push(Buffer.from('PK\x01\x02\x14\x03'), common, rest, n)
    at += 30 + n.length + data.length
  }
  const index = Buffer.concat(central)
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06')
  end.writeUInt16LE(entries.length, 8)
  end.writeUInt16LE(entries.length, 10)
  end.writeUInt32LE(index.length, 12)
  end.writeUInt32LE(at, 16)
  return Buffer.concat([...local, index, end])
}

function run(bytes, request = {}, environment = {}) {
  writeFileSync(join(work, 'artifact.zip'), bytes)
  const env = { ...process.env, ...environment }
  if (program) env.BUILD_PROGRAM = program
  const ran = spawnSync(join(root, 'tests/e2e/builder-native'), [assets, join(work, 'artifact.zip'), work, JSON.stringify(request)], {
    env,
    encoding: 'utf8',
  })
  assert.ok(existsSync(join(work, 'result.json')), `no result: ${ran.stderr}`)
  const result = JSON.parse(readFileSync(join(work, 'result.json'), 'utf8'))
  result.log = readFileSync(join(work, 'log'), 'utf8')
  assert.equal(ran.status, result.ok ? 0 : 1, ran.stderr)
  return result
}

const output = join(work, 'output.ext4')
const debugfs = (command) => execFileSync('debugfs', ['-R', command, output], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
const content = (path) => debugfs(`cat ${path}`)
const attributes = (path) => {
  const text = debugfs(`stat ${path}`)
  const number = (name) => Number(text.match(new RegExp(`${name}:\\s+(\\d+)`))?.[1])
  return { mode: text.match(/Mode:\s+(\d+)/)?.[1], uid: number('User'), gid: number('Group'), links: number('Links'), size: number('Size') }
}
const config = () => JSON.parse(content('/.stasis/config.json')).config

function succeeds(result) {
  assert.ok(result.ok, result.message + '\n' + result.log)
  execFileSync('e2fsck', ['-fn', output], { stdio: 'ignore' })
  assert.ok(statSync(output).blocks * 512 < 600 << 20, 'the output disk is not sparse')
  return result
}

function fails(result, code, message) {
  assert.equal(result.ok, false)
  assert.equal(result.code, code, result.message)
  assert.match(result.message, message)
}

const minimal = 'FROM stasis/debian\nCMD ["true"]\n'

test('a multi-stage build on two bases: files, owners, links, what was removed, configuration', { skip }, () => {
  const result = succeeds(
    run(
      zip([
        [
          'Dockerfile',
          `FROM public.ecr.aws/lambda/microvms:al2023-minimal AS first
ARG WORD=hello
RUN echo $WORD > /word && mkfifo /pipe
FROM stasis/python:3.11
WORKDIR /srv/app
COPY --from=first /word /word
COPY --chown=1000:1001 . .
RUN test ! -e ignored && python3 -c 'print("from python")'
RUN ln /word /twin && ln -s /nowhere /dangling && rm -rf /srv/app/gone /opt && mkdir -m 1777 /opt && rm /etc/debian_version && chmod 4755 /srv/app/run
ENV PORT=8080
EXPOSE 8080
USER 1000
STOPSIGNAL SIGINT
LABEL a=b
ENTRYPOINT ["python3", "-u"]
CMD ["x"]
`,
        ],
        ['.dockerignore', 'ignored\n'],
        ['ignored', ''],
        ['gone/', '', 0o40755],
        ['gone/x', ''],
        ['run', '#!/bin/sh\n', 0o100755],
        ['é/ü', 'umlaut'],
        ['link', 'é/ü', 0o120777],
      ]),
    ),
  )
  assert.match(result.log, /^from python$/m)
  assert.match(result.log, /^\[stasis\] step 4\/4: .* in \d+\.\d\d s$/m)
  assert.equal(content('/word'), 'hello\n')
  assert.equal(attributes('/twin').links, 2)
  assert.equal(content('/srv/app/é/ü'), 'umlaut')
  assert.deepEqual(attributes('/srv/app/run'), { mode: '04755', uid: 1000, gid: 1001, links: 1, size: 10 })
  assert.equal(attributes('/opt').mode, '01777')
  assert.equal(attributes('/').mode, '0755')
  assert.match(debugfs('ls /srv/app'), /link/)
  assert.doesNotMatch(debugfs('ls /srv/app'), /gone|ignored/)
  assert.doesNotMatch(debugfs('ls /etc'), /debian_version/)
  assert.doesNotMatch(debugfs('ls /'), /lost\+found/)
  assert.match(debugfs('ls /usr/bin'), /python3/)
  const c = config()
  assert.deepEqual([c.User, c.WorkingDir, c.Entrypoint, c.Cmd, c.StopSignal], ['1000', '/srv/app', ['python3', '-u'], ['x'], 'SIGINT'])
  assert.ok(c.Env.includes('PORT=8080'))
  assert.ok(result.rootfsBytes > 50e6 && result.rootfsBytes < 400e6)
})

test('an image from nothing, and a larger or smaller disk than the bases have', { skip }, () => {
  const bytes = zip([['Dockerfile', 'FROM scratch\nCOPY x /x\nENTRYPOINT ["/x"]\n'], ['x', 'static', 0o100755]])
  assert.ok(succeeds(run(bytes)).rootfsBytes < 1e6)
  assert.match(debugfs('ls /'), /proc.*sys.*dev/s)
  succeeds(run(zip([['Dockerfile', minimal]]), {}, { OUTPUT_SIZE: '1G' }))
  assert.match(debugfs('ls /usr/bin'), /perl|sh/)
})

test('another name for a base, another name of the Dockerfile', { skip }, () => {
  const bytes = zip([['deploy/Containerfile', 'FROM example.org/base:1\nCMD ["true"]\n']])
  succeeds(run(bytes, { dockerfile: 'deploy/Containerfile', baseAliases: { 'example.org/base:1': 'localhost/stasis/python:3.11' } }))
  assert.match(debugfs('ls /usr/bin'), /python3/)
})

test('a process that a RUN leaves behind does not hold the build up', { skip, timeout: 60000 }, () => {
  succeeds(run(zip([['Dockerfile', 'FROM stasis/debian\nRUN sleep 300 & echo left\nCMD ["true"]\n']])))
})

for (const [what, entries, code, message, request, environment] of [
  ['a failing RUN', [['Dockerfile', 'FROM stasis/debian\nRUN echo before; ls /none; exit 3\n']], 'CONTAINER_BUILD_FAILED', /exit status 3.*cannot access '\/none'/],
  ['a file that is not there', [['Dockerfile', 'FROM stasis/debian\nCOPY nothing /x\n']], 'CONTAINER_BUILD_FAILED', /COPY nothing.*no such file/],
  ['an unknown instruction', [['Dockerfile', 'FROM stasis/debian\nRUNN x\n']], 'CONTAINER_BUILD_FAILED', /Unknown instruction: "RUNN"$/],
  ['an empty Dockerfile', [['Dockerfile', '']], 'CONTAINER_BUILD_FAILED', /no contents/],
  ['nothing to start', [['Dockerfile', 'FROM stasis/debian\nRUN true\n']], 'CONTAINER_BUILD_FAILED', /neither ENTRYPOINT nor CMD/],
  ['FROM alone', [['Dockerfile', 'FROM stasis/debian\n']], 'CONTAINER_BUILD_FAILED', /neither ENTRYPOINT nor CMD/],
  ['no Dockerfile', [['readme', '']], 'ARCHIVE_DOCKERFILE_NOT_FOUND', /no Dockerfile at its root\.$/],
  ['a folder in a folder', [['app/Dockerfile', minimal]], 'ARCHIVE_DOCKERFILE_NOT_FOUND', /app\/Dockerfile/],
  ['a climbing name', [['Dockerfile', minimal], ['../x', '']], 'ARCHIVE_INVALID', /'\.\.\/x'/],
  ['an absolute name', [['Dockerfile', minimal], ['/x', '']], 'ARCHIVE_INVALID', /absolute/],
  ['a link that leads out', [['Dockerfile', minimal], ['l', '../../etc', 0o120777]], 'ARCHIVE_INVALID', /leads out/],
  ['a device', [['Dockerfile', minimal], ['d', '', 0o020666]], 'ARCHIVE_INVALID', /neither a file/],
  ['too much', [['Dockerfile', minimal], ['big', Buffer.alloc(2 << 20)]], 'ARCHIVE_INVALID', /more than 1 MiB/, { unpackedBytesMax: 1 << 20 }],
  ['too many', [['Dockerfile', minimal], ['a', ''], ['b', '']], 'ARCHIVE_INVALID', /more than 2 entries/, { entriesMax: 2 }],
  ['no network', [['Dockerfile', 'FROM stasis/debian\nRUN ! grep -v -e lo: -e "|" /proc/net/dev\nRUN exit 9\n']], 'CONTAINER_BUILD_FAILED', /exit status 9/, { network: false }],
  [
    'a full builder',
    [['Dockerfile', 'FROM stasis/debian\nRUN head -c 400M /dev/zero | tr "\\0" x > /big\n']],
    'DISK_STORAGE_FULL',
    /builder's disk is full/,
    {},
    { SCRATCH_SIZE: '200M' },
  ],
  [
    'a full output',
    [['Dockerfile', 'FROM stasis/debian\nRUN head -c 100M /dev/zero | tr "\\0" x > /big\nCMD ["true"]\n']],
    'DISK_STORAGE_FULL',
    /root file system does not fit/,
    {},
    { OUTPUT_SIZE: '150M' },
  ],
]) {
  test(`refused: ${what}`, { skip }, () => fails(run(zip(entries), request, environment), code, message))
}

test('refused: bytes that are no zip, a zip that was cut off, content that was damaged', { skip }, () => {
  const good = zip([['Dockerfile', minimal]])
  fails(run(Buffer.from('hello')), 'ARCHIVE_INVALID', /not a readable zip/)
  fails(run(good.subarray(0, good.length - 30)), 'ARCHIVE_INVALID', /not a readable zip/)
  const damaged = Buffer.from(good)
  damaged[45] ^= 1
  fails(run(damaged), 'ARCHIVE_INVALID', /CRC/)
})

test('assets that are there are left alone', { skip: skip || (existsSync(join(root, 'build/build.ninja')) ? false : 'no build folder') }, () => {
  if (process.env.STASIS_ASSETS) return
  mkdirSync(assets, { recursive: true })
  const before = statSync(join(assets, 'bases.ext4')).mtimeMs
  const began = Date.now()
  const text = execFileSync(join(root, 'assets/make'), [assets, join(root, 'build')], { encoding: 'utf8' })
  assert.match(text, /everything is there already/)
  assert.ok(Date.now() - began < 3000)
  assert.equal(statSync(join(assets, 'bases.ext4')).mtimeMs, before)
})
