"""What this host is: the boot it is in, its kernel's release, its processor, its memory."""

from __future__ import annotations

from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.host.memo import Memo

VIRTUALISATION = {"vmx", "svm"}  # flags of the processor
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "bugs")
_boot_id: list[str] = []


def boot_id() -> str:
    """The host's boot id (random(4)), read once: pids and start times mean nothing after a reboot."""
    if not _boot_id:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _boot_id.append(file.read().strip())
    return _boot_id[0]


def kernel() -> tuple[int, int]:
    """Version of the host's kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor.partition("-")[0])


def memory_mib() -> int:
    """All of the host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def known(memo: Memo) -> str | None:
    """Identity of kernel and processor, if it was read since the host booted (a processor does not change while it runs)."""
    kept = _kept(memo)
    return None if kept is None else str(kept["identity"])


def virtualises(memo: Memo) -> bool:
    """Whether the processor can run guests itself (Intel's VMX, AMD's SVM), as was read with what is `known`."""
    kept = _kept(memo)
    return kept is not None and bool(kept["virtualises"])


def _kept(memo: Memo) -> dict[str, Any] | None:
    kept = memo.recall("host")
    whole = isinstance(kept, dict) and kept.get("boot") == boot_id() and "virtualises" in kept
    return kept if whole else None


def examine(memo: Memo) -> str:
    """Read it, and remember. /proc/cpuinfo takes tens of milliseconds on a host with many processors."""
    import hashlib

    fields = [line for line in _first_processor() if line.partition(":")[0].strip() in _CPU_FIELDS]
    # The release alone is the same for all of a distribution's builds of it: the version tells them apart.
    build = hashlib.sha256(os.uname().version.encode()).hexdigest()[:8]
    cpu = hashlib.sha256(chr(10).join(fields).encode()).hexdigest()[:16]
    identity = f"linux-{os.uname().release}-{build} cpu-{cpu}"
    virtualises = bool(processor()[1] & VIRTUALISATION)
    memo.remember("host", {"boot": boot_id(), "identity": identity, "virtualises": virtualises})
    return identity


def processor() -> tuple[str, set[str]]:
    """Name and flags of the first processor."""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in _first_processor())}
    return fields.get("model name", "unknown"), set(fields.get("flags", "").split())


def _first_processor() -> list[str]:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16).split("\n\n", 1)[0].splitlines()
