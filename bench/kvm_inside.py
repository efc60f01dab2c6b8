"""Inside the counting machine: call rundctl and runc, read the clock, which counts instructions, and tell figures to the second serial port.

usage: kvm_inside.py PLAIN SAMPLED TRACED      how many times each call is counted undisturbed, sampled, and traced

Each line is a JSON object: a call with its stages, or a fact. Times and durations are nanoseconds: instructions.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kvm_perf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Measure = Callable[[str, list[str]], dict[str, object]]
    Told = Iterator[dict[str, object]]

# Of the virtual environment, whatever it is on the host: the length of a path costs instructions.
PREFIX = "/opt/rundctl"
HOME = "/var/lib/rundctl"
BUNDLES = "/bundles"
RUNDCTL = [f"{PREFIX}/bin/rundctl"]
RUNC = ["/usr/sbin/runc"]
REPORTS = "/dev/ttyS1"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "RUNDCTL_HOME": HOME, "HOME": "/root"}
_PRINTED = "/run/printed"
_PID_FILE = "/run/pid"
_TICK_NS = 10_000_000  # of proc_pid_stat(5)'s start time, from which the first stage is counted
_QUIET_S = 0.2  # until what a call has left to others is done; waiting costs nothing here
_OTHERS = {
    "nothing": ["/usr/bin/true"],  # what each figure has of its own: a process, and this one's waiting
    "python3 -I -S -c pass": ["/usr/bin/python3", "-I", "-S", "-c", "pass"],
    "qemu -version": [f"{HOME}/qemu/current/qemu-system-x86_64", "-version"],
}


class CallError(Exception):
    """A call that failed: which, its exit code, and what it printed."""


class Call:
    """One that is over: when it began and ended, and what it printed."""

    def __init__(self, began_ns: int, ended_ns: int, printed: str) -> None:
        self.began_ns = began_ns
        self.ended_ns = ended_ns
        self.printed = printed

    def told_ms(self) -> dict[str, float]:
        """Its stages as ``--timings`` tells them, milliseconds; none if it does not."""
        told = re.search(r"timings: (.*?) total=", self.printed)
        return {name: float(ms) for name, ms in re.findall(r"(\w+)=([\d.]+)", told[1])} if told else {}

    def stages(self) -> list[tuple[str, int]]:
        """Its stages, each with its end: those that it tells, and ``rest``; or ``call``, if it tells none."""
        told = self.told_ms()
        at_ns = self.began_ns // _TICK_NS * _TICK_NS
        ends = []
        for name, ms in told.items():
            at_ns += round(ms * 1e6)
            ends.append((name, at_ns))
        return [*ends, ("rest" if told else "call", self.ended_ns)]


def call(argv: list[str], recording: kvm_perf.Recording | None = None) -> Call:
    """Run a command to its end. CallError if it fails."""
    time.sleep(_QUIET_S)
    with open(os.devnull, "rb") as null, open(_PRINTED, "wb+") as printed:
        if recording:
            recording.start()
        # Right behind a tick: so the stage that begins with the process is known to the nanosecond, not to the tick.
        time.sleep((_TICK_NS - _now() % _TICK_NS) / 1e9)
        began_ns = _now()
        actions = [
            (os.POSIX_SPAWN_DUP2, source.fileno(), target) for target, source in enumerate((null, printed, printed))
        ]
        pid = os.posix_spawn(argv[0], argv, _ENVIRONMENT, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        ended_ns = _now()
        if recording:
            recording.stop()
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise CallError(f"{' '.join(argv)}: status {code}: {text}")
    return Call(began_ns, ended_ns, text)


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def say(told: list[dict[str, object]]) -> None:
    with open(REPORTS, "a", encoding="ascii") as file:
        file.writelines(json.dumps(each) + "\n" for each in told)


def count(name: str, argv: list[str]) -> dict[str, object]:
    """A call undisturbed: instructions by stage."""
    done = call(argv)
    stages = {}
    at_ns = done.began_ns
    for stage, end_ns in done.stages():
        stages[stage] = end_ns - at_ns
        at_ns = end_ns
    return {"call": name, "stages": stages}


def sample(name: str, argv: list[str]) -> dict[str, object]:
    """A call while it is looked at: samples by stage and side."""
    recording = kvm_perf.sampler()
    done = call(argv, recording)
    return {"call": name, "sides": kvm_perf.by_stage(kvm_perf.samples(recording), done.stages(), done.began_ns)}


def trace(name: str, argv: list[str]) -> dict[str, object]:
    """A call whose VM is looked at: exits by stage and reason."""
    recording = kvm_perf.tracer()
    done = call(argv, recording)
    return {"call": name, "exits": kvm_perf.by_stage(kvm_perf.exits(recording), done.stages(), done.began_ns)}


def whole(measure: Measure, runtime: list[str], container: str) -> Told:
    """``run`` of a container that ends by itself."""
    name = os.path.basename(runtime[0])
    yield measure(f"{name} run", [*runtime, "run", *_timings(name), "--bundle", f"{BUNDLES}/true", container])


def steps(measure: Measure, runtime: list[str], container: str) -> Told:
    """The same container step by step."""
    name = os.path.basename(runtime[0])
    create = ["create", *_timings(name), "--bundle", f"{BUNDLES}/sleep", "--pid-file", _PID_FILE, container]
    yield measure(f"{name} create", [*runtime, *create])
    with open(_PID_FILE, encoding="ascii") as file:
        pid = int(file.read())
    process = os.pidfd_open(pid)
    yield measure(f"{name} start", [*runtime, "start", container])
    if name == "rundctl" and measure is count:
        yield {"faults": _faults(pid)}
    yield measure(f"{name} state", [*runtime, "state", container])
    yield measure(f"{name} kill", [*runtime, "kill", container, "KILL"])
    select.select([process], [], [])
    os.close(process)
    yield measure(f"{name} delete", [*runtime, "delete", container])


def _timings(name: str) -> list[str]:
    return ["--timings"] if name == "rundctl" else []


def _faults(shim: int) -> dict[str, int]:
    """Page faults of a clone's QEMU, with all that KVM had to fetch for its guest."""
    with open(f"/proc/{shim}/task/{shim}/children", encoding="ascii") as file:
        qemu = int(file.read())
    with open(f"/proc/{qemu}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return {"minor": int(fields[7]), "major": int(fields[9])}


def template() -> dict[str, object]:
    """Build it: what was decided, and how large its device state is."""
    key = call([*RUNDCTL, "template", "build"]).printed.split()[-1]
    manifest = json.loads(call([*RUNDCTL, "template", "show", key]).printed)
    return {"accelerator": manifest["accelerator"], "state_bytes": os.path.getsize(f"{HOME}/templates/{key}/state")}


def warm(_: str, argv: list[str]) -> dict[str, object]:
    """A call that is not counted: what is done once has been done then."""
    call(argv)
    return {}


def everything(times: list[tuple[Measure, int]]) -> None:
    """All calls, so many times each way. rundctl alone has exits, for runc has no guest."""
    say([template()])
    for measure, number in [(warm, 1), *times]:
        for turn in range(number):
            for runtime in [RUNDCTL] if measure is trace else [RUNDCTL, RUNC]:
                for part in (whole, steps):
                    say(list(part(measure, runtime, f"{part.__name__}-{measure.__name__}-{turn}")))
            if measure is not trace:
                say([measure(name, argv) for name, argv in _OTHERS.items()])


def main() -> None:
    """Measure, and tell how it ended: a report without that is none."""
    try:
        everything(list(zip((count, sample, trace), map(int, sys.argv[1:]), strict=True)))
    except (CallError, OSError, RuntimeError, ValueError) as error:
        say([{"failed": f"{type(error).__name__}: {error}"}])
    else:
        say([{"done": True}])


if __name__ == "__main__":
    main()
