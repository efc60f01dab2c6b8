"""Build the lean guest kernel: Debian's source, ``allnoconfig`` and our options, everything built in.

A built kernel is named after the digest of all that its bytes depend on: source version, options, compiler and this recipe. One that is
there already is only made the default; `check` builds again and compares the bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError
from rundctl.guest import kernel, kernel_image, kernel_options, kernel_source
from rundctl.host import files, process, workshop

if TYPE_CHECKING:
    from rundctl.guest.kernel_options import Option
    from rundctl.guest.kernel_source import Source
    from rundctl.types import Progress


# Everything that else would differ between two builds of the same source. Paths do not: the tree is built in place, by relative names.
_FIXED = (
    "KBUILD_BUILD_TIMESTAMP=2020-01-01 00:00:00 +0000",
    "KBUILD_BUILD_USER=rundctl",
    "KBUILD_BUILD_HOST=rundctl",
    "KBUILD_BUILD_VERSION=1",
)
_RECIPE = "1"  # raise it with every change of how a kernel is built
_DIGEST_LENGTH = 12
_NEEDS = workshop.needs(
    workshop.COMPILERS,
    (
        ("flex", "flex", "reads Kconfig"),
        ("bison", "bison", "reads Kconfig"),
        ("bc", "bc", "computes the constants of time"),
        ("perl", "perl-base", "a script of the build"),
        ("tar", "tar", "unpacks the source"),
        ("xz", "xz-utils", "unpacks the source"),
        ("dpkg-deb", "dpkg", "unpacks the package"),
        ("/usr/include/gelf.h", "libelf-dev", "objtool reads what was compiled, for retpolines and static calls"),
    ),
)
_SPACE_MIB = 3072  # the tree and what is compiled from it, with room


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


def _recipe(package: str) -> Recipe:
    workshop.require(_NEEDS, "build a kernel")
    return Recipe(kernel_source.choose(package), kernel_options.load(), workshop.compiler())


def _lock(home: str) -> files.Lock:
    os.makedirs(f"{home}/kernels", exist_ok=True)
    return files.Lock(f"{home}/kernels/.build.lock")


def _parts(home: str, recipe: Recipe, progress: Progress) -> kernel.Parts:
    """Everything from the download to the kernel's parts, in a directory that is gone afterwards; the caller holds the lock."""
    with workshop.scratch(f"{home}/kernels/.build", _SPACE_MIB, "build a kernel") as scratch:
        tree = kernel_source.unpack(recipe.source, scratch, progress)
        config = _configure(tree, recipe.options, progress)
        path = _compile(tree, progress)
        image = kernel_image.vmlinux(workshop.read(path), path)
        origin = f"{recipe.source.package}, {recipe.compiler}"
        return kernel.Parts(image, [], config, version=recipe.source.version, origin=origin)


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
    """Path of the stripped vmlinux."""
    argv = ["make", "-C", tree, f"-j{workshop.jobs()}", *_FIXED, "vmlinux"]
    workshop.compile_in(argv, f"{tree}/.rundctl.log", "compiling the kernel", b"\n  CC ", progress)
    process.run(["strip", "--strip-all", f"{tree}/vmlinux"], what="strip the kernel")
    return f"{tree}/vmlinux"
