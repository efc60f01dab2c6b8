"""Guest kernels of this host: ``HOME/kernels/NAME/{vmlinux,modules/NNN-name.ko,config,manifest.json}``.

A kernel is made once, by `kernel_fetch` from Debian's package, by `kernel_build` from its source, or by `adopt` from files the user names, and never
changes: its digest is that of its manifest, which lists the digests of all its files. `find` is on the path of every start and opens nothing.
"""

from __future__ import annotations

from rundctl.errors import ConfigError, HostError, words
from rundctl.host import files, memo
from rundctl.host import manifest as manifests
from rundctl.lean import json, os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CURRENT = "current"  # symlink to the default: the last one fetched or built, or chosen with `kernel use`
MANIFEST = "manifest.json"
_CUSTOM_PREFIX = "custom-"
_MOST_ADOPTED = 4  # kernels of files that users name; each is 10 to 60 MiB
_ALWAYS = ("cpu", "memory", "pids")
_ABILITIES = {
    "erofs": ("CONFIG_EROFS_FS=y", "CONFIG_EROFS_FS_XATTR=y", "CONFIG_EROFS_FS_POSIX_ACL=y", "CONFIG_VIRTIO_BLK=y"),
    "pmem": ("CONFIG_VIRTIO_PMEM=y", "CONFIG_BLK_DEV_PMEM=y", "CONFIG_FS_DAX=y"),
    "virtiofs": ("CONFIG_VIRTIO_FS=y",),
}
_BY_OPTION = {"CONFIG_BLK_CGROUP=y": "io", "CONFIG_CPUSETS=y": "cpuset", "CONFIG_CGROUP_HUGETLB=y": "hugetlb"}


class Kernel:
    """A guest kernel in its directory."""

    __slots__ = ("directory",)

    def __init__(self, directory: str) -> None:
        self.directory = directory

    @property
    def name(self) -> str:
        """Name under HOME/kernels."""
        return os.path.basename(self.directory)

    @property
    def vmlinux(self) -> str:
        """Path of the ELF file that QEMU boots."""
        return f"{self.directory}/vmlinux"

    @property
    def manifest_path(self) -> str:
        """Path of the manifest, whose digest is the kernel's."""
        return f"{self.directory}/{MANIFEST}"

    def manifest(self) -> dict[str, Any]:
        """Version, origin, digests of vmlinux and modules, cgroup controllers. HostError if it is damaged."""
        try:
            with open(self.manifest_path, "rb") as file:
                manifest = json.load(file)
        except (OSError, ValueError) as error:
            raise HostError(
                f"kernel {self.name}: {self.manifest_path}: {error}", hint="rundctl kernel fetch"
            ) from error
        if not isinstance(manifest, dict):
            raise HostError(f"kernel {self.name}: {self.manifest_path}: damaged", hint="rundctl kernel fetch")
        return manifest

    def able(self) -> list[str]:
        """What it can mount a lower layer by without loading anything but its modules. A kernel of unknown configuration is trusted with 9p alone."""
        try:
            with open(f"{self.directory}/config", encoding="utf-8") as file:
                config = file.read()
        except OSError:
            return ["9p"]
        return ["9p", *(name for name, needed in _ABILITIES.items() if all(f"\n{line}\n" in config for line in needed))]

    def modules(self) -> list[tuple[str, bytes]]:
        """(file name, contents) of the modules in the order in which they are to be loaded."""
        directory = f"{self.directory}/modules"
        result = []
        for name in sorted(os.listdir(directory)):
            with open(f"{directory}/{name}", "rb") as file:
                result.append((name, file.read()))
        return result


class Choice:
    """Which kernel is wanted: ``kernel`` is "" (the default), a name, or the path of a vmlinux or bzImage with its modules' directory."""

    __slots__ = ("home", "kernel", "modules")

    def __init__(self, home: str, kernel: str = "", modules: str = "") -> None:
        self.home = home
        self.kernel = kernel
        self.modules = modules


def find(choice: Choice, cache: memo.Memo) -> Kernel | None:
    """The chosen kernel, None if one given as a path has yet to be adopted. HostError if there is none."""
    if "/" not in choice.kernel:
        return _named(choice)
    kept = cache.recall(*_adoption(choice))
    if kept is None:
        return None
    sources = kept["sources"]
    known = Kernel(f"{choice.home}/kernels/{kept['name']}")
    same = all(manifests.identity_here(path) == was for path, was in sources) and os.path.exists(known.manifest_path)
    return known if same else None


def names(home: str) -> list[str]:
    """Names of the kernels that are there, oldest version first."""
    try:
        found = os.listdir(f"{home}/kernels")
    except FileNotFoundError:
        return []
    return sorted(
        (
            name
            for name in found
            if name != CURRENT and name[0] != "." and os.path.exists(f"{home}/kernels/{name}/{MANIFEST}")
        ),
        key=version_key,
    )


