"""Durations of the command line are Go's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.commands import duration
from rundctl.errors import UsageError

S = 10**9


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5s", 5 * S), ("500ms", S // 2), ("1m", 60 * S), ("1m30s", 90 * S), ("1h", 3600 * S), ("1.5h", 5400 * S), ("0.25s", S // 4), (".5s", S // 2),
        ("5.s", 5 * S), ("0", 0), ("+5s", 5 * S), ("-5s", -5 * S), ("-0", 0), ("1ns", 1), ("3us", 3000), ("3µs", 3000), ("3μs", 3000), ("1s1s", 2 * S),
        ("0.000000001s", 1), ("1h0m0s", 3600 * S), ("9223372036854775807ns", 2**63 - 1),
    ],
)  # fmt: skip
def test_right(text: str, nanoseconds: int) -> None:
    assert duration.parse(text, "--interval") == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "5x", "5 s", " 5s", "5s ", "-", "+", ".", ".s", "1d", "five", "5S", "1,5s", "--5s", "5s-", "0x5s", "٣s", "1e3s", "9223372036854775808ns", "3000000h", "9" * 5000 + "s"],
)  # fmt: skip
def test_wrong(text: str) -> None:
    with pytest.raises(UsageError, match="for flag --interval"):
        duration.parse(text, "--interval")


@given(st.text(max_size=20))
def test_anything_is_a_number_or_a_usage_error(text: str) -> None:
    try:
        value = duration.parse(text, "--interval")
    except UsageError:
        return
    assert -(2**63) < value < 2**63
