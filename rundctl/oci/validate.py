"""Check config.json against the vendored schemas: generated code decides, jsonschema explains a refusal."""

from __future__ import annotations

from rundctl.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAJOR = "1"
_SHOWN_LENGTH = 60  # characters of a wrong value or an enumeration that fit a one-line message


def validate(config: object) -> None:
    """Raise ConfigError, with path and expectation, unless it follows the schema and is of version 1.x."""
    if not isinstance(config, dict):
        raise ConfigError(f"config.json: expected object, got {_kind(config)}")
    if not _is_valid(config):
        raise explain(config)
    _check_version(config["ociVersion"])


def _is_valid(config: dict[str, Any]) -> bool:
    try:
        from rundctl.oci._generated import config_validator as fast  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        # A source tree that was never built: slower, and as right.
        return next(iter(_validator().iter_errors(config)), None) is None
    try:
        fast.validate(config)  # type: ignore[no-untyped-call, unused-ignore]
    except fast.JsonSchemaValueException:
        return False
    return True


def explain(config: object) -> ConfigError:
    """The error to raise for a configuration that breaks the schema: its deepest, most telling violation."""
    from jsonschema.exceptions import best_match  # 70 ms, wanted only after a failure

    error = best_match(_validator().iter_errors(config))
    if error is None:  # generated code and jsonschema differ: a test compares them
        return ConfigError("config.json: breaks the OCI schema")
    place = path_text(error.absolute_path)
    return ConfigError(f"config.json: {place + ': ' if place else ''}{_expectation(error)}")


def path_text(keys: Any) -> str:
    """``mounts[3].options`` for the keys and indexes that lead to a field."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _validator() -> Any:
    from jsonschema import Draft4Validator

    from rundctl.oci import schema

    return Draft4Validator(schema.config_schema(schema.directory()))


def _expectation(error: Any) -> str:
    """What was expected and what was found, for one jsonschema error."""
    keyword, wanted, found = error.validator, error.validator_value, error.instance
    if keyword == "type":
        return f"expected {wanted if isinstance(wanted, str) else ' or '.join(wanted)}, got {_kind(found)}"
    if keyword == "required":
        return f"expected a field {next(name for name in wanted if name not in found)!r}, which is missing"
    if keyword == "enum":
        return f"expected one of {', '.join(map(str, wanted))}, got {_shown(found)}"
    bounds = {"minimum": "a number not below", "maximum": "a number not above", "pattern": "a text that matches"}
    if keyword in bounds:
        return f"expected {bounds[keyword]} {wanted}, got {_shown(found)}"
    if keyword == "minItems":
        return f"expected at least {wanted} element{'s'[: wanted != 1]}, got {len(found)}"
    return str(error.message)


def _kind(value: object) -> str:
    """JSON's name for the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _check_version(version: str) -> None:
    """Accept any 1.x, pre-releases too: minor versions only add, and the unknown is to be ignored ("Extensibility")."""
    major, _, rest = version.partition(".")
    if major != MAJOR or not rest[:1].isdigit():
        wanted = f"a version {MAJOR}.x of the runtime specification"
        raise ConfigError(f"config.json: ociVersion: expected {wanted}, got {_shown(version)}")
