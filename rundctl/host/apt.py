"""Debian's packages, by apt: looked up, downloaded and unpacked, never installed. Cold.

apt checks the archive's signatures; what comes out of here is as trustworthy as the host's own packages.
"""

from __future__ import annotations

import os
import re

from rundctl.errors import HostError, words
from rundctl.host import process

HINT = "apt-get update"
_DOWNLOAD_TIMEOUT_S = 1800
# apt drops privileges for downloads, and its user cannot write where we unpack; as root it says so on stderr and goes on.
_PATIENTLY = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")
_UNKNOWN = 100  # status of apt-cache for a package that it does not know


def fields(command: str, package: str, field: str, *, needed_for: str) -> list[str]:
    """Values of one field in the answer of an apt-cache command (show, depends); empty if the package is unknown.

    HostError without apt: ``needed_for`` is the hint then.
    """
    argv = ["apt-cache", command, *(["--no-all-versions"] if command == "show" else []), package]
    process.need_tool(argv[0], needed_for)
    output = process.run(argv, what=f"look for the package {package}", hint=HINT, accepted=(0, _UNKNOWN)).decode()
    lines = [line.strip() for line in output.splitlines()]
    return [line.removeprefix(field).strip() for line in lines if line.startswith(field)]


def unpack(package: str, scratch: str) -> str:
    """Download a binary package (``name`` or ``name=version``) and unpack it; the path of what would be /."""
    process.run(
        ["apt-get", "download", *_PATIENTLY, package],
        what=f"download {package}",
        hint=HINT,
        cwd=scratch,
        timeout_s=_DOWNLOAD_TIMEOUT_S,
    )
    archive = only(scratch, ".deb", f"download {package}: apt-get left no package")
    root = f"{scratch}/package"
    process.run(["dpkg-deb", "-x", archive, root], what=f"unpack {archive}")
    os.unlink(archive)
    return root


def unpack_source(package: str, version: str, scratch: str) -> str:
    """Download a source package and unpack it with Debian's patches; the path of its tree.

    The host's own lists need not have sources: lists of Debian's are made in ``scratch``, from the entries that the host has.
    """
    lists, entries = f"{scratch}/lists", f"{scratch}/entries"
    os.makedirs(f"{lists}/partial")
    os.mkdir(entries)
    for number, path in enumerate(_entries_of_debian()):
        try:
            with open(path, encoding="utf-8") as file:
                text = as_sources(file.read())
        except OSError as error:
            raise HostError(f"{path}: {words(error)}") from error
        with open(f"{entries}/{number}{os.path.splitext(path)[1]}", "w", encoding="utf-8") as file:
            file.write(text)
    places = {"SourceList": "/dev/null", "SourceParts": entries}
    here = [word for name, place in places.items() for word in ("-o", f"Dir::Etc::{name}={place}")]
    here += ["-o", f"Dir::State::Lists={lists}", *_PATIENTLY]
    what = f"download the source package {package}"
    process.run(["apt-get", *here, "update"], what=what, timeout_s=_DOWNLOAD_TIMEOUT_S)
    wanted = f"{package}={version}"
    argv = ["apt-get", *here, "source", "--download-only", "--only-source", wanted]
    process.run(argv, what=what, hint=HINT, cwd=scratch, timeout_s=_DOWNLOAD_TIMEOUT_S)
    described = only(scratch, ".dsc", f"{what}: apt-get left no description")
    tree = f"{scratch}/tree"
    # apt has compared every file with the archive's signed index; the description's own signature is its uploader's.
    argv = ["dpkg-source", "--no-check", "--extract", described, tree]
    process.run(argv, what=f"unpack {described}", hint="apt-get install dpkg-dev", cwd=scratch)
    return tree


def as_sources(text: str) -> str:
    """A file of sources.list(5), of either format, with source packages in place of binary ones; third parties' stay as they are."""
    text = re.sub(r"(?m)^deb(?=\s)", "deb-src", text)
    return re.sub(r"(?m)^Types:.*$", "Types: deb-src", text)


def only(directory: str, suffix: str, otherwise: str) -> str:
    """The path of the one file with a suffix. HostError with the text ``otherwise`` if there is not exactly one."""
    found = [name for name in os.listdir(directory) if name.endswith(suffix)] if os.path.isdir(directory) else []
    if len(found) != 1:
        raise HostError(otherwise, hint=f"found: {', '.join(found) or 'nothing'}")
    return f"{directory}/{found[0]}"


def _entries_of_debian() -> list[str]:
    """Files of sources.list(5) that name Debian's archive."""
    argv = ["apt-get", "indextargets", "--format", "$(SOURCESENTRY)", "Origin: Debian", "Created-By: Packages"]
    output = process.run(argv, what="ask apt for its lists", hint=HINT).decode()
    files = sorted({line.rpartition(":")[0] for line in output.splitlines() if line})
    if not files:
        raise HostError("apt has no lists of Debian's archive", hint=HINT)
    return files
