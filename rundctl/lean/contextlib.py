"""Lifetimes as ``with`` blocks. The standard module brings ``collections``, ``functools`` and ``types``, and costs two thirds of an interpreter's start."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack, contextmanager, suppress
else:

    class suppress:  # noqa: N801 (the standard's name)
        """These errors end the block, and nothing else."""

        def __init__(self, *errors):
            self._errors = errors

        def __enter__(self):
            return None

        def __exit__(self, kind, error, trace):
            return kind is not None and issubclass(kind, self._errors)

    class _Generator:
        """The ``with`` block of a generator that yields once: what comes before is its beginning, what follows its end."""

        def __init__(self, generator):
            self._generator = generator

        def __enter__(self):
            try:
                return next(self._generator)
            except StopIteration:
                raise RuntimeError("generator didn't yield") from None

        def __exit__(self, kind, error, trace):
            try:
                if error is None:
                    next(self._generator)
                else:
                    self._generator.throw(error)
            except StopIteration as end:
                return end is not error
            except BaseException as raised:
                if error is None or not _is_same(raised, error):
                    raise
                error.__traceback__ = trace
                return False
            self._generator.close()
            raise RuntimeError(f"generator didn't stop{' after throw()' if error else ''}")

    def _is_same(raised, error):
        """Whether a generator has let an error through. A StopIteration leaves it as the cause of another error (PEP 479)."""
        wrapped = isinstance(error, StopIteration) and isinstance(raised, RuntimeError)
        return raised is error or (wrapped and raised.__cause__ is error)

    def contextmanager(function):
        """Make a function whose calls are ``with`` blocks out of a generator function."""

        def call(*arguments, **named):
            return _Generator(function(*arguments, **named))

        call.__name__, call.__qualname__, call.__doc__ = function.__name__, function.__qualname__, function.__doc__
        call.__wrapped__ = function
        return call

    class ExitStack:
        """A ``with`` block to which ends are added as it goes; they are run in reverse, each whatever the others raise."""

        def __init__(self):
            self._ends = []  # called with the error's kind, the error and its trace, as __exit__ is

        def __enter__(self):
            return self

        def enter_context(self, block):
            """Enter a block that ends with this one; what it gives."""
            kind = type(block)
            entered = kind.__enter__(block)
            self._ends.append(lambda *error: kind.__exit__(block, *error))
            return entered

        def callback(self, function, /, *arguments, **named):
            """Call a function at the end; what it returns means nothing."""

            def end(*_):
                function(*arguments, **named)

            self._ends.append(end)
            return function

        def pop_all(self):
            """Another stack, with all that this one had to end."""
            other = type(self)()
            self._ends, other._ends = other._ends, self._ends
            return other

        def close(self):
            """End all at once."""
            self.__exit__(None, None, None)

        def __exit__(self, kind, error, trace):
            given = error
            while self._ends:
                end = self._ends.pop()
                try:
                    if end(kind, error, trace):
                        kind = error = trace = None
                except BaseException as raised:
                    if error is None and raised.__context__ is given:
                        raised.__context__ = None  # that one was ended by an end before
                    # Here, where this one is being handled: so the interpreter notes it as the context of what the others raise.
                    if self.__exit__(type(raised), raised, raised.__traceback__):
                        return True
                    raise
            return given is not None and error is None


__all__ = ["ExitStack", "contextmanager", "suppress"]
