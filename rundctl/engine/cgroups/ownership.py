"""Who has which slot of a cgroup pool, on disk. Knows nothing of cgroups; the kernel's directories follow what is decided here.

``STATE/BOOT_ID/PARENT/`` (STATE is /run/rundctl/.pool) holds for each slot N::

    leases/N    symlink "PID START_TIME NONCE/CONTAINER_DIRECTORY": the slot is somebody's
    free/N      hint that it is ready; the pool is open while there is the directory
    baseline/N  counters that could not be reset when it was last given back (JSON)

and ``size`` (how many shall be free), ``made`` (parents that were made for it), ``lock`` and ``filler``. Rules: docs/adr/0006-cgroup-pool.md. In short: whoever
touches a slot holds its lease; only the holder makes or removes the hint; a lease of a dead creator is replaced or removed only under ``lock``,
and only if it still is the one that was judged.
"""

from __future__ import annotations

import time

from rundctl.engine.records import store
from rundctl.errors import HostError, StateError
from rundctl.host import files
from rundctl.host.machine import boot_id
from rundctl.host.pidfd import start_time
from rundctl.lean import json, os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = "/run/rundctl/.pool"
_OWN_FILES = ("size", "made", "log", "filler", "lock")  # the lock is the last to go


class Owner:
    """What a lease says: its creator and, unless a filler has it, the container it is for."""

    __slots__ = ("directory", "pid", "start_time")

    def __init__(self, text: str) -> None:
        words, slash, rest = text.partition("/")
        pid, started, _nonce = words.split(" ")
        self.pid = int(pid)
        self.start_time = int(started)
        self.directory = slash + rest

    def lives(self) -> bool:
        """Whether the creator does."""
        return start_time(self.pid) == self.start_time


