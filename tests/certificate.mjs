// A certificate that signs itself, for applications of the tests that speak TLS.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'

// Returns { key, cert } as PEM. `key`: as openssl's -newkey names it; `comment`: a text within, which may be long.
export function certificate({ key = 'rsa:2048', comment = 'made for a test' } = {}) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'certificate-'))
  const at = (name) => path.join(folder, name)
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', key, '-nodes', '-days', '30', '-subj', '/CN=application', '-addext', `nsComment=${comment}`,
      '-keyout', at('key.pem'), '-out', at('certificate.pem')], { stdio: 'ignore' })
    return { key: readFileSync(at('key.pem'), 'utf8'), cert: readFileSync(at('certificate.pem'), 'utf8') }
  } finally {
    rmSync(folder, { recursive: true })
  }
}
