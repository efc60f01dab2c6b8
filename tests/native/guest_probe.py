"""Stands in QEMU's place, or in that of a helper beside it, and writes down what a program there finds: descriptors, mounts, signals, volumes. Then it waits."""

import json
import os
import sys
import time
from pathlib import Path


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def volumes(number):
    root = number if "/" in number else f"/proc/self/fd/{number}"
    found = {}
    for name in sorted(os.listdir(root)):
        path = Path(root, name)
        numbered = name.isdigit()  # volumes are, and have their own names below
        if numbered:
            (path,) = path.iterdir()
        entry = {"is_file": path.is_file(), "read_only": bool(os.statvfs(path).f_flag & os.ST_RDONLY)}
        if path.is_file():
            entry["text"] = path.read_text()
        else:
            entry["tree"] = sorted(str(found_path.relative_to(path)) for found_path in path.rglob("*"))
            entry["inner_read_only"] = [bool(os.statvfs(p).f_flag & os.ST_RDONLY) for p in path.iterdir() if p.is_dir()]
        found[name] = {"name": path.name, **entry} if numbered else entry
    return found


def without_devices(number):
    """Whether no device node can be opened there, in any of them."""
    root = Path(number if "/" in number else f"/proc/self/fd/{number}")
    return all(os.statvfs(path).f_flag & os.ST_NODEV for path in [*root.glob("*/*"), *root.glob("*/*/*")])


def main():
    report, number = int(sys.argv[1]), sys.argv[2]
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    facts = {
        "descriptors": descriptors(),
        "blocked": status["SigBlk"],
        "ignored": status["SigIgn"],
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")},
        "names": [os.uname().nodename, Path("/proc/sys/kernel/domainname").read_text().strip()],
        "propagation": [
            line.split(" - ")[0].split()[6:] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ],
        "cwd": os.getcwd(),
        "volumes": volumes(number) if number != "none" else None,
        "without_devices": without_devices(number) if number != "none" else None,
    }
    os.write(report, json.dumps(facts).encode() + b"\n")
    os.close(report)
    time.sleep(1000)


main()
