"""launch: from the Run call to the first 200 of examples/python-sandbox, suspend, resume by the API, resume by a request; one at a
time and ten at a time, with the engine's own stages; and beside it, in the same run, QEMU's microvm machine restoring its own snapshot
of the same kernel, disk and application to its first answer.

    launch.run      Run call until the first 200 (the request is sent as soon as Run has answered)
    launch.suspend  Suspend call until SUSPENDED is reported
    launch.wake     a request to a suspended microVM until its 200
    launch.resume   Resume call until RUNNING is reported
    launch.vs_qemu  how many times longer QEMU's restore takes until the first answer (medians)

BENCH_LAUNCHES (200) launches in all.
"""

import collections
import concurrent.futures
import os
import subprocess
import sys
import time

from engine import ROOT, STASIS, Engine, Failure, figure, figures, machine_line, percentile

EXAMPLE = os.path.join(ROOT, "examples/python-sandbox")
LAUNCHES = int(os.environ.get("BENCH_LAUNCHES", "200"))
CYCLES = min(30, LAUNCHES)


class Results:
    def __init__(self):
        self.times = collections.defaultdict(list)
        self.failures = 0

    def timed(self, name, action):
        start = time.monotonic()
        value = action()
        self.times[name].append(time.monotonic() - start)
        return value


def launch(engine, arn, results, name):
    def first_answer():
        microvm = engine.run(arn)
        token = engine.token(microvm)
        status, body = engine.get(microvm, token)
        if status != 200:
            engine.terminate(microvm)
            raise Failure("first answer: %d %r" % (status, body[:200]))
        return microvm, token
    return results.timed(name, first_answer)


def one(engine, arn, results, name, cycle):
    try:
        microvm, token = launch(engine, arn, results, name)
    except (Failure, OSError) as e:
        print("failure: %s" % e, file=sys.stderr)
        results.failures += 1
        return None
    try:
        if cycle:
            engine.get(microvm, token, "/run", "POST", "x = 1")
            results.timed("launch.suspend", lambda: engine.suspend(microvm))
            status, body = results.timed("launch.wake", lambda: engine.get(microvm, token, "/run", "POST", "x"))
            if status != 200 or b'"1"' not in body:
                raise Failure("after the wake: %d %r" % (status, body[:200]))
            results.timed("launch.suspend", lambda: engine.suspend(microvm))
            results.timed("launch.resume", lambda: engine.resume(microvm))
        return engine.stages(microvm)
    except (Failure, OSError) as e:
        print("failure: %s" % e, file=sys.stderr)
        results.failures += 1
        return None
    finally:
        engine.terminate(microvm)
        engine.wait_gone(microvm)


def main():
    engine = Engine()
    arn = engine.image("bench", EXAMPLE, "--memory", "512", "--hooks", "ready,validate,run", "--hook-port", "8080")
    machine_line(engine)
    results, stages = Results(), collections.defaultdict(list)
    for i in range(3):  # not counted: the first launches fill the page cache
        one(engine, arn, Results(), "launch.run", True)
    tens = LAUNCHES // 4 // 10 * 10
    for i in range(LAUNCHES - tens):
        for stage in one(engine, arn, results, "launch.run", i < CYCLES) or []:
            stages[stage["name"]].append(stage["durationUs"])
    engines = [Engine() for _ in range(10)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for _ in range(tens // 10):
            list(pool.map(lambda e: one(e, arn, results, "launch.run10", False), engines))
    for name in ("launch.run", "launch.run10", "launch.suspend", "launch.wake", "launch.resume"):
        if results.times[name]:
            figures(name, results.times[name], "ms", 1000.0)
    for name in sorted(stages):
        figures("launch.stage." + name, [float(v) for v in stages[name]], "us")
    figure("launch.launches", LAUNCHES, "count")
    figure("launch.failures", results.failures, "count")
    qemu = qemu_restore(engine)
    if qemu:
        figures("launch.qemu.restore", qemu, "ms", 1000.0)
        figure("launch.vs_qemu", "%.2f" % (percentile(qemu, 50) / percentile(results.times["launch.run"], 50)), "ratio")
    subprocess.run([STASIS, "down"], check=False, stdout=sys.stderr)
    return 1 if results.failures or not qemu else 0


def qemu_restore(engine):
    """Seconds of each restore by QEMU, measured by bench/qemu_restore.py where the engine runs."""
    script = os.path.join(ROOT, "bench/qemu_restore.py")
    if engine.mode == "machine":
        with open(script) as f:
            command = [STASIS, "machine", "exec", "python3 - /var/lib/stasis <<'SCRIPT'\n%s\nSCRIPT" % f.read()]
    else:
        command = ["python3", script, "/var/lib/stasis"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    values = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("restore ")]
    if done.returncode != 0 or not values:
        print("failure: QEMU's restore could not be measured: %s" % done.stdout[-500:], file=sys.stderr)
    return values


if __name__ == "__main__":
    sys.exit(main())
