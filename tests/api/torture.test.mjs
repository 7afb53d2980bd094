// The short form of `make torture`: SIGKILL of stasisd, of VMMs, and power cuts, at random moments under load; the real stasisd, natively, among
// stand-ins (tests/torture/).
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { test } from 'node:test'

test('every invariant holds after every crash', { timeout: 120_000 }, () => {
  const program = path.resolve(import.meta.dirname, '../torture/torture.mjs')
  const r = spawnSync(process.execPath, [program, 'native', '--seconds', process.env.TORTURE_SHORT ?? '20'], { encoding: 'utf8' })
  assert.equal(r.status, 0, r.stdout.slice(-4000) + r.stderr.slice(-1000))
})
