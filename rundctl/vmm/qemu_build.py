"""Build a lean QEMU: Debian's source, only what our command lines name, one static program.

Debian's QEMU has every device and links 51 libraries: each clone pays for that with pages that the dynamic linker writes and with the time it
takes. What is not in the program cannot be attacked either. The program stays position-independent, so that its addresses differ from clone
to clone; it must be built anew when Debian mends QEMU (`rundctl doctor` says so).

Patches of ours make it start faster: ``patches/SERIES/NNNN-name.patch`` for sources of that series (7.2), each with its reason. QEMU without
them is the same machine. So a source of another series is built as it is, and a patch that does not fit a source (any more) is left out, and told.

A build is named after the digest of all that its bytes depend on; one that is there is not built again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.errors import HostError
from rundctl.host import apt, files, process, workshop
from rundctl.vmm import binary

if TYPE_CHECKING:
    from rundctl.types import Progress


_RECIPE = "2"  # raise it with every change of how QEMU is built
_BINARY_PACKAGE = "qemu-system-x86"  # its version is the source's, and every host has lists of binary packages
_SOURCE_PACKAGE = "qemu"
_NEEDS_APT = "building needs Debian's apt; elsewhere name a QEMU in the settings"
_DEVICES = (
    # Kconfig symbol (hw/*/Kconfig in QEMU's source), what needs it; what it selects comes with it
    ("Q35", "the machine: the only one with PCI Express ports, hot-plugged devices and vmgenid"),
    ("PCIE_PORT", "empty ports for devices that come after the restore"),
    ("VIRTIO_PCI", "how all devices below are attached"),
    ("VIRTIO_SERIAL", "the agent's channel"),
    ("VIRTIO_BLK", "the upper layer; lower layers as images"),
    ("VIRTIO_9P", "shared directories, served by QEMU itself"),
    ("VHOST_USER_FS", "shared directories, served by virtiofsd"),
    ("VIRTIO_PMEM", "lower layers in the host's page cache alone"),
    ("VIRTIO_NET", "networks"),
    ("VIRTIO_RNG", "a source of entropy for cold boots"),
    ("ACPI_VMGENID", "tells a guest that it was cloned"),
)
_FEATURES = (
    # option of configure, what needs it; `?`: newer versions do without the option
    ("--enable-kvm", "the accelerator of most hosts"),
    ("--enable-tcg", "emulation, where KVM does not work"),
    ("--enable-virtfs", "9p"),
    ("--enable-attr", "9p: extended attributes"),
    ("--enable-cap-ng", "7.2 has no 9p without it"),
    ("--enable-vhost-user", "virtiofsd"),
    ("--enable-vhost-kernel", "networks by the host's kernel"),
    ("--enable-vhost-net", "networks by the host's kernel"),
    ("--enable-seccomp", "-sandbox on"),
    ("--enable-membarrier", "cheaper read-side locks"),
    ("--enable-malloc-trim", "freed memory goes back to the host"),
    ("--enable-coroutine-pool?", "one coroutine is used for many requests"),
)
_SHAPE = (
    ("--without-default-features", "nothing but the list above"),
    ("--without-default-devices", "nothing but the list of devices"),
    ("--static", "no dynamic linker: 15 ms and 4 MiB a clone"),
    ("--enable-pie", "addresses differ from clone to clone, for 0.8 MiB of relocations in each"),
    ("--enable-trace-backends=nop", "no table of trace points"),
    (
        "--disable-qom-cast-debug",
        "each use of an object would look its type up; what that finds are mistakes of QEMU's makers",
    ),
    ("--disable-install-blobs", "Debian's source is without firmware, and 10.0 looks for it"),
    ("--disable-docs", "only the program is wanted"),
    ("--disable-tools", "only the program is wanted"),
    ("--disable-user", "only the machine emulator is wanted"),
    ("--target-list=x86_64-softmmu", "the only architecture of our guests"),
    ("--with-devices-x86_64=rundctl", "the list of devices"),
    # Outside the prefix, so that QEMU does not look for it relative to where its program lies.
    ("--prefix=/nonexistent", "nothing is installed"),
    ("--firmwarepath=/usr/share/qemu:/usr/share/seabios", "firmware is Debian's"),
)
_PATCHES = os.path.join(os.path.dirname(__file__), "patches")
_CFLAGS = "-O2 -g0"  # debugging information would be thrown away
_NEEDS = workshop.needs(
    workshop.COMPILERS,
    (
        ("dpkg-source", "dpkg-dev", "unpacks the source"),  # and has `patch` with it
        ("ninja", "ninja-build", "runs the build"),
        ("meson", "meson", "configures the build"),
        ("pkg-config", "pkg-config", "finds libraries"),
        ("/usr/lib/x86_64-linux-gnu/libglib-2.0.a", "libglib2.0-dev", "QEMU's base library"),
        ("/usr/lib/x86_64-linux-gnu/libfdt.a", "libfdt-dev", "cannot be left out for x86"),
        ("/usr/lib/x86_64-linux-gnu/libz.a", "zlib1g-dev", "cannot be left out"),
        ("/usr/lib/x86_64-linux-gnu/libattr.a", "libattr1-dev", "9p"),
        ("/usr/lib/x86_64-linux-gnu/libcap-ng.a", "libcap-ng-dev", "9p"),
        ("/usr/lib/x86_64-linux-gnu/libseccomp.a", "libseccomp-dev", "-sandbox on"),
    ),
)
_NEEDS_PIXMAN = workshop.needs(
    (("/usr/lib/x86_64-linux-gnu/libpixman-1.a", "libpixman-1-dev", "versions before 8.2 cannot do without"),)
)
_WITHOUT_PIXMAN = (8, 2)
_SPACE_MIB = 1536


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the program's bytes depend on."""

    version: str
    compiler: str

    def name(self) -> str:
        """Name of the build under HOME/qemu: Debian's version, and the digest over everything."""
        asked = [*(symbol for symbol, _ in _DEVICES), *(option for option, _ in (*_FEATURES, *_SHAPE))]
        ours = [text for path in patches(self.version) for text in (os.path.basename(path), _text(path))]
        told = "\0".join((_RECIPE, self.version, self.compiler, _CFLAGS, *asked, *_libraries(self.version), *ours))
        return f"{plain(self.version)}-lean-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def plain(version: str) -> str:
    """Debian's version without its epoch, as in the names of files."""
    return version.rpartition(":")[2]


