"""gRPC by hand, as much as an echo needs: HTTP/2 without TLS, one call for each stream, each message sent back at once.

A message is "N" and any bytes behind a colon; the first one of a call counts N.
"""

import socketserver
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
INITIAL_WINDOW_SIZE = 4


def literal(name, value):
    """A field that goes into no table (RFC 7541, section 6.2.2)."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


HEAD = b"\x88" + literal(b"content-type", b"application/grpc")  # 0x88: :status 200
TRAILERS = literal(b"grpc-status", b"0")


class Connection(socketserver.StreamRequestHandler):
    count = None  # called with the id of a call
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.window, self.first_window = {0: 65535}, 65535
        self.input, self.begun, self.over = {}, set(), set()

    def send(self, kind, flags, stream, payload=b""):
        self.wfile.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def frame(self):
        head = self.rfile.read(9)
        if len(head) < 9:
            return False
        size, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
        payload = self.rfile.read(size)
        if kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    for s in self.window:
                        self.window[s] += value - self.first_window if s else 0
                    self.first_window = value
            self.send(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self.send(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            self.window[stream] = self.window.get(stream, self.first_window) + int.from_bytes(payload, "big")
        elif kind == HEADERS:  # what it says does not matter here
            self.input[stream] = b""
            self.window.setdefault(stream, self.first_window)
        elif kind == DATA and stream in self.input:
            self.input[stream] += payload[1 : size - payload[0]] if flags & PADDED else payload
            if size:
                for s in (0, stream):
                    self.send(WINDOW_UPDATE, 0, s, struct.pack(">I", size))
        elif kind == RST_STREAM:
            self.input.pop(stream, None)
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.over.add(stream)
        return kind != GOAWAY

    def send_data(self, stream, data):
        while data and stream in self.input:
            n = min(len(data), 16384, self.window[0], self.window[stream])
            if n > 0:
                self.send(DATA, 0, stream, data[:n])
                self.window[0] -= n
                self.window[stream] -= n
                data = data[n:]
            elif not self.frame():
                return

    def serve(self, stream):
        while len(got := self.input.get(stream, b"")) >= 5 and len(got) >= (size := 5 + int.from_bytes(got[1:5], "big")):
            self.input[stream] = got[size:]
            if stream not in self.begun:
                self.begun.add(stream)
                Connection.count(got[5:size].split(b":")[0].decode())
                self.send(HEADERS, END_HEADERS, stream, HEAD)
            self.send_data(stream, got[:size])
        if stream in self.over and stream in self.input:
            del self.input[stream]
            self.send(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)

    def handle(self):
        if self.rfile.read(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            return
        self.send(SETTINGS, 0, 0)
        while self.frame():
            for stream in list(self.input):
                self.serve(stream)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 256
    daemon_threads = True
    allow_reuse_address = True
