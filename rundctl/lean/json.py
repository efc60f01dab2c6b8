"""JSON by the standard module's own scanner and encoder, which are in C. What is around them there brings ``re`` and ``enum``: an interpreter's start again.

What these two do not take as it is, above all what is malformed, is done again by the standard module: so its results and its errors are always its own.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from json import JSONDecodeError
    from typing import IO, Any, Never
else:

    def __getattr__(name):
        import json

        return getattr(json, name)


_BLANK = " \t\n\r"
_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}


class _Hooks:
    """What the scanner asks of its maker."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__

    def __init__(self, hooks: dict[str, Any]) -> None:
        self.__dict__.update(hooks)


def _scanner(hooks: dict[str, Any]) -> make_scanner:
    return make_scanner(_Hooks(hooks))  # type: ignore[arg-type]  # duck typed


def loads(text: str | bytes, **hooks: Any) -> Any:
    """The value that a document says; ``hooks`` as the standard function's. JSONDecodeError if it is none, UnicodeDecodeError if it is no UTF-8."""
    if isinstance(text, bytes):
        if text[:1].isascii() and 0 not in text[:2]:  # no byte order mark, and one byte a character
            return loads(text.decode("utf-8", "surrogatepass"), **hooks)
    else:
        try:
            value, end = _scanner(hooks)(text, len(text) - len(text.lstrip(_BLANK)))
            if not text[end:].strip(_BLANK):
                return value
        except (
            StopIteration,
            SystemError,
        ):  # nothing begins there; an error, which this Python makes with a module that it does not load itself
            pass
    import json

    return json.loads(text, **hooks)


def load(file: IO[str] | IO[bytes], **hooks: Any) -> Any:
    """`loads` of what a file holds."""
    return loads(file.read(), **hooks)


def dumps(
    value: object, *, indent: int | None = None, sort_keys: bool = False, separators: tuple[str, str] | None = None
) -> str:
    """A document that says a value, in ASCII. TypeError if JSON has nothing like it, ValueError if it holds itself."""
    if indent is None:
        between, after_key = separators or (", ", ": ")
        encode = make_encoder({}, _refuse, encode_basestring_ascii, None, after_key, between, sort_keys, False, True)
        return "".join(encode(value, 0))
    if sort_keys or separators:
        import json

        return json.dumps(value, indent=indent, sort_keys=sort_keys, separators=separators)
    return _indented(value, "\n", " " * indent)


def _indented(value: object, line: str, step: str) -> str:
    """A value, each of its members on a line of its own. ``line``: what the last of its lines begins with."""
    inner = line + step
    if isinstance(value, dict) and value:
        members = [f"{_key(key)}: {_indented(item, inner, step)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(members)}{line}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{inner}{f',{inner}'.join(_indented(item, inner, step) for item in value)}{line}]"
    return dumps(value)


def _key(key: object) -> str:
    return encode_basestring_ascii(key) if isinstance(key, str) else dumps({key: 0})[1:-4]


def _refuse(value: object) -> Never:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


__all__ = ["JSONDecodeError", "dumps", "load", "loads"]
