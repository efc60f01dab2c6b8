"""``rundctl template``: build, list, show and prune kernel templates."""

from __future__ import annotations

import json

from rundctl.commands.declare import Argument, Flag, Options, Verb
from rundctl.commands.output import columns, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.settings import Settings


def build(options: Options) -> int:
    """Build the template unless it exists; its key is printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.template import kernel_template
    from rundctl.host import memo

    del options
    chosen = settings.load()
    with Progress() as progress:
        template = kernel_template.ensure(chosen, memo.of_home(chosen.home), progress.say)
    write(f"{template.key}\n")
    return 0


def list_(options: Options) -> int:
    """One line a template."""
    from rundctl.engine.template import store

    del options
    rows = [("KEY", "MEMORY", "VCPUS", "SIZE", "STATE")]
    for entry in store.entries(_settings().home):
        shape = entry.manifest.get("shape", {})
        state = "ok" if entry.intact else "damaged"
        rows.append(
            (
                entry.key,
                f"{shape.get('memory_mib', '?')} MiB",
                str(shape.get("vcpus", "?")),
                f"{entry.size_mib} MiB",
                state,
            )
        )
    write(columns(rows))
    return 0


def show(options: Options) -> int:
    """A template's manifest."""
    from rundctl.engine.template import store

    entry = store.entry(_settings().home, options.text("KEY"))
    write(json.dumps(entry.manifest, indent=2) + "\n")
    return 0


def prune(options: Options) -> int:
    """Remove what nothing current can use, and what is over the limits given; the keys are printed."""
    from rundctl.engine.template import prune as template_prune

    limits = template_prune.Limits(
        unused_days=options.number("unused-days") if options.text("unused-days") else None,
        max_size_mib=options.number("max-size") if options.text("max-size") else None,
        everything=options.on("all"),
    )
    for key in template_prune.prune(_settings(), limits):
        write(f"{key}\n")
    return 0


def _settings() -> Settings:
    """The settings, with the reflink store mounted if there is one: the templates are in it."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.template import reflink_store

    loaded = settings.load()
    with Progress() as progress:
        reflink_store.mount_if_there(loaded.home, progress.say)
    return loaded


_PRUNE_FLAGS = (
    Flag("--all", "Remove the current ones as well.", short="-a"),
    Flag("--unused-days", "Remove also what no container used for so many days.", value="DAYS"),
    Flag("--max-size", "Remove also the least recently used, until all take no more than so many MiB.", value="MIB"),
)
VERB = Verb(
    "template",
    "Build, list, show and prune kernel templates.",
    verbs=(
        Verb("template build", "Build the template unless it exists, and print its key.", build),
        Verb("template list", "List the templates.", list_),
        Verb(
            "template show",
            "Print a template's manifest as JSON.",
            show,
            arguments=(Argument("KEY", "Key of the template, or how it begins."),),
        ),
        Verb(
            "template prune", "Remove templates that nothing can use, and print their keys.", prune, flags=_PRUNE_FLAGS
        ),
    ),
)
