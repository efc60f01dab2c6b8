"""Templates on disk: ``HOME/templates/KEY/{memory,state,upper*/image,empty/,manifest.json}``, complete or not there at all.

A clone maps ``memory`` privately, loads ``state`` and reflinks one of the ``upper*/image``, which are all the same: a template whose files are not those
that were written is never used.
"""

from __future__ import annotations

from rundctl.errors import HostError, words
from rundctl.host import manifest as manifests
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.types import TemplateKey
    from rundctl.vmm.shape import MachineShape

FORMAT = 4
# The storage image is there more than once so that clones made at once meet at no lock: XFS puts each new directory into the next of its allocation
# groups (four, unless it is made with more), and files into their directory's. With one for all 200 at once sleep (docs/rootfs.md).
UPPERS = tuple(f"upper{number}/image" for number in range(4))
FILES = ("memory", "state", *UPPERS)
DIRECTORIES = ("empty", *(os.path.dirname(name) for name in UPPERS))


class Template:
    """A template that is ready to be cloned."""

    __slots__ = ("directory", "key", "manifest", "shape")

    def __init__(self, directory: str, key: TemplateKey, shape: MachineShape, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.key = key
        self.shape = shape
        self.manifest = manifest

    @property
    def memory(self) -> str:
        """Path of the guest's memory."""
        return f"{self.directory}/memory"

    def upper(self, number: int) -> str:
        """Path of the storage image as it was at the snapshot: by any ``number``, best another for each clone, one of several copies."""
        return f"{self.directory}/{UPPERS[number % len(UPPERS)]}"

    @property
    def upper_extents(self) -> list[tuple[int, int]] | None:
        """Where that image has data, if its file system does not tell."""
        return self.manifest.get("upper_extents")

    @property
    def empty(self) -> str:
        """Path of an empty directory, for 9p devices that export nothing."""
        return f"{self.directory}/empty"

    @property
    def state(self) -> str:
        """Path of the device state. Each clone opens it anew: the offset is part of the open file description."""
        return f"{self.directory}/state"

    @property
    def tsc_khz(self) -> int:
        """What the guest's time stamp counter runs at, as was found out when it was saved."""
        return int(self.manifest["clock"]["tsc_khz"])

    def make_memory(self) -> int:
        """A file for one guest's memory, empty: for a clone that gets a copy of the template's, or a cold boot. The caller closes it."""
        fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        os.ftruncate(fd, self.shape.memory_mib << 20)
        return fd

    def is_still_there(self) -> bool:
        """Whether what was opened by name since it was found is this template's: one that was replaced meanwhile never comes back. One stat."""
        return manifests.is_intact(self.directory, self.manifest, ("memory",))

    @property
    def kernel_directory(self) -> str:
        """Where the kernel is that was booted."""
        home = os.path.dirname(os.path.dirname(self.directory))
        return f"{home}/kernels/{self.manifest['kernel']}"

    @property
    def kernel(self) -> str:
        """Path of the vmlinux that was booted, for cold boots."""
        return f"{self.kernel_directory}/vmlinux"


def root(home: str) -> str:
    """Directory of all templates."""
    return f"{home}/templates"


def make_root(home: str) -> None:
    """Make it, for root alone: a template holds what all its clones begin with. HostError if it cannot be."""
    try:
        os.makedirs(root(home), exist_ok=True)
        if os.stat(root(home)).st_mode & 0o777 != 0o700:
            os.chmod(root(home), 0o700)
    except OSError as error:
        raise HostError(f"make {root(home)}: {words(error)}") from error


def make_directories(directory: str) -> None:
    """Make what a template's files are put in, for root alone. OSError if it cannot be."""
    for name in DIRECTORIES:
        os.makedirs(f"{directory}/{name}")
    os.chmod(directory, 0o700)


def open_template(home: str, key: TemplateKey, shape: MachineShape) -> Template | None:
    """The template of that key, if it is there and its files are untouched: one manifest and one stat a file."""
    directory = f"{root(home)}/{key}"
    manifest = manifests.read(directory, FORMAT)
    if manifest is None or not manifests.is_intact(directory, manifest, FILES):
        return None
    with suppress(OSError):  # a read-only home: then nothing is pruned by age there either
        os.utime(f"{directory}/{manifests.NAME}")
    return Template(directory, key, shape, manifest)


class Entry:
    """A template as `list` shows it. ``intact`` is False for one that will be rebuilt; ``used_s``: last use, seconds since the epoch."""

    __slots__ = ("intact", "key", "manifest", "size_mib", "used_s")

    def __init__(self, key: str, manifest: dict[str, Any], size_mib: int, used_s: float, *, intact: bool) -> None:
        self.key = key
        self.manifest = manifest
        self.size_mib = size_mib
        self.used_s = used_s
        self.intact = intact


def entries(home: str) -> list[Entry]:
    """All templates, by key."""
    try:
        names = sorted(name for name in os.listdir(root(home)) if not name.startswith("."))
    except FileNotFoundError:
        return []
    return [_entry(name, f"{root(home)}/{name}") for name in names]


def entry(home: str, prefix: str) -> Entry:
    """The one template whose key begins so. HostError if there is none, or more than one."""
    found = [item for item in entries(home) if item.key.startswith(prefix)]
    if len(found) != 1:
        raise HostError(
            f"template {prefix!r}: {'no such template' if not found else f'{len(found)} keys begin so'}",
            hint="rundctl template list",
        )
    return found[0]


def _entry(name: str, directory: str) -> Entry:
    manifest = manifests.read(directory, FORMAT)
    intact = manifest is not None and manifests.is_intact(directory, manifest, FILES)
    return Entry(name, manifest or {}, manifests.size_mib(directory, FILES), manifests.used_s(directory), intact=intact)
