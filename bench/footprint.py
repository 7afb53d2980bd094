"""footprint: what microVMs cost. Resident memory of a VMM besides its guest's, bytes on disk per image and per suspended microVM, and 50
clones of one snapshot at once.

    footprint.vmm              KiB of a VMM besides its guest's memory
    footprint.guest            KiB of a running idle microVM's memory (shared pages of the snapshot included)
    footprint.image.memory     bytes on disk of the image's memory layer; .disk of its disk
    footprint.suspended        bytes on disk of an idle suspended microVM: memory, state and disk layer
    footprint.suspended.share  that, in percent of the memory that the guest sees
    footprint.clones.*         50 at once: how many answered, and how long until all had
"""

import concurrent.futures
import os
import subprocess
import sys
import time

from engine import ROOT, STASIS, Engine, Failure, figure, figures, machine_line, percentile

EXAMPLE = os.path.join(ROOT, "examples/python-sandbox")
CLONES = int(os.environ.get("BENCH_CLONES", "50"))
STATE = "/var/lib/stasis"
VISIBLE_MIB = 2048  # what a microVM of 512 MiB baseline sees


def inside(engine, command):
    argv = [STASIS, "machine", "exec", command] if engine.mode == "machine" else ["sh", "-c", command]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout


def disk_bytes(engine, path):
    return sum(int(line.split()[0]) for line in inside(engine, "du -s -B1 %s" % path).splitlines())


def main():
    engine = Engine()
    arn = engine.image("bench", EXAMPLE, "--memory", "512", "--hooks", "ready,validate,run", "--hook-port", "8080")
    machine_line(engine)
    figure("footprint.image.memory", disk_bytes(engine, STATE + "/images/*/*/memory"), "bytes")
    figure("footprint.image.disk", disk_bytes(engine, STATE + "/images/*/*/disk.ext4"), "bytes")

    engines = [Engine() for _ in range(10)]
    start, failures, microvms = time.monotonic(), 0, []

    def clone(i):
        e = engines[i % len(engines)]
        microvm = e.run(arn)
        token = e.token(microvm)
        status, _ = e.get(microvm, token)
        return microvm, status

    # Ten connections to the API, each used by one thread at a time.
    with concurrent.futures.ThreadPoolExecutor(len(engines)) as pool:
        def share(k):
            return [clone(i) for i in range(k, CLONES, len(engines))]
        for future in [pool.submit(share, k) for k in range(len(engines))]:
            try:
                for microvm, status in future.result():
                    microvms.append(microvm)
                    failures += status != 200
            except (Failure, OSError) as e:
                print("failure: %s" % e, file=sys.stderr)
                failures += 1
    figure("footprint.clones.answered", len(microvms) - failures, "count")
    figure("footprint.clones.failures", failures, "count")
    figure("footprint.clones.seconds", time.monotonic() - start, "s")
    time.sleep(5)
    with open(os.path.join(ROOT, "bench/vmm_memory.py")) as f:
        lines = [l.split() for l in inside(engine, "python3 - <<'SCRIPT'\n%s\nSCRIPT" % f.read()).splitlines() if l.startswith("vmm ")]
    figures("footprint.vmm", [int(l[2]) for l in lines], "KiB")
    figures("footprint.guest", [int(l[3]) for l in lines], "KiB")
    figure("footprint.vmm.count", len(lines), "count")

    sizes = []
    for microvm in microvms[:10]:
        engine.suspend(microvm)
        sizes.append(disk_bytes(engine, "%s/microvms/%s" % (STATE, microvm["microvmId"].replace("microvm-", ""))))
    figures("footprint.suspended", sizes, "bytes")
    figure("footprint.suspended.share", percentile(sizes, 50) * 100.0 / (VISIBLE_MIB << 20), "percent")
    for microvm in microvms:
        engine.terminate(microvm)
    for microvm in microvms:
        engine.wait_gone(microvm)
    subprocess.run([STASIS, "down"], check=False, stdout=sys.stderr)
    return 1 if failures or len(lines) != CLONES else 0


if __name__ == "__main__":
    sys.exit(main())
