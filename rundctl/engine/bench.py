"""What a start costs on this host: some containers, run one after the other by the installed command, for a table to paste. Cold.

The container is a program of our own, so that nothing need be installed: an ELF file of two instructions. Beside it the same bundle is run by runc,
if the host has it. All is in a workspace below RUNDCTL_HOME, which the next call sweeps should this one be killed; the template stays, as that of any start.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import struct
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import rundctl
from rundctl.engine.template import kernel_template
from rundctl.errors import HostError, RundctlError, printable
from rundctl.host import ficlone, interruption, machine, memo, patience, process
from rundctl.host.pidfd import Process, reap
from rundctl.host.workspace import Workspace
from rundctl.oci import spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rundctl.engine.settings import Settings
    from rundctl.engine.template.store import Template
    from rundctl.types import Progress

STARTS = 10
_WORKSPACE = ".bench.tmp"
_TIMEOUT_S = 120.0  # of one run, which takes seconds where all is emulated and the host busy
_PROGRAM = "exit"
_ADDRESS = 0x400000
_EXIT_0 = bytes.fromhex("31ff b83c000000 0f05")  # xor edi,edi; mov eax,60 (exit); syscall
_WORDS_MAX = 600  # of a failed run's output in an error message


@dataclass(frozen=True)
class Times:
    """Of some runs, in milliseconds: the whole call, and medians of its stages (runc tells none)."""

    median_ms: float
    min_ms: float
    max_ms: float
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What was measured, and on what. ``runc`` is None where there is none; ``runc_failed`` says why it did not run the bundle."""

    starts: int
    host: dict[str, str]
    rundctl: Times
    runc: Times | None
    runc_failed: str

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def measure(chosen: Settings, command: Sequence[str], progress: Progress) -> Report:
    """Run containers by ``command`` (rundctl's own), find or build their template first.

    HostError if a run fails, or takes more than two minutes. RundctlError if there can be no template.
    """
    began = time.monotonic()
    known = memo.of_home(chosen.home)
    template = kernel_template.ensure(chosen, known, progress)
    host = {**_software(template, time.monotonic() - began), **_hardware(), **_storage(chosen.home)}
    with (
        interruption.Held(),
        Workspace(f"{chosen.home}/{_WORKSPACE}", "measures starts, too", progress) as scratch,
    ):
        bundle = _make_bundle(scratch)
        ours = _series([*command, "--root", f"{scratch}/rundctl"], ["--timings"], bundle, progress)
        theirs, failed = _beside(scratch, bundle, progress)
    return Report(STARTS, host, ours, theirs, failed)


def _software(template: Template, took_s: float) -> dict[str, str]:
    shape, manifest = template.shape, template.manifest
    built_s = float(manifest["build_s"])
    when = "built now" if took_s >= built_s else "was there, once built"
    return {
        "rundctl": rundctl.__version__,
        "accelerator": f"{shape.accelerator.value}: {manifest['accelerator']['reason']}",
        "QEMU": f"{shape.qemu_version[0]}.{shape.qemu_version[1]}, {shape.qemu}",
        "guest's kernel": str(manifest["kernel"]),
        "VM": f"{shape.memory_mib} MiB, {shape.vcpus} vCPU",
        "template": f"{when} in {built_s:.1f} s",
    }


def _hardware() -> dict[str, str]:
    name, flags = machine.processor()
    virtual = ", in a virtual machine" if "hypervisor" in flags else ""
    return {
        "host's kernel": f"Linux {os.uname().release}",
        "distribution": _distribution(),
        "processor": f"{os.cpu_count()} x {name}{virtual}",
        "load": f"{os.getloadavg()[0]:.1f} before",
    }


def _distribution() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            found = re.search(r'^PRETTY_NAME="?([^"\n]*)', file.read(), re.MULTILINE)
    except OSError:
        found = None
    return printable(found[1]) if found else "unknown"


def _storage(home: str) -> dict[str, str]:
    return {"templates": "on a file system with reflinks" if ficlone.works_in(f"{home}/templates") else "copied"}


