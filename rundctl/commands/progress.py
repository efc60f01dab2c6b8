"""Progress of what takes seconds: a spinner on a terminal, plain lines otherwise. Cold: only here is rich loaded to run a verb."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.status import Status


class Progress:
    """Shows the present step on stderr while it is entered."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, step: str) -> None:
        """Name the step that begins now."""
        if self._status is not None:
            self._status.update(step)
        elif sys.stderr is not None:
            sys.stderr.write(f"rundctl: {step}\n")
            sys.stderr.flush()
