"""Building programs from source on this host: the tools, a directory that is gone afterwards, a logged run that nothing outlives. Cold."""

from __future__ import annotations

import os
import select
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError, words
from rundctl.host import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rundctl.types import Progress


COMPILERS = (
    # what is looked for, Debian's package, what it is for
    ("make", "make", "runs the build"),
    ("gcc", "gcc", "compiles"),
    ("ld", "binutils", "links"),
    ("/usr/include/stdio.h", "libc6-dev", "programs of the host"),
    ("apt-get", "apt", "downloads the source"),
)
# A pid namespace of its own: whoever kills the builder ends the compilers too, which make would otherwise leave running.
_ALONE = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--")
_NICE = ("nice", "-n", "10")  # a build takes minutes of all processors
_FILES_A_REPORT = 250  # compiled files between two words of progress
_POLL_MS = 1000
_LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Need:
    """A tool, library or header: what is looked for (a path if it has a slash), Debian's package, what it is for."""

    what: str
    package: str
    purpose: str

    def met(self) -> bool:
        """Whether the host has it."""
        return os.path.exists(self.what) if "/" in self.what else process.find_tool(self.what) is not None


def needs(*tables: Sequence[tuple[str, str, str]]) -> list[Need]:
    """Tables of needs as one list."""
    return [Need(*row) for table in tables for row in table]


def require(wanted: Sequence[Need], what: str) -> None:
    """HostError "`what`: missing: ..." with the packages to install."""
    missing = [need for need in wanted if not need.met()]
    if missing:
        told = ", ".join(f"{need.package} ({need.purpose})" for need in missing)
        packages = " ".join(dict.fromkeys(need.package for need in missing))
        raise HostError(f"{what}: missing: {told}", hint=f"apt-get install {packages}")


def compiler() -> str:
    """Versions of compiler and linker, which the bytes they make depend on."""
    versions = [process.run([tool, "--version"], what=f"ask {tool} for its version").decode() for tool in ("gcc", "ld")]
    return " / ".join(text.partition("\n")[0] for text in versions)


@contextmanager
def scratch(path: str, space_mib: int, what: str) -> Iterator[str]:
    """An empty directory with so much room, gone afterwards; one that a killed builder left is emptied. The caller holds a lock on it."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        os.mkdir(path, 0o700)
        status = os.statvfs(path)
        free_mib = status.f_bavail * status.f_frsize >> 20
        if free_mib < space_mib:
            raise HostError(
                f"{what} in {path}: {free_mib} MiB are free, {space_mib} needed", hint="make room, or set RUNDCTL_HOME"
            )
        yield path
    except OSError as error:
        raise HostError(f"{what} in {path}: {error.filename or ''}: {words(error)}") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compile_in(argv: Sequence[str], log: str, what: str, compiled: bytes, progress: Progress) -> None:
    """Run a build at low priority with its output in ``log``, telling how often ``compiled`` is in it. HostError with the compiler's words."""
    progress(f"{what} ({jobs()} at once; some minutes)")
    succeed(argv, log, what, _Teller(what, compiled, progress))


def succeed(argv: Sequence[str], log: str, what: str, look: Callable[[bytes], None] = lambda _: None) -> None:
    """`run_logged` at low priority. HostError with the program's words, which builds print to either stream, if it fails."""
    status = run_logged([*_NICE, *argv], log, look)
    if status:
        raise HostError(f"{what}: {argv[0]}: status {status}: {failure(log)}")


class _Teller:
    """Tells how many files were compiled, when it is many more than were told."""

    def __init__(self, what: str, compiled: bytes, progress: Progress) -> None:
        self._what = what
        self._compiled = compiled
        self._progress = progress
        self._told = 0

    def __call__(self, text: bytes) -> None:
        count = text.count(self._compiled)
        if count - self._told >= _FILES_A_REPORT:
            self._told = count
            self._progress(f"{self._what}: {count} files")


def jobs() -> int:
    """Processors that may be used."""
    return len(os.sched_getaffinity(0))


def run_logged(argv: Sequence[str], log: str, look: Callable[[bytes], None]) -> int:
    """Run a program with its output in a file, which ``look`` sees now and then; its exit code. Nothing it started outlives us."""
    argv = [process.need_tool(_ALONE[0], "apt-get install util-linux"), *_ALONE[1:], *argv]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        child = process.Child(argv, (), (null, out, out))
    finally:
        os.close(null)
        os.close(out)
    with child:
        ended = select.poll()
        ended.register(child.fileno(), select.POLLIN)
        while not ended.poll(_POLL_MS):
            look(read(log))
        return child.wait()


def failure(log: str) -> str:
    """What the compiler complained of, else the end of its output."""
    lines = read(log).decode(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line or "Error " in line or "ERROR: " in line]
    return " | ".join(errors[:_LOG_LINES] or lines[-_LOG_LINES:])


def read(path: str) -> bytes:
    """A file's contents."""
    with open(path, "rb") as file:
        return file.read()
