"""Fetch Debian's newest kernel into the cache. The package is unpacked, never installed: the host's /boot stays as it is."""

from __future__ import annotations

import os
import shutil

from rundctl.errors import HostError, words
from rundctl.guest import kernel, kernel_image, modules
from rundctl.host import apt, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.types import Progress


_META_PACKAGE = "linux-image-amd64"
_NEEDS_APT = "fetching needs Debian's apt; elsewhere name a kernel in the settings"


def fetch(home: str, progress: Progress) -> kernel.Kernel:
    """Download, unpack and install the newest kernel of Debian's package lists; one that is there already is only made current."""
    package = _newest_package()
    version = package.removeprefix("linux-image-")
    os.makedirs(f"{home}/kernels", exist_ok=True)
    with files.Lock(f"{home}/kernels/.fetch.lock"):
        if version not in kernel.names(home):
            _fetch_package(home, package, version, progress)
        kernel.make_current(home, version)
    progress(f"guest kernel {version} is in {home}/kernels")
    return kernel.Kernel(f"{home}/kernels/{version}")


def _newest_package() -> str:
    """Name of the versioned package that the meta package stands for."""
    names = apt.fields("depends", _META_PACKAGE, "Depends:", needed_for=_NEEDS_APT)
    images = [name for name in names if name.startswith("linux-image-")]
    if not images:
        raise HostError(f"no package {_META_PACKAGE} in apt's lists", hint=apt.HINT)
    return max(images, key=kernel.version_key)


def _fetch_package(home: str, package: str, version: str, progress: Progress) -> None:
    scratch = f"{home}/kernels/.fetch"
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    try:
        progress(f"downloading {package}")
        root = apt.unpack(package, scratch)
        progress(f"unpacking {package}")
        kernel.install(home, version, _parts(root, package, version))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parts(root: str, package: str, version: str) -> kernel.Parts:
    image_path = f"{root}/boot/vmlinuz-{version}"
    try:
        with open(image_path, "rb") as file:
            image = kernel_image.vmlinux(file.read(), image_path)
        with open(f"{root}/boot/config-{version}", encoding="utf-8") as file:
            config = file.read()
    except OSError as error:
        raise HostError(f"unpack {package}: {error.filename}: {words(error)}") from error
    found = modules.resolve(_modules_directory(root, version))
    return kernel.Parts(image, found, config, version=version, origin=package)


def _modules_directory(root: str, version: str) -> str:
    """Debian 12 has /lib/modules, a release with merged /usr has /usr/lib/modules."""
    candidates = [f"{root}/{prefix}lib/modules/{version}" for prefix in ("", "usr/")]
    return next((path for path in candidates if os.path.isdir(path)), candidates[0])
