"""A bundle: the directory with config.json and the root file system. Parsed and checked once, here."""

from __future__ import annotations

import _stat as stat

from rundctl.errors import ConfigError
from rundctl.host import files
from rundctl.lean import json, os
from rundctl.oci import options, validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


_LEVELS = 24  # of nesting; the specification's own fields are at most 7 deep
_DIGITS = 40


class Bundle:
    """A checked bundle: the absolute path of it and the real one of its rootfs, the valid configuration, what annotations ask for."""

    __slots__ = ("options", "path", "rootfs", "spec")

    def __init__(self, path: str, spec: dict[str, Any], rootfs: str, asked: options.Options | None = None) -> None:
        self.path = path
        self.spec = spec
        self.rootfs = rootfs
        self.options = asked or options.Options()


def load(path: str, config: str = "config.json") -> Bundle:
    """Read and check a bundle; ``config`` is relative to it. ConfigError says in one line what is wrong."""
    try:
        bundle = os.path.abspath(path)
    except FileNotFoundError:  # of getcwd(3)
        raise ConfigError(f"bundle {path}: the current directory was removed") from None
    if not os.path.isdir(bundle):
        raise ConfigError(f"bundle {bundle}: {'not a directory' if os.path.lexists(bundle) else 'does not exist'}")
    text = _read(os.path.join(bundle, config))
    spec = parse(text)
    validate.validate(spec)
    if b"\\u0000" in text:
        from rundctl.oci import odd_json

        odd_json.check_nuls(spec)
    _check_process(spec)
    return Bundle(bundle, spec, _rootfs(bundle, spec), options.parse(spec.get("annotations", {})))


def parse(text: bytes) -> Any:
    """Parse config.json: null means absent, as in Go, and 1.0 is the integer 1. ConfigError names line and column.

    What is odd is taken as Go takes it, too (rundctl/oci/odd_json.py).
    """
    halves = b"\\ud" in text or b"\\uD" in text  # escaped surrogates, perhaps one without the other
    try:
        characters = text.decode()
    except UnicodeDecodeError:
        characters = text.decode(errors="surrogateescape")
        halves = True
    try:
        document = _shallow(characters)
        if b"null" in text:
            document = _without_nulls(document)
        if halves:
            from rundctl.oci import odd_json

            document = odd_json.without_halves(document)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"config.json: line {error.lineno} column {error.colno}: malformed JSON: {error.msg}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"config.json: malformed JSON: {error}") from None
    return document  # validate() refuses what is no object


def _shallow(text: str) -> Any:
    """The document, in which nothing is so deep that walking over it could fail."""
    try:
        document = _loads(text)
        if not _is_deep(document):
            return document
    except RecursionError:
        pass
    from rundctl.oci import odd_json

    return _loads(odd_json.flattened(text, _LEVELS))


def _loads(text: str) -> Any:
    return json.loads(
        text, parse_int=_integer, parse_float=_number, parse_constant=_no_constant, object_pairs_hook=_object
    )


def _is_deep(document: Any) -> bool:
    level = [document]
    for _ in range(_LEVELS):
        level = [
            item
            for holder in level
            for item in (holder.values() if type(holder) is dict else holder if type(holder) is list else ())
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) == len(members):
        return found
    from rundctl.oci import odd_json

    return odd_json.joined(members)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ConfigError(f"JSON specification file {path} not found", hint="rundctl spec writes one") from None
    except OSError as error:
        raise ConfigError(f"read {path}: {error.strerror}") from None


def _integer(text: str) -> int:
    """No field takes a number of so many digits; Python refuses some thousands of them, and names no field."""
    return int(text[:_DIGITS])


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _check_process(spec: dict[str, Any]) -> None:
    """What ``create`` needs though the schema leaves it open (the specification asks for it "when start is called")."""
    for section in ("process", "linux"):
        if section not in spec:
            raise ConfigError(f"config.json: {section}: expected object, but it is missing")
    if not spec["process"].get("args"):
        raise ConfigError("config.json: process.args: must not be empty")


def _rootfs(bundle: str, spec: dict[str, Any]) -> str:
    if not spec.get("root", {}).get("path"):
        raise ConfigError("config.json: root.path: expected the root file system's directory, but it is missing")
    given = os.path.join(bundle, spec["root"]["path"])
    where = f"config.json: root.path: rootfs {os.path.normpath(given)}"
    try:
        real, mode = _resolve(given)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{where}: not a directory")
    if not real:
        raise ConfigError(f"{where}: in another mount namespace", hint="a path of that namespace does not work here")
    return real


def _resolve(path: str) -> tuple[str, int]:
    """Where links, ``..`` and slashes lead, as the kernel takes them, and the mode; no path if what is there is not at it here. OSError without any.

    Here and nowhere else for a rootfs: the mount table, images' keys and what is opened later all mean the same directory.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")  # a third of what os.path.realpath costs
        # By /proc/PID/root one gets to other namespaces, whose paths mean something else here.
        return real if files.is_path_of(fd, real) else "", os.fstat(fd).st_mode
    finally:
        os.close(fd)
