"""The files of a cgroup that settings are written to, in both versions, and what a cgroup has in them that nobody has set.

One table, for whoever writes settings (host/cgroup_settings.py) and for whoever takes them back. A kernel need not have every file: a missing one has
nothing to be reset. Sources: Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst, scheduler/sched-bwc.rst of Linux 6.18.
"""

from __future__ import annotations

from rundctl.lean import os

_BUFFER = 1 << 16
_LINES_MAX = 256  # of a file of numbers; Linux 6.18's memory.stat has some 60
_DIGITS = 20  # of NUMBER_MAX
NUMBER_MAX = 2**64 - 1
PER_DEVICE = "per device"  # one line a device, ``MAJOR:MINOR value``
INHERITED = "inherited"  # what the parent has

# (controller or "": every hierarchy, file, what a new cgroup has in it), in an order in which all can be reset: what bounds another file comes after that file.
V1: tuple[tuple[str, str, str], ...] = (
    ("memory", "memory.memsw.limit_in_bytes", "-1"),
    ("memory", "memory.limit_in_bytes", "-1"),
    ("memory", "memory.soft_limit_in_bytes", "-1"),
    ("memory", "memory.swappiness", INHERITED),
    ("cpu", "cpu.idle", "0"),
    ("cpu", "cpu.shares", "1024"),
    ("cpu", "cpu.cfs_burst_us", "0"),
    ("cpu", "cpu.cfs_quota_us", "-1"),
    ("cpu", "cpu.cfs_period_us", "100000"),
    ("cpuset", "cpuset.cpus", INHERITED),
    ("cpuset", "cpuset.mems", INHERITED),
    ("blkio", "blkio.weight", "500"),
    ("blkio", "blkio.weight_device", PER_DEVICE),
    ("blkio", "blkio.bfq.weight", "100"),
    ("blkio", "blkio.bfq.weight_device", PER_DEVICE),
    ("blkio", "blkio.throttle.read_bps_device", PER_DEVICE),
    ("blkio", "blkio.throttle.write_bps_device", PER_DEVICE),
    ("blkio", "blkio.throttle.read_iops_device", PER_DEVICE),
    ("blkio", "blkio.throttle.write_iops_device", PER_DEVICE),
    ("memory", "memory.oom_control", "0"),
    ("memory", "memory.kmem.limit_in_bytes", "-1"),
    ("memory", "memory.kmem.tcp.limit_in_bytes", "-1"),
    ("memory", "memory.move_charge_at_immigrate", "0"),
    ("cpu", "cpu.rt_runtime_us", "0"),
    ("cpu", "cpu.rt_period_us", "1000000"),
    ("cpu", "cpu.uclamp.min", "0.00"),
    ("cpu", "cpu.uclamp.max", "max"),
    ("cpuset", "cpuset.cpu_exclusive", "0"),
    ("cpuset", "cpuset.mem_exclusive", "0"),
    ("cpuset", "cpuset.mem_hardwall", "0"),
    ("cpuset", "cpuset.memory_migrate", "0"),
    ("cpuset", "cpuset.memory_spread_page", "0"),
    ("cpuset", "cpuset.memory_spread_slab", "0"),
    ("cpuset", "cpuset.sched_load_balance", "1"),
    ("cpuset", "cpuset.sched_relax_domain_level", "-1"),
    ("pids", "pids.max", "max"),
    ("freezer", "freezer.state", "THAWED"),
    ("net_cls", "net_cls.classid", "0"),
    ("", "notify_on_release", INHERITED),
    ("", "cgroup.clone_children", INHERITED),
)
V2: tuple[tuple[str, str, str], ...] = (
    ("memory", "memory.swap.max", "max"),
    ("memory", "memory.max", "max"),
    ("memory", "memory.high", "max"),
    ("memory", "memory.low", "0"),
    ("memory", "memory.min", "0"),
    ("memory", "memory.oom.group", "0"),
    ("cpu", "cpu.idle", "0"),
    ("cpu", "cpu.weight", "100"),
    ("cpu", "cpu.max.burst", "0"),
    ("cpu", "cpu.max", "max 100000"),
    ("cpuset", "cpuset.cpus", ""),
    ("cpuset", "cpuset.mems", ""),
    ("pids", "pids.max", "max"),
    ("io", "io.weight", PER_DEVICE),
    ("io", "io.bfq.weight", PER_DEVICE),
    ("io", "io.max", PER_DEVICE),
    ("memory", "memory.swap.high", "max"),
    ("memory", "memory.zswap.max", "max"),
    ("memory", "memory.zswap.writeback", "1"),
    ("cpu", "cpu.uclamp.min", "0.00"),
    ("cpu", "cpu.uclamp.max", "max"),
    ("cpuset", "cpuset.cpus.partition", "member"),
    ("cpuset", "cpuset.cpus.exclusive", ""),
    ("cgroup", "cgroup.freeze", "0"),
    ("cgroup", "cgroup.max.depth", "max"),
    ("cgroup", "cgroup.max.descendants", "max"),
    ("cgroup", "cgroup.pressure", "1"),
)
_RESET = {"io.max": "rbps=max wbps=max riops=max wiops=max", "io.weight": "default", "io.bfq.weight": "default"}