def _make_bundle(scratch: str) -> str:
    """A root file system with one program that ends at once, and a config.json that runc takes as well."""
    bundle = f"{scratch}/bundle"
    for name in ("proc", "sys", "dev"):
        os.makedirs(f"{bundle}/rootfs/{name}")
    with open(f"{bundle}/rootfs/{_PROGRAM}", "wb") as file:
        file.write(_program())
        os.fchmod(file.fileno(), 0o755)
    config = spec.example()
    config["process"]["args"] = [f"/{_PROGRAM}"]
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
    return bundle


def _program() -> bytes:
    """The smallest static x86-64 program there can be (elf(5)): one segment, from the file's first byte to its last."""
    header, segment = 64, 56
    size = header + segment + len(_EXIT_0)
    identity = b"\x7fELF\x02\x01\x01"
    entry = _ADDRESS + header + segment
    return b"".join(
        (
            struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, entry, header, 0, 0, header, segment, 1, 0, 0, 0),
            struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000),
            _EXIT_0,
        )
    )


def _beside(scratch: str, bundle: str, progress: Progress) -> tuple[Times | None, str]:
    """runc's times, or why there are none: it may not take this host's cgroups, and that is no fault of ours."""
    path = process.find_tool("runc")
    if path is None:
        return None, ""
    try:
        return _series([path, "--root", f"{scratch}/runc"], [], bundle, progress), ""
    except HostError as error:
        return None, error.message


def _series(command: list[str], flags: list[str], bundle: str, progress: Progress) -> Times:
    """One run that is not counted, then `STARTS` that are."""
    rows: list[tuple[float, dict[str, float]]] = []
    for number in range(STARTS + 1):
        progress(f"{os.path.basename(command[0])} run, {number} of {STARTS}")
        took_ms, printed = _run(command, flags, bundle, f"bench-{os.getpid()}-{number}")
        rows.append((took_ms, _stages(printed)))
    counted = rows[1:]
    walls = [took_ms for took_ms, _ in counted]
    stages = {name: statistics.median(row.get(name, 0.0) for _, row in counted) for name in counted[0][1]}
    return Times(statistics.median(walls), min(walls), max(walls), stages)


def _stages(printed: str) -> dict[str, float]:
    """What ``--timings`` has told, in milliseconds; its sum is the time until the container's program ran."""
    told = re.search(r"timings: ((?:\w+=[\d.]+ )+)ms", printed)
    return {name: float(ms) for name, ms in re.findall(r"(\w+)=([\d.]+)", told[1])} if told else {}


def _run(command: list[str], flags: list[str], bundle: str, container: str) -> tuple[float, str]:
    """One container: milliseconds of the whole call, and what it printed. HostError with that if it fails."""
    argv = [*command, "run", *flags, "--bundle", bundle, container]
    with open(os.devnull, "rb") as null, open(f"{bundle}/printed", "w+b") as printed:
        began = time.monotonic()
        pid = process.spawn(
            argv, stdio=(null.fileno(), printed.fileno(), printed.fileno()), environment=dict(os.environ)
        )
        try:
            code = _wait(pid)
        except BaseException:
            _remove(command, container)
            raise
        took_ms = (time.monotonic() - began) * 1e3
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    if code != 0:
        _remove(command, container)
        said = printable(" ".join(text.split())[-_WORDS_MAX:])
        why = said if code is not None else f"is not done after {patience.seconds(_TIMEOUT_S):g} s"
        raise HostError(f"measure starts: {command[0]} run: {why or f'status {code}'}", hint="rundctl doctor")
    return took_ms, text


def _wait(pid: int) -> int | None:
    """A child's exit code; None if it does not end in time. It is ended then, and so it is if we are asked to end."""
    child = Process.open(pid)
    if child is None:  # nobody else reaps it
        return reap(pid)
    with child:
        try:
            with interruption.allowed():
                ended = child.wait(patience.seconds(_TIMEOUT_S))
        except BaseException:
            child.kill()
            reap(pid)
            raise
        if not ended:
            child.kill()
        code = reap(pid)
    return code if ended else None


def _remove(command: list[str], container: str) -> None:
    """What a run that failed may have left."""
    try:
        process.run([*command, "delete", "--force", container], what=f"delete {container}", timeout_s=_TIMEOUT_S)
    except RundctlError:
        return  # there was none, or its own words have told more
