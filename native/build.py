"""Builds the native programs: every compiler flag of the project is in this file.

Used by the packaging hook, by the tests (``sanitize=True``) and by hand: ``python native/build.py OUT [--sanitize]``.
Only the standard library is needed. Failures raise :class:`BuildError` with words for the user.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess  # the packaging hook runs before rundctl can be imported
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
PROGRAMS = ("agent", "shim")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wformat=2", "-Wvla", "-Werror")
LANGUAGE = ("-std=gnu11", "-D_GNU_SOURCE", f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'common'}")
# Small and static: the agent is in every template's memory, the shim in the host's for every container.
# Sections let the linker drop what is not called.
# Both read bytes of somebody who may be hostile: buffers are guarded by canaries, and copies into them by their sizes.
RELEASE = (
    *("-Os", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-s"),
    *("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),
)
# The shim is root on the host: it lies elsewhere each time, and what was relocated is read-only. The agent would lie at the same place,
# with the same canary, in all clones of a template: there relocations buy nothing (docs/security.md).
LAYOUT = {
    "agent": ("-static",),
    "shim": ("-static-pie", "-fPIE", "-Wl,-z,relro,-z,now,-z,noexecstack"),
}
# Not static: the sanitizers' libraries do not link so. Bound at once: the resolver of a first call leaves vector registers on the stack, with what was wiped.
SANITIZE = (
    *("-O1", "-g", "-fno-omit-frame-pointer", "-Wl,-z,now"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
# clang's alone: it guides libFuzzer by what an input reaches.
FUZZ = ("-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
HINT = "on Debian: apt-get install gcc libc6-dev linux-libc-dev"


class BuildError(Exception):
    """The native programs cannot be built; the message says why and what to install."""


def build(out_dir: str | Path, *, sanitize: bool = False, compiler: str = "cc") -> dict[str, Path]:
    """Compile every program into ``out_dir`` and return their paths by name.

    Each file is replaced atomically, so a program that runs, or a build at the same time, does no harm.
    """
    check_toolchain(compiler, static=not sanitize)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    return {name: _build_program(name, out, compiler, sanitize=sanitize) for name in PROGRAMS if sources(name)}


def sources(name: str) -> list[Path]:
    """List the C files of one program, without those shared by all."""
    return sorted((NATIVE / name).glob("*.c"))


def command(name: str, target: Path, *, compiler: str = "cc", sanitize: bool = False) -> list[str]:
    """Return the compiler's argv that makes ``target``."""
    files = [*sorted((NATIVE / "common").glob("*.c")), *sources(name)]
    mode = SANITIZE if sanitize else (*RELEASE, *LAYOUT[name])
    return [compiler, *LANGUAGE, *WARNINGS, *mode, f"-I{NATIVE / name}", "-o", str(target), *map(str, files)]


def fuzz_command(source: Path, target: Path, *, program: str) -> list[str]:
    """Return clang's argv that makes a fuzzer of ``source`` and of what a program is made of, but for its main(); of what all share if that is ``common``."""
    names = dict.fromkeys(("common", program))
    files = [path for name in names for path in sources(name) if path.name != "main.c"]
    return ["clang", *LANGUAGE, *FUZZ, f"-I{NATIVE / program}", "-o", str(target), str(source), *map(str, files)]


def check_toolchain(compiler: str = "cc", *, static: bool = True) -> None:
    """Raise BuildError unless the compiler runs and has the C library's headers and, for static programs, ``libc.a`` and ``rcrt1.o``."""
    if shutil.which(compiler) is None:
        msg = f"no C compiler: {compiler} is not in PATH ({HINT})"
        raise BuildError(msg)
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch, "probe.c")
        probe.write_text('#include <stdio.h>\n#include <linux/mount.h>\nint main(void) { return puts("") < 0; }\n')
        flags = LAYOUT["shim"] if static else ()
        done = _run([compiler, *flags, "-o", str(probe.with_suffix("")), str(probe)])
    if done.returncode:
        what = "libc.a, rcrt1.o, " if static else ""
        msg = f"the C compiler lacks {what}stdio.h or the kernel's headers ({HINT})\n{done.stdout.rstrip()}"
        raise BuildError(msg)


def _build_program(name: str, out: Path, compiler: str, *, sanitize: bool) -> Path:
    target = out / name
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as scratch:
        fresh = Path(scratch, name)
        done = _run(command(name, fresh, compiler=compiler, sanitize=sanitize))
        if done.returncode:
            msg = f"compiling native/{name} failed\n{done.stdout.rstrip()}"
            raise BuildError(msg)
        fresh.replace(target)
    return target


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def main() -> int:
    """Build from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="build rundctl's native programs")
    parser.add_argument("out", type=Path, help="directory for the programs")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan, not static")
    parser.add_argument("--compiler", default="cc")
    options = parser.parse_args()
    try:
        built = build(options.out, sanitize=options.sanitize, compiler=options.compiler)
    except BuildError as error:
        sys.stderr.write(f"build.py: {error}\n")
        return 1
    for path in built.values():
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
