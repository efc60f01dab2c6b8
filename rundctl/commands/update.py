"""``rundctl update``."""

from __future__ import annotations

import sys

from rundctl.commands import engine
from rundctl.commands.declare import Flag, Options, Verb
from rundctl.errors import ConfigError, UsageError, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# flag: section and field of linux.resources
_COUNTS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-idle": ("cpu", "idle"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "pids-limit": ("pids", "limit"),
}
_SIGNED = ("cpu-quota", "cpu-rt-runtime", "pids-limit")
_TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
}
_UNITS = "bkmgtp"
_END = 1 << 63
_SHOWN = 60  # characters of what is wrong that fit a one-line message


def run(options: Options) -> int:
    """Hold a container to other limits."""
    from rundctl.engine.container import update

    place = options.text("resources")
    asked = _read(place) if place else _from_flags(options)
    update.update(engine.context(options), options.text("ID"), asked)
    return 0


def _from_flags(options: Options) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for table, number in ((_COUNTS, _count), (_SIZES, _size), (_TEXTS, lambda _, text: text)):
        for flag, (section, field) in table.items():
            if text := options.text(flag):
                asked.setdefault(section, {})[field] = number(flag, text)
    return asked


def _count(flag: str, text: str) -> int:
    digits = text.removeprefix("-") if flag in _SIGNED else text
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"invalid value for {flag}: {text[:_SHOWN]!r} is not a number")
    _check_size(flag, text, float(digits))
    value = int(digits.lstrip("0") or "0")
    return value if digits == text else -value


def _size(flag: str, text: str) -> int:
    """Bytes; with k, m, g, t, p (also kb, KiB ...) multiples of 1024, with a decimal point too, as runc reads them; -1: no limit."""
    if text == "-1":
        return -1
    lower = text.lower()
    number = lower.rstrip("bi" + _UNITS).rstrip()
    unit = lower[len(number) :].strip()
    plain = number.replace(".", "", 1)
    if unit not in ("", *_UNITS, *(f"{letter}{end}" for letter in _UNITS[1:] for end in ("b", "ib"))) or not (
        plain.isascii() and plain.isdigit()
    ):
        raise UsageError(f"invalid value for {flag}: invalid size: {text[:_SHOWN]!r}")
    value = float(number) * 1024 ** _UNITS.index(unit[0] if unit else "b")
    _check_size(flag, text, value)
    return int(value)


def _check_size(flag: str, text: str, value: float) -> None:
    """UsageError for what no kernel has room for."""
    if value >= _END:
        raise UsageError(f"invalid value for {flag}: expected a number up to {_END - 1}, got {text[:_SHOWN]}")


def _read(place: str) -> dict[str, Any]:
    """``linux.resources`` of a file, or of standard input (containerd's way)."""
    from rundctl.oci import bundle, validate

    name = "standard input" if place == "-" else place
    try:
        if place == "-":
            text = sys.stdin.buffer.read()
        else:
            with open(place, "rb") as file:
                text = file.read()
    except OSError as error:
        raise ConfigError(f"read resources from {place}: {words(error)}") from error
    try:
        asked: Any = bundle.parse(text)
        validate.validate({"ociVersion": "1.0.0", "linux": {"resources": asked}})
    except ConfigError as error:
        where = f"resources in {name}"
        raise ConfigError(error.message.replace("config.json", where, 1), hint=error.hint) from error
    return dict(asked)


VERB = Verb(
    "update",
    "Change the limits of a container that runs.",
    run,
    arguments=engine.ARGUMENTS,
    flags=(
        Flag(
            "--resources",
            "Read linux.resources from a file (-: standard input); other flags are then ignored.",
            short="-r",
            value="FILE",
        ),
        Flag("--memory", "Memory limit: bytes, or with k, m, g; -1 for none.", value="SIZE"),
        Flag("--memory-reservation", "Memory that is kept for the container.", value="SIZE"),
        Flag("--memory-swap", "Limit of memory and swap together, on the host; -1 for none.", value="SIZE"),
        Flag("--cpu-period", "Period of the CPU quota, in microseconds.", value="US"),
        Flag("--cpu-quota", "CPU time in each period, in microseconds; -1 for no limit.", value="US"),
        Flag("--cpu-burst", "CPU time that may be saved up, in microseconds.", value="US"),
        Flag("--cpu-share", "Weight beside other containers, 2 to 262144.", value="N"),
        Flag("--cpu-idle", "1: runs only when nobody else wants to.", value="N"),
        Flag("--cpuset-cpus", "CPUs of the host that the VM may use.", value="LIST"),
        Flag("--cpuset-mems", "Memory nodes of the host that the VM may use.", value="LIST"),
        Flag("--cpu-rt-period", "Refused: the guest's cgroup has no real-time limits.", value="US"),
        Flag("--cpu-rt-runtime", "Refused: the guest's cgroup has no real-time limits.", value="US"),
        Flag("--pids-limit", "Most processes; -1 for no limit.", value="N"),
        Flag("--blkio-weight", "Weight of block I/O on the host, 10 to 1000.", value="N"),
    ),
)
