"""Debian's kernel source: which one, and unpacked. The package is never installed: /usr/src stays as it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError, UsageError
from rundctl.guest import kernel
from rundctl.host import process

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[str], None]

META_PACKAGE = "linux-source"  # stands for the series of this release of Debian
_PREFIX = "linux-source-"
_HINT = "apt-get update"
_NEEDS_APT = "building needs Debian's apt; elsewhere name a kernel in the settings"
_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Source:
    """A source package and its version: ``linux-source-6.1``, ``6.1.192-2``."""

    package: str
    version: str


def choose(package: str) -> Source:
    """The newest version of a source package, "" = that of this release. UsageError for another name, HostError if apt knows none."""
    process.need_tool("apt-cache", _NEEDS_APT)
    if package and not package.startswith(_PREFIX):
        raise UsageError(f"--source takes the name of a Debian package such as {_PREFIX}6.1, not {package!r}")
    wanted = package or _of_release()
    versions = _fields(["apt-cache", "show", "--no-all-versions", wanted], "Version:")
    if not versions:
        raise HostError(f"no package {wanted} in apt's lists", hint=_HINT)
    return Source(wanted, versions[0])


def unpack(source: Source, scratch: str, progress: Progress) -> str:
    """Download a source package into ``scratch`` and unpack it there; the path of the tree."""
    progress(f"downloading {source.package} {source.version}")
    # apt drops privileges for downloads, and its user cannot write here; as root it says so on stderr and goes on.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", f"{source.package}={source.version}"]
    process.run(command, what=f"download {source.package}", hint=_HINT, cwd=scratch, timeout_s=_TIMEOUT_S)
    package = _only(scratch, ".deb", f"download {source.package}: apt-get left no package")
    progress(f"unpacking {source.package}")
    process.run(["dpkg-deb", "-x", package, f"{scratch}/package"], what=f"unpack {package}")
    os.unlink(package)
    archive = _only(f"{scratch}/package/usr/src", ".tar.xz", f"{source.package} has no archive of sources")
    tree = f"{scratch}/tree"
    os.mkdir(tree)
    argv = ["tar", "--extract", "--file", archive, "--directory", tree, "--strip-components", "1", "--no-same-owner"]
    process.run(argv, what=f"unpack {archive}", hint="apt-get install tar xz-utils", timeout_s=_TIMEOUT_S)
    os.unlink(archive)
    return tree


def _of_release() -> str:
    names = _fields(["apt-cache", "depends", META_PACKAGE], "Depends:")
    series = [name for name in names if name.startswith(_PREFIX)]
    if not series:
        raise HostError(f"no package {META_PACKAGE} in apt's lists", hint=_HINT)
    return max(series, key=kernel.version_key)


def _fields(argv: list[str], field: str) -> list[str]:
    """Values of one field in apt-cache's answer; 100 is its status for an unknown package."""
    output = process.run(argv, what="look for a kernel source package", hint=_HINT, accepted=(0, 100)).decode()
    lines = [line.strip() for line in output.splitlines()]
    return [line.removeprefix(field).strip() for line in lines if line.startswith(field)]


def _only(directory: str, suffix: str, otherwise: str) -> str:
    found = [name for name in os.listdir(directory) if name.endswith(suffix)] if os.path.isdir(directory) else []
    if len(found) != 1:
        raise HostError(otherwise, hint=f"found: {', '.join(found) or 'nothing'}")
    return f"{directory}/{found[0]}"
