// Crashes at random moments under load, and a check of all invariants after each.
//
//     node tests/torture/torture.mjs native|machine [--seconds N] [--seed N] [--port-base N]
//
// The seed is printed; the same seed makes the same choices again (the moments depend on the machine as well). Exit code 1 when an invariant was
// violated; what stays of the run is then kept.
import { parseArgs } from 'node:util'
import { Model, random, sleep } from './model.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '60' }, seed: { type: 'string' }, 'port-base': { type: 'string', default: '18610' } },
})
const where = positionals[0]
if (where !== 'native' && where !== 'machine') {
  console.error('usage: torture.mjs native|machine [--seconds N] [--seed N] [--port-base N]')
  process.exit(2)
}
const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 31))
console.log(`torture ${where} --seed ${seed} --seconds ${values.seconds}`)
const module = await import(`./${where}.mjs`)
const place = where === 'native' ? new module.Native() : new module.Machine()
const settings = module.settings
const started = Date.now()
await place.start(Number(values['port-base']))
const model = new Model(place, seed, settings)
const rng = random(seed)
const until = Date.now() + Number(values.seconds) * 1000
let rounds = 0
const kinds = {}
while (Date.now() < until && model.violations.length === 0) {
  const kind = place.kinds[Math.floor(rng() * place.kinds.length)]
  model.start()
  await sleep(settings.between * (0.25 + 1.5 * rng()))
  const crash = place.crash(kind)
  model.note(kind)
  await crash
  await model.stop()
  await model.check({ images: rounds % 10 === 9 })
  kinds[kind] = (kinds[kind] ?? 0) + 1
  rounds++
}
await model.check({ images: true })
const failed = model.violations.length > 0
await place.stop(failed)
console.log(JSON.stringify({ rounds, kinds, seconds: Math.round((Date.now() - started) / 1000), ...model.counts }, null, 1))
console.log(failed ? `FAILED: ${model.violations.length} violations; repeat with --seed ${seed}` : 'ok: every invariant held after every crash')
process.exit(failed ? 1 : 0)
