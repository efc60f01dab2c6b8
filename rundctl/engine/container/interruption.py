"""Signals that ask a call to end while it makes a container."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)  # what the caller ignores stays ignored


class UndoneFirst:
    """A ``with`` block that a signal leaves by KeyboardInterrupt, so that what was begun is undone; then the signal does what it always does."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        for signo in _ENDING:
            before = signal.getsignal(signo)
            if before in _UNTOUCHED:
                self._before[signo] = before
                signal.signal(signo, self._interrupt)

    def _interrupt(self, signo: int, _frame: FrameType | None) -> None:
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the undoing
        raise KeyboardInterrupt(signo)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for signo, before in self._before.items():
            signal.signal(signo, before)  # type: ignore[arg-type]
        if isinstance(error, KeyboardInterrupt) and error.args:
            signal.signal(error.args[0], signal.SIG_DFL)
            signal.raise_signal(error.args[0])
