"""The fast parser, on its own and against the Typer application made from the same declarations."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from rundctl.commands import interface, table
from rundctl.commands.declare import ID, Argument, Flag, Options, Verb
from rundctl.commands.parse import HelpAsked, Parser
from rundctl.errors import RundctlError, UsageError

VERB = Verb(
    "probe",
    "A verb with one of each.",
    arguments=(ID, Argument("EXTRA", "Perhaps.", required=False, default="none")),
    flags=(
        Flag("--bundle", "A value.", short="-b", value="DIR"),
        Flag("--format", "A choice.", short="-f", value="FORMAT", default="table", choices=("table", "json")),
        Flag("--all", "A switch.", short="-a"),
    ),
)


def parse(*words: str, verb: Verb = VERB) -> Options:
    parser = Parser(list(words))
    parser.whole(verb)
    return parser.options(*[lambda _line: None] * 3)


@pytest.mark.parametrize(
    ("words", "text", "switches"),
    [
        (["c1"], {"ID": "c1", "EXTRA": "none", "bundle": "", "format": "table"}, set()),
        (["--bundle", "B", "c1"], {"bundle": "B", "ID": "c1"}, set()),
        (["--bundle=B", "c1"], {"bundle": "B"}, set()),
        (["--bundle=a=b", "c1"], {"bundle": "a=b"}, set()),
        (["--bundle=", "c1"], {"bundle": ""}, set()),
        (["-b", "B", "c1"], {"bundle": "B"}, set()),
        (["-b", "-x", "c1"], {"bundle": "-x"}, set()),
        (["c1", "--all", "15"], {"ID": "c1", "EXTRA": "15"}, {"all"}),
        (["-a", "c1"], {"ID": "c1"}, {"all"}),
        (["--all=true", "c1"], {}, {"all"}),
        (["--all", "--all=false", "c1"], {}, set()),
        (["--", "--all"], {"ID": "--all"}, set()),
        (["-", "c1"], {"ID": "-", "EXTRA": "c1"}, set()),
        (["-b", "one", "-b", "two", "c1"], {"bundle": "two"}, set()),
    ],
)
def test_parses(words: list[str], text: dict[str, str], switches: set[str]) -> None:
    options = parse(*words)
    assert {key: options.text(key) for key in text} == text
    assert {key for key in ("all",) if options.on(key)} == switches


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing argument ID"),
        (["a", "b", "c"], "unexpected argument 'c'"),
        (["--bundle"], "option --bundle requires a value"),
        (["--nope", "c1"], "no such option: --nope"),
        (["-ab", "c1"], "no such option: -ab"),
        (["--all=maybe", "c1"], "option --all takes no value"),
        (["--format", "yaml", "c1"], "--format takes table or json, not 'yaml'"),
    ],
)
def test_refuses(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(*words)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_asked_for_anywhere(word: str) -> None:
    with pytest.raises(HelpAsked):
        parse("c1", word)


def test_global_flags_end_at_the_verb() -> None:
    parser = Parser(["--root", "/r", "--debug", "--log=/l", "kill", "--debug"])
    parser.flags_before(table.GLOBAL_FLAGS)
    assert parser.rest == ["kill", "--debug"]
    assert (parser.text["root"], parser.text["log"], parser.on) == ("/r", "/l", {"debug"})


@pytest.mark.parametrize("text", ["", "-1", "1.5", "three", "٣"])
def test_number_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="takes a number"):
        Options({"n": text}, set(), *[lambda _line: None] * 3).number("n")


@pytest.mark.parametrize("name", table.REFUSED)
def test_verbs_to_come_are_refused_by_name(name: str) -> None:
    with pytest.raises(RundctlError) as caught:
        table.load(name)
    assert caught.value.message == f"{name} is not supported yet"
    assert caught.value.hint, "a way out"


def _words() -> st.SearchStrategy[list[str]]:
    flags = [name for flag in VERB.flags for name in (flag.name, flag.short)]
    word = st.sampled_from(
        [*flags, "--format=json", "--bundle=x", "--bundle=", "json", "table", "c1", "15", "--", "--nope", "-"]
    )
    return st.lists(word, max_size=6)


@settings(max_examples=300)
@given(words=_words())
def test_typer_understands_the_same(words: list[str]) -> None:
    """Whatever one of the parsers accepts, the other accepts with the same values."""
    assert _fast(words) == _typer(words)


def _fast(words: list[str]) -> dict[str, Any] | None:
    try:
        options = parse(*words)
    except UsageError:
        return None
    text = {key: options.text(key) or None for key in ("ID", "EXTRA", "bundle", "format")}
    return {**text, "all": options.on("all")}


def _typer(words: list[str]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    app = typer.Typer()
    interface.add(app, VERB)
    command = typer.main.get_command(app)
    try:
        with command.make_context("probe", list(words)) as context:
            found = dict(context.params)
    except typer.TyperException:
        return None
    keys = {"id": "ID", "extra": "EXTRA"}
    return {
        keys.get(key, key): value or (False if key == "all" else None)
        for key, value in found.items()
        if key in {*keys, "bundle", "format", "all"}
    }


TAKES_REST = Verb(
    "probe",
    "A verb that takes any words.",
    arguments=(ID, Argument("WORDS", "Whatever follows.", rest=True)),
    flags=(Flag("--format", "A value.", short="-f", value="FORMAT"),),
)


@pytest.mark.parametrize(
    ("words", "chosen", "rest"),
    [
        (["c1"], "", ()),
        (["c1", "-ef"], "", ("-ef",)),
        (["-f", "json", "c1", "-f", "--format", "x", "--", "--help"], "json", ("-f", "--format", "x", "--", "--help")),
        (["--", "c1", "-o", "pid"], "", ("-o", "pid")),
        (["--format=x", "--", "c1"], "x", ()),
    ],
)
def test_a_verb_that_takes_any_words(words: list[str], chosen: str, rest: tuple[str, ...]) -> None:
    options = parse(*words, verb=TAKES_REST)
    assert (options.text("ID"), options.text("format"), options.rest) == ("c1", chosen, rest)


def test_a_verb_that_takes_any_words_needs_those_before() -> None:
    for words in ([], ["-f", "json"], ["--"]):
        with pytest.raises(UsageError, match="missing argument ID"):
            parse(*words, verb=TAKES_REST)
    with pytest.raises(HelpAsked):
        parse("--help", verb=TAKES_REST)
