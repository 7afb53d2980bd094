"""The edge beside nginx: the same back end, the same certificate, TLS, one core each, in turn.

The edge runs as a process of its own on the host (tests/unit/test_edge_host.c: the real edge, with a stand-in for microVMs), so that what is
measured is the proxy. nginx has one worker. Proxy on one core; back end and h2load share the other. Servers take turns, and each figure is the
median of the rounds. `cpu` is requests per second of the proxy's own processor time: what a core gives when nothing else is in its way.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from engine import ROOT, Failure, figure, machine_line, percentile

SECONDS = int(os.environ.get("BENCH_EDGE_SECONDS", "3"))
WARM_UP = 1
ROUNDS = int(os.environ.get("BENCH_EDGE_ROUNDS", "3"))
ENDPOINT = "00000000-0000-4000-8000-000000000001"
HOST = ENDPOINT + ".microvm.localhost"
EDGE_PORT, NGINX_PORT = 17543, 17544
# name, h2load's arguments
LOADS = {
    "h1.c1": ["--h1", "-c1"],
    "h1.c64": ["--h1", "-c64"],
    "h1.c1000": ["--h1", "-c1000"],
    "h2.c1": ["-c1", "-m1"],
    "h2.c64": ["-c64", "-m8"],
    "h2.c1000": ["-c1000", "-m1"],
}
PROXY_CORE, OTHER_CORE = "0", str((os.cpu_count() or 1) - 1)

NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
{user}
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  upstream back {{ server unix:{folder}/plain.sock; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096;
    ssl_certificate {tls}/edge.pem; ssl_certificate_key {tls}/edge.key;
    http2_max_concurrent_streams 128;
    location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }}
  }}
}}
"""


def pinned(core, command, **more):
    return subprocess.Popen(["taskset", "-c", core] + command, **more)


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(url, arguments, log, token):
    """Runs h2load; returns requests per second, bytes per second, and the times of the requests in microseconds."""
    command = ["taskset", "-c", OTHER_CORE, "h2load", "-D", str(SECONDS), "--warm-up-time", str(WARM_UP), "--log-file", log, *arguments]
    if token:
        command += ["-H", "X-aws-proxy-auth: " + token, "-H", ":authority: " + HOST]
    out = subprocess.run(command + [url], capture_output=True, text=True, timeout=SECONDS * 4 + 60).stdout
    with open(log) as f:
        rows = [line.split("\t") for line in f]
    os.unlink(log)
    bad = [r for r in rows if r[1] != "200"]
    if not rows or bad:
        raise Failure("%s: %d requests, %d of them failed\n%s" % (url, len(rows), len(bad), out))
    return len(rows) / SECONDS, [int(r[2]) for r in rows]


class Proxy:
    def __init__(self, name, pid, port, token):
        self.name, self.pid, self.port, self.token = name, pid, port, token
        self.rates, self.cpu, self.times = {}, {}, {}

    def measure(self, name, arguments, folder, path="/"):
        before = cpu_seconds(self.pid)
        rate, times = load("https://127.0.0.1:%d%s" % (self.port, path), arguments, folder + "/h2load.log", self.token)
        # Warming up costs the proxy time too, at the same rate.
        used = (cpu_seconds(self.pid) - before) * SECONDS / (SECONDS + WARM_UP)
        self.rates.setdefault(name, []).append(rate)
        self.cpu.setdefault(name, []).append(rate * SECONDS / used if used > 0 else float("nan"))
        self.times.setdefault(name, []).append((percentile(times, 50), percentile(times, 99)))

    def megabytes(self, name, arguments):
        """Downloads as fast as it goes; MB/s, and MB per second of processor time."""
        before, start = cpu_seconds(self.pid), time.monotonic()
        command = ["taskset", "-c", OTHER_CORE, "h2load", "-n", "16", *arguments, "-c4"]
        if self.token:
            command += ["-H", "X-aws-proxy-auth: " + self.token, "-H", ":authority: " + HOST]
        out = subprocess.run(command + ["https://127.0.0.1:%d/big" % self.port], capture_output=True, text=True, timeout=120).stdout
        if "16 succeeded" not in out:
            raise Failure("%s: downloads failed\n%s" % (self.name, out))
        took, used = time.monotonic() - start, cpu_seconds(self.pid) - before
        self.rates.setdefault(name, []).append(16 * 64 * 1.048576 / took)
        self.cpu.setdefault(name, []).append(16 * 64 * 1.048576 / used)

    def rate(self, name):
        return statistics.median(self.rates[name])

    def cpu_rate(self, name):
        return statistics.median(self.cpu[name])

    def time(self, name, which):
        return statistics.median(t[which] for t in self.times[name])


def wait_port(port):
    import socket

    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Failure("nothing listens on port %d" % port)


