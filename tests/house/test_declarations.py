"""The table of verbs is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.commands import table

if TYPE_CHECKING:
    from rundctl.commands.declare import Verb


def leaves(verb: Verb) -> list[Verb]:
    return [leaf for inner in verb.verbs for leaf in leaves(inner)] if verb.verbs else [verb]


ALL = [leaf for name in table.VERBS for leaf in leaves(table.load(name))]


@pytest.mark.parametrize("verb", ALL, ids=lambda verb: verb.name)
def test_names_do_not_collide(verb: Verb) -> None:
    """Options are one name space: global flags, the verb's and its arguments."""
    flags = (*table.GLOBAL_FLAGS, *verb.flags)
    # A switch and a value of one name are apart in Options: spec has its own --rootless.
    keys = [(flag.key, bool(flag.value)) for flag in flags] + [(argument.name, True) for argument in verb.arguments]
    assert len(keys) == len(set(keys))
    shorts = [flag.short for flag in verb.flags if flag.short]
    assert len(shorts) == len(set(shorts))
    assert "-h" not in shorts


@pytest.mark.parametrize("verb", ALL, ids=lambda verb: verb.name)
def test_words_read_alike(verb: Verb) -> None:
    assert verb.run is not None
    for text in (verb.help, *(flag.help for flag in verb.flags), *(argument.help for argument in verb.arguments)):
        assert text.endswith(".")


def test_verbs_and_verbs_to_come_are_apart() -> None:
    assert not set(table.VERBS) & set(table.REFUSED)
