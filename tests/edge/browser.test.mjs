// A browser at an endpoint: headless Chromium, driven over its DevTools protocol, opens the page of an application, whose script fetches with a token
// and talks over a WebSocket that carries its token in its subprotocols.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { after, before, test } from 'node:test'
import WebSocket, { WebSocketServer } from 'ws'
import { RUNNING, SUSPENDED, listen, start } from './host.mjs'

const page = `<!doctype html><title>An application's page</title><link rel="stylesheet" href="/style.css"><script src="/script.js"></script><h1>hello</h1>`
let edge, server, browser, folder, devtools, loaded

// One command of the DevTools protocol to the page.
const commands = new Map()
let last = 0
const command = (method, params = {}) =>
  new Promise((resolve, reject) => {
    commands.set(++last, { resolve, reject, method })
    devtools.send(JSON.stringify({ id: last, method, params }))
  })

const open = async (url) => {
  const done = new Promise((resolve) => (loaded = resolve))
  const r = await command('Page.navigate', { url })
  assert.equal(r.errorText, undefined, `${url}: ${r.errorText}`)
  await done
}

// The value of an expression in the page; promises are waited for.
const evaluate = async (expression) => {
  const r = await command('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })
  assert.equal(r.exceptionDetails, undefined, r.exceptionDetails?.exception?.description)
  return r.result.value
}

before(async () => {
  server = http.createServer((q, r) => {
    const url = q.url.split('?')[0]
    if (url === '/') r.writeHead(200, { 'content-type': 'text/html' }).end(page)
    else if (url === '/style.css') r.writeHead(200, { 'content-type': 'text/css' }).end('h1 { color: rgb(1, 2, 3) }')
    else if (url === '/script.js') r.writeHead(200, { 'content-type': 'text/javascript' }).end('window.scriptRan = true')
    else if (url === '/echo') q.pipe(r.writeHead(200, { 'x-protocol': q.httpVersion }))
    else r.writeHead(404).end()
  })
  const sockets = new WebSocketServer({ server, handleProtocols: (offered) => (offered.has('chat') ? 'chat' : false) })
  sockets.on('connection', (s, q) => s.on('message', (data, binary) => s.send(binary ? data : `${q.headers['sec-websocket-protocol'] ?? ''}: ${data}`, { binary })))
  edge = await start(await listen(server))
  // The edge's certificate is trusted by its public key, and nothing else is: an operator's browser has the authority installed.
  const socket = await edge.tls()
  const key = socket.getPeerX509Certificate().publicKey.export({ type: 'spki', format: 'der' })
  socket.destroy()
  folder = mkdtempSync(path.join(os.tmpdir(), 'browser-test-'))
  browser = spawn('chromium', [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
    '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-port=0', `--user-data-dir=${folder}`,
    `--ignore-certificate-errors-spki-list=${createHash('sha256').update(key).digest('base64')}`, 'about:blank',
  ], { stdio: ['ignore', 'ignore', 'pipe'] })
  const address = await new Promise((resolve, reject) => {
    let said = ''
    createInterface(browser.stderr).on('line', (line) => {
      said += line + '\n'
      const found = /DevTools listening on ws:\/\/([^/]+)/.exec(line)
      if (found) resolve(found[1])
    })
    browser.on('error', reject)
    browser.on('exit', (code) => reject(new Error(`chromium ended with ${code}: ${said.slice(-2000)}`)))
  })
  const targets = await (await fetch(`http://${address}/json/list`)).json()
  devtools = new WebSocket(targets.find((t) => t.type === 'page').webSocketDebuggerUrl)
  await once(devtools, 'open')
  devtools.on('message', (data) => {
    const m = JSON.parse(data)
    if (m.method === 'Page.loadEventFired') loaded?.()
    const c = commands.get(m.id)
    commands.delete(m.id)
    if (m.error) c?.reject(new Error(`${c.method}: ${m.error.message}`))
    else c?.resolve(m.result)
  })
  await command('Page.enable')
  await command('Network.enable')
})

after(async () => {
  if (browser && browser.exitCode === null) {
    const ended = once(browser, 'exit')
    // Its helpers end with it only when it is asked to end.
    if (devtools) devtools.send(JSON.stringify({ id: ++last, method: 'Browser.close' }))
    else browser.kill()
    await ended
  }
  if (folder) rmSync(folder, { recursive: true, force: true, maxRetries: 10 })
  server?.closeAllConnections()
  server?.close()
  await edge?.stop()
})

const sees = async () => [await evaluate('document.title'), await evaluate('window.scriptRan'), await evaluate('getComputedStyle(document.querySelector("h1")).color')]
const all = ["An application's page", true, 'rgb(1, 2, 3)']

test('a page, its style and its script, of a public port, of a microVM that has to be woken for it', { timeout: 120_000 }, async () => {
  await open(`https://${edge.authority(SUSPENDED)}/`)
  assert.deepEqual(await sees(), all)
  assert.equal(await evaluate('performance.getEntriesByType("navigation")[0].nextHopProtocol'), 'h2')
})

test('the same with a token; without, the page says that it is missing', { timeout: 120_000 }, async () => {
  await open(`https://${edge.authority(RUNNING)}/`)
  assert.equal(await evaluate('document.body.innerText'), 'Request missing authentication')
  await command('Network.setExtraHTTPHeaders', { headers: { 'X-aws-proxy-auth': edge.token(RUNNING) } })
  await open(`https://${edge.authority(RUNNING)}/`)
  assert.deepEqual(await sees(), all)
  await command('Network.setExtraHTTPHeaders', { headers: {} })
})

test("the page's script fetches with a token, and is refused without", { timeout: 120_000 }, async () => {
  const ask = (headers) =>
    evaluate(`fetch("/echo", { method: "POST", body: "x".repeat(1e6), headers: ${JSON.stringify(headers)} }).then(async (r) => [r.status, (await r.text()).length])`)
  assert.deepEqual(await ask({ 'X-aws-proxy-auth': edge.token(RUNNING) }), [200, 1e6])
  assert.deepEqual(await ask({ 'X-aws-proxy-auth': edge.token(RUNNING), 'X-aws-proxy-port': String(server.address().port) }), [200, 1e6])
  assert.deepEqual(await ask({}), [403, 'Request missing authentication'.length])
})

test("a browser's WebSocket brings its token in its subprotocols", { timeout: 120_000 }, async () => {
  const talk = (protocols) =>
    evaluate(`new Promise((resolve) => {
      const s = new WebSocket("wss://" + location.host + "/chat", ${JSON.stringify(protocols)})
      s.onopen = () => s.send("hello")
      s.onmessage = (e) => { resolve([s.protocol, e.data]); s.close() }
      s.onerror = () => resolve("refused")
    })`)
  const names = ['lambda-microvms', `lambda-microvms.authentication.${edge.token(RUNNING)}`]
  assert.deepEqual(await talk(names), ['lambda-microvms', ': hello'])
  assert.deepEqual(await talk([...names, `lambda-microvms.port.${server.address().port}`, 'chat']), ['chat', 'chat: hello'])
  assert.equal(await talk(['lambda-microvms', 'lambda-microvms.authentication.nonsense']), 'refused')
})
