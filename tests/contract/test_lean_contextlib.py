"""rundctl/lean/contextlib.py against the standard module: the same order, the same errors, the same errors behind them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.lean import contextlib as lean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOTH = pytest.mark.parametrize("module", [contextlib, lean], ids=["standard", "lean"])


class BodyError(Exception):
    """What a block raises."""


class EndError(Exception):
    """What its end raises."""


def chain(error: BaseException | None) -> list[str]:
    """An error, and what it was raised in the course of."""
    names = []
    while error is not None:
        names.append(f"{type(error).__name__} {error}")
        error = error.__context__
    return names


def fail(error: BaseException | None) -> None:
    if error is not None:
        raise error


class Block:
    """Notes what its end sees; does what its name says."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def __enter__(self) -> str:
        self.seen.append(f"enter {self.name}")
        return self.name

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.seen.append(f"{self.name}: {chain(error)[:1]}")
        assert (kind is None) == (trace is None) == (error is None)
        self.end()
        return self.name == "take"

    def end(self, *, called: str = "") -> bool:
        self.seen.append(called)
        if self.name == "raise":
            raise EndError(str(len(self.seen)))
        return True


def unwind(module: Any, names: list[str], body: BaseException | None) -> tuple[list[str], list[str]]:
    """What the ends of a stack have seen, and what has become of the body's error."""
    seen: list[str] = []
    try:
        with module.ExitStack() as stack:
            for name in names:
                block = Block(name, seen)
                stack.callback(block.end, called=f"call {name}")
                assert stack.enter_context(block) == name
            fail(body)
    except Exception as error:  # noqa: BLE001
        return seen, chain(error)
    return seen, []


@pytest.mark.parametrize("has_body", [False, True], ids=["no error", "an error"])
@pytest.mark.parametrize(
    "names", ["", "see", "see see", "take", "see take see", "raise", "raise raise", "raise take", "take raise", "raise take raise see take raise"]
)  # fmt: skip
def test_exit_stack(names: str, has_body: bool) -> None:
    standard, ours = (
        unwind(module, names.split(), BodyError("body") if has_body else None) for module in (contextlib, lean)
    )
    if not has_body:  # the standard one forgets then which error came first; nested blocks, and ours, do not
        standard, ours = ((seen, errors[:1]) for seen, errors in (standard, ours))
    assert ours == standard


@BOTH
def test_pop_all_and_close(module: Any) -> None:
    done: list[str] = []
    with module.ExitStack() as stack:
        stack.callback(done.append, "later")
        kept = stack.pop_all()
        stack.callback(done.append, "now")
    assert done == ["now"]
    kept.close()
    kept.close()
    assert done == ["now", "later"]


@BOTH
def test_an_error_on_the_way_into_a_block_ends_those_before(module: Any) -> None:
    done: list[str] = []
    with pytest.raises(RuntimeError, match="didn't yield"), module.ExitStack() as stack:
        stack.callback(done.append, "before")
        stack.enter_context(module.contextmanager(never)())
    assert done == ["before"]


def once() -> Iterator[str]:
    yield "given"


def never() -> Iterator[str]:
    yield from ()


def twice() -> Iterator[str]:
    with contextlib.suppress(BaseException):
        yield "given"
    yield "again"


def takes() -> Iterator[str]:
    with contextlib.suppress(BaseException):
        yield "given"


def replaces() -> Iterator[str]:
    try:
        yield "given"
    except BaseException as error:
        raise EndError("other") from error


def hides() -> Iterator[str]:
    try:
        yield "given"
    except BaseException:  # noqa: BLE001
        raise EndError("other") from None


def raises_it_again() -> Iterator[str]:
    try:
        yield "given"
    except BaseException as error:
        raise error from None


def ends_badly() -> Iterator[str]:
    try:
        yield "given"
    finally:
        raise EndError("end")


def stops() -> Iterator[str]:
    try:
        yield "given"
    finally:
        next(iter(()))


@pytest.mark.parametrize(
    "error", [None, BodyError("x"), StopIteration(1), RuntimeError("x"), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
@pytest.mark.parametrize("block", [once, never, twice, takes, replaces, hides, raises_it_again, ends_badly, stops])
def test_contextmanager(error: BaseException | None, block: Callable[[], Iterator[str]]) -> None:
    def run(module: Any) -> tuple[object, ...]:
        try:
            with module.contextmanager(block)() as given:
                assert given == "given"
                fail(error)
        except BaseException as raised:  # noqa: BLE001
            return chain(raised)[:1], raised is error
        return ("ended",)

    assert run(lean) == run(contextlib)


@BOTH
def test_a_block_has_arguments_and_the_name_of_its_function(module: Any) -> None:
    @module.contextmanager
    def block(first: int, *, second: int) -> Iterator[int]:
        """Words."""
        yield first + second

    with block(1, second=2) as total:
        assert total == 3
    assert (block.__name__, block.__doc__) == ("block", "Words.")


@BOTH
def test_suppress(module: Any) -> None:
    with module.suppress(KeyError, ValueError):
        raise UnicodeDecodeError("ascii", b"", 0, 1, "x")
    with module.suppress():
        pass
    with pytest.raises(OSError, match="x"), module.suppress(KeyError):
        raise OSError("x")
