"""The fast parser: what `commands/interface.py` builds a Typer application from, understood without loading Typer.

Flags may stand before or after arguments (crun's habit; runc wants them before). ``--`` ends the flags.
"""

from __future__ import annotations

from rundctl.commands.declare import Options
from rundctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.commands.declare import Argument, Flag, Verb

_SWITCH_VALUES = {"true": True, "1": True, "false": False, "0": False}  # Go callers may write --force=true


class HelpAsked(Exception):  # noqa: N818 (no error: a request)
    """``--help`` was given."""


class Parser:
    """Consumes an argument list into one set of options."""

    __slots__ = ("on", "rest", "tail", "text")

    def __init__(self, arguments: list[str]) -> None:
        self.rest = list(arguments)
        self.tail: tuple[str, ...] = ()
        self.text: dict[str, str] = {}
        self.on: set[str] = set()

    def flags_before(self, flags: tuple[Flag, ...]) -> None:
        """Take flags until the first word that is none; UsageError, HelpAsked."""
        self._defaults(flags)
        known = _index(flags)
        while self.rest and _is_flag(self.rest[0]):
            self._flag(self.rest.pop(0), known)
        self._check(flags)

    def whole(self, verb: Verb) -> None:
        """Take all that is left as a verb's flags and arguments; UsageError, HelpAsked."""
        self._defaults(verb.flags)
        known = _index(verb.flags)
        words: list[str] = []
        while self.rest:
            if verb.takes_rest and len(words) == len(verb.arguments) - 1:
                break
            word = self.rest.pop(0)
            if word == "--":
                words += self.rest
                self.rest = []
            elif _is_flag(word):
                self._flag(word, known)
            else:
                words.append(word)
        self._check(verb.flags)
        if verb.takes_rest:
            count = len(verb.arguments) - 1
            self.tail, words = (*words[count:], *self.rest), words[:count]
        self._arguments(verb, words)

    def options(
        self, debug: Callable[[str], None], info: Callable[[str], None], warn: Callable[[str], None]
    ) -> Options:
        """What was found, and by what the verb says what it does."""
        return Options(self.text, self.on, debug, info, warn, self.tail)

    def _defaults(self, flags: tuple[Flag, ...]) -> None:
        self.text.update({flag.key: flag.default for flag in flags if flag.value})

    def _flag(self, word: str, known: dict[str, Flag]) -> None:
        name, equals, value = word.partition("=")
        if name in ("--help", "-h"):
            raise HelpAsked
        flag = known.get(name)
        if flag is None:
            raise UsageError(f"no such option: {name}")
        if flag.value:
            self.text[flag.key] = value if equals else self._next(name)
        else:
            self._switch(flag, value if equals else "true")

    def _next(self, name: str) -> str:
        if not self.rest:
            raise UsageError(f"option {name} requires a value")
        return self.rest.pop(0)

    def _check(self, flags: tuple[Flag, ...]) -> None:
        """Choices are looked at when all is read: the last of a repeated flag counts."""
        for flag in flags:
            value = self.text.get(flag.key, "")
            if flag.choices and value != flag.default and value not in flag.choices:
                raise UsageError(f"{flag.name} takes {' or '.join(flag.choices)}, not {value!r}")

    def _switch(self, flag: Flag, value: str) -> None:
        if value not in _SWITCH_VALUES:
            raise UsageError(f"option {flag.name} takes no value")
        if _SWITCH_VALUES[value]:
            self.on.add(flag.key)
        else:
            self.on.discard(flag.key)

    def _arguments(self, verb: Verb, words: list[str]) -> None:
        required = sum(argument.required for argument in verb.arguments)
        if not required <= len(words) <= len(verb.arguments):
            raise UsageError(_wrong_number(verb, words))
        for position, argument in enumerate(verb.arguments):
            self.text[argument.name] = words[position] if position < len(words) else argument.default


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word[0] == "-"


def _index(flags: tuple[Flag, ...]) -> dict[str, Flag]:
    known = {flag.name: flag for flag in flags}
    known.update({flag.short: flag for flag in flags if flag.short})
    return known


def _wrong_number(verb: Verb, words: list[str]) -> str:
    if len(words) > len(verb.arguments):
        return f"{verb.name}: unexpected argument {words[len(verb.arguments)]!r}"
    return f"{verb.name}: missing argument {_first_missing(verb.arguments, len(words)).name}"


def _first_missing(arguments: tuple[Argument, ...], given: int) -> Argument:
    return [argument for argument in arguments if argument.required][given]
