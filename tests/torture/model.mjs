// What a client has been told, what may have become of it, and the invariants that hold after every crash (docs/control-plane.md names them).
import https from 'node:https'
import * as api from '@aws-sdk/client-lambda-microvms'

// Shell commands for where the engine is: SIGKILL for one VMM that holds a microVM (empty ones wait for the next launch), which says "killed"; and the
// resident memory of a process in KiB.
export const rss = (pid) => `sed -n "s/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p" /proc/${pid}/status`
export const KILL_A_VMM = `for p in $(pgrep -x stasis-vmm | shuf); do [ "$(${rss('$p')})" -gt 20000 ] && kill -9 $p && echo killed && break; done; true`

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// Small and repeatable: mulberry32.
export function random(seed) {
  let a = seed >>> 0
  return () => {
    a = (a + 0x6d2b79f5) >>> 0
    let t = a
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

const SETTLED = ['RUNNING', 'SUSPENDED', 'TERMINATED']
const LIFETIME_SLACK = 5000

export class Model {
  constructor(place, seed, settings) {
    this.place = place
    this.settings = settings
    this.seed = seed
    this.microvms = new Map()
    this.images = new Map()
    this.unknownRuns = [] // requests whose answer was lost; asked again with the same token
    this.epoch = 0 // of crashes
    this.last = 'nothing'
    this.stopped = true
    this.violations = []
    this.counts = {}
    this.tokens = 0
  }

  violated(invariant, text) {
    this.violations.push(`${invariant}: ${text}`)
    console.log(`VIOLATED ${invariant}: ${text}`)
  }

  count(what) {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }

  // For an operation that begins now: says later whether no crash came in between.
  calm() {
    const epoch = this.epoch, crashing = this.place.crashing
    return () => !crashing && !this.place.crashing && epoch === this.epoch
  }

  // An operation on a microVM that has no other under way. `may` are the states that are possible once it has begun, `then` those after its answer.
  async operate(m, name, may, then, action) {
    const calm = this.calm()
    m.busy = true
    m.may = new Set([...m.may, ...may])
    // It may wake the microVM a moment before its host is gone.
    if (this.place.crashing && ['power', 'vmm'].includes(this.last)) m.may.add('TERMINATED')
    try {
      await action()
      // An answer that was on its way when the crash came says what was before it.
      m.may = calm() ? new Set(then) : new Set([...m.may, ...then])
      this.count(name)
    } catch (e) {
      if (calm() && !this.excused(m, e)) this.violated('no-error-without-cause', `${name} of ${m.id}: ${e.name} ${e.message}`)
      this.count(`${name} cut off`)
    } finally {
      m.busy = false
    }
  }

  // Refusals that are right: what was to be changed has ended, or its end was made here.
  excused(m, e) {
    if (m.may.has('TERMINATED') && /terminated|not found|ended|502|403/i.test(`${e.name} ${e.message}`)) return true
    return m.endsAt !== undefined && Date.now() > m.endsAt - 1000
  }

  async run(rng) {
    const request = { imageIdentifier: this.place.image, clientToken: `torture-${this.seed}-${this.tokens++}` }
    if (rng() < 0.8) request.idlePolicy = { maxIdleDurationSeconds: 3600, suspendedDurationSeconds: 28800, autoResumeEnabled: true }
    else if (rng() < 0.5) request.maximumDurationInSeconds = Math.ceil(this.settings.lifetime * (0.5 + rng()))
    const calm = this.calm()
    try {
      const answer = await this.place.client.send(new api.RunMicrovmCommand(request))
      this.ran(request, answer, !calm())
    } catch (e) {
      if (calm()) this.violated('no-error-without-cause', `Run: ${e.name} ${e.message}`)
      this.unknownRuns.push(request)
      this.count('run cut off')
    }
  }

  // `crashed`: a crash came between the call and now.
  ran(request, answer, crashed) {
    const known = this.microvms.get(answer.microvmId)
    if (known) this.violated('tokens-are-idempotent', `${request.clientToken} gave ${answer.microvmId} again`)
    this.count('run')
    this.microvms.set(answer.microvmId, {
      id: answer.microvmId,
      endpoint: answer.endpoint,
      autoResume: request.idlePolicy !== undefined,
      endsAt: request.maximumDurationInSeconds && +answer.startedAt + request.maximumDurationInSeconds * 1000,
      may: new Set(crashed ? ['RUNNING', 'PENDING', 'SUSPENDED', 'TERMINATED'] : ['RUNNING', 'PENDING']),
      least: 0,
      most: 0,
      busy: false,
    })
  }

  async endpoint(m, path) {
    if (m.token === undefined) {
      const t = await this.place.client.send(
        new api.CreateMicrovmAuthTokenCommand({ microvmIdentifier: m.id, expirationInMinutes: 60, allowedPorts: [{ allPorts: {} }] }),
      )
      m.token = t.authToken['X-aws-proxy-auth']
    }
    const [host] = m.endpoint.split(':')
    return new Promise((resolve, reject) => {
      const r = https.request(
        {
          host: '127.0.0.1',
          port: this.place.edgePort,
          servername: host,
          ca: this.place.ca,
          agent: false,
          timeout: this.settings.patience,
          method: 'GET',
          path,
          headers: { host: m.endpoint, 'x-aws-proxy-auth': m.token },
        },
        (answer) => {
          let text = ''
          answer.on('data', (d) => (text += d))
          answer.on('error', reject)
          answer.on('end', () => (answer.statusCode === 200 ? resolve(text) : reject(new Error(`the endpoint answered ${answer.statusCode} ${text.slice(0, 100)}`))))
        },
      )
      r.on('timeout', () => r.destroy(new Error('the endpoint does not answer')))
      r.on('error', reject)
      r.end()
    })
  }

  // The application's value lies in its memory and on its disk; -1 when these are not of the same moment.
  checkValue(m, text) {
    const value = Number(text)
    if (value === -1) this.violated('snapshots-are-whole', `memory and disk of ${m.id} are not of the same moment`)
    else if (!(value >= m.least && value <= m.most)) this.violated('state-is-kept', `${m.id} says ${text}, not ${m.least} to ${m.most}`)
    m.least = m.most = value
  }

  add(m) {
    m.most++
    return this.operate(m, 'request', ['RUNNING'], ['RUNNING'], async () => {
      m.least++
      try {
        this.checkValue(m, await this.endpoint(m, '/add'))
      } catch (e) {
        m.least--
        throw e
      }
    })
  }

  suspend = (m) => this.operate(m, 'suspend', ['RUNNING', 'SUSPENDED'], ['SUSPENDED'], () => this.place.client.send(new api.SuspendMicrovmCommand({ microvmIdentifier: m.id })))
  resume = (m) => this.operate(m, 'resume', ['RUNNING', 'SUSPENDED'], ['RUNNING'], () => this.place.client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: m.id })))
  terminate = (m) =>
    this.operate(m, 'terminate', ['TERMINATED'], ['TERMINATED'], () => this.place.client.send(new api.TerminateMicrovmCommand({ microvmIdentifier: m.id })))

  async build(rng) {
    const name = `torture-${this.seed}-${this.tokens++}`
    const calm = this.calm()
    try {
      const { imageArn } = await this.place.client.send(
        new api.CreateMicrovmImageCommand({
          name,
          baseImageArn: 'arn:aws:lambda:us-east-1:aws:microvm-image:debian',
          buildRoleArn: 'arn:aws:iam::000000000000:role/build',
          codeArtifact: { uri: this.place.artifact },
          resources: [{ minimumMemoryInMiB: 512 }],
        }),
      )
      this.images.set(imageArn, { name })
      this.count('build')
    } catch (e) {
      if (calm()) this.violated('no-error-without-cause', `CreateMicrovmImage: ${e.name} ${e.message}`)
    }
  }

  // One client: one random thing after another, until told to stop.
  async work(rng) {
    while (!this.stopped) {
      const free = [...this.microvms.values()].filter((m) => !m.busy && !(m.may.size === 1 && m.may.has('TERMINATED')))
      const m = free[Math.floor(rng() * free.length)]
      const dice = rng()
      // While stasisd is down every call fails at once: a few of them are enough.
      if (this.place.crashing && this.unknownRuns.length > 8) await sleep(50)
      else if (m !== undefined && this.microvms.size > this.settings.microvms) await this.terminate(m)
      else if (m === undefined || (dice < 0.2 && this.microvms.size + this.unknownRuns.length < this.settings.microvms)) await this.run(rng)
      else if (dice < 0.22 && this.images.size < this.settings.builds) await this.build(rng)
      else if (dice < 0.6) await (m.autoResume || (m.may.size === 1 && m.may.has('RUNNING')) ? this.add(m) : this.resume(m))
      else if (dice < 0.8) await this.suspend(m)
      else if (dice < 0.92) await this.resume(m)
      else if (free.length > this.settings.microvms / 2) await this.terminate(m)
      await sleep(rng() * this.settings.pause)
    }
  }

  start() {
    this.stopped = false
    const clients = Array.from({ length: this.settings.clients }, (_, i) => this.work(random(this.seed + 7919 * (this.epoch * 64 + i + 1))))
    this.working = Promise.all(clients)
  }

  async stop() {
    this.stopped = true
    await this.working
  }

  // What a crash may do to those that were not being worked on, and to those that were.
  note(kind) {
    this.epoch++
    this.last = kind
    for (const m of this.microvms.values()) {
      const awake = m.may.has('RUNNING') || m.may.has('PENDING')
      if (kind === 'power' && awake) m.may.add('TERMINATED')
      if (kind === 'power' && awake && !m.busy) m.may.delete('RUNNING')
      if (kind === 'vmm' && awake) m.may.add('TERMINATED')
      if (kind === 'stop' && awake) m.may.add('SUSPENDED')
      // A launch or a resume that the crash cut off is ended, or undone.
      if (m.may.has('PENDING')) m.may.add('TERMINATED')
      m.hit = kind
    }
  }

  async get(m) {
    return this.place.client.send(new api.GetMicrovmCommand({ microvmIdentifier: m.id }))
  }

  async settled(m) {
    const until = Date.now() + this.settings.settle
    for (;;) {
      const now = await this.get(m)
      if (SETTLED.includes(now.state)) return now
      if (Date.now() > until) {
        this.violated('states-settle', `${m.id} stays ${now.state}`)
        return now
      }
      await sleep(20)
    }
  }

  async checkOne(m) {
    let now
    try {
      now = await this.settled(m)
    } catch (e) {
      this.violated('acknowledged-is-there', `${m.id}: ${e.name} ${e.message}`)
      return
    }
    const overdue = m.endsAt !== undefined && Date.now() > m.endsAt + LIFETIME_SLACK
    if (overdue && now.state !== 'TERMINATED') this.violated('lifetimes-go-on', `${m.id} is ${now.state} although its time was over ${Date.now() - m.endsAt} ms ago`)
    if (now.state === 'TERMINATED') {
      const due = m.endsAt !== undefined && Date.now() > m.endsAt - 500
      if (!now.stateReason) this.violated('ends-have-reasons', `${m.id} is TERMINATED without a reason`)
      if (!m.may.has('TERMINATED') && !due) this.violated('nothing-ends-by-itself', `${m.id} is TERMINATED (${now.stateReason}) by ${m.hit}, it may be ${[...m.may]}`)
      m.may = new Set(['TERMINATED'])
      this.microvms.delete(m.id)
      this.count(`ended: ${now.stateReason}`)
      return
    }
    if (!m.may.has(now.state) && !(m.may.has('PENDING') && now.state === 'RUNNING'))
      this.violated('states-are-as-acknowledged', `${m.id} is ${now.state} after ${m.hit}, it may be ${[...m.may]}`)
    m.may = new Set([now.state])
    if (this.settings.sample !== undefined && this.sampled++ >= this.settings.sample) return
    await this.checkAnswers(m, now.state)
  }

  async checkAnswers(m, state) {
    try {
      if (state === 'SUSPENDED' && !m.autoResume) await this.place.client.send(new api.ResumeMicrovmCommand({ microvmIdentifier: m.id }))
      this.checkValue(m, await this.endpoint(m, '/'))
      m.may = new Set(['RUNNING'])
      this.count(`${state} answers`)
    } catch (e) {
      let now = await this.get(m).catch(() => ({ state: '?' }))
      if (m.endsAt !== undefined && Date.now() > m.endsAt - 500) return
      // A VMM that was killed is noticed within a moment.
      for (const until = Date.now() + this.settings.settle; this.last === 'vmm' && now.state !== 'TERMINATED' && Date.now() < until; await sleep(20)) now = await this.get(m)
      if (this.last === 'vmm' && now.state === 'TERMINATED' && now.stateReason) {
        m.may = new Set(['TERMINATED'])
        return
      }
      this.violated(state === 'SUSPENDED' ? 'sleepers-wake' : 'runners-answer', `${m.id}: ${e.name} ${e.message}; now ${now.state} ${now.stateReason ?? ''}`)
      m.may.add('TERMINATED')
    }
  }

  async checkImages() {
    for (const [arn, image] of this.images) {
      const until = Date.now() + this.settings.build
      for (;;) {
        let now
        try {
          now = await this.place.client.send(new api.GetMicrovmImageCommand({ imageIdentifier: arn }))
        } catch (e) {
          this.violated('acknowledged-is-there', `${arn}: ${e.name}`)
          break
        }
        if (now.state !== 'CREATING') {
          this.count(`image ${now.state}`)
          if (now.state === 'CREATE_FAILED') {
            const v = await this.place.client.send(new api.GetMicrovmImageVersionCommand({ imageIdentifier: arn, imageVersion: '1.0' }))
            if (!v.stateReason) this.violated('builds-end', `${arn} has failed without a reason`)
          }
          await this.place.client.send(new api.DeleteMicrovmImageCommand({ imageIdentifier: arn }))
          break
        }
        if (Date.now() > until) {
          this.violated('builds-end', `${arn} is still being created`)
          break
        }
        await sleep(100)
      }
      this.images.delete(arn)
    }
  }

  async living() {
    const list = []
    for await (const page of api.paginateListMicrovms({ client: this.place.client }, {})) list.push(...page.items)
    return list.filter((m) => m.state !== 'TERMINATED')
  }

  // Nobody calls, and the engine is up: everything must be as it was acknowledged.
  async check({ images }) {
    for (const request of this.unknownRuns.splice(0)) {
      try {
        this.ran(request, await this.place.client.send(new api.RunMicrovmCommand(request)), true)
      } catch (e) {
        this.violated('tokens-are-idempotent', `${request.clientToken}: ${e.name} ${e.message}`)
      }
    }
    this.sampled = 0
    for (const m of [...this.microvms.values()]) await this.checkOne(m)
    if (images) await this.checkImages()
    for (const m of await this.living()) if (!this.microvms.has(m.microvmId)) this.violated('no-orphans', `${m.microvmId} is ${m.state}, and nobody ran it`)
    await this.checkOrphans()
  }

  async checkOrphans() {
    const until = Date.now() + this.settings.settle
    for (;;) {
      const living = await this.living()
      const problems = await this.place.orphans(living)
      if (problems.length === 0) return
      if (Date.now() > until) {
        for (const p of problems) this.violated('no-orphans', p)
        return
      }
      await sleep(200)
    }
  }
}
