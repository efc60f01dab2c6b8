"""``rundctl kernel``: fetch and list guest kernels."""

from __future__ import annotations

from rundctl.commands.declare import Options, Verb
from rundctl.commands.output import write


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


def list_(options: Options) -> int:
    """One line a kernel."""
    from rundctl.engine import settings
    from rundctl.guest import kernel

    del options
    for name in kernel.names(settings.load().home):
        write(f"{name}\n")
    return 0


VERB = Verb(
    "kernel",
    "Fetch and list guest kernels.",
    verbs=(
        Verb("kernel fetch", "Download and unpack Debian's kernel package, and print where the kernel is.", fetch),
        Verb("kernel list", "List the kernels.", list_),
    ),
)
