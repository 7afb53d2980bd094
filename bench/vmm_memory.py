"""Resident memory of every VMM besides its guest's own, in KiB, one a line: "vmm <pid> <KiB> <KiB of the guest>".

Runs where the engine runs, as root. What belongs to the guest is told from the process's mappings: the run of adjoining mappings that
contains the snapshot's memory file. VMMs that wait in the pool have no such run and are left out.
"""

import glob


def mappings(pid):
    found = []
    with open("/proc/%s/smaps" % pid) as f:
        for line in f:
            parts = line.split()
            if "-" in parts[0] and not parts[0].endswith(":"):
                start, end = (int(x, 16) for x in parts[0].split("-"))
                found.append({"start": start, "end": end, "name": parts[5] if len(parts) > 5 else "", "rss": 0})
            elif parts[0] == "Rss:":
                found[-1]["rss"] = int(parts[1])
    return found


def adjoining(maps):
    """Runs of mappings without a gap between them, as lists of indices."""
    runs = []
    for i, m in enumerate(maps):
        if i > 0 and maps[i - 1]["end"] == m["start"]:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def main():
    for comm in glob.glob("/proc/[0-9]*/comm"):
        pid = comm.split("/")[2]
        try:
            with open(comm) as f:
                if f.read().strip() != "stasis-vmm":
                    continue
            maps = mappings(pid)
        except OSError:
            continue
        guest = set()
        for run in adjoining(maps):
            if any(maps[i]["name"].endswith("/memory") for i in run):
                guest.update(run)
        if guest:
            own = sum(m["rss"] for i, m in enumerate(maps) if i not in guest)
            print("vmm %s %d %d" % (pid, own, sum(maps[i]["rss"] for i in guest)))


main()
