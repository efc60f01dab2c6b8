"""``rundctl storage``: a reflink store for hosts whose file system has none."""

from __future__ import annotations

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import write
from rundctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.template.reflink_store import Status

_UNITS = {"M": 20, "G": 30, "T": 40}  # powers of two
_STATES = {
    "none": "none (rundctl storage init makes one)",
    "unmounted": "not mounted (rundctl storage mount, or the next create, mounts it)",
    "mounted": "mounted",
    "native": "not needed: the file system shares extents itself",
}


def init(options: Options) -> int:
    """Make the store and mount it."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.template import reflink_store

    size = _bytes(options.text("size")) if options.text("size") else None
    with Progress() as progress:
        made = reflink_store.init(settings.load().home, size, progress.say)
    write(_text(made))
    return 0


def mount(options: Options) -> int:
    """Mount the store."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.template import reflink_store

    del options
    with Progress() as progress:
        mounted = reflink_store.mount(settings.load().home, progress.say)
    write(_text(mounted))
    return 0


def status(options: Options) -> int:
    """What is there."""
    import dataclasses
    import json

    from rundctl.engine import settings
    from rundctl.engine.template import reflink_store

    found = reflink_store.status(settings.load().home)
    write(json.dumps(dataclasses.asdict(found), indent=2) + "\n" if options.on("json") else _text(found))
    return 0


def remove(options: Options) -> int:
    """Unmount and delete the store; the keys of the templates in it are printed."""
    from rundctl.engine import settings
    from rundctl.engine.template import reflink_store

    del options
    for key in reflink_store.remove(settings.load().home):
        write(f"{key}\n")
    return 0


def _bytes(text: str) -> int:
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit() and unit in _UNITS):
        raise UsageError(f"--size takes a number and M, G or T, such as 20G, not {text!r}")
    return int(digits) << _UNITS[unit]


def _text(found: Status) -> str:
    rows = [("state", _STATES[found.state]), ("templates", found.templates)]
    if found.size:
        rows += [
            ("image", found.image),
            ("size", f"{found.size >> 20} MiB, of which the host gave {found.on_host >> 20}"),
        ]
    if found.device:
        how = "direct I/O" if found.is_direct else "through the host's page cache"
        rows += [
            ("free", f"{found.free >> 20} MiB"),
            ("device", f"{found.device}, {how}"),
            ("users", f"{found.users} processes"),
        ]
    return "".join(f"{name:12}{text}\n" for name, text in rows)


VERB = Verb(
    "storage",
    "Make, mount, show and remove a reflink store.",
    verbs=(
        Verb(
            "storage init",
            "Make a reflink store and move the templates into it.",
            init,
            flags=(
                Flag("--size", "Its size, such as 20G (default: half of what is free, at most 64G).", value="SIZE"),
            ),
        ),
        Verb("storage mount", "Mount the reflink store, as after a reboot.", mount),
        Verb(
            "storage status",
            "Show the reflink store.",
            status,
            flags=(Flag("--json", "Print it as JSON."),),
        ),
        Verb("storage remove", "Unmount and delete the reflink store; templates are built anew.", remove),
    ),
)
