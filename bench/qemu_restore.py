"""QEMU's microvm machine restoring its own snapshot of the same kernel, disk and application, to the first answer of the application.

Runs where the engine runs (inside the machine, or on the host): qemu_restore.py <state folder> [runs]. Prints one line
"restore <seconds>" a run. The guest is Stasis's own (kernel, initrd, agent, the disk of the newest image); QEMU boots it once, the agent starts the
application, QEMU migrates it to a file; each run starts a fresh QEMU with -incoming from that file and asks the application over vsock until
it has answered, as the edge does.
"""

import glob
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

CID = 77
STATE = sys.argv[1] if len(sys.argv) > 1 else "/var/lib/stasis"
RUNS = int(sys.argv[2]) if len(sys.argv) > 2 else 10


def assets():
    for folder in ("/program/assets", "/opt/stasis/assets") + tuple(glob.glob("/*/assets")):
        if os.path.exists(os.path.join(folder, "guest.initrd")):
            return folder
    sys.exit("qemu_restore: the assets are not found")


class Agent:
    def __init__(self, deadline):
        while True:
            try:
                self.s = connect(1024, deadline)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def call(self, op, **members):
        data = json.dumps(dict(members, id=1, op=op)).encode()
        self.s.sendall(struct.pack("<I", len(data)) + data)
        size, = struct.unpack("<I", self.read(4))
        answer = json.loads(self.read(size))
        if not answer["ok"]:
            sys.exit("qemu_restore: the agent refused %s: %s" % (op, answer))
        return answer

    def read(self, n):
        data = b""
        while len(data) < n:
            part = self.s.recv(n - len(data))
            if not part:
                raise OSError("the agent's connection ended")
            data += part
        return data


def connect(port, deadline):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(max(0.05, min(5.0, deadline - time.monotonic())))
    try:
        s.connect((CID, port))
    except OSError:
        s.close()
        raise
    return s


def ask(deadline):
    """One GET / of the application through the agent; True when it answered 200."""
    s = connect(1025, deadline)
    with s:
        s.sendall(b"TCP 8080\nGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = b""
        while b" 200 " not in data:
            part = s.recv(4096)
            if not part:
                return False
            data += part
        return True


def qmp(path, *commands):
    s = socket.socket(socket.AF_UNIX)
    for _ in range(200):
        try:
            s.connect(path)
            break
        except OSError:
            time.sleep(0.02)
    f = s.makefile("rwb")
    f.readline()
    for command, arguments in (("qmp_capabilities", {}),) + commands:
        f.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        f.flush()
        while True:
            answer = json.loads(f.readline())
            if "return" in answer or "error" in answer:
                break
    s.close()
    return answer


def main():
    folder = tempfile.mkdtemp(prefix="qemu-", dir=STATE)
    try:
        measure(folder)
    finally:
        shutil.rmtree(folder)


def measure(folder):
    disks = sorted(glob.glob(os.path.join(STATE, "images/*/*/disk.ext4")), key=os.path.getmtime)
    if not disks:
        sys.exit("qemu_restore: there is no image")
    subprocess.run(["cp", "--sparse=always", disks[-1], folder + "/disk"], check=True)
    command = ["qemu-system-x86_64", "-M", "microvm,accel=kvm", "-cpu", "host", "-m", "512", "-smp", "1", "-nodefaults", "-no-user-config",
               "-global", "virtio-mmio.force-legacy=false",
               "-display", "none", "-no-reboot", "-kernel", assets() + "/vmlinuz", "-initrd", assets() + "/guest.initrd",
               "-append", "console=ttyS0 quiet panic=-1", "-serial", "file:" + folder + "/console",
               "-drive", "if=none,id=system,format=raw,readonly=on,file=" + assets() + "/system.ext4",
               "-device", "virtio-blk-device,drive=system,serial=system",
               "-drive", "if=none,id=image,format=raw,file=" + folder + "/disk", "-device", "virtio-blk-device,drive=image,serial=image",
               "-device", "virtio-rng-device", "-device", "vhost-vsock-device,guest-cid=%d" % CID]
    source = subprocess.Popen(command + ["-qmp", "unix:%s/qmp,server=on,wait=off" % folder])
    agent = Agent(time.monotonic() + 120)
    resume = {"entropy": secrets.token_hex(32), "realtimeNs": time.time_ns(), "generation": "clone"}
    agent.call("resume", **resume)
    agent.call("start", disk="image", env={}, capabilities="default", hostname="bench")
    deadline = time.monotonic() + 120
    while True:
        try:
            if ask(deadline):
                break
        except OSError:
            pass
        if time.monotonic() > deadline:
            sys.exit("qemu_restore: the application did not answer")
        time.sleep(0.2)
    agent.s.close()
    # not stopped before: a machine that was paused when it migrated stays paused where it arrives
    qmp(folder + "/qmp", ("migrate", {"uri": "exec:cat > %s/state" % folder}))
    while True:
        status = qmp(folder + "/qmp", ("query-migrate", {}))["return"].get("status")
        if status == "completed":
            break
        if status == "failed":
            sys.exit("qemu_restore: QEMU could not migrate")
        time.sleep(0.1)
    qmp(folder + "/qmp", ("quit", {}))
    source.wait()
    print("snapshot %d bytes" % os.path.getsize(folder + "/state"), flush=True)
    subprocess.run(["cp", "--sparse=always", folder + "/disk", folder + "/disk.kept"], check=True)
    for i in range(RUNS + 1):
        subprocess.run(["cp", "--sparse=always", folder + "/disk.kept", folder + "/disk"], check=True)
        start = time.monotonic()
        process = subprocess.Popen(command + ["-incoming", "exec:cat %s/state" % folder])
        while time.monotonic() < start + 120:
            try:
                if ask(start + 120):
                    break
            except OSError:
                time.sleep(0.002)
        else:
            sys.exit("qemu_restore: no answer after a restore")
        if i > 0:  # the first one fills the page cache
            print("restore %.6f" % (time.monotonic() - start), flush=True)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
