"""Fetch Debian's newest kernel into the cache. The package is unpacked, never installed: the host's /boot stays as it is."""

from __future__ import annotations

import os
import shutil

from rundctl.errors import HostError, words
from rundctl.guest import kernel, kernel_image, modules
from rundctl.host import files, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[str], None]

_META_PACKAGE = "linux-image-amd64"
_HINT = "apt-get update"
_DOWNLOAD_TIMEOUT_S = 1800


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
    process.need_tool("apt-cache", "fetching needs Debian's apt; elsewhere name a kernel in the settings")
    output = process.run(
        ["apt-cache", "depends", _META_PACKAGE], what="look for a kernel package", hint=_HINT, accepted=(0, 100)
    ).decode()
    names = [line.split(":", 1)[1].strip() for line in output.splitlines() if line.strip().startswith("Depends:")]
    images = [name for name in names if name.startswith("linux-image-")]
    if not images:
        raise HostError(f"no package {_META_PACKAGE} in apt's lists", hint=_HINT)
    return max(images, key=kernel.version_key)


def _fetch_package(home: str, package: str, version: str, progress: Progress) -> None:
    scratch = f"{home}/kernels/.fetch"
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    try:
        progress(f"downloading {package}")
        # apt drops privileges for downloads, and its user cannot write here; as root it says so on stderr and goes on.
        retries = ["-o", "Acquire::Retries=3"]
        command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *retries, package]
        process.run(command, what=f"download {package}", hint=_HINT, cwd=scratch, timeout_s=_DOWNLOAD_TIMEOUT_S)
        progress(f"unpacking {package}")
        kernel.install(home, version, _unpack(scratch, package, version))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(scratch: str, package: str, version: str) -> kernel.Parts:
    archive = next((name for name in os.listdir(scratch) if name.endswith(".deb")), None)
    if archive is None:
        raise HostError(f"download {package}: apt-get left no package in {scratch}", hint=_HINT)
    root = f"{scratch}/root"
    process.run(["dpkg-deb", "-x", f"{scratch}/{archive}", root], what=f"unpack {archive}")
    image_path = f"{root}/boot/vmlinuz-{version}"
    try:
        with open(image_path, "rb") as file:
            image = kernel_image.vmlinux(file.read(), image_path)
        with open(f"{root}/boot/config-{version}", encoding="utf-8") as file:
            config = file.read()
    except OSError as error:
        raise HostError(f"unpack {archive}: {error.filename}: {words(error)}") from error
    found = modules.resolve(_modules_directory(root, version))
    return kernel.Parts(image, found, config, version=version, origin=archive)


def _modules_directory(root: str, version: str) -> str:
    """Debian 12 has /lib/modules, a release with merged /usr has /usr/lib/modules."""
    candidates = [f"{root}/{prefix}lib/modules/{version}" for prefix in ("", "usr/")]
    return next((path for path in candidates if os.path.isdir(path)), candidates[0])
