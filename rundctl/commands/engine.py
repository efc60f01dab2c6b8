"""What verbs share on their way into the engine.

Verbs import the engine when they run, not when they are declared: help, completion and a wrong command line need only declarations.
"""

from __future__ import annotations

import sys

from rundctl.commands.declare import ID, Flag
from rundctl.errors import UsageError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.commands.declare import Options
    from rundctl.engine.container.context import Context, CreateOptions
    from rundctl.engine.settings import Settings

ARGUMENTS = (ID,)
_TEMPLATE = {"": None, "on": True, "off": False}

CREATE_FLAGS = (
    Flag("--bundle", "Directory of the bundle (default: the current one).", short="-b", value="DIR"),
    Flag("--console-socket", "Refused: terminals are not supported yet.", value="PATH"),
    Flag("--pid-file", "Write the container's host pid to a file.", value="FILE"),
    Flag("--no-pivot", "Accepted, no effect: the guest's root is never a host directory, so pivot_root works."),
    Flag("--no-new-keyring", "Leave the container in the guest's session keyring."),
    Flag("--preserve-fds", "Only 0: descriptors of the host cannot enter a VM.", value="N", default="0"),
    Flag(
        "--template",
        "Clone the template, or boot cold (default: as annotated, else as the settings say).",
        value="WHEN",
        choices=("on", "off"),
    ),
    Flag("--timings", "Show on stderr how long each stage took."),
)


def context(options: Options) -> Context:
    """The engine's context for a call."""
    from rundctl.engine.container.context import Context

    return Context(
        options.text("root") or None,
        options.debug,
        options.warn,
        _settings,
        _progress,
        systemd_cgroup=_systemd_cgroup(options),
    )


def _settings() -> Settings:
    from rundctl.engine import settings

    return settings.load()


def _systemd_cgroup(options: Options) -> bool:
    """runc's flag, or crun's."""
    return options.on("systemd-cgroup") or options.text("cgroup-manager") == "systemd"


def create_options(options: Options, *, detach: bool = True, keep: bool = False) -> CreateOptions:
    """What ``create`` and ``run`` ask of the engine; UsageError for what is refused."""
    _refuse(options)
    from rundctl.engine.container.context import CreateOptions

    if options.on("no-pivot"):
        options.debug("--no-pivot has no effect: the guest's root is never a host directory")
    return CreateOptions(
        options.text("ID"),
        options.text("bundle") or ".",
        pid_file=options.text("pid-file"),
        template=_TEMPLATE[options.text("template")],
        timings=options.info if options.on("timings") else None,
        no_new_keyring=options.on("no-new-keyring"),
        keep=keep,
        detach=detach,
    )


def _progress(line: str) -> None:
    """A template is built once in a while, for seconds: said to people, not to scripts."""
    if sys.stderr.isatty():
        sys.stderr.write(f"rundctl: {printable(line)}\n")


def _refuse(options: Options) -> None:
    if options.text("console-socket"):
        raise UsageError("--console-socket is not supported yet: terminals come later", hint="leave out -t; -i works")
    if options.number("preserve-fds"):
        raise UsageError("--preserve-fds is not supported: descriptors of the host cannot enter a VM")
