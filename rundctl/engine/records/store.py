"""Containers on disk: ``ROOT/ID/record.json`` holds facts; status is derived from what lives (docs/adr/0003-process-model.md)."""

from __future__ import annotations

import errno
import fcntl
import time

from rundctl.engine.records import trust
from rundctl.errors import DamagedError, HostError, StateError, UsageError, printable, words
from rundctl.host import interruption, patience
from rundctl.host.files import is_path_of, replace, unlink
from rundctl.host.machine import boot_id
from rundctl.host.pidfd import Process, start_time
from rundctl.lean import json, os
from rundctl.lean.contextlib import ExitStack, contextmanager, suppress
from rundctl.oci import identity
from rundctl.types import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

DEFAULT_ROOT = "/run/rundctl"
LOCK_TIMEOUT_S = 60.0
_ELSEWHERE = f"{DEFAULT_ROOT}/{identity.ELSEWHERE}"
_NEW, _OLD = ".new:", ".old:"  # with a colon, which no id holds
_NAME_MAX = 255
_RECORD = "record.json"
_SAID_MAX = 16 * 1024  # bytes of a log's end, which LAST_SIZE of native/shim/log.c is too
_LINE_MAX = 1024
# kernel/panic.c and arch/x86/kernel/dumpstack.c of Linux; native/agent/log.c
_PANIC = "Kernel panic - not syncing: "
_PANIC_END = "---[ end "
_OOPS = " [#"
_AGENT = "] rundctl agent: "
_SUDDEN = ("qemu", "virtiofsd", "oom", "agent", "internal")  # reasons of an exit record
_LOCK_POLL_S = 0.01


