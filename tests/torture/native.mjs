// Where to torture: the real stasisd on this host, among stand-ins for stasis-launch, VMMs and guests (engine_host.c). A hundred times faster than
// the machine; what it cannot show is what the kernel does.
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { LambdaMicrovmsClient } from '@aws-sdk/client-lambda-microvms'
import { sleep } from './model.mjs'

const root = path.resolve(import.meta.dirname, '../..')
const build = process.env.TORTURE_BUILD ?? path.join(root, 'build')

export const settings = { clients: 8, microvms: 24, builds: 4, pause: 20, settle: 10_000, build: 20_000, patience: 15_000, lifetime: 20, between: 400, rounds: 100000 }

export class Native {
  kinds = ['kill', 'kill', 'kill', 'power', 'vmm', 'stop']
  image = 'arn:aws:lambda:us-east-1:000000000000:microvm-image:image-0'
  artifact = 's3://none/none.zip'
  crashing = false

  async start(port) {
    this.folder = mkdtempSync(path.join(os.tmpdir(), 'torture-'))
    this.edgePort = port + 2
    this.host = spawn(path.join(build, 'tests/torture/engine_host'), [path.join(build, 'src/stasisd/stasisd'), this.folder, String(port), '1', '0'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    this.lines = createInterface(this.host.stdout)[Symbol.asyncIterator]()
    await this.lines.next()
    this.api = `http://127.0.0.1:${port}`
    this.client = new LambdaMicrovmsClient({
      endpoint: this.api,
      region: 'us-east-1',
      credentials: { accessKeyId: 'AKIDSTASISTEST000001', secretAccessKey: 'secret/one+two=three' },
      maxAttempts: 1,
    })
    await this.ready()
    this.ca = readFileSync(path.join(this.folder, 'state/tls/ca.pem'))
  }

  async ready() {
    for (const until = Date.now() + 20_000; ; await sleep(5)) {
      try {
        if ((await fetch(this.api + '/_stasis/health')).ok && (await this.edgeListens())) return
      } catch {}
      if (Date.now() > until) throw new Error(`stasisd does not come up: see ${this.folder}/stasisd.log`)
    }
  }

  edgeListens() {
    return new Promise((resolve) => {
      const s = net.connect(this.edgePort, '127.0.0.1', () => (s.destroy(), resolve(true)))
      s.on('error', () => resolve(false))
    })
  }

  async command(line) {
    this.host.stdin.write(line + '\n')
    return JSON.parse((await this.lines.next()).value)
  }

  // SIGTERM is no crash; what it cuts off is.
  async crash(kind) {
    this.crashing = true
    await this.command(kind)
    if (kind === 'stop') await this.command('start')
    await this.ready()
    this.crashing = false
  }

  async orphans(living) {
    const problems = []
    const awake = living.filter((m) => m.state === 'RUNNING').length
    const { slots } = await this.command('slots')
    if (slots !== awake) problems.push(`${slots} VMMs live, and ${awake} microVMs are awake`)
    const run = readdirSync(path.join(this.folder, 'run/vm')).length
    if (run !== slots) problems.push(`the run-time folder has ${run} slots, ${slots} live`)
    const known = new Set(living.map((m) => m.microvmId.slice('microvm-'.length)))
    const folders = readdirSync(path.join(this.folder, 'state/microvms'))
    for (const f of folders) {
      if (!known.has(f)) problems.push(`the folder ${f} belongs to no living microVM`)
      for (const file of readdirSync(path.join(this.folder, 'state/microvms', f)))
        if (/\.new$|^resuming-/.test(file)) problems.push(`${f}/${file} was left behind`)
    }
    for (const id of known) if (!folders.includes(id)) problems.push(`microVM ${id} has no folder`)
    return problems
  }

  log() {
    return readFileSync(path.join(this.folder, 'stasisd.log'), 'utf8')
  }

  async stop(keep) {
    this.host.stdin.end()
    await new Promise((resolve) => this.host.on('exit', resolve))
    if (keep) console.log(`kept: ${this.folder}`)
    else rmSync(this.folder, { recursive: true })
  }
}
