"""virtiofsd, the server of a directory by virtio-fs, in both its editions: QEMU's own in C (until 7.2, Debian 12), and its successor in Rust (Debian 13).

Either makes the directory its root in namespaces of its own, drops what capabilities it can, and filters its system calls.
"""

from __future__ import annotations

from rundctl.errors import HostError
from rundctl.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.memo import Memo

NAME = "virtiofsd"  # also the reason of an ending that is its fault
PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")  # Debian 13's virtiofsd, Debian 12's qemu-system-common
HINT = "apt-get install virtiofsd; on Debian 12 qemu-system-common has it"
_OF_C = "virtiofsd version "  # how QEMU's own begins to answer --version; the other says "virtiofsd 1.13.2"


class Daemon:
    """A virtiofsd as found: ``is_rust`` tells by which options it is called."""

    __slots__ = ("is_rust", "path", "version")

    def __init__(self, path: str, version: str, *, is_rust: bool) -> None:
        self.path = path
        self.version = version
        self.is_rust = is_rust

    def argv(self, listening: int, directory: str, *, fixed: bool, submounts: bool = False) -> list[str]:
        """Serve a directory to who connects to the socket ``listening``.

        ``fixed``: it is only read and does not change, so that the guest keeps all it has seen. Else nothing that was seen is believed a second time.
        ``submounts``: what is mounted inside is a file system of its own in the guest, as is needed where inode numbers would collide. Linux gives
        those no ACLs (fs/fuse/inode.c: SB_POSIXACL), and overlayfs does not take them as lower layer.
        """
        make = _rust if self.is_rust else _c
        return [self.path, f"--fd={listening}", *make(directory, fixed=fixed, submounts=submounts)]


def _c(directory: str, *, fixed: bool, submounts: bool) -> list[str]:
    """It cannot refuse writes: that is the mount's part. With ``timeout=0`` data may stay cached, but not beyond a change of the file's time or size."""
    caching = "cache=always" if fixed else "cache=auto,timeout=0"
    # Commas separate options, and backslashes escape (libfuse's fuse_opt.c).
    source = directory.replace("\\", "\\\\").replace(",", "\\,")
    words = ["sandbox=namespace", "xattr", "posix_acl", "log_level=err", caching]
    return ["-o", ",".join([f"source={source}", *words, *(["announce_submounts"] if submounts else [])])]


def _rust(directory: str, *, fixed: bool, submounts: bool) -> list[str]:
    """``auto`` would believe for a second. Without a cache files can be mapped shared from Linux 6.6 on, where that is allowed."""
    caching = ("--cache=always", "--readonly") if fixed else ("--cache=never", "--allow-mmap")
    announcing = "--announce-submounts" if submounts else "--no-announce-submounts"
    words = ["--sandbox=namespace", "--posix-acl", "--log-level=error", *caching, announcing]
    return [f"--shared-dir={directory}", *words]


def find(setting: str) -> str:
    """Path of the daemon: the setting's, or "" for the host's. HostError if there is none."""
    for place in (setting,) if setting else (*PLACES, NAME):
        found = process.find_tool(place)
        if found is not None:
            return found
    where = setting or f"{', '.join(PLACES)} and {':'.join(process.TOOL_DIRECTORIES)}"
    raise HostError(f"virtio-fs needs virtiofsd, and there is none: {where}", hint=HINT)


def known(path: str, memo: Memo) -> Daemon | None:
    """What was found out about this very file, None if that has yet to be done."""
    version = memo.recall(f"virtiofsd {path}", path)
    return None if version is None else _daemon(path, version)


def examine(path: str, memo: Memo) -> Daemon:
    """Ask it, and remember. HostError if it does not answer as a virtiofsd."""
    said = process.run([path, "--version"], what="ask virtiofsd for its version", hint=HINT).decode(errors="replace")
    version = said.partition("\n")[0].strip()
    if not version.startswith(NAME):
        raise HostError(f"{path}: not a virtiofsd: it says {version[:80]!r}", hint=HINT)
    memo.remember(f"virtiofsd {path}", version, path)
    return _daemon(path, version)


def _daemon(path: str, version: str) -> Daemon:
    return Daemon(path, version, is_rust=not version.startswith(_OF_C))
