"""Holds a value in memory and on the disk. GET / says it, GET /add increases it first; -1: the two are not of the same moment."""

import http.server
import os

value = 0
disk = os.open("/var/tmp/value", os.O_RDWR | os.O_CREAT)


def write():
    os.pwrite(disk, b"%010d" % value, 0)
    os.fsync(disk)


def read():
    os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from the page cache
    return int(os.pread(disk, 10, 0))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global value
        if value != read():
            value = -1
        elif self.path == "/add":
            value += 1
            write()
        body = b"%d" % value
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


write()
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
