"""``rundctl qemu``: build, choose and list lean QEMUs."""

from __future__ import annotations

from rundctl.commands.declare import Argument, Flag, Options, Verb
from rundctl.commands.output import columns, write


def build(options: Options) -> int:
    """Build the lean QEMU unless it is there; where it is gets printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.vmm import qemu_build

    home = settings.load().home
    with Progress() as progress:
        use_it = not options.on("keep-default")
        path = (
            qemu_build.check(home, progress.say)
            if options.on("check")
            else qemu_build.build(home, progress.say, use=use_it)
        )
    write(f"{path}\n")
    return 0


def use(options: Options) -> int:
    """Make a QEMU the default of all whose settings name none."""
    from rundctl.engine import settings
    from rundctl.vmm import binary

    binary.make_current(settings.load().home, options.text("NAME"))
    return 0


def list_(options: Options) -> int:
    """One line a QEMU, the host's own first."""
    from rundctl.engine import settings
    from rundctl.vmm import binary

    del options
    home = settings.load().home
    default = binary.current(home) or binary.SYSTEM
    rows = [(name, "default" if name == default else "") for name in (binary.SYSTEM, *binary.names(home))]
    write(columns([("NAME", "USE"), *rows]))
    return 0


_KEEP = Flag("--keep-default", "Do not make it the default.")
_CHECK = Flag("--check", "Build again and compare, byte by byte, with the one that is there.")
VERB = Verb(
    "qemu",
    "Build, choose and list lean QEMUs.",
    verbs=(
        Verb(
            "qemu build",
            "Build the lean QEMU from Debian's source, make it the default, and print where it is.",
            build,
            flags=(_KEEP, _CHECK),
        ),
        Verb(
            "qemu use",
            "Make a QEMU the default.",
            use,
            arguments=(Argument("NAME", "Name of the QEMU, as in the list; system is the host's own."),),
        ),
        Verb("qemu list", "List the QEMUs.", list_),
    ),
)
