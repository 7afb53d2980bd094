"""Works on after the request that asked for it has been answered, and sleeps as soon as the work is done.

POST /jobs?seconds=N   begins a job that takes N seconds, and answers at once with its number.
GET  /                 answers {"running": [...], "done": [...]}.

While a job runs, nobody may be talking to the endpoint, so the idle policy would suspend the microVM in the middle of it.
A lease prevents that: each job holds one and renews it, so that a job that hangs keeps nothing awake for longer than a
minute. When the last job is done, the worker asks to be suspended at once instead of waiting for the idle time.
"""

import json
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LEASE_SECONDS = 60

lock = threading.Lock()
running, done = {}, []
numbers = iter(range(1, 1 << 62))


def stasis(method, path):
    """A request to the microVM's own agent. It has no body, and the answer is not needed."""
    request = urllib.request.Request("http://169.254.169.253" + path, method=method)
    urllib.request.urlopen(request, timeout=5).close()


def work(number, seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stasis("PUT", "/leases/job-%d?seconds=%d" % (number, LEASE_SECONDS))
        time.sleep(min(left, LEASE_SECONDS / 2))
    with lock:
        del running[number]
        done.append(number)
        last = not running
    stasis("DELETE", "/leases/job-%d" % number)
    if last:
        stasis("POST", "/suspend")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with lock:
            self.answer(200, {"running": sorted(running), "done": done})

    def do_POST(self):
        url = urllib.parse.urlsplit(self.path)
        seconds = urllib.parse.parse_qs(url.query).get("seconds", [""])[0]
        if url.path != "/jobs" or not seconds.isdigit():
            return self.answer(404, {"error": "there is only GET / and POST /jobs?seconds=N"})
        with lock:
            number = next(numbers)
            running[number] = threading.Thread(target=work, args=(number, int(seconds)), daemon=True)
            running[number].start()
        self.answer(202, {"job": number})

    def log_message(self, format, *arguments):
        print("%s %s" % (self.command, format % arguments), flush=True)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", 80), Handler)
    server.daemon_threads = True
    server.serve_forever()
