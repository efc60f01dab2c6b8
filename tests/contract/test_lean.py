"""rundctl/lean against the modules that it stands in for: each of both does the same, errors included. test_lean_contextlib.py has the rest."""

from __future__ import annotations

import enum
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.lean import enum as lean_enum
from rundctl.lean import json as lean_json
from rundctl.lean import signal as lean_signal

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none(), inner)
    ),
)
DOCUMENTS = [
    "", " ", "{", "[1, 2", '{"a": 1,}', '{"a" 1}', '"\\ud800"', '"\\x"', '"a\nb"', "nul", "NaN", "-Infinity", "01", "1.5e3", "-", "[1] 2", " \t\r\n[1]\n ",
    "\ufeff[]", '{"a": 1, "a": 2}', "1" * 5000, "[" * 100_000, "\v1", "1\u00a0", '{"a": [1, {"b": null}], "c": true}',
]  # fmt: skip


def outcome(call: Callable[[], object]) -> tuple[object, ...]:
    """What it returns, or the error, whole."""
    try:
        return ("returned", repr(call()))
    except json.JSONDecodeError as error:
        return ("JSONDecodeError", error.msg, error.pos, error.lineno, error.colno)
    except Exception as error:  # noqa: BLE001
        return (type(error).__name__, str(error))


@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("encoding", ["", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_json_reads_the_same(text: str, encoding: str) -> None:
    document = text.encode(encoding, "surrogatepass") if encoding else text
    assert outcome(lambda: lean_json.loads(document)) == outcome(lambda: json.loads(document))


@given(st.binary() | st.text() | st.text('{}[]",: \n01.e-ntfalsr\\u'))
def test_json_refuses_the_same(document: str | bytes) -> None:
    assert outcome(lambda: lean_json.loads(document)) == outcome(lambda: json.loads(document))


@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: repr(text[:20]))
def test_json_takes_the_same_hooks(text: str) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    hooks: dict[str, Any] = {"parse_constant": refuse, "parse_int": str, "parse_float": repr, "object_pairs_hook": list}
    assert outcome(lambda: lean_json.loads(text, **hooks)) == outcome(lambda: json.loads(text, **hooks))


@given(VALUES, st.sampled_from([None, 0, 1, 2]), st.booleans(), st.sampled_from([None, (",", ":")]))
def test_json_writes_the_same(value: object, indent: int | None, sort_keys: bool, separators: tuple[str, str]) -> None:
    options: dict[str, Any] = {"indent": indent, "sort_keys": sort_keys, "separators": separators}
    assert outcome(lambda: lean_json.dumps(value, **options)) == outcome(lambda: json.dumps(value, **options))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("value", [{1}, {"a": [b"b"]}, {(1, 2): 3}, object], ids=repr)
def test_json_writes_nothing_else(value: object, indent: int | None) -> None:
    said = outcome(lambda: lean_json.dumps(value, indent=indent))
    assert said[0] == "TypeError"
    assert said == outcome(lambda: json.dumps(value, indent=indent))


@pytest.mark.parametrize("text", DOCUMENTS[:-6], ids=repr)
def test_json_refuses_the_same_in_a_process_that_has_no_other(text: str) -> None:
    """The scanner asks for the standard module by name when something is wrong."""
    program = "import sys\nfrom rundctl.lean import json\nassert 'json' not in sys.modules\njson.loads(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, text], capture_output=True, check=False)
    said = done.stderr.decode().splitlines()[-1:] if done.returncode else []
    expected = outcome(lambda: json.loads(text))
    assert said == ([] if expected[0] == "returned" else [f"json.decoder.JSONDecodeError: {_sentence(text)}"])


def _sentence(text: str) -> str:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    return str(caught.value)


def test_json_has_the_rest_of_the_standard_module() -> None:
    assert lean_json.JSONDecodeError is json.JSONDecodeError


@pytest.mark.parametrize("module", [enum, lean_enum], ids=["standard", "lean"])
def test_enum(module: Any) -> None:
    class Colour(module.Enum):
        RED = "red"
        BLUE = "blue"

        @property
        def is_warm(self) -> bool:
            return self is Colour.RED

    assert list(Colour) == [Colour.RED, Colour.BLUE]
    assert len(Colour) == 2
    assert Colour("blue") is Colour["BLUE"] is Colour.BLUE
    assert (Colour.RED.name, Colour.RED.value, str(Colour.RED), repr(Colour.RED)) == (
        "RED", "red", "Colour.RED", "<Colour.RED: 'red'>",
    )  # fmt: skip
    assert Colour.RED.is_warm
    assert not Colour.BLUE.is_warm
    assert Colour.RED != "red"
    assert isinstance(Colour.RED, Colour)
    assert {Colour.RED: 1}[Colour("red")] == 1
    with pytest.raises(ValueError, match=r"^'green' is not a valid .*Colour$"):
        Colour("green")
    with pytest.raises(KeyError, match="GREEN"):
        Colour["GREEN"]


@pytest.mark.parametrize("module", [enum, lean_enum], ids=["standard", "lean"])
def test_int_enum(module: Any) -> None:
    class Level(module.IntEnum):
        LOW = 1
        HIGH = 2

    assert max(Level) is Level.HIGH
    assert Level.HIGH + 1 == 3
    assert Level(2) is Level.HIGH
    assert (Level.HIGH.name, Level.HIGH.value, str(Level.HIGH), f"{Level.HIGH}", repr(Level.HIGH)) == (
        "HIGH", 2, "2", "2", "<Level.HIGH: 2>",
    )  # fmt: skip
    assert {Level.LOW, 1} == {1}


def test_signals_have_the_same_numbers() -> None:
    for name in ("SIG_BLOCK", "SIG_DFL", "SIG_IGN", *(each.name for each in signal.Signals)):
        assert getattr(lean_signal, name) == getattr(signal, name)