def version_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts 6.1.0-9 before 6.1.0-56: numbers by value, the rest as text."""
    parts = name.replace("-", ".").replace("+", ".").split(".")
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]


def adopt(choice: Choice, cache: memo.Memo) -> Kernel:
    """Make a kernel of the files that the user names."""
    from rundctl.guest import kernel_image, modules

    path = choice.kernel
    try:
        with open(path, "rb") as file:
            image = kernel_image.vmlinux(file.read(), path)
    except OSError as error:
        raise ConfigError(f"kernel {path}: {words(error)}") from error
    found = modules.resolve(choice.modules) if choice.modules else []
    parts = Parts(image, found, _sibling_config(path), version="", origin=path)
    kernel = install(choice.home, f"{_CUSTOM_PREFIX}{parts.digest()[:16]}", parts)
    _forget_adopted(choice.home, kernel.name)
    sources = [[source, manifests.identity_here(source)] for source in (path, *(module.path for module in found))]
    name, *hangs_on = _adoption(choice)
    cache.remember(name, {"name": kernel.name, "sources": sources}, *hangs_on)
    return kernel


class Parts:
    """What a kernel is made of. ``config``: the text of its configuration, "" if unknown."""

    __slots__ = ("config", "image", "modules", "origin", "version")

    def __init__(self, image: bytes, modules: list[Any], config: str, *, version: str, origin: str) -> None:
        self.image = image
        self.modules = modules
        self.config = config
        self.version = version
        self.origin = origin

    def manifest(self) -> dict[str, Any]:
        """See `Kernel.manifest`."""
        from hashlib import sha256

        return {
            "version": self.version,
            "origin": self.origin,
            "vmlinux": sha256(self.image).hexdigest(),
            "modules": [[module.name, sha256(module.data).hexdigest()] for module in self.modules],
            "controllers": [*_ALWAYS, *(name for line, name in _BY_OPTION.items() if f"\n{line}\n" in self.config)],
        }

    def digest(self) -> str:
        """Digest over all of it."""
        from hashlib import sha256

        return sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()


def install(home: str, name: str, parts: Parts) -> Kernel:
    """Write a kernel's directory and move it into place in one step; one that is there already is replaced."""
    import shutil

    root = f"{home}/kernels"
    os.makedirs(root, exist_ok=True)
    target, temporary = f"{root}/{name}", f"{root}/.{name}.{os.getpid()}.tmp"
    with files.Lock(f"{root}/.lock"):
        for left in os.listdir(root):
            if left[0] == "." and left.endswith((".tmp", ".old")):
                shutil.rmtree(f"{root}/{left}", ignore_errors=True)
        try:
            os.makedirs(f"{temporary}/modules")
            _write_parts(temporary, parts)
            if os.path.lexists(target):
                os.rename(target, f"{temporary[:-4]}.old")  # removing takes longer than a kill needs
            os.rename(temporary, target)
            files.sync_directory(root)
        except OSError as error:
            raise HostError(f"write kernel {name} to {root}: {words(error)}") from error
        finally:
            for left in (temporary, f"{temporary[:-4]}.old"):
                shutil.rmtree(left, ignore_errors=True)
    return Kernel(target)


def _forget_adopted(home: str, last: str) -> None:
    """Remove the kernels that were adopted first, but for some: each change of the files that a user names makes another.

    One that is asked for again is adopted again.
    """
    import shutil

    root = f"{home}/kernels"
    with files.Lock(f"{root}/.lock"):
        adopted = [name for name in names(home) if name.startswith(_CUSTOM_PREFIX) and name != last]
        adopted.sort(key=lambda name: os.stat(f"{root}/{name}/{MANIFEST}").st_mtime)
        for name in adopted[: -(_MOST_ADOPTED - 1)]:
            os.rename(f"{root}/{name}", f"{root}/.{name}.old")
            shutil.rmtree(f"{root}/.{name}.old", ignore_errors=True)


def make_current(home: str, name: str) -> None:
    """From now on ``name`` is the kernel of those who name none."""
    files.replace_link(f"{home}/kernels/{CURRENT}", name)


def _write_parts(directory: str, parts: Parts) -> None:
    for index, module in enumerate(parts.modules):
        files.replace(f"{directory}/modules/{index:03d}-{module.name}.ko", module.data)
    if parts.config:
        files.replace(f"{directory}/config", parts.config.encode())
    files.replace(f"{directory}/vmlinux", parts.image)
    files.replace(f"{directory}/{MANIFEST}", json.dumps(parts.manifest(), indent=1).encode())


def _named(choice: Choice) -> Kernel:
    name = choice.kernel or CURRENT
    path = f"{choice.home}/kernels/{name}"
    if name == CURRENT:
        try:
            path = f"{choice.home}/kernels/{os.readlink(path)}"
        except OSError:
            raise HostError(f"no guest kernel in {choice.home}/kernels", hint="rundctl kernel fetch") from None
    kernel = Kernel(path)
    if not os.path.exists(kernel.manifest_path):
        known = ", ".join(names(choice.home)) or "none"
        raise HostError(
            f"no guest kernel {os.path.basename(path)} in {choice.home}/kernels",
            hint=f"there are: {known}; rundctl kernel fetch",
        )
    return kernel


def _adoption(choice: Choice) -> tuple[str, ...]:
    """Name in the memo, and the path whose identity it hangs on."""
    return (f"kernel {choice.kernel} {choice.modules}", choice.kernel)


def _sibling_config(path: str) -> str:
    """The configuration beside a kernel: config-VERSION for vmlinuz-VERSION (Debian), .config beside a vmlinux (a build tree)."""
    directory, name = os.path.split(path)
    version = name.partition("-")[2]
    for candidate in (f"config-{version}" if version else "", ".config"):
        try:
            with open(os.path.join(directory, candidate), encoding="utf-8") as file:
                return file.read()
        except OSError:
            continue
    return ""