class Pool:
    """The slots below one parent. No method waits, but for `lock`; OSError if the state cannot be written."""

    __slots__ = ("directory",)

    def __init__(self, directory: str) -> None:
        self.directory = directory

    @classmethod
    def of(cls, parent: str, state: str = STATE) -> Pool:
        """The pool of a parent cgroup, in this boot: leases mean nothing after it, and /run need not be a tmpfs."""
        return cls(f"{state}/{boot_id()}/{encode(parent)}")

    @property
    def parent(self) -> str:
        """Path of the parent cgroup."""
        return decode(os.path.basename(self.directory))

    def is_of_this_boot(self) -> bool:
        """Whether its leases mean anything."""
        return os.path.basename(os.path.dirname(self.directory)) == boot_id()

    def exists(self) -> bool:
        """Whether it is open, or still has leases."""
        return os.path.isdir(self.directory)

    def is_open(self) -> bool:
        """Whether `upkeep` made it and `drain` did not end it."""
        return os.path.isdir(f"{self.directory}/free")

    def size(self) -> int:
        """How many slots shall be free; 0 once it is drained."""
        with suppress(FileNotFoundError, ValueError), open(f"{self.directory}/size", encoding="utf-8") as file:
            return int(file.read()) if self.is_open() else 0
        return 0

    def free(self) -> list[int]:
        """Slots that are said to be ready, in no order."""
        return _numbers(f"{self.directory}/free")

    def leased(self) -> list[int]:
        """Slots that are somebody's, in no order."""
        return _numbers(f"{self.directory}/leases")

    def lease(self, number: int, container_directory: str = "") -> str | None:
        """Take one slot, ready or not: the lease's text, None if it is somebody's, or the pool is gone."""
        text = lease_text(container_directory)
        try:
            os.symlink(text, f"{self.directory}/leases/{number}")
        except (FileExistsError, FileNotFoundError):
            return None
        return text

    def text(self, number: int) -> str | None:
        """The lease of a slot; None if it is nobody's."""
        try:
            return os.readlink(f"{self.directory}/leases/{number}")
        except FileNotFoundError:
            return None

    def hint(self, number: int) -> bool:
        """Say that a slot of ours is ready; False if the pool is no longer open."""
        try:
            os.close(os.open(f"{self.directory}/free/{number}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            return False
        return True

    def unhint(self, number: int) -> bool:
        """Say that a slot of ours is not ready (any more); False if nobody said it was."""
        try:
            os.unlink(f"{self.directory}/free/{number}")
        except FileNotFoundError:
            return False
        return True

    def offer(self, number: int) -> bool:
        """Give a slot of ours, ready as it is, to whoever wants it; False if there are enough, or the pool is no longer open: then it still is ours."""
        with suppress(FileNotFoundError), self.lock():  # so that not two at once make the last one
            if len(self.free()) < self.size() and self.hint(number):
                self.drop(number)
                return True
        return False

    def drop(self, number: int) -> None:
        """End a lease of ours: what others may end too, under `lock` only."""
        files.unlink(f"{self.directory}/leases/{number}")

    def lock(self) -> files.Lock:
        """For a ``with`` block in which leases of others may be judged. FileNotFoundError if the pool is gone."""
        return files.Lock(f"{self.directory}/lock")

    def take_over(self, number: int) -> str | None:
        """Under `lock`: make an orphan's slot ours; the new lease's text, None if it is no orphan."""
        text = self.text(number)
        if text is None or not is_orphan(text):
            return None
        ours = lease_text("")
        files.replace_link(f"{self.directory}/leases/{number}", ours)
        return ours

    def baseline(self, number: int) -> dict[str, str]:
        """Counters as they were when the slot was given back last, by file; empty for a new slot."""
        with suppress(FileNotFoundError), open(f"{self.directory}/baseline/{number}", encoding="utf-8") as file:
            return dict(json.load(file))
        return {}

    def set_baseline(self, number: int, counters: dict[str, str]) -> None:
        """Remember them; with none the slot counts as new."""
        path = f"{self.directory}/baseline/{number}"
        if counters:
            with suppress(FileNotFoundError):
                files.replace(path, json.dumps(counters).encode(), durable=False)
        else:
            files.unlink(path)

    def made(self) -> list[tuple[str, str]]:
        """(hierarchy's directory, path) of the parents that were made for the pool, topmost first."""
        with suppress(FileNotFoundError), open(f"{self.directory}/made", encoding="utf-8") as file:
            return [(top, path) for top, _, path in (line.rstrip("\n").partition("\t") for line in file)]
        return []

    def add_made(self, hierarchy: str, paths: list[str]) -> None:
        """Remember parents that were made, so that the pool's end can remove them."""
        if paths:
            with open(f"{self.directory}/made", "a", encoding="utf-8") as file:
                file.write("".join(f"{hierarchy}\t{path}\n" for path in paths))

    def open(self, size: int) -> None:
        """Make it, or open it again, with this size."""
        while True:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError), self.lock():  # a drain may remove it before we have the lock
                for name in ("leases", "baseline", "free"):
                    os.makedirs(f"{self.directory}/{name}", mode=0o700, exist_ok=True)
                self.set_size(size)
                return

    def set_size(self, size: int) -> None:
        """How many slots shall be free from now on: with 0 what is returned is removed."""
        with suppress(FileNotFoundError):
            files.replace(f"{self.directory}/size", str(size).encode(), durable=False)

    def shut(self) -> bool:
        """Begin its end: nothing is leased from it or returned to it any more. False while hints are left, which the caller removes first."""
        try:
            os.rmdir(f"{self.directory}/free")
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def is_over(self) -> bool:
        """Under `lock`: whether it is shut and has no leases any more, nor can get any."""
        if self.is_open():
            return False
        for name in _names(f"{self.directory}/leases"):
            if not name.isdigit():  # what a reclaimer that was killed left: without the lock there is none
                files.unlink(f"{self.directory}/leases/{name}")
        try:
            os.rmdir(f"{self.directory}/leases")
        except FileNotFoundError:
            return True
        except OSError:  # there is one
            return False
        return True

    def forget(self) -> None:
        """Under `lock`: remove all that is left of one that is over."""
        for name in _names(f"{self.directory}/baseline"):
            files.unlink(f"{self.directory}/baseline/{name}")
        with suppress(OSError):
            os.rmdir(f"{self.directory}/baseline")
        for name in _OWN_FILES:
            files.unlink(f"{self.directory}/{name}")
        for directory in (self.directory, os.path.dirname(self.directory)):
            with suppress(OSError):  # other pools are in the second
                os.rmdir(directory)


def pools(state: str = STATE) -> list[Pool]:
    """All of this boot, by parent."""
    directory = f"{state}/{boot_id()}"
    with suppress(FileNotFoundError):
        return [Pool(f"{directory}/{name}") for name in sorted(os.listdir(directory))]
    return []


def earlier_boots(state: str = STATE) -> Iterator[str]:
    """Directories that no boot will look into again."""
    with suppress(FileNotFoundError):
        for name in os.listdir(state):
            if name != boot_id():
                yield f"{state}/{name}"


def lease_text(container_directory: str) -> str:
    """A lease of ours, as no other was or will be."""
    pid = os.getpid()
    return f"{pid} {start_time(pid)} {time.monotonic_ns()}{container_directory}"


def is_orphan(text: str) -> bool:
    """Whether nobody owns a lease: its creator is dead, and no container's record has it.

    The creator is asked first: once it is dead no new record can come. A record that cannot be read, or is not believed, may have it.
    """
    owner = Owner(text)
    if owner.lives():
        return False
    if not owner.directory:
        return True
    try:
        container = store.read(owner.directory)
    except (StateError, HostError, OSError):
        return False
    return container is None or container.record.get("cgroups", {}).get("lease") != text


def encode(parent: str) -> str:
    """A parent's path as a file's name."""
    return parent.replace("%", "%25").replace("/", "%2F")


def decode(name: str) -> str:
    """The path that `encode` was given."""
    return name.replace("%2F", "/").replace("%25", "%")


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _numbers(directory: str) -> list[int]:
    return [int(name) for name in _names(directory) if name.isdigit()]
