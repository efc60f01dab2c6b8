"""Signals that ask a call to end, while it makes or removes a container: what was begun is undone first, and nothing is forgotten.

A signal that raises wherever it comes also raises between the making of a thing and the note that it is to be undone. So within `Held` the kernel keeps
these signals back (sigprocmask(2)). They come through where nothing can be lost by it: in what is `allowed`, which waits for others or only reads.
"""

from __future__ import annotations

from rundctl.lean import signal
from rundctl.lean.contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType
    from typing import Self

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)  # what the caller ignores stays ignored
_held: set[int] = set()


class Held:
    """A ``with`` block in which these signals wait, and raise KeyboardInterrupt where they are `allowed`; at its end they do what they always do.

    A block within another adds nothing to it.
    """

    __slots__ = ("_before", "_handed_over")

    def __init__(self) -> None:
        self._before: dict[int, object] = {}
        self._handed_over = False

    def __enter__(self) -> Self:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        handlers = {signo: signal.getsignal(signo) for signo in _ENDING if signo not in blocked}
        self._before |= {signo: handler for signo, handler in handlers.items() if handler in _UNTOUCHED}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        _held.update(self._before)
        for signo in self._before:
            signal.signal(signo, self._interrupt)
        return self

    def _interrupt(self, signo: int, _frame: FrameType | None) -> None:
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the undoing
        raise KeyboardInterrupt(signo)

    def hand_over(self) -> None:
        """They stay blocked at the end of the block: somebody else takes them, by sigwaitinfo(2)."""
        self._handed_over = True

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _held.difference_update(self._before)
        for signo, before in self._before.items():
            signal.signal(signo, before)  # type: ignore[arg-type]
        came = error.args[0] if isinstance(error, KeyboardInterrupt) and error.args else 0
        if came in self._before:
            signal.signal(came, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
            signal.raise_signal(came)
        if not self._handed_over:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)


@contextmanager
def allowed() -> Iterator[None]:
    """A part of a `Held` block that a signal may end by KeyboardInterrupt, also one that came before; outside of such a block it changes nothing.

    A part of such a part changes nothing either: what is allowed as a whole stays so after a wait in it.
    """
    kept_back = _held & signal.pthread_sigmask(signal.SIG_BLOCK, ()) if _held else None
    if not kept_back:
        yield
        return
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, kept_back)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, kept_back)
