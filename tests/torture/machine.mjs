// Where to torture: the whole engine in the machine, with real microVMs. SIGKILL of stasisd, stasis-launch and VMMs inside, SIGKILL of QEMU outside.
import { execFile, execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import * as api from '@aws-sdk/client-lambda-microvms'
import { KILL_A_VMM, sleep } from './model.mjs'

const root = path.resolve(import.meta.dirname, '../..')
const stasis = process.env.STASIS ?? path.join(root, 'build/stage/bin/stasis')
const home = (process.env.STASIS_HOME ??= path.join(root, 'build/torture-home'))
const run = promisify(execFile)

export const settings = { clients: 3, microvms: 5, builds: 1, pause: 300, settle: 60_000, build: 300_000, patience: 60_000, lifetime: 120, between: 4000 }

// What there is of a slot, by name, one line each.
const LOOK = `
for f in /run/stasis/vm/*/; do [ -d "$f" ] && echo "folder $(basename "$f") $(grep -c 'taken 1' "$f/slot")"; done
for f in /sys/fs/cgroup/stasis/*/; do [ -d "$f" ] && echo "cgroup $(basename "$f")"; done
for p in $(pgrep -x stasis-vmm); do echo "process $p"; done
for l in /sys/class/net/*; do case $(basename "$l") in lo|eth0) ;; *) echo "link $(basename "$l")";; esac; done
for m in /var/lib/stasis/microvms/*/; do [ -d "$m" ] && for x in "$m"*; do echo "file $(basename "$m") $(basename "$x")"; done; done
grep -c -e jail -e stasis/vm /proc/mounts | sed 's/^/mounts /'`

export class Machine {
  kinds = ['kill', 'kill', 'launch', 'vmm', 'power']
  crashing = false

  async start(port) {
    this.port = port
    this.up()
    await this.connect()
    // An earlier run that failed has left its microVMs.
    for await (const page of api.paginateListMicrovms({ client: this.client }, {}))
      for (const m of page.items) if (m.state !== 'TERMINATED') await this.client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.microvmId }))
    if (!(await this.cli('image', 'ls', '--json')).includes('"torture"')) await this.cli('image', 'create', 'torture', path.join(root, 'tests/torture/application'), '--memory', '512')
  }

  up() {
    execFileSync(stasis, ['up', '--port-base', String(this.port)], { stdio: ['ignore', 'ignore', 'inherit'], timeout: 300_000 })
  }

  async connect() {
    const e = JSON.parse(readFileSync(path.join(home, 'engine.json'), 'utf8'))
    if (e.mode !== 'machine') throw new Error('the engine runs on the host: this torture kills by name, and only in a machine of its own')
    this.api = e.api
    this.edgePort = Number(e.edge.split(':')[1])
    this.ca = readFileSync(path.join(home, 'ca.pem'))
    this.image = `arn:aws:lambda:${e.region}:${e.account}:microvm-image:torture`
    this.artifact = 's3://none/none.zip'
    this.client = new api.LambdaMicrovmsClient({ endpoint: e.api, region: e.region, credentials: { accessKeyId: e.accessKeyId, secretAccessKey: e.secretAccessKey }, maxAttempts: 1 })
    await this.ready()
  }

  async cli(...args) {
    return (await run(stasis, args, { timeout: 600_000, maxBuffer: 16 << 20 })).stdout
  }

  inside(command) {
    return this.cli('machine', 'exec', command)
  }

  async ready() {
    for (const until = Date.now() + 120_000; ; await sleep(100)) {
      try {
        if ((await fetch(this.api + '/_stasis/health', { signal: AbortSignal.timeout(5000) })).ok) break
      } catch {}
      if (Date.now() > until) throw new Error('the engine does not come up')
    }
    await sleep(200) // the edge listens a moment after the API
  }

  async crash(kind) {
    this.crashing = true
    if (kind === 'power') {
      process.kill(Number(readFileSync(path.join(home, 'machine/pid'), 'utf8')), 'SIGKILL')
      await sleep(1000) // until its keeper has noticed
      this.up()
      await this.connect()
    } else {
      const which = {
        kill: 'kill -9 $(pgrep -x stasisd)',
        launch: 'kill -9 $(ps -o ppid= -p $(pgrep -x stasisd))',
        vmm: KILL_A_VMM,
      }
      await this.inside(which[kind])
      await sleep(200)
      await this.ready()
    }
    this.crashing = false
  }

  async orphans(living) {
    const problems = []
    const lines = (await this.inside(LOOK)).split('\n').map((l) => l.split(' '))
    const of = (kind) => lines.filter((l) => l[0] === kind)
    const folders = new Set(of('folder').map((l) => l[1]))
    const taken = of('folder').filter((l) => l[2] === '1').length
    const awake = living.filter((m) => m.state === 'RUNNING').length
    if (taken !== awake) problems.push(`${taken} slots are taken, and ${awake} microVMs are awake`)
    for (const [, name] of of('cgroup')) if (!folders.has(name)) problems.push(`the cgroup ${name} has no slot`)
    for (const kind of ['cgroup', 'process', 'link']) if (of(kind).length > folders.size) problems.push(`${of(kind).length} of kind ${kind} for ${folders.size} slots`)
    if (Number(of('mounts')[0]?.[1]) > 0) problems.push(`${of('mounts')[0][1]} mounts of jails are seen from outside`)
    const known = new Set(living.map((m) => m.microvmId.slice('microvm-'.length)))
    for (const [, folder, file] of of('file')) {
      if (!known.has(folder)) problems.push(`the folder ${folder} belongs to no living microVM`)
      if (/\.new$|^resuming-/.test(file)) problems.push(`${folder}/${file} was left behind`)
    }
    return problems
  }

  async stop() {
    await this.cli('down')
  }
}
