"""The lean kernel's configuration: what we ask for, why, and whether it was taken.

The options are in ``fragment/*.config``, one a line: ``NAME=value  # reason``. ``OLD|NEW`` are the names of one option in different series of the
kernel, one of which must take; ``NAME?`` is an option that some series have not got.

Kconfig drops what depends on something that is off without a word, and ignores names that it does not know: so what came out is compared with
what was asked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rundctl.errors import HostError

DIRECTORY = os.path.join(os.path.dirname(__file__), "fragment")
_FEATURE = re.compile(r"\[(?P<title>[^\]]+)\]$")
_OPTION = re.compile(r"(?P<names>\w+(?:\|\w+)*)(?P<optional>\??)=(?P<value>y|n|\d+|\"[^\"]*\")\s+# (?P<reason>\S.*)$")
_DEFINED = re.compile(r"^\s*(?:menu)?config\s+(\w+)", re.MULTILINE)
_SET = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its names in the kernel's series, value as Kconfig writes it, the feature that needs it, why, whether a series may lack it."""

    names: tuple[str, ...]
    value: str
    feature: str
    reason: str
    optional: bool = False

    def lines(self) -> list[str]:
        """What Kconfig is given. Names that it does not know do no harm."""
        return [
            f"# CONFIG_{name} is not set" if self.value == "n" else f"CONFIG_{name}={self.value}" for name in self.names
        ]

    def taken(self, values: dict[str, str]) -> bool:
        """Whether a configuration has it: ``n`` is that no name is set, all else that one name has the value."""
        found = [values[name] for name in self.names if name in values]
        return not found if self.value == "n" else self.value in found


def load(directory: str = DIRECTORY) -> list[Option]:
    """All options, in the order of their files. HostError for a line that is none: an option without a reason is one."""
    options: list[Option] = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".config"):
            path = os.path.join(directory, name)
            with open(path, encoding="utf-8") as file:
                options += parse(file.read(), path)
    _check_unique(options)
    return options


def parse(text: str, where: str) -> list[Option]:
    """The options of one file's text."""
    options: list[Option] = []
    feature = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if title := _FEATURE.match(line):
            feature = title["title"]
            continue
        option = _OPTION.match(line)
        if option is None or not feature:
            raise HostError(f"{where}:{number}: expected NAME=value  # reason, below a [feature]: {line!r}")
        names = tuple(option["names"].split("|"))
        options.append(Option(names, option["value"], feature, option["reason"], bool(option["optional"])))
    return options


def allconfig(options: list[Option]) -> str:
    """The file for ``KCONFIG_ALLCONFIG``: without reasons, so that rewording one builds no new kernel."""
    return "".join(f"{line}\n" for option in options for line in option.lines())


def defined(tree: str) -> set[str]:
    """Names of all options that a kernel's source knows, for whatever architecture."""
    found: set[str] = set()
    for parent, _, names in os.walk(tree):
        for name in names:
            if name.startswith("Kconfig"):
                with open(os.path.join(parent, name), encoding="utf-8", errors="replace") as file:
                    found.update(_DEFINED.findall(file.read()))
    return found


def verify(options: list[Option], config: str, known: set[str]) -> None:
    """HostError naming every option that a finished configuration lacks, of a source that has the options ``known``."""
    values = dict(_SET.findall(config))
    missing = [
        option
        for option in options
        if not option.taken(values) and not (option.optional and known.isdisjoint(option.names))
    ]
    if missing:
        raise HostError(
            f"configure the kernel: not taken: {'; '.join(_missed(option, known) for option in missing)}",
            hint=f"the options are in {DIRECTORY}",
        )


def _missed(option: Option, known: set[str]) -> str:
    why = "this series has no such option" if known.isdisjoint(option.names) else "something else forbids or forces it"
    return f"{' or '.join(option.names)}={option.value} ({why}; {option.feature}: {option.reason})"


def _check_unique(options: list[Option]) -> None:
    seen: set[str] = set()
    for option in options:
        for name in option.names:
            if name in seen:
                raise HostError(f"{name}: named twice in {DIRECTORY}")
            seen.add(name)
