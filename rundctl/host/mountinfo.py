"""The mount table of this process (proc_pid_mountinfo(5)). Paths may hold any byte: they are strings with surrogate escapes, as of os.fsdecode."""

from __future__ import annotations

from rundctl.errors import HostError
from rundctl.lean import os

PATH = "/proc/self/mountinfo"
# SELinux prints these in quotes, and commas inside them as they are (selinux_sb_show_options); all else has its commas escaped.
_QUOTED = ("context=", "fscontext=", "defcontext=", "rootcontext=")


# mount(2) changes nothing about "/" then: so it is for every runtime.
ROOT_IS_NO_MOUNT = (
    "the root directory is no mount, as in a chroot into a plain directory: what is mounted cannot be kept apart"
)
ROOT_HINT = "mount --bind DIR DIR, then chroot DIR"


class Mount:
    """One line: ``root`` is the directory of the file system that is mounted at ``target``; ``options`` are those of the file system.

    ``unbindable``: of it there can be no copy.
    """

    __slots__ = ("id", "options", "root", "target", "type", "unbindable")

    def __init__(
        self,
        number: int,
        root: str,
        target: str,
        kind: str,
        options: list[tuple[str, str]],
        *,
        unbindable: bool = False,
    ) -> None:
        self.id = number
        self.root = root
        self.target = target
        self.type = kind
        self.options = options
        self.unbindable = unbindable

    def __repr__(self) -> str:
        return f"Mount({self.id}, {self.root!r}, {self.target!r}, {self.type!r}, {self.options!r})"


def read(path: str = PATH) -> list[bytes]:
    """The lines of the table, to be given to the functions below: one reading, one moment. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return file.read().split(b"\n")[:-1]


def parse(line: bytes) -> Mount:
    """One line of the table. HostError if it is none."""
    left, _, right = line.partition(b" - ")
    fields = left.split(b" ")
    rest = right.split(b" ", 2)
    if len(fields) < 6 or len(rest) != 3 or not fields[0].isdigit():
        raise HostError(f"{PATH}: not understood: {os.fsdecode(line)!r}")
    options = [_option(text) for text in _split_options(os.fsdecode(rest[2]))]
    kind, unbindable = os.fsdecode(rest[0]), b"unbindable" in fields[6:]
    return Mount(int(fields[0]), unescape(fields[3]), unescape(fields[4]), kind, options, unbindable=unbindable)


def of(fd: int, lines: list[bytes]) -> Mount | None:
    """The mount that an open file lies on, if it is one of this mount namespace; OSError as of open(2)."""
    start = b"%d " % _mount_id(fd)
    return next((parse(line) for line in lines if line.startswith(start)), None)


def at(path: str, lines: list[bytes]) -> Mount | None:
    """The mount that one sees at ``path``, if exactly that is where it is mounted; OSError if there is no such path."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = of(fd, lines)  # mounts can be stacked on one path: this is the one on top
        real = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return found if found is not None and found.target == real else None


def root_is_mount() -> bool:
    """Whether this process's root directory is where something is mounted: not so in a chroot into a plain directory. OSError as of `read`."""
    return any(line.split(b" ", 5)[4] == b"/" for line in read())


def is_mount_point(directory: str) -> bool:
    """Whether something is mounted exactly there, by a path free of links; without the table. OSError if there is no such directory."""
    ids = []
    for path in (directory, os.path.dirname(directory)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            ids.append(_mount_id(fd))
        finally:
            os.close(fd)
    return ids[0] != ids[1] or directory == "/"


def below(directory: str, lines: list[bytes]) -> str | None:
    """Where something is mounted inside a directory and can be seen there, if it is; the path must be free of links and of a slash at its end."""
    prefix = "/" if directory == "/" else f"{directory}/"
    targets = (unescape(line.split(b" ", 5)[4]) for line in lines)
    return next((target for target in targets if target.startswith(prefix) and _is_seen(target, lines)), None)


def _is_seen(target: str, lines: list[bytes]) -> bool:
    """Whether nothing that was mounted later, further up, covers it."""
    try:
        return at(target, lines) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # such as of another user's FUSE: nobody sees more, but it is there
        return True


def unescape(text: bytes) -> str:
    r"""A path with its octal escapes (``\040``) undone."""
    first, *others = text.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in others))


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == b"mnt_id":
                return int(value)
    raise HostError(f"/proc/self/fdinfo/{fd}: no mnt_id")


def _split_options(text: str) -> list[str]:
    parts: list[str] = []
    open_quote = False
    for part in text.split(","):
        if open_quote:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
        open_quote = parts[-1].startswith(_QUOTED) and parts[-1].count('"') == 1
    return parts


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, unescape(os.fsencode(value))
