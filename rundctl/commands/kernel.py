"""``rundctl kernel``: build, fetch, choose and list guest kernels."""

from __future__ import annotations

from rundctl.commands.declare import Argument, Flag, Options, Verb
from rundctl.commands.output import columns, write


def build(options: Options) -> int:
    """Build the lean kernel unless it is there; where it is gets printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.guest import kernel_build

    home, source = settings.load().home, options.text("source")
    with Progress() as progress:
        if options.on("check"):
            made = kernel_build.check(home, source, progress.say)
        else:
            made = kernel_build.build(home, source, progress.say, use=not options.on("keep-default"))
    write(f"{made.vmlinux}\n")
    return 0


def fetch(options: Options) -> int:
    """Download and unpack Debian's kernel package; where the kernel is gets printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.guest import kernel_fetch

    del options
    with Progress() as progress:
        found = kernel_fetch.fetch(settings.load().home, progress.say)
    write(f"{found.vmlinux}\n")
    return 0


def use(options: Options) -> int:
    """Make a kernel the default of all whose settings name none."""
    from rundctl.engine import settings
    from rundctl.guest import kernel_default

    kernel_default.use(settings.load().home, options.text("NAME"))
    return 0


def list_(options: Options) -> int:
    """One line a kernel."""
    from rundctl.engine import settings
    from rundctl.guest import kernel, kernel_default

    del options
    home = settings.load().home
    default = kernel_default.name(home)
    rows = [(name, "default" if name == default else "") for name in kernel.names(home)]
    write(columns([("NAME", "USE"), *rows]))
    return 0


_SOURCE = Flag("--source", "Debian's source package (default: that of this release).", value="PACKAGE")
_KEEP = Flag("--keep-default", "Do not make it the default.")
_CHECK = Flag("--check", "Build again and compare, byte by byte, with the kernel that is there.")
VERB = Verb(
    "kernel",
    "Build, fetch, choose and list guest kernels.",
    verbs=(
        Verb(
            "kernel build",
            "Build the lean kernel from Debian's source, make it the default, and print where it is.",
            build,
            flags=(_SOURCE, _KEEP, _CHECK),
        ),
        Verb(
            "kernel fetch",
            "Download and unpack Debian's kernel package, make it the default, and print where it is.",
            fetch,
        ),
        Verb(
            "kernel use",
            "Make a kernel the default.",
            use,
            arguments=(Argument("NAME", "Name of the kernel, as in the list."),),
        ),
        Verb("kernel list", "List the kernels.", list_),
    ),
)
