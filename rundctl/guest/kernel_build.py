"""Build the lean guest kernel: Debian's source, ``allnoconfig`` and our options, everything built in.

A built kernel is named after the digest of all that its bytes depend on: source version, options, compiler and this recipe. One that is
there already is only made the default; `check` builds again and compares the bytes.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError, words
from rundctl.guest import kernel, kernel_image, kernel_options, kernel_source
from rundctl.host import files, process

if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.guest.kernel_options import Option
    from rundctl.guest.kernel_source import Source

    Progress = Callable[[str], None]

# Everything that else would differ between two builds of the same source. Paths do not: the tree is built in place, by relative names.
_FIXED = (
    "KBUILD_BUILD_TIMESTAMP=2020-01-01 00:00:00 +0000",
    "KBUILD_BUILD_USER=rundctl",
    "KBUILD_BUILD_HOST=rundctl",
    "KBUILD_BUILD_VERSION=1",
)
_RECIPE = "1"  # raise it with every change of how a kernel is built
_DIGEST_LENGTH = 12
_NEEDS = (
    # what is looked for, Debian's package, what it is for
    ("make", "make", "runs the build"),
    ("gcc", "gcc", "compiles the kernel and its build tools"),
    ("ld", "binutils", "links it"),
    ("flex", "flex", "reads Kconfig"),
    ("bison", "bison", "reads Kconfig"),
    ("bc", "bc", "computes the constants of time"),
    ("perl", "perl-base", "a script of the build"),
    ("tar", "tar", "unpacks the source"),
    ("xz", "xz-utils", "unpacks the source"),
    ("dpkg-deb", "dpkg", "unpacks the package"),
    ("apt-get", "apt", "downloads the package"),
    ("/usr/include/stdio.h", "libc6-dev", "the build tools are programs of the host"),
    ("/usr/include/gelf.h", "libelf-dev", "objtool reads what was compiled, for retpolines and static calls"),
)
# A pid namespace of its own: whoever kills the builder ends the compilers too, which make would otherwise leave running.
_ALONE = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--")
_FILES_A_REPORT = 250  # compiled files between two words of progress
_POLL_MS = 1000
_LOG_LINES = 12
_SPACE_BYTES = 3 << 30  # the tree and what is compiled from it, with room


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kernel's bytes depend on."""

    source: Source
    options: list[Option]
    compiler: str

    def name(self) -> str:
        """Name of the kernel under HOME/kernels: its version, and the digest over everything."""
        told = "\0".join(
            (
                _RECIPE,
                self.source.package,
                self.source.version,
                kernel_options.allconfig(self.options),
                self.compiler,
                *_FIXED,
            )
        )
        return f"{self.source.version}-lean-{hashlib.sha256(told.encode()).hexdigest()[:_DIGEST_LENGTH]}"


def build(home: str, package: str, progress: Progress, *, use: bool = True) -> kernel.Kernel:
    """The lean kernel of a source package ("": this release's), built unless it is there; to ``use`` it is to make it the default.

    HostError for missing tools, no space, an option that was not taken, a failed compilation.
    """
    recipe = _recipe(package)
    name = recipe.name()
    with _lock(home):
        if name not in kernel.names(home):
            kernel.install(home, name, _parts(home, recipe, progress))
        if use:
            kernel.make_current(home, name)
    progress(f"guest kernel {name} is {'the default' if use else f'in {home}/kernels'}")
    return kernel.Kernel(f"{home}/kernels/{name}")


def check(home: str, package: str, progress: Progress) -> kernel.Kernel:
    """Build once more, and compare with the kernel that is there. HostError if there is none or a byte differs."""
    recipe = _recipe(package)
    name = recipe.name()
    with _lock(home):
        if name not in kernel.names(home):
            raise HostError(f"no kernel {name} to compare with", hint="rundctl kernel build")
        there = kernel.Kernel(f"{home}/kernels/{name}")
        again = _parts(home, recipe, progress).manifest()["vmlinux"]
    if again != there.manifest()["vmlinux"]:
        raise HostError(
            f"kernel {name}: a second build differs", hint=f"SHA-256 {again}, not {there.manifest()['vmlinux']}"
        )
    progress(f"guest kernel {name}: a second build has the same bytes")
    return there