def table(*, is_v2: bool) -> tuple[tuple[str, str, str], ...]:
    """The files of a version."""
    return V2 if is_v2 else V1


def defaults(*, is_v2: bool) -> dict[str, str]:
    """What each file has in a cgroup that nobody has set."""
    return {file: text for _, file, text in table(is_v2=is_v2)}


def device_reset(file: str, device: str) -> str:
    """What takes back a device's line in a file that has one a device: v1 knows 0, v2 a word of each file's own."""
    if device == "default":
        return "default 100"
    return f"{device} {_RESET.get(file, '0')}"


def device_lines(text: str) -> list[str]:
    """The devices (or ``default``) that such a file has a line for, in what was read from it."""
    return [line.split(" ", 1)[0] for line in text.splitlines() if " " in line]


def reset(directory: str, *, is_v2: bool) -> None:
    """Give a cgroup back what a new one has. OSError if the kernel refuses; files it does not have are none of ours."""
    for _, file, default in table(is_v2=is_v2):
        path = f"{directory}/{file}"
        try:
            now = read(path)
        except FileNotFoundError:
            continue
        texts = [default]
        if default is INHERITED:
            texts = [read(f"{os.path.dirname(directory)}/{file}")]
        elif default is PER_DEVICE:
            texts = _lines_to_reset(file, now, is_v2=is_v2)
        for text in texts:
            if not _says(file, now, text):
                write(path, text)


def unlike_new(directory: str, *, is_v2: bool) -> list[str]:
    """Files in which a cgroup has other than a new one: what `reset` could not give it back."""
    found = []
    for _, file, default in table(is_v2=is_v2):
        try:
            now = read(f"{directory}/{file}")
        except FileNotFoundError:
            continue
        if default is PER_DEVICE:
            same = not [line for line in now.splitlines() if line not in _NO_DEVICE]
        else:
            text = read(f"{os.path.dirname(directory)}/{file}") if default is INHERITED else default
            same = _says(file, now, text)
        if not same:
            found.append(file)
    return found


_NO_DEVICE = ("default 100", "default 500")
UNLIMITED = "9223372036854771712"  # what is shown of a limit of -1, and by some kernels of max


def _says(file: str, now: str, text: str) -> bool:
    if file == "memory.oom_control":
        return now.startswith(f"oom_kill_disable {text}\n")
    return now.strip() in (text, UNLIMITED if text == "-1" and file.startswith("memory.") else text)


def _lines_to_reset(file: str, now: str, *, is_v2: bool) -> list[str]:
    # In v1 the line "default" only shows what another file has.
    return [device_reset(file, name) for name in device_lines(now) if is_v2 or name != "default"]


def read(path: str) -> str:
    """Contents of a file, without the newline at its end. OSError as open(2) and read(2) have it: ENODEV once the cgroup is gone."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half of what open() costs, and starts do this often
    try:
        data = b"".join(iter(lambda: os.read(fd, _BUFFER), b""))
    finally:
        os.close(fd)
    return data.decode(errors="surrogateescape").rstrip("\n")


def look(path: str) -> str:
    """As `read`; empty if there is no such file, or the cgroup is gone."""
    try:
        return read(path)
    except OSError:
        return ""


def numbers(text: str) -> dict[str, int]:
    """A file of lines ``KEY NUMBER``; what is none is left out. All of it may be a guest's lie: nothing grows with what it says."""
    found: dict[str, int] = {}
    for line in text.split("\n", _LINES_MAX)[:_LINES_MAX]:
        key, _, rest = line.partition(" ")
        value = number(rest)
        if value is not None and key.replace("_", "").isalnum() and key.isascii():
            found[key] = value
    return found


def number(text: str) -> int | None:
    """A number as the kernel writes it, of up to 64 bits; None for anything else, for "max" too."""
    text = text.strip()
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
    return value if value is not None and value <= NUMBER_MAX else None


def write(path: str, text: str) -> None:
    """One write, which the kernel takes whole or refuses. OSError naming the file."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode() or b"\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)
