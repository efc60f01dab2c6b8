"""Which QEMU there is: its path, version, newest versioned q35 machine, and the firmware files it will load. Found once, by asking it."""

from __future__ import annotations

import os

from rundctl.errors import HostError
from rundctl.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.memo import Memo

_NAME = "qemu-system-x86_64"
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


def find(setting: str) -> str:
    """Path of the QEMU to use: the one that the settings name, else Debian's. HostError if there is none."""
    return process.need_tool(setting or _NAME, _HINT)


def known(path: str, memo: Memo) -> Binary | None:
    """What was found out about this very file, None if that has yet to be done."""
    facts = memo.recall(f"qemu {path}", path)
    if facts is None:
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