def missing_tools() -> list[tuple[str, str]]:
    """(Debian package, what it is for) of everything the host lacks."""
    return [(package, purpose) for what, package, purpose in _NEEDS if not _present(what)]


def _present(what: str) -> bool:
    return os.path.exists(what) if what.endswith(".h") else process.find_tool(what) is not None


def _recipe(package: str) -> Recipe:
    missing = missing_tools()
    if missing:
        told = ", ".join(f"{name} ({purpose})" for name, purpose in missing)
        raise HostError(
            f"build a kernel: missing: {told}", hint=f"apt-get install {' '.join(name for name, _ in missing)}"
        )
    versions = [process.run([tool, "--version"], what=f"ask {tool} for its version").decode() for tool in ("gcc", "ld")]
    compiler = " / ".join(text.partition("\n")[0] for text in versions)
    return Recipe(kernel_source.choose(package), kernel_options.load(), compiler)


def _lock(home: str) -> files.Lock:
    os.makedirs(f"{home}/kernels", exist_ok=True)
    return files.Lock(f"{home}/kernels/.build.lock")


def _parts(home: str, recipe: Recipe, progress: Progress) -> kernel.Parts:
    """Everything from the download to the kernel's parts, in a directory that is gone afterwards; the caller holds the lock."""
    scratch = f"{home}/kernels/.build"
    shutil.rmtree(scratch, ignore_errors=True)  # of a builder that was killed
    os.mkdir(scratch, 0o700)
    try:
        _need_space(scratch)
        tree = kernel_source.unpack(recipe.source, scratch, progress)
        config = _configure(tree, recipe.options, progress)
        path = _compile(tree, progress)
        image = kernel_image.vmlinux(_read(path), path)
        origin = f"{recipe.source.package}, {recipe.compiler}"
        return kernel.Parts(image, [], config, version=recipe.source.version, origin=origin)
    except OSError as error:
        raise HostError(f"build a kernel in {scratch}: {error.filename or ''}: {words(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _need_space(directory: str) -> None:
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < _SPACE_BYTES:
        raise HostError(
            f"build a kernel in {directory}: {free >> 20} MiB are free, {_SPACE_BYTES >> 20} needed",
            hint="make room, or set RUNDCTL_HOME",
        )


def _configure(tree: str, options: list[Option], progress: Progress) -> str:
    """Write the tree's .config and return its text. HostError naming each option that was not taken."""
    progress("configuring the kernel")
    asked = f"{tree}/.rundctl.config"
    with open(asked, "w", encoding="utf-8") as file:
        file.write(kernel_options.allconfig(options))
    argv = ["make", "-s", "-C", tree, f"KCONFIG_ALLCONFIG={asked}", "allnoconfig"]
    process.run(argv, what="configure the kernel")
    with open(f"{tree}/.config", encoding="utf-8") as file:
        config = file.read()
    kernel_options.verify(options, config, kernel_options.defined(tree))
    return config


def _compile(tree: str, progress: Progress) -> str:
    """Path of the stripped vmlinux. Runs at low priority: it takes minutes of all processors."""
    jobs = len(os.sched_getaffinity(0))
    progress(f"compiling the kernel ({jobs} at once; some minutes)")
    argv = ["nice", "-n", "10", "make", "-C", tree, f"-j{jobs}", *_FIXED, "vmlinux"]
    log = f"{tree}/.rundctl.log"
    status = _run_logged(argv, log, progress)
    if status:
        raise HostError(f"compile the kernel: make: status {status}: {_failure(log)}")
    process.run(["strip", "--strip-all", f"{tree}/vmlinux"], what="strip the kernel")
    return f"{tree}/vmlinux"


def _run_logged(argv: list[str], log: str, progress: Progress) -> int:
    """Run a program with its output in a file, telling how many files it has compiled; its exit code."""
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
        told = 0
        while not ended.poll(_POLL_MS):
            compiled = _read(log).count(b"\n  CC ")
            if compiled - told >= _FILES_A_REPORT:
                told = compiled
                progress(f"compiling the kernel: {compiled} files")
        return child.wait()


def _failure(log: str) -> str:
    """What the compiler complained of, else the end of its output."""
    lines = _read(log).decode(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line or "Error " in line]
    return " | ".join(errors[:_LOG_LINES] or lines[-_LOG_LINES:])


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
