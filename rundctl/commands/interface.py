"""The Typer application, built from the table of verbs: help, explained mistakes and completion. Cold: it never runs a verb.

Typer learns its parameters from a function's signature, so each verb gets a function that does nothing and a made-up signature.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, Literal

import typer

from rundctl.commands import table
from rundctl.commands.log import Log
from rundctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.commands.declare import Argument, Flag, Verb

_PROGRAM = "rundctl"
_SETTINGS: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
_PYDANTIC = "Value error, "  # what Typer's checks begin with; says nothing
_ABOUT = "An OCI runtime that gives every container its own microVM, cloned from a template."


def show(words: list[str]) -> int:
    """Show help, or complete words; the exit code."""
    try:
        _invoke(words or ["--help"])
    except typer.TyperException as error:
        Log("", "text", verbose=False).error(_sentence(error.format_message()))
        return UsageError.exit_code
    except SystemExit as finished:  # Typer's way to end a completion
        return int(finished.code or 0)
    return 0


def explain(words: list[str]) -> UsageError | None:
    """Typer's error for a command line, with what it suggests; None if it finds nothing wrong."""
    try:
        _invoke(words)
    except typer.TyperException as error:
        return UsageError(_sentence(error.format_message()), hint=f"see {_path(error)} --help")
    return None


def application() -> typer.Typer:
    """All verbs that the table declares."""
    app = typer.Typer(
        name=_PROGRAM,
        help=_ABOUT,
        context_settings=_SETTINGS,
        pretty_exceptions_enable=False,
        rich_markup_mode=_markup(),
    )
    app.callback()(_function(_PROGRAM, _ABOUT, (), table.GLOBAL_FLAGS))
    for name in table.VERBS:
        add(app, table.load(name))
    return app


def _invoke(words: list[str]) -> None:
    typer.main.get_command(application())(args=words, prog_name=_PROGRAM, standalone_mode=False)


def _markup() -> Literal["rich"] | None:
    """Boxes and colours are for people; a pipe gets plain text."""
    return "rich" if sys.stdout.isatty() else None


def add(app: typer.Typer, verb: Verb) -> None:
    """Declare a verb, or a group of verbs, to Typer."""
    if not verb.verbs:
        name = verb.name.rpartition(" ")[2]
        settings = _SETTINGS | ({"allow_interspersed_args": False} if verb.takes_rest else {})
        app.command(name, help=verb.help, context_settings=settings)(
            _function(name, verb.help, verb.arguments, verb.flags)
        )
        return
    group = typer.Typer(name=verb.name, help=verb.help, context_settings=_SETTINGS, rich_markup_mode=_markup())
    for inner in verb.verbs:
        add(group, inner)
    app.add_typer(group)


def _function(name: str, about: str, arguments: tuple[Argument, ...], flags: tuple[Flag, ...]) -> Callable[..., None]:
    def nothing(**_values: object) -> None:
        """Parsing was all that was wanted."""

    parameters = [_argument(argument) for argument in arguments] + [_flag(flag) for flag in flags]
    nothing.__name__ = name
    nothing.__doc__ = about
    nothing.__annotations__ = {}
    nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return nothing


def _argument(argument: Argument) -> inspect.Parameter:
    default = ... if argument.required else None if argument.rest else argument.default
    info = typer.Argument(default, help=argument.help, metavar=argument.name)
    return _parameter(argument.name.lower(), info, list[str] | None if argument.rest else str)


def _flag(flag: Flag) -> inspect.Parameter:
    declarations = [flag.name, *([flag.short] if flag.short else [])]
    if not flag.value:
        return _parameter(flag.key, typer.Option(False, *declarations, help=flag.help, show_default=False), bool)
    kind: Any = Literal[flag.choices] if flag.choices else str
    metavar = None if flag.choices else flag.value
    info = typer.Option(flag.default or None, *declarations, help=flag.help, metavar=metavar)
    return _parameter(flag.key, info, kind | None)


def _parameter(key: str, info: object, kind: object) -> inspect.Parameter:
    return inspect.Parameter(key.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _sentence(message: str) -> str:
    """As the other errors read: no capital, no full stop, one line."""
    text = " ".join(message.split()).rstrip(".").replace(_PYDANTIC, "")
    return text[:1].lower() + text[1:]


def _path(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context else _PROGRAM
