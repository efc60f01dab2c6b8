"""The lean kernel's configuration: what we ask for, why, and whether it was taken.

The options are in ``fragment/*.config``. Kconfig drops what depends on something that is off without a word, and it does not know names that
a series of the kernel has not got: so what came out is compared with what was asked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rundctl.errors import HostError

DIRECTORY = os.path.join(os.path.dirname(__file__), "fragment")
_FEATURE = re.compile(r"\[(?P<title>[^\]]+)\]$")
_OPTION = re.compile(r"(?P<names>\w+(?:\|\w+)*)=(?P<value>y|n|\d+|\"[^\"]*\")\s+# (?P<reason>\S.*)$")
_SET = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its names in the kernel's series (one of them is to take), value as Kconfig writes it, the feature that needs it, and why."""

    names: tuple[str, ...]
    value: str
    feature: str
    reason: str

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
        options.append(Option(tuple(option["names"].split("|")), option["value"], feature, option["reason"]))
    return options


def allconfig(options: list[Option]) -> str:
    """The file for ``KCONFIG_ALLCONFIG``: without reasons, so that rewording one builds no new kernel."""
    return "".join(f"{line}\n" for option in options for line in option.lines())


def verify(options: list[Option], config: str) -> None:
    """HostError naming every option that a finished configuration lacks."""
    values = dict(_SET.findall(config))
    missing = [option for option in options if not option.taken(values)]
    if missing:
        told = "; ".join(f"{_wanted(option)} ({option.feature}: {option.reason})" for option in missing)
        raise HostError(
            f"configure the kernel: not taken: {told}",
            hint="what it depends on is off, or this series of the kernel has no such option",
        )


def _wanted(option: Option) -> str:
    return f"{' or '.join(option.names)}={option.value}"


def _check_unique(options: list[Option]) -> None:
    seen: set[str] = set()
    for option in options:
        for name in option.names:
            if name in seen:
                raise HostError(f"{name}: named twice in {DIRECTORY}")
            seen.add(name)
