"""What the benchmarks share: signed calls of the API, requests to endpoints, percentiles, the line that names the machine.

Only Python's standard library, so that the benchmarks run wherever Stasis does.
"""

import datetime
import hashlib
import hmac
import http.client
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STASIS = os.environ.get("STASIS", os.path.join(ROOT, "build/stage/bin/stasis"))
os.environ.setdefault("STASIS_HOME", os.path.join(ROOT, "build/bench-home"))
HOME = os.environ["STASIS_HOME"]


def figure(name, value, unit):
    print("%s %s %s" % (name, ("%.1f" % value) if isinstance(value, float) else value, unit), flush=True)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, max(0, int(len(values) * p / 100.0 + 0.5) - 1))] if values else float("nan")


def figures(name, values, unit, scale=1.0):
    for p in (50, 99):
        figure("%s.p%d" % (name, p), percentile(values, p) * scale, unit)


def machine_line(engine=None):
    with open("/proc/cpuinfo") as f:
        cpu = next((l.split(":", 1)[1].strip() for l in f if l.startswith("model name")), platform.machine())
    where = "" if engine is None else ", engine in the machine (emulated)" if engine.mode == "machine" else ", engine on the host's KVM"
    print("# %s, %d cores, Linux %s%s" % (cpu, os.cpu_count(), platform.release(), where), flush=True)


class Failure(Exception):
    pass


class Signer:
    """Signed calls to an API over one kept connection."""

    def __init__(self, address, region, key, secret):
        self.api, self.region, self.key, self.secret = address, region, key, secret
        self.connection = None

    def headers(self, method, path, data):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest()
        headers = {"host": self.api, "x-amz-content-sha256": digest, "x-amz-date": now}
        bare, _, query = path.partition("?")
        canonical = "\n".join([method, urllib.parse.quote(bare, safe="/-._~"), query]
                              + ["%s:%s" % kv for kv in sorted(headers.items())] + ["", ";".join(sorted(headers)), digest])
        scope = "%s/%s/lambda/aws4_request" % (now[:8], self.region)
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + self.secret).encode()
        for part in (now[:8], self.region, "lambda", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
            self.key, scope, ";".join(sorted(h for h in headers)), signature)
        headers["content-type"] = "application/json"
        return headers

    def call(self, method, path, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        headers = self.headers(method, path, data)
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.api, timeout=120)
            try:
                self.connection.request(method, path, body=data or None, headers=headers)
                answer = self.connection.getresponse()
                content = answer.read()
                break
            except (http.client.HTTPException, OSError):
                self.connection = None
                if attempt == 2:
                    raise
        if answer.status >= 300:
            raise Failure("%s %s: %d %s %s" % (method, path, answer.status, answer.getheader("x-amzn-errortype"), content[:300]))
        return json.loads(content) if content else {}


class Engine(Signer):
    """The engine that `stasis up` started."""

    def __init__(self):
        subprocess.run([STASIS, "up", "--port-base", os.environ.get("BENCH_PORT_BASE", "17500")], check=True, stdout=sys.stderr)
        with open(os.path.join(HOME, "engine.json")) as f:
            e = json.load(f)
        super().__init__(urllib.parse.urlsplit(e["api"]).netloc, e["region"], e["accessKeyId"], e["secretAccessKey"])
        self.account, self.mode = e["account"], e["mode"]
        self.edge = e["edge"].rsplit(":", 1)
        self.tls = ssl.create_default_context(cafile=os.path.join(HOME, "ca.pem"))

    def image(self, name, folder, *options):
        """The image of that name, made with the command line when it is not there yet. Returns its ARN."""
        arn = "arn:aws:lambda:%s:%s:microvm-image:%s" % (self.region, self.account, name)
        try:
            if self.call("GET", "/2025-09-09/microvm-images/" + urllib.parse.quote(arn, safe=""))["state"] == "CREATED":
                return arn
            subprocess.run([STASIS, "image", "rm", name], check=False, stdout=sys.stderr)
        except Failure:
            pass
        subprocess.run([STASIS, "image", "create", name, folder, *options], check=True, stdout=sys.stderr)
        return arn

    def run(self, arn, idle=True):
        body = {"imageIdentifier": arn}
        if idle:
            body["idlePolicy"] = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
        return self.call("POST", "/2025-09-09/microvms", body)

    def token(self, microvm):
        return self.call("POST", "/2025-09-09/microvms/%s/auth-token" % microvm["microvmId"],
                         {"expirationInMinutes": 60, "allowedPorts": [{"allPorts": {}}]})["authToken"]["X-aws-proxy-auth"]

    def state(self, microvm):
        return self.call("GET", "/2025-09-09/microvms/" + microvm["microvmId"])["state"]

    def suspend(self, microvm):
        self.call("POST", "/2025-09-09/microvms/%s/suspend" % microvm["microvmId"])
        while self.state(microvm) != "SUSPENDED":
            time.sleep(0.002)

    def resume(self, microvm):
        self.call("POST", "/2025-09-09/microvms/%s/resume" % microvm["microvmId"])
        while self.state(microvm) != "RUNNING":
            time.sleep(0.002)

    def terminate(self, microvm):
        self.call("DELETE", "/2025-09-09/microvms/" + microvm["microvmId"])

    def wait_gone(self, microvm):
        while self.state(microvm) != "TERMINATED":
            time.sleep(0.05)

    def get(self, microvm, token, path="/", method="GET", body=None):
        """One request over a fresh TLS connection to the microVM's endpoint. Returns (status, body)."""
        name = microvm["endpoint"].split(":")[0]
        raw = socket.create_connection((self.edge[0], int(self.edge[1])), timeout=120)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.tls.wrap_socket(raw, server_hostname=name) as s:
            data = b"" if body is None else body.encode()
            s.sendall(("%s %s HTTP/1.1\r\nHost: %s\r\nX-aws-proxy-auth: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                       % (method, path, microvm["endpoint"], token, len(data))).encode() + data)
            answer = http.client.HTTPResponse(s)
            answer.begin()
            return answer.status, answer.read()

    def stages(self, microvm):
        return self.call("GET", "/_stasis/microvms/%s/stages" % microvm["microvmId"]).get("stages", [])
