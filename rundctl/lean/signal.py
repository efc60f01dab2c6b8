"""Signals by number. The standard module wraps the same functions so that they take and give enumerations."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import *  # noqa: F403 (whatever is asked for)
else:
    from _signal import *  # noqa: F403
