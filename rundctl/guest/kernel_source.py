"""Debian's kernel source: which one, and unpacked. The package is never installed: /usr/src stays as it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError, UsageError
from rundctl.guest import kernel
from rundctl.host import apt, process

if TYPE_CHECKING:
    from rundctl.types import Progress


META_PACKAGE = "linux-source"  # stands for the series of this release of Debian
_PREFIX = "linux-source-"
_UNPACK_TIMEOUT_S = 1800
_NEEDS_APT = "building needs Debian's apt; elsewhere name a kernel in the settings"


@dataclass(frozen=True, slots=True)
class Source:
    """A source package and its version: ``linux-source-6.1``, ``6.1.192-2``."""

    package: str
    version: str


def choose(package: str) -> Source:
    """The newest version of a source package, "" = that of this release. UsageError for another name, HostError if apt knows none."""
    if package and not package.startswith(_PREFIX):
        raise UsageError(f"--source takes the name of a Debian package such as {_PREFIX}6.1, not {package!r}")
    wanted = package or _of_release()
    versions = apt.fields("show", wanted, "Version:", needed_for=_NEEDS_APT)
    if not versions:
        raise HostError(f"no package {wanted} in apt's lists", hint=apt.HINT)
    return Source(wanted, versions[0])


def unpack(source: Source, scratch: str, progress: Progress) -> str:
    """Download a source package into ``scratch`` and unpack it there; the path of the tree."""
    progress(f"downloading {source.package} {source.version}")
    root = apt.unpack(f"{source.package}={source.version}", scratch)
    progress(f"unpacking {source.package}")
    archive = apt.only(f"{root}/usr/src", ".tar.xz", f"{source.package} has no archive of sources")
    tree = f"{scratch}/tree"
    os.mkdir(tree)
    argv = ["tar", "--extract", "--file", archive, "--directory", tree, "--strip-components", "1", "--no-same-owner"]
    process.run(argv, what=f"unpack {archive}", hint="apt-get install tar xz-utils", timeout_s=_UNPACK_TIMEOUT_S)
    os.unlink(archive)
    return tree


def _of_release() -> str:
    names = apt.fields("depends", META_PACKAGE, "Depends:", needed_for=_NEEDS_APT)
    series = [name for name in names if name.startswith(_PREFIX)]
    if not series:
        raise HostError(f"no package {META_PACKAGE} in apt's lists", hint=apt.HINT)
    return max(series, key=kernel.version_key)
