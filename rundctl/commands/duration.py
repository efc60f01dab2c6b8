"""Durations as Go writes them (time.ParseDuration): ``5s``, ``500ms``, ``1m30s``, ``1.5h``."""

from __future__ import annotations

from rundctl.errors import UsageError

_UNITS_NS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_DIGITS = "0123456789"
_MAX_NS = 2**63 - 1


def parse(text: str, flag: str) -> int:
    """Nanoseconds. UsageError naming the flag if it is no duration, or one that Go's 64 bits do not hold."""
    sign = -1 if text[:1] == "-" else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total = 0
    if not rest:
        raise _wrong(text, flag)
    while rest:
        value, rest = _take(rest, text, flag)
        total += value
        if total > _MAX_NS:
            raise _wrong(text, flag)
    return sign * total


def _take(rest: str, text: str, flag: str) -> tuple[int, str]:
    """One number with its unit, in nanoseconds, and what follows."""
    whole, rest = _span(rest, _DIGITS)
    fraction = ""
    if rest[:1] == ".":
        fraction, rest = _span(rest[1:], _DIGITS)
    size = 0
    while size < len(rest) and rest[size] not in _DIGITS + ".":
        size += 1
    unit = _UNITS_NS.get(rest[:size])
    if unit is None or not (whole or fraction) or len(whole) + len(fraction) > len(str(_MAX_NS)) * 2:
        raise _wrong(text, flag)
    value = int(whole or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
    return value, rest[size:]


def _span(text: str, characters: str) -> tuple[str, str]:
    rest = text.lstrip(characters)
    return text[: len(text) - len(rest)], rest


def _wrong(text: str, flag: str) -> UsageError:
    return UsageError(
        f'invalid value "{text}" for flag {flag}', hint="a number and its unit, such as 5s, 500ms or 1m30s"
    )
