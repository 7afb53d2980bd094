"""A Python interpreter behind HTTP that keeps its variables between requests.

POST /run     body: Python code. Answers {"output", "error", "result"}: what it printed, the traceback if it failed, and
              the value of the last line if that is an expression.
GET  /        answers {"uptime", "requests", "time", "variables"}.

The hooks `ready`, `validate` and `run` of the microVM are answered too. `run` seeds `random` anew, because every copy
starts from the same memory. (`secrets` and os.urandom need no such care: Stasis reseeds the kernel's generator.)
`validate` runs in a throw-away copy: it does what the first request will do, so that Stasis learns which memory to have
at hand when a copy starts.
"""

import ast
import contextlib
import io
import json
import os
import random
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOOKS = "/aws/lambda-microvms/runtime/v1/"
BODY_LIMIT = 1 << 20

namespace = {"__name__": "__main__"}
one_at_a_time = threading.Lock()
started = time.monotonic()
requests = 0


def run(code):
    """Executes code in the kept namespace, like one cell of a notebook."""
    output = io.StringIO()
    answer = {"output": "", "error": None, "result": None}
    with one_at_a_time, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            tree = ast.parse(code, "<request>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<request>", "exec"), namespace)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "<request>", "eval"), namespace)
                if value is not None:
                    answer["result"] = repr(value)
        except BaseException:
            answer["error"] = traceback.format_exc()
    answer["output"] = output.getvalue()
    return answer


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
        if self.path != "/":
            return self.answer(404, {"error": "there is only / and POST /run"})
        names = sorted(n for n in namespace if not n.startswith("__"))
        return self.answer(200, {"uptime": time.monotonic() - started, "requests": requests, "time": time.time(), "variables": names})

    def do_POST(self):
        global requests
        size = int(self.headers.get("Content-Length") or 0)
        if size > BODY_LIMIT:
            self.close_connection = True
            return self.answer(413, {"error": "at most %d bytes of code" % BODY_LIMIT})
        body = self.rfile.read(size)
        if self.path == HOOKS + "run":
            random.seed(os.urandom(32))
            return self.answer(200, {})
        if self.path == HOOKS + "validate":
            random.seed(os.urandom(32))
            return self.answer(200 if run("print('ready')\n1 + 1")["result"] == "2" else 500, {})
        if self.path.startswith(HOOKS):
            return self.answer(200, {})
        if self.path != "/run":
            return self.answer(404, {"error": "there is only / and POST /run"})
        requests += 1
        return self.answer(200, run(body.decode("utf-8", "replace")))

    def log_message(self, format, *arguments):
        print("%s %s" % (self.command, format % arguments), flush=True)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Handler)
    server.daemon_threads = True
    print("python-sandbox listens on", server.server_address, flush=True)
    server.serve_forever()
