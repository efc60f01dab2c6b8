"""How a verb is declared: plain light data from which the fast parser, the Typer interface and the man pages' test derive.

This module is on the path of every call: no dataclasses, no typing (a `Verb` costs nothing but its own construction).
"""

from __future__ import annotations

from rundctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_DIGITS = 18  # fit 64 bits, whatever is made of them later


class Flag:
    """A flag: ``--name``, perhaps ``-s``; ``value`` names what it takes and is empty for a switch."""

    __slots__ = ("choices", "default", "help", "name", "short", "value")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002 (the column's name in every such table)
        *,
        short: str = "",
        value: str = "",
        default: str = "",
        choices: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.value = value
        self.default = default
        self.choices = choices

    @property
    def key(self) -> str:
        """Name without dashes in front: what `Options` knows it by."""
        return self.name[2:]


class Argument:
    """A positional argument; ``rest``: all words that follow those before it, whatever they look like, or none."""

    __slots__ = ("default", "help", "name", "required", "rest")

    def __init__(self, name: str, help: str, *, required: bool = True, default: str = "", rest: bool = False) -> None:  # noqa: A002 (as Flag)
        self.name = name
        self.help = help
        self.required = required and not rest
        self.default = default
        self.rest = rest


class Options:
    """What a command line said, after parsing: every declared name has a value."""

    __slots__ = ("_on", "_text", "debug", "info", "rest", "warn")

    def __init__(
        self,
        text: dict[str, str],
        on: set[str],
        debug: Callable[[str], None],
        info: Callable[[str], None],
        warn: Callable[[str], None],
        rest: tuple[str, ...] = (),
    ) -> None:
        self._text = text
        self._on = on
        self.rest = rest  # of a verb that takes any words
        self.debug = debug
        self.info = info
        self.warn = warn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and (self._text, self._on, self.rest) == (other._text, other._on, other.rest)

    __hash__ = None  # type: ignore[assignment]  # it grows while it is parsed

    def __repr__(self) -> str:
        return f"Options({self._text!r}, {self._on!r}, {self.rest!r})"

    def text(self, key: str) -> str:
        """Value of a flag that takes one, or of an argument; its default if it was not given. KeyError if undeclared."""
        return self._text[key]

    def on(self, key: str) -> bool:
        """Whether a switch was given."""
        return key in self._on

    def number(self, key: str) -> int:
        """Value as a non-negative integer; UsageError if it is none."""
        text = self.text(key)
        if not (text.isascii() and text.isdigit()):
            raise UsageError(f"--{key} takes a number, not {text!r}")
        if len(text) > _DIGITS:
            raise UsageError(f"--{key} takes a number of at most {_DIGITS} digits")
        return int(text)


class Verb:
    """A verb: either it runs, or it is a group of further verbs (``template build``)."""

    __slots__ = ("arguments", "flags", "help", "name", "run", "verbs")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002 (as Flag)
        run: Callable[[Options], int] | None = None,
        *,
        arguments: tuple[Argument, ...] = (),
        flags: tuple[Flag, ...] = (),
        verbs: tuple[Verb, ...] = (),
    ) -> None:
        self.name = name
        self.help = help
        self.run = run
        self.arguments = arguments
        self.flags = flags
        self.verbs = verbs

    @property
    def takes_rest(self) -> bool:
        """Whether its last argument is all that follows."""
        return bool(self.arguments) and self.arguments[-1].rest


ID = Argument("ID", "Name of the container, unique on this host.")
HELP = Flag("--help", "Show this message and exit.", short="-h")
