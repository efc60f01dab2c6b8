"""Which QEMU there is: its path, version, newest versioned q35 machine, and the firmware files it will load. Found once, by asking it.

Lean QEMUs of our own (`qemu_build`) are in ``HOME/qemu/NAME``, and the symlink ``current`` names the default.
"""

from __future__ import annotations

from rundctl.errors import HostError
from rundctl.host import files, process
from rundctl.lean import json, os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.memo import Memo

NAME = "qemu-system-x86_64"
MANIFEST = "manifest.json"
SYSTEM = "system"  # as a setting: the host's own, whatever was built
_CURRENT = "current"
_HINT = "apt-get install qemu-system-x86"
_OLDEST = (7, 2)
_FIRMWARE = ("bios-256k.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
_MACHINE_PREFIX = "pc-q35-"


class Binary:
    """A QEMU as found: ``version`` is (major, minor), ``machine`` a versioned name such as pc-q35-7.2."""

    __slots__ = ("firmware", "machine", "path", "version")

    def __init__(self, path: str, version: tuple[int, int], machine: str, firmware: tuple[str, ...]) -> None:
        self.path = path
        self.version = version
        self.machine = machine
        self.firmware = firmware


class Choice:
    """Which QEMU is wanted: ``setting`` is "" (the default), "system" (the host's own), the name of a lean one, or a path."""

    __slots__ = ("home", "setting")

    def __init__(self, home: str, setting: str = "") -> None:
        self.home = home
        self.setting = setting


def find(choice: Choice) -> str:
    """Path of the QEMU to use; "" is the lean one that is the default, else the host's own. HostError if there is none."""
    name = choice.setting or current(choice.home) or SYSTEM
    if name == SYSTEM:
        return process.need_tool(NAME, _HINT)
    if "/" in name:
        return process.need_tool(name, _HINT)
    path = program(choice.home, name)
    if not os.access(path, os.X_OK):
        raise _unknown(choice.home, name)
    return path


def _unknown(home: str, name: str) -> HostError:
    there = ", ".join(names(home)) or "none"
    return HostError(f"no QEMU {name} in {root(home)}", hint=f"there are: {there}; rundctl qemu build")


def root(home: str) -> str:
    """Directory of the lean ones."""
    return f"{home}/qemu"


def program(home: str, name: str) -> str:
    """Path of a lean one's program."""
    return f"{root(home)}/{name}/{NAME}"


def manifest(home: str, name: str) -> dict[str, str]:
    """Of a lean one: ``version`` of its source, ``compiler``, ``sha256`` of the program. HostError if it is damaged."""
    path = f"{root(home)}/{name}/{MANIFEST}"
    try:
        with open(path, "rb") as file:
            found = json.load(file)
        return {key: found[key] for key in ("version", "compiler", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{path}: {error}", hint="rundctl qemu build") from error


def names(home: str) -> list[str]:
    """Names of the lean ones that are there."""
    try:
        found = os.listdir(root(home))
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name != _CURRENT and os.path.exists(f"{root(home)}/{name}/{MANIFEST}"))


def current(home: str) -> str:
    """Name of the lean one that is the default, "" if it is the host's own."""
    try:
        return os.readlink(f"{root(home)}/{_CURRENT}")
    except OSError:
        return ""


def make_current(home: str, name: str) -> None:
    """From now on ``name`` is the QEMU of those who name none; "system" is the host's own. HostError for what is not there."""
    link = f"{root(home)}/{_CURRENT}"
    if name == SYSTEM:
        files.unlink(link)
        return
    if name not in names(home):
        raise _unknown(home, name)
    files.replace_link(link, name)


def known(path: str, memo: Memo) -> Binary | None:
    """What was found out about this very file, None if that has yet to be done."""
    facts = memo.recall(f"qemu {path}", path)
    if facts is None or not all(map(os.path.exists, facts["firmware"])):  # files of other packages than QEMU's own
        return None
    major, minor = facts["version"]
    return Binary(path, (major, minor), facts["machine"], tuple(facts["firmware"]))


def examine(path: str, memo: Memo) -> Binary:
    """Ask the binary, and remember. HostError if it is too old or not a QEMU for this machine."""
    version = _version(process.run([path, "--version"], what="ask QEMU for its version").decode())
    if version < _OLDEST:
        raise HostError(
            f"{path}: QEMU {version[0]}.{version[1]} is too old", hint=f"{_OLDEST[0]}.{_OLDEST[1]} or newer"
        )
    machine = _newest_machine(process.run([path, "-machine", "help"], what="ask QEMU for its machines").decode(), path)
    firmware = _firmware(process.run([path, "-L", "help"], what="ask QEMU where its firmware is").decode().splitlines())
    memo.remember(f"qemu {path}", {"version": version, "machine": machine, "firmware": firmware}, path)
    return Binary(path, version, machine, tuple(firmware))


def _version(text: str) -> tuple[int, int]:
    """(7, 2) from "QEMU emulator version 7.2.22 (Debian ...)"."""
    try:
        major, minor = text.split("version ", 1)[1].split(".")[:2]
        return int(major), int(minor)
    except (IndexError, ValueError) as error:
        raise HostError(f"QEMU's version is not understood: {text[:80]!r}") from error


def _newest_machine(listing: str, path: str) -> str:
    """The highest pc-q35-X.Y; never plain ``q35``, which is another machine after an upgrade."""
    names = [line.split()[0] for line in listing.splitlines() if line.startswith(_MACHINE_PREFIX)]
    if not names:
        raise HostError(f"{path}: has no machine {_MACHINE_PREFIX}X.Y", hint=_HINT)
    return max(
        names,
        key=lambda name: tuple(int(part) for part in name.removeprefix(_MACHINE_PREFIX).split(".") if part.isdigit()),
    )


def _firmware(directories: list[str]) -> list[str]:
    """The first file of each name that QEMU finds in its data directories."""
    candidates = ([os.path.join(directory.strip(), name) for directory in directories] for name in _FIRMWARE)
    found = (next((path for path in paths if os.path.isfile(path)), None) for paths in candidates)
    return [path for path in found if path is not None]