def patches(version: str) -> list[str]:
    """Paths of our patches for this version of the source, in their order; none for a series that nobody made them for."""
    directory = f"{_PATCHES}/{'.'.join(map(str, _series(version)))}"
    if not os.path.isdir(directory):
        return []
    return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.endswith(".patch")]


def apply(paths: list[str], tree: str, progress: Progress) -> list[str]:
    """Change the source in ``tree``; the names of the patches that fit. One that does not is told and left out: it only saves time."""
    fitting = []
    for path in paths:
        name = os.path.basename(path)
        # Its context must be there letter by letter: what fits nearly is not known to do what it was tested for.
        argv = [
            "patch",
            "--directory",
            tree,
            "--strip=1",
            "--forward",
            "--fuzz=0",
            "--batch",
            "--silent",
            "--input",
            path,
        ]
        try:
            process.run([*argv, "--dry-run"], what=f"try {name}")
        except HostError:
            progress(f"{name} does not fit this source, and is left out: QEMU will start slower")
            continue
        process.run(argv, what=f"apply {name}")
        fitting.append(name)
    return fitting


def candidate() -> str:
    """Version of the source of the QEMU that apt would install now. HostError if it knows none."""
    versions = apt.fields("show", _BINARY_PACKAGE, "Version:", needed_for=_NEEDS_APT)
    if not versions:
        raise HostError(f"no package {_BINARY_PACKAGE} in apt's lists", hint=apt.HINT)
    # "Source: qemu (VERSION)" where the archive rebuilt the binary package alone, and Version has a suffix more.
    sources = apt.fields("show", _BINARY_PACKAGE, "Source:", needed_for=_NEEDS_APT)
    rebuilt = sources[0].partition("(")[2].rstrip(")") if sources else ""
    return rebuilt or versions[0]


def build(home: str, progress: Progress, *, use: bool = True) -> str:
    """Path of the lean QEMU of Debian's present version, built unless it is there; to ``use`` it is to make it the default.

    HostError for missing tools, no space, a failed compilation.
    """
    recipe = _recipe()
    name = recipe.name()
    with _lock(home):
        if name not in binary.names(home):
            _install(home, name, recipe, progress)
        if use:
            binary.make_current(home, name)
    progress(f"{name} is {'the default QEMU' if use else f'in {binary.root(home)}'}")
    return binary.program(home, name)