def start(folder, processes):
    backend = pinned(OTHER_CORE, [ROOT + "/build/bench/edge-backend", folder], stdout=subprocess.PIPE, text=True)
    processes.append(backend)
    direct = int(backend.stdout.readline())
    edge = pinned(PROXY_CORE, [ROOT + "/build/tests/unit/test_edge_host", folder + "/edge", str(EDGE_PORT), folder + "/vsock.sock"],
                  stdout=subprocess.PIPE, stderr=open(folder + "/edge.log", "w"), text=True, env=dict(os.environ, EDGE_HOST_QUIET="1"))
    processes.append(edge)
    if not edge.stdout.readline():
        raise Failure("the edge does not start: " + open(folder + "/edge.log").read())
    with open(folder + "/edge/token") as f:
        token = dict(line.split() for line in f)[ENDPOINT]
    with open(folder + "/nginx.conf", "w") as f:
        f.write(NGINX.format(folder=folder, port=NGINX_PORT, tls=folder + "/edge/tls", user="user root;" if os.geteuid() == 0 else ""))
    nginx = pinned(PROXY_CORE, [shutil.which("nginx") or "/usr/sbin/nginx", "-c", folder + "/nginx.conf"], stderr=subprocess.DEVNULL)
    processes.append(nginx)
    wait_port(NGINX_PORT)
    with open("/proc/%d/task/%d/children" % (nginx.pid, nginx.pid)) as f:
        worker = int(f.read().split()[0])
    return direct, Proxy("edge", edge.pid, EDGE_PORT, token), Proxy("nginx", worker, NGINX_PORT, None)


def report(edge, nginx, direct_times):
    for name in LOADS:
        for p in (edge, nginx):
            figure("%s.%s.rate" % (p.name, name), p.rate(name), "requests/s")
            figure("%s.%s.cpu" % (p.name, name), p.cpu_rate(name), "requests/cpu-s")
            figure("%s.%s.p50" % (p.name, name), p.time(name, 0), "us")
            figure("%s.%s.p99" % (p.name, name), p.time(name, 1), "us")
    for p in (edge, nginx):
        for kind in ("h1", "h2"):
            figure("%s.%s.added.p50" % (p.name, kind), p.time(kind + ".c1", 0) - percentile(direct_times, 50), "us")
            figure("%s.%s.added.p99" % (p.name, kind), p.time(kind + ".c1", 1) - percentile(direct_times, 99), "us")
            figure("%s.%s.bytes" % (p.name, kind), p.rate(kind + ".bytes"), "MB/s")
            figure("%s.%s.bytes.cpu" % (p.name, kind), p.cpu_rate(kind + ".bytes"), "MB/cpu-s")
    for kind in ("h1", "h2"):
        for connections in ("c1", "c64", "c1000"):
            name = "%s.%s" % (kind, connections)
            plain = "" if connections == "c64" else "." + connections
            figure("edge.%s%s.rate.vs_nginx" % (kind, plain), "%.3f" % (edge.rate(name) / nginx.rate(name)), "ratio")
            figure("edge.%s%s.cpu.vs_nginx" % (kind, plain), "%.3f" % (edge.cpu_rate(name) / nginx.cpu_rate(name)), "ratio")
            figure("edge.%s%s.p99.vs_nginx" % (kind, plain), "%.3f" % (edge.time(name, 1) / nginx.time(name, 1)), "ratio")
    figure("edge.bytes.vs_nginx", "%.3f" % (edge.rate("h1.bytes") / nginx.rate("h1.bytes")), "ratio")
    figure("edge.bytes.cpu.vs_nginx", "%.3f" % (edge.cpu_rate("h1.bytes") / nginx.cpu_rate("h1.bytes")), "ratio")
    figure("edge.h2.bytes.vs_nginx", "%.3f" % (edge.rate("h2.bytes") / nginx.rate("h2.bytes")), "ratio")
    figure("edge.h2.bytes.cpu.vs_nginx", "%.3f" % (edge.cpu_rate("h2.bytes") / nginx.cpu_rate("h2.bytes")), "ratio")


def main():
    for program in ("h2load", "taskset"):
        if shutil.which(program) is None:
            raise Failure("%s is missing; 'make setup' installs it" % program)
    only = sys.argv[1:]
    machine_line()
    folder, processes = tempfile.mkdtemp(prefix="bench-edge-"), []
    try:
        direct, edge, nginx = start(folder, processes)
        direct_times = load("http://127.0.0.1:%d/" % direct, ["--h1", "-c1"], folder + "/h2load.log", None)[1]
        for turn in range(ROUNDS):
            for p in (edge, nginx) if turn % 2 == 0 else (nginx, edge):
                for name, arguments in LOADS.items():
                    if not only or name in only:
                        p.measure(name, arguments, folder)
                for name, arguments in (("h1.bytes", ["--h1", "-m1"]), ("h2.bytes", ["-m1"])):
                    if not only or name in only:
                        p.megabytes(name, arguments)
        if only:
            for name in only:
                for p in (nginx, edge):
                    print(name, p.name, [round(x) for x in p.rates[name]], "cpu", [round(x) for x in p.cpu[name]], p.times.get(name))
        else:
            report(edge, nginx, direct_times)
    finally:
        for p in reversed(processes):
            p.terminate()
        for p in processes:
            p.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        print("bench-edge: %s" % e, file=sys.stderr)
        sys.exit(1)
