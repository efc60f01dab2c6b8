"""``rundctl kill``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import ID, Argument, Flag, Options, Verb
from rundctl.errors import UsageError
from rundctl.lean import signal

_DIGITS = 9
_LAST = 64  # SIGRTMAX of the guest: the same ABI as the host's


def run(options: Options) -> int:
    """Send a signal to the container's first process."""
    from rundctl.engine.container import lifecycle

    number = signal_number(options.text("SIGNAL"))
    lifecycle.kill(engine.context(options), options.text("ID"), number, everyone=options.on("all"))
    return 0


def signal_number(text: str) -> int:
    """``15``, ``TERM``, ``SIGTERM``, ``sigterm``, ``RTMIN+3``, 0; UsageError for anything else."""
    is_number = _is_short_number(text)
    number = int(text) if is_number else _by_name(text.upper().removeprefix("SIG"))
    if not (0 if is_number else 1) <= number <= _LAST:
        raise UsageError(f"unknown signal {text!r}")
    return number


def _is_short_number(text: str) -> bool:
    """Whether it is one that a signal could have; Python reads no number of thousands of digits."""
    return len(text) <= _DIGITS and text.isascii() and text.isdigit()


def _by_name(name: str) -> int:
    base, plus, offset = name.partition("+")
    if plus and base == "RTMIN" and _is_short_number(offset):
        return int(signal.SIGRTMIN) + int(offset)
    return 0 if name.startswith("_") else int(getattr(signal, f"SIG{name}", 0))  # SIG_BLOCK is none


VERB = Verb(
    "kill",
    "Send a signal to a container.",
    run,
    arguments=(ID, Argument("SIGNAL", "Name or number of the signal.", required=False, default="SIGTERM")),
    flags=(Flag("--all", "Send it to every process of the container.", short="-a"),),
)