def check(home: str, progress: Progress) -> str:
    """Build once more, and compare with the one that is there. HostError if there is none or a byte differs."""
    recipe = _recipe()
    name = recipe.name()
    with _lock(home):
        if name not in binary.names(home):
            raise HostError(f"no QEMU {name} to compare with", hint="rundctl qemu build")
        with workshop.scratch(f"{binary.root(home)}/.build", _SPACE_MIB, "build QEMU") as scratch:
            again = _digest(_compile(recipe, scratch, progress)[0])
    there = _digest(binary.program(home, name))
    if again != there:
        raise HostError(f"{name}: a second build differs", hint=f"SHA-256 {again}, not {there}")
    progress(f"{name}: a second build has the same bytes")
    return binary.program(home, name)


def _recipe() -> Recipe:
    version = candidate()
    workshop.require(_needs(version), "build QEMU")
    return Recipe(version, workshop.compiler())


def _needs(version: str) -> list[workshop.Need]:
    """What this version is built with."""
    return _NEEDS if _series(version) >= _WITHOUT_PIXMAN else _NEEDS + _NEEDS_PIXMAN


def _series(version: str) -> tuple[int, int]:
    """(7, 2) of 1:7.2+dfsg-7."""
    major, minor = plain(version).split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def _text(path: str) -> str:
    return workshop.read(path).decode()


def _libraries(version: str) -> list[str]:
    """The static libraries' packages: their code is in the program."""
    packages = [need.package for need in _needs(version) if need.what.endswith(".a")]
    argv = ["dpkg-query", "--show", "--showformat", "${source:Package} ${source:Version}\n", "libc6-dev", *packages]
    return process.run(argv, what="ask dpkg for the versions of libraries").decode().splitlines()


def _lock(home: str) -> files.Lock:
    os.makedirs(binary.root(home), mode=0o755, exist_ok=True)
    return files.Lock(f"{binary.root(home)}/.build.lock")


def _install(home: str, name: str, recipe: Recipe, progress: Progress) -> None:
    with workshop.scratch(f"{binary.root(home)}/.build", _SPACE_MIB, "build QEMU") as scratch:
        built, patched = _compile(recipe, scratch, progress)
        made = f"{scratch}/made"
        os.mkdir(made)
        target = f"{made}/{binary.NAME}"
        shutil.copyfile(built, target)
        os.chmod(target, 0o755)  # noqa: S103  a program, to be run by whom QEMU runs as
        manifest = {
            "version": recipe.version, "compiler": recipe.compiler, "sha256": _digest(target), "patches": patched,
        }  # fmt: skip
        files.replace(f"{made}/{binary.MANIFEST}", json.dumps(manifest, indent=1).encode())
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)
        files.sync_directory(made)
        shutil.rmtree(f"{binary.root(home)}/{name}", ignore_errors=True)
        os.rename(made, f"{binary.root(home)}/{name}")
        files.sync_directory(binary.root(home))


def _compile(recipe: Recipe, scratch: str, progress: Progress) -> tuple[str, list[str]]:
    """Path of the stripped program, and the names of the patches in it."""
    progress(f"downloading QEMU {recipe.version}")
    tree = apt.unpack_source(_SOURCE_PACKAGE, recipe.version, scratch)
    patched = apply(patches(recipe.version), tree, progress)
    progress("configuring QEMU")
    with open(f"{tree}/configs/devices/x86_64-softmmu/rundctl.mak", "w", encoding="utf-8") as file:
        file.write("".join(f"CONFIG_{symbol}=y\n" for symbol, _ in _DEVICES))
    directory = f"{scratch}/build"
    os.mkdir(directory)
    configure = f"{tree}/configure"
    known = process.run([configure, "--help"], what="ask for configure's options", cwd=directory).decode()
    # The tree's path would else be in the program's messages, and differ from host to host.
    flags = f"--extra-cflags={_CFLAGS} -ffile-prefix-map={tree}=."
    workshop.succeed(
        ["env", "--chdir", directory, configure, *_options(known), flags], f"{scratch}/log", "configure QEMU"
    )
    argv = ["ninja", "-C", directory, f"-j{workshop.jobs()}", binary.NAME]
    workshop.compile_in(argv, f"{scratch}/log", "compiling QEMU", b"] Compiling C object", progress)
    process.run(["strip", "--strip-all", f"{directory}/{binary.NAME}"], what="strip QEMU")
    return f"{directory}/{binary.NAME}", patched


def _options(known: str) -> list[str]:
    """What configure is given; an option with a question mark only if it is among those ``known``."""
    asked = [option for option, _ in (*_FEATURES, *_SHAPE)]
    required = [option for option in asked if not option.endswith("?")]
    optional = [option.rstrip("?") for option in asked if option.endswith("?")]
    return required + [option for option in optional if option.removeprefix("--enable-") in known]


def _digest(path: str) -> str:
    return hashlib.sha256(workshop.read(path)).hexdigest()
