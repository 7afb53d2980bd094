"""api: the control plane alone, natively: the real stasisd with its store, and stand-ins for stasis-launch and VMMs (tests/torture/engine_host.c).
10,000 microVM records and 1,000 images. wrk sends requests that were signed ahead; each answer must be a 200.

    api.idle.rss     KiB of a stasisd with an empty store that has been idle for 10 s
    api.idle.wakes   how often its threads woke in the last 10 s of that
    api.get.rate     GetMicrovm, answers per second; stasisd on one core, wrk on another, 50 connections
    api.get.p99      GetMicrovm, 50 clients at once, everybody on two cores
    api.list.p99     ListMicrovms with 50 entries, 50 clients at once, everybody on two cores
    api.list.rate    the same, answers per second
    api.loaded.rss   KiB, behind all of it
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

from engine import ROOT, Signer, figure, machine_line

PORT = int(os.environ.get("BENCH_PORT_BASE", "17600"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "10"))
HOST = os.path.join(ROOT, "build/tests/torture/engine_host")
STASISD = os.path.join(ROOT, "build/src/stasisd/stasisd")
SIGNED = 20000  # requests; a signature holds for five minutes, and nobody repeats one within them but us
CLIENTS = 50


class Host:
    """engine_host and its stasisd, in a folder of its own."""

    def __init__(self, images, microvms):
        self.folder = tempfile.mkdtemp(prefix="bench-api.")
        self.process = subprocess.Popen([HOST, STASISD, self.folder, str(PORT), str(images), str(microvms)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.pid = int(self.process.stdout.readline().split('"pid":')[1].split(",")[0])
        self.api = Signer("127.0.0.1:%d" % PORT, "us-east-1", "AKIDSTASISTEST000001", "secret/one+two=three")
        for _ in range(600):
            try:
                self.api.call("GET", "/_stasis/status")
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("failure: stasisd does not answer; see %s/stasisd.log" % self.folder)

    def status(self, name):
        with open("/proc/%d/status" % self.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith(name + ":"))

    def wakes(self):
        total = 0
        for thread in os.listdir("/proc/%d/task" % self.pid):
            with open("/proc/%d/task/%s/status" % (self.pid, thread)) as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("voluntary_ctxt_switches"))
        return total

    def pin(self, cpus):
        subprocess.run(["taskset", "-apc", cpus, str(self.pid)], check=True, stdout=subprocess.DEVNULL)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder)


def microvms(api):
    ids, token = [], None
    while True:
        page = api.call("GET", "/2025-09-09/microvms" + ("?nextToken=" + token if token else ""))
        ids += [m["microvmId"] for m in page["items"]]
        token = page.get("nextToken")
        if not token:
            return ids


def write_requests(api, folder, paths):
    """A file of whole signed requests."""
    name = os.path.join(folder, "requests")
    with open(name, "w", newline="") as f:
        for path in paths:
            head = "".join("%s: %s\r\n" % kv for kv in api.headers("GET", path, b"").items())
            f.write("GET %s HTTP/1.1\r\n%s\r\n" % (path, head))
    return name


def load(api, folder, paths, cpus):
    """Returns answers per second, the 99th percentile in ms, failures."""
    requests = write_requests(api, folder, paths)
    out = subprocess.run(["taskset", "-c", cpus, "wrk", "-t", "1", "-c", str(CLIENTS), "-d", "%ds" % SECONDS, "--timeout", "10s", "-s",
                          os.path.join(ROOT, "bench/api.lua"), "http://127.0.0.1:%d" % PORT, "--", requests],
                         check=True, stdout=subprocess.PIPE, text=True).stdout
    count, microseconds, p99, failures = (float(x) for x in next(l for l in out.splitlines() if l.startswith("result ")).split()[1:])
    return count / microseconds * 1e6, p99 / 1000.0, int(failures)


def idle():
    host = Host(0, 0)
    time.sleep(12)  # workers of the start end after ten idle seconds
    before = host.wakes()
    time.sleep(10)
    figure("api.idle.wakes", host.wakes() - before, "count")
    figure("api.idle.rss", host.status("VmRSS"), "KiB")
    host.stop()


def main():
    machine_line()
    print("# the real stasisd, natively; stand-ins for stasis-launch and VMMs", flush=True)
    idle()
    host = Host(1000, 10000)
    ids = microvms(host.api)
    if len(ids) != 10000:
        raise SystemExit("failure: the list has %d microVMs instead of 10000" % len(ids))
    gets = ["/2025-09-09/microvms/" + ids[i * 7919 % len(ids)] for i in range(SIGNED)]
    lists = ["/2025-09-09/microvms?maxResults=50"] * 100
    failures = 0
    host.pin("0")
    rate, _, failed = load(host.api, host.folder, gets, "1")
    figure("api.get.rate", rate, "per_second")
    failures += failed
    host.pin("0,1")
    _, p99, failed = load(host.api, host.folder, gets, "0,1")
    figure("api.get.p99", p99, "ms")
    failures += failed
    rate, p99, failed = load(host.api, host.folder, lists, "0,1")
    figure("api.list.p99", p99, "ms")
    figure("api.list.rate", rate, "per_second")
    failures += failed
    figure("api.loaded.rss", host.status("VmRSS"), "KiB")
    figure("api.failures", failures, "count")
    host.stop()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
