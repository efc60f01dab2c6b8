"""The kernel modules a guest needs, in the order in which they can be loaded.

Debian's packages hold no ``modules.dep`` (depmod makes it when a kernel is installed, and ours never is), so the dependencies are read
from the modules themselves: ``depends=`` and ``softdep=pre:`` of their ``.modinfo`` section.
"""

from __future__ import annotations

import os

from rundctl.errors import HostError
from rundctl.guest import elf
from rundctl.guest.compression import decompress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDED = (
    # module, what the guest has without it
    ("virtio_pci", "no virtio device at all"),
    ("virtio_console", "no channel to the agent"),
    ("virtio_blk", "no upper layer of the root file system"),
    ("ext4", "no file system on the upper layer"),
    ("overlay", "no root file system: lower and upper cannot be joined"),
    ("9pnet_virtio", "no transport for the lower layer and the volumes"),
    ("9p", "no lower layer and no volumes"),
)
_REASONS = dict(NEEDED)
_PROVIDERS = {
    # What ext4 asks for by the name of an algorithm; where CRC32C is a library (Linux 6.15) there is no such module, nor a need.
    "crc32c": "crc32c_generic",
    "crypto_crc32c": "crc32c_generic",
}
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class Module:
    """A loadable module: name with underscores, plain ELF bytes, and the path it came from."""

    __slots__ = ("data", "name", "path")

    def __init__(self, name: str, path: str, data: bytes) -> None:
        self.name = name
        self.path = path
        self.data = data

    def before(self) -> list[tuple[str, bool]]:
        """Modules to load first, and whether this one is useless without: ``depends`` is, ``softdep: pre`` is not."""
        hard: list[str] = []
        soft: list[str] = []
        for entry in elf.section(self.data, b".modinfo").split(b"\0"):
            key, _, value = entry.decode(errors="replace").partition("=")
            if key == "depends":
                hard = [name for name in value.split(",") if name]
            elif key == "softdep" and value.startswith("pre:"):
                soft += value.removeprefix("pre:").split("post:")[0].split()
        return [(_canonical(name), False) for name in soft] + [(_canonical(name), True) for name in hard]


def resolve(directory: str, needed: tuple[str, ...] = ()) -> list[Module]:
    """Modules below ``directory`` (a ``lib/modules/VERSION``) that ``needed`` (default: `NEEDED`) comes to, dependencies first, without what is built in.

    Raises HostError naming the module that is neither there nor built in.
    """
    files = dict(_files(directory))
    builtin = _builtin(directory)
    loaded: dict[str, Module] = {}

    def load(name: str, why: str) -> None:
        """Load what ``name`` depends on, then ``name``; an empty ``why`` lets it be missing."""
        name = _PROVIDERS.get(name, name)
        if name in loaded or name in builtin:
            return
        path = files.get(name)
        if path is None:
            if why:
                raise HostError(f"kernel module {name}: neither in {directory} nor built into the kernel", hint=why)
            return
        with open(path, "rb") as file:
            module = Module(name, path, decompress(file.read(), path))
        for dependency, required in module.before():
            load(dependency, f"{name} needs it" if required else "")
        loaded[name] = module

    for name in needed or _REASONS:
        load(_canonical(name), f"without it: {_REASONS.get(name, 'not known')}")
    return list(loaded.values())


def _canonical(name: str) -> str:
    return name.strip().replace("-", "_")


def _files(directory: str) -> Iterator[tuple[str, str]]:
    for parent, _, names in os.walk(directory):
        for name in names:
            for suffix in _SUFFIXES:
                if name.endswith(suffix):
                    yield _canonical(name.removesuffix(suffix)), os.path.join(parent, name)


def _builtin(directory: str) -> frozenset[str]:
    try:
        with open(os.path.join(directory, "modules.builtin"), encoding="utf-8") as file:
            return frozenset(_canonical(os.path.basename(line.strip()).removesuffix(".ko")) for line in file)
    except FileNotFoundError:
        return frozenset()
