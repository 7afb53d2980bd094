"""What the soak talks to: counts every request by its id, and says what it has counted.

POST /add?id=N      counts N; answers the SHA-256 of the body
GET  /take?id=N&size=S   counts N; answers S bytes
GET  /slow?id=N&ms=M     counts N; answers after M ms
GET  /ticks?id=N&count=C counts N; an event stream of C events, one in 200 ms
GET  /echo?id=N     counts N; a WebSocket that sends back what it gets
GET  /seen          answers {"<id>": <how many times>}

The same over TLS at port 9443, and gRPC at port 9090 (rpc.py).
"""

import base64
import hashlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import rpc

seen = {}
lock = threading.Lock()


def count(id):
    with lock:
        seen[id] = seen.get(id, 0) + 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def count(self):
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        if "id" in query:
            count(query["id"])
        return url.path, query

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        body = self.body()
        self.count()
        self.reply(hashlib.sha256(body).hexdigest().encode())

    def do_GET(self):
        path, query = self.count()
        if path == "/take":
            return self.reply((b"0123456789abcdef" * (int(query["size"]) // 16 + 1))[: int(query["size"])])
        if path == "/slow":
            time.sleep(int(query["ms"]) / 1000)
            return self.reply(b"slept")
        if path == "/ticks":
            return self.ticks(int(query["count"]))
        if path == "/echo":
            return self.echo()
        with lock:
            self.reply(json.dumps(seen).encode())

    def ticks(self, count):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(count):
            data = b"data: %d\n\n" % i
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            time.sleep(0.2)
        self.wfile.write(b"0\r\n\r\n")

    def echo(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            size, mask = head[1] & 127, self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            self.wfile.write(bytes([head[0], size]) + data)
            if head[0] & 15 == 8:
                return

    def log_message(self, format, *arguments):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def begin(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()


rpc.Connection.count = count
begin(rpc.Server(("127.0.0.1", 9090), rpc.Connection))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("certificate.pem", "key.pem")
secure = Server(("127.0.0.1", 9443), Handler)
# The handshake is the thread's that serves the connection, so that nobody waits for another's.
secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
begin(secure)
Server(("127.0.0.1", 8080), Handler).serve_forever()
