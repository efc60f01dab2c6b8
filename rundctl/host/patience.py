"""One factor for all deadlines of ours: how many times slower this host may be than those that they were chosen for (nested ones, above all).

A deadline is a constant, in seconds, and is asked for by `seconds` where the wait begins. The factor is found out at the first wait of a call, and a call
that waits for nobody does not ask. Deadlines that a user gives, such as a hook's, stay what they are.
"""

from __future__ import annotations

from rundctl.errors import ConfigError
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = "RUNDCTL_PATIENCE"
MOST = 100


class _Source:
    """Where the factor comes from, and what it was found to be."""

    __slots__ = ("configured", "known")

    def __init__(self) -> None:
        self.configured: Callable[[], int] = lambda: 1
        self.known = 0


_source = _Source()


def configured_by(ask: Callable[[], int]) -> None:
    """Who knows the factor where the environment does not say it: asked at most once, by the first wait."""
    _source.configured = ask
    _source.known = 0


def factor() -> int:
    """The factor: the environment's, else the configured one. ConfigError if the environment has none from 1 to `MOST`."""
    if not _source.known:
        said = os.getenv(ENVIRONMENT, "")
        _source.known = _parse(said) if said else _source.configured()
    return _source.known


def seconds(timeout_s: float) -> float:
    """How long to wait, in seconds, for what an ordinary host does within ``timeout_s``. ConfigError as of `factor`."""
    return timeout_s * factor()


def _parse(said: str) -> int:
    if said.isascii() and said.isdigit() and 1 <= int(said[:4]) <= MOST and len(said) <= len(str(MOST)):
        return int(said)
    raise ConfigError(f"{ENVIRONMENT}: expected an integer from 1 to {MOST}, got {said!r}")