class Container:
    """One container: where it lies and what was recorded of it."""

    __slots__ = ("directory", "record")

    def __init__(self, directory: str, record: dict[str, Any]) -> None:
        self.directory = directory
        self.record = record

    @property
    def id(self) -> str:
        """The container's id."""
        return str(self.record["id"])

    def path(self, name: str) -> str:
        """A file of the container's directory."""
        return f"{self.directory}/{name}"

    def save(self) -> None:
        """Replace the record atomically."""
        replace(self.path(_RECORD), json.dumps(self.record).encode(), durable=False)

    def set_shim(self, pid: int) -> None:
        """Record the shim. StateError if it has ended already."""
        started = start_time(pid)
        if started is None:
            raise StateError(f"the shim of container {self.id} ended at once", hint=f"see {self.path('qemu.log')}")
        self.record["shim"] = {"pid": pid, "start_time": started}
        self.save()

    def set_cgroups(self, facts: dict[str, Any]) -> None:
        """Record that the container's cgroups are others than the claim said."""
        self.record["cgroups"] = facts
        self.save()

    def shim(self) -> Process | None:
        """The shim, held; None if there is none (any more)."""
        shim = self.record.get("shim")
        if shim is None or self.record["boot_id"] != boot_id():
            return None
        return Process.open(shim["pid"], shim["start_time"])

    def _creator_lives(self) -> bool:
        creator = self.record["creator"]
        return bool(self.record["boot_id"] == boot_id() and start_time(creator["pid"]) == creator["start_time"])

    def creator(self) -> Process | None:
        """The call that makes it, held; None if it has ended."""
        creator = self.record["creator"]
        return Process.open(creator["pid"], creator["start_time"]) if self.record["boot_id"] == boot_id() else None

    def status(self) -> Status:
        """Derive the status: from the shim's life, its marks ``paused`` and ``started`` and, before the commit, the creator's life."""
        return self.seen()[0]

    def seen(self) -> tuple[Status, int]:
        """Status, and the shim's pid if it lives, else 0: both of one moment. While it is created 0, too: a shim that begins shows the host's root."""
        if not self.record.get("committed"):
            if self._creator_lives():
                return Status.CREATING, 0
            fresh = read(self.directory)  # it may have committed, and ended, since the record was read
            if fresh is None or not fresh.record.get("committed"):
                return Status.STOPPED, 0
            self.record = fresh.record
        pid = self.pid()
        if not pid:
            return Status.STOPPED, 0
        if os.path.exists(self.path("paused")):
            return Status.PAUSED, pid
        return Status.RUNNING if os.path.exists(self.path("started")) else Status.CREATED, pid

    def pid(self) -> int:
        """Host pid of the shim while it lives, else 0."""
        shim = self.record.get("shim")
        alive = shim and self.record["boot_id"] == boot_id() and start_time(shim["pid"]) == shim["start_time"]
        return int(shim["pid"]) if shim and alive else 0

    def exit_record(self) -> dict[str, str]:
        """What the shim wrote before it ended (``code``, ``reason``, ``detail`` ...); empty if it was killed."""
        try:
            with open(self.path("exit"), encoding="utf-8", errors="replace") as file:
                return dict(printable(line.rstrip("\n")).split("=", 1) for line in file if "=" in line)
        except FileNotFoundError:
            return {}

    def sudden_end(self, ending: dict[str, str] | None = None) -> str:
        """Why the VM ended before its container did; empty if it did not, or if its shim was killed and could not say. ``ending``: its `exit_record`."""
        ending = self.exit_record() if ending is None else ending
        if ending.get("reason") not in _SUDDEN:
            return ""
        return ": ".join(filter(None, (ending.get("detail", ""), self._panic())))

    def last_words(self) -> str:
        """Why the guest's kernel panicked, else what QEMU, a helper or the agent said last; a line of plain characters, for a guest can have made it up."""
        others = [line for line in self._said() if not line.startswith("[") or _AGENT in line]
        return self._panic() or next(reversed(others), "")

    def _panic(self) -> str:
        said = self._said()
        reasons = [line.partition(_PANIC)[2] for line in said if _PANIC in line and _PANIC_END not in line]
        if not reasons:
            return ""
        oopses = [line.partition("] ")[2] for line in said if _OOPS in line]
        return f"the guest's kernel panicked: {reasons[-1]}" + (f" ({oopses[0]})" if oopses else "")

    def _said(self) -> list[str]:
        """The last lines of what QEMU and its helpers said, and of the guest's console, which begin with a time in brackets."""
        try:
            with open(self.path("qemu.log"), "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _SAID_MAX))
                text = log.read(_SAID_MAX).decode("ascii", errors="replace")
        except OSError:
            return []
        lines = (printable(line.strip()) for line in text.splitlines())
        return [line[-_LINE_MAX:] for line in lines if line]

    def not_running(self) -> StateError:
        """The error, in runc's words, for a verb that needs it to run."""
        return StateError("container not running", hint=self.sudden_end())


def claim(held: ExitStack, root: str, container_id: str, facts: dict[str, Any]) -> Container:
    """Take an id: a directory with a first record, locked until ``held`` ends.

    The directory is filled under a temporary name and renamed: rename(2) fails if the id's directory exists and is not empty,
    so nobody ever sees one without a record. StateError if the id is in use, HostError if the host refuses.
    """
    final = f"{root}/{container_id}"
    try:
        container, lock = _claim(root, container_id, final, facts)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _in_use(container_id) from error
        raise HostError(f"make container directory {final}: {words(error)}") from error
    held.callback(os.close, lock)
    return container


def _claim(root: str, container_id: str, final: str, facts: dict[str, Any]) -> tuple[Container, int]:
    temporary = f"{root}/{_NEW}{os.getpid()}"
    _remove_tree(temporary)  # an earlier process of our pid may have been killed
    os.makedirs(temporary, mode=0o700)
    lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    container = Container(temporary, {})
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        creator = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
        container.record = {
            "id": container_id,
            "boot_id": boot_id(),
            "creator": creator,
            "created": time.time(),
            **facts,
        }
        container.save()
        os.rename(temporary, final)
        container.directory = final
        _link_elsewhere(root, container_id)
    except BaseException:
        _remove_tree(container.directory)
        os.close(lock)
        raise
    return container, lock


def _in_use(container_id: str) -> StateError:
    return StateError(f"container with given ID already exists: {container_id}", hint=f"rundctl delete {container_id}")


def make_root(root: str) -> str:
    """Make the directory of all containers, closed to others; returns its absolute path. HostError if that fails, or others can write to it."""
    try:
        os.makedirs(root, mode=0o711, exist_ok=True)
        with ExitStack() as opened:
            trust.directory(opened, root)
    except OSError as error:
        raise HostError(f"make root directory {root}: {words(error)}", hint="rundctl needs root") from error
    return os.path.abspath(root)


def check_free(root: str, container_id: str) -> None:
    """StateError if the id is in use, UsageError if it is too long: said before anything is spent on it; ``claim`` decides."""
    longest = _NAME_MAX if _is_default(root) else _NAME_MAX - len(f"@{root_name(root)}")
    if len(container_id) > longest:
        raise UsageError(f"container ID is longer than {longest} characters, the most that this --root allows")
    if os.path.exists(f"{root}/{container_id}/{_RECORD}"):
        raise _in_use(container_id)


def root_name(root: str) -> str:
    """A name for a root that is not the default one, else empty. By inode: it cannot hold a slash, and two spellings of one root are one."""
    if _is_default(root):
        return ""
    info = os.stat(root)
    return f"{info.st_dev:x}-{info.st_ino:x}"


def _elsewhere_link(root: str, container_id: str) -> str:
    return f"{_ELSEWHERE}/{container_id}@{root_name(root)}"


def _is_default(root: str) -> bool:
    return root == DEFAULT_ROOT or os.path.realpath(root) == os.path.realpath(DEFAULT_ROOT)


def _link_elsewhere(root: str, container_id: str) -> None:
    if _is_default(root):
        return
    os.makedirs(_ELSEWHERE, mode=0o711, exist_ok=True)
    temporary = f"{_ELSEWHERE}/{_NEW}{os.getpid()}"  # short: the link's own name may be as long as names can be
    unlink(temporary)  # an earlier process of our pid may have been killed
    os.symlink(os.path.realpath(root), temporary)
    os.rename(temporary, _elsewhere_link(root, container_id))


def _unlink_elsewhere(root: str, container_id: str) -> None:
    """Once the container's directory is away; by then the id may be another's, who has linked it or is about to."""
    directory = f"{root}/{container_id}"
    if _is_default(root) or os.path.exists(directory):
        return
    unlink(_elsewhere_link(root, container_id))
    if os.path.exists(directory):
        _link_elsewhere(root, container_id)


def _roots_elsewhere(container_id: str, doubts: list[str]) -> list[str]:
    """Those that are still the directories that they were; ``doubts`` gets a line for each that others may have made anew."""
    try:
        names = sorted(os.listdir(_ELSEWHERE))
    except FileNotFoundError:
        return []
    roots = []
    for name in names:
        if name.rpartition("@")[0] == container_id:
            # A delete was faster, or the root was removed as a whole.
            with ExitStack() as opened, suppress(FileNotFoundError, NotADirectoryError):
                root = os.readlink(f"{_ELSEWHERE}/{name}")
                try:
                    info = os.fstat(trust.walk(opened, root))
                except HostError as error:
                    doubts.append(error.message)
                    continue
                if f"{info.st_dev:x}-{info.st_ino:x}" == name.rpartition("@")[2]:
                    roots.append(root)
    return roots


def load(root: str | None, container_id: str) -> Container:
    """Find a container; without ``root`` also one that was made under another root than the default one.

    podman's clean-up calls ``delete`` without the runtime's flags. StateError if it does not exist, DamagedError if its record cannot be read, HostError
    if it is not believed, UsageError if it is no id.
    """
    identity.container_id(container_id)
    doubts: list[str] = []
    for candidate in (root,) if root else (DEFAULT_ROOT, *_roots_elsewhere(container_id, doubts)):
        container = read(f"{candidate}/{container_id}")
        if container is not None:
            return container
    hint = "; ".join(doubts) or "rundctl list shows those that do"
    raise StateError(f"container {container_id!r}: container does not exist", hint=hint)


def read(directory: str) -> Container | None:
    """The container of a directory; None if there is none. DamagedError if its record is damaged, HostError if others may have written it."""
    root, _, name = directory.rpartition("/")
    path = f"{directory}/{_RECORD}"
    with ExitStack() as opened:
        try:
            above = trust.directory(opened, root or "/")
            record = trust.file(opened, _RECORD, trust.directory(opened, name, above, directory), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            with open(record, "rb", closefd=False) as file:
                found = json.load(file)
            if isinstance(found, dict) and "id" in found:
                return Container(directory, found)
            reason = "it is not a record"
        except ValueError as error:
            reason = str(error)
    raise DamagedError(directory, f"{path} is damaged: {reason}", hint=f"rundctl delete --force {name}")


def list_all(root: str | None, warn: Callable[[str], None]) -> Iterator[Container]:
    """All containers of a root, by id; of those whose record is damaged, not believed or missing ``warn`` is told, the last in runc's words."""
    root = root or DEFAULT_ROOT
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    for name in names:
        try:
            container = None if ":" in name else read(f"{root}/{name}")
        except (DamagedError, HostError) as error:
            warn(str(error))
            continue
        if container is not None:
            yield container
        elif ":" not in name and name not in identity.RESERVED and os.path.isdir(f"{root}/{name}"):
            warn(f"load container {name}: container does not exist")


@contextmanager
def locked(container: Container, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold a container against other verbs that change it, with its record read anew.

    StateError if it was deleted meanwhile, or is still locked when the time is over.
    """
    try:
        fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _just_deleted(container) from error
    try:
        _wait_for_lock(fd, container, time.monotonic() + patience.seconds(timeout_s))
        fresh = read(container.directory) if is_path_of(fd, container.directory) else None
        if fresh is None:
            raise _just_deleted(container)
        container.record = fresh.record
        yield
    finally:
        os.close(fd)


def _wait_for_lock(fd: int, container: Container, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StateError(f"container {container.id} is busy", hint="another rundctl call works on it") from None
            with interruption.allowed():
                time.sleep(_LOCK_POLL_S)
        else:
            return


def _just_deleted(container: Container) -> StateError:
    return StateError(f"container {container.id!r}: container does not exist", hint="it was just deleted")


def remove(container: Container) -> None:
    """Forget a container: its directory is renamed first, so that a half-removed one is never seen, nor one that is not found without ``--root``."""
    root, _, container_id = container.directory.rpartition("/")
    trash = f"{root}/{_OLD}{os.getpid()}"
    _remove_trash(root, trash)
    os.rename(container.directory, trash)
    _unlink_elsewhere(root, container_id)
    _remove_tree(trash)
    sweep(root)


def sweep(root: str | None) -> None:
    """Remove what calls that were killed in the middle of a claim or a removal have left."""
    root = root or DEFAULT_ROOT
    for name in os.listdir(root) if os.path.isdir(root) else ():
        owner = name.removeprefix(_NEW).removeprefix(_OLD)
        if owner != name and owner.isdigit() and start_time(int(owner)) is None:
            _remove_trash(root, f"{root}/{name}")
    for name in os.listdir(_ELSEWHERE) if os.path.isdir(_ELSEWHERE) else ():
        owner = name.removeprefix(_NEW)
        if owner != name and owner.isdigit() and start_time(int(owner)) is None:
            unlink(f"{_ELSEWHERE}/{name}")


def _remove_trash(root: str, trash: str) -> None:
    """What is half removed, or half made; its link goes first, while the record still tells whose it was."""
    with suppress(DamagedError, HostError):
        left = read(trash)
        if left is not None:
            _unlink_elsewhere(root, left.id)
    _remove_tree(trash)


def _remove_tree(directory: str) -> None:
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except FileNotFoundError:
        pass
