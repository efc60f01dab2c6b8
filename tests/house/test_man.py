"""Every verb and every flag is in its man page, and the pages know none that is not declared."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from rundctl.commands import table
from rundctl.commands.declare import HELP, Flag, Verb
from rundctl.engine.settings import Settings
from rundctl.oci import options

if TYPE_CHECKING:
    from pathlib import Path

# An option's entry: "*--bundle*, *-b* _DIR_", a value or alternatives behind it.
ENTRY = re.compile(r"^\*(?P<name>--[a-z-]+)\*(?:, \*(?P<short>-[a-z])\*)?(?P<value> _\w+_(?:\|_\w+_)*)?$", re.MULTILINE)


def flags_of(verb: Verb) -> tuple[Flag, ...]:
    return verb.flags + tuple(flag for inner in verb.verbs for flag in flags_of(inner))


def documented(page: str) -> set[tuple[str, str, bool]]:
    return {(match["name"], match["short"] or "", bool(match["value"])) for match in ENTRY.finditer(page)}


def declared(flags: tuple[Flag, ...]) -> set[tuple[str, str, bool]]:
    return {(flag.name, flag.short, bool(flag.value)) for flag in (*flags, HELP)}


def test_there_is_a_page_for_each_verb_and_no_other(checkout: Path) -> None:
    pages = {path.name for path in (checkout / "man").iterdir()}
    assert pages == {"rundctl.8.scd", *(f"rundctl-{name}.8.scd" for name in table.VERBS)}


@pytest.mark.parametrize("name", table.VERBS)
def test_page_has_the_verb_s_flags(checkout: Path, name: str) -> None:
    page = (checkout / f"man/rundctl-{name}.8.scd").read_text()
    verb = table.load(name)
    assert documented(page) == declared(flags_of(verb))
    for shown in verb.verbs or (verb,):
        assert f"*rundctl* {shown.name}" in page
        assert all(f"_{argument.name}_" in page for argument in shown.arguments)


@pytest.mark.parametrize("name", table.VERBS)
def test_page_has_its_sections(checkout: Path, name: str) -> None:
    headings = re.findall(r"^# (.+)$", (checkout / f"man/rundctl-{name}.8.scd").read_text(), re.MULTILINE)
    assert headings == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]


def test_main_page_has_global_flags_and_all_verbs(checkout: Path) -> None:
    page = (checkout / "man/rundctl.8.scd").read_text()
    assert documented(page) == declared(table.GLOBAL_FLAGS)
    listed = page.partition("# VERBS")[2].partition("\n# ")[0]
    assert re.findall(r"^\*([a-z]+)\*$", listed, re.MULTILINE) == list(table.VERBS)
    assert all(f"*rundctl-{name}*(8)" in page for name in table.VERBS)
    assert all(name in listed for name in table.REFUSED)


def test_choices_are_in_the_pages(checkout: Path) -> None:
    for name in table.VERBS:
        page = (checkout / f"man/rundctl-{name}.8.scd").read_text()
        for flag in flags_of(table.load(name)):
            if flag.choices:
                assert "|".join(f"_{choice}_" for choice in flag.choices) in page


def test_pages_compile(checkout: Path) -> None:
    for path in sorted((checkout / "man").iterdir()):
        with path.open("rb") as source:
            done = subprocess.run(["scdoc"], stdin=source, capture_output=True, check=False)
        assert done.returncode == 0, (path.name, done.stderr)
        assert done.stdout.startswith(b'.\\"')


def test_main_page_has_all_settings_and_annotations(checkout: Path) -> None:
    page = (checkout / "man/rundctl.8.scd").read_text()
    named = {name for line in page.splitlines() if line.startswith("*") for name in re.findall(r"\*([\w.]+)\*", line)}
    assert set(Settings.__slots__) <= named
    assert set(options.KNOWN) <= named
    values = page.partition("# ANNOTATIONS")[2]
    assert [word for words in options.KNOWN.values() for word in words if f"_{word}_" not in values] == []
