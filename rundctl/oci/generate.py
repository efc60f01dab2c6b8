"""Turn the schema of config.json into Python code, once, at build time.

Validating a podman config takes jsonschema 74 ms of imports and 4 ms of work; generated code takes about a
millisecond for both. The
packaging hook and ``make`` call ``generate``; ``python -m rundctl.oci.generate`` does it by hand. Needs
fastjsonschema, which the
result does not.
"""

from __future__ import annotations

import os
import sys

from rundctl.oci import schema

_HEADER = '''"""Validator of config.json, generated from the OCI schemas by rundctl/oci/generate.py. Do not edit."""
# ruff: noqa
# mypy: ignore-errors


class JsonSchemaValueException(ValueError):
    """The configuration breaks the schema; jsonschema then says where."""

    def __init__(self, message, **_details):
        super().__init__(message)


JsonSchemaValuesException = JsonSchemaValueException  # of anyOf and oneOf


class _Patterns(dict):
    """Regular expressions, compiled when first met: most configurations meet none. A final ``$`` is the very end."""

    def __missing__(self, pattern):
        import re

        self[pattern] = found = re.compile(pattern[:-1] + r"\\Z" if pattern.endswith("$") else pattern)
        return found


REGEX_PATTERNS = _Patterns()
Decimal = int  # the generated code asks for it beside int; JSON never makes one, and decimal takes 3 ms to import
'''


def generate(schema_dir: str, out_file: str) -> None:
    """Write the validator module; atomically, so that a concurrent import sees the old or the new one.

    Raises ImportError without fastjsonschema, OSError when the file cannot be written, ValueError when fastjsonschema's
    output is not as known.
    """
    import fastjsonschema  # type: ignore[import-untyped, unused-ignore] # only the build has it

    document = schema.config_schema(schema_dir)
    code = fastjsonschema.compile_to_code(document, use_default=False, detailed_exceptions=False)
    os.makedirs(os.path.dirname(out_file), exist_ok=True)
    _replace(os.path.join(os.path.dirname(out_file), "__init__.py"), '"""Code generated at build time."""\n')
    _replace(out_file, _HEADER + _functions(code))


def _functions(code: str) -> str:
    """The functions of the generated module: all from the first ``def``, without imports and patterns."""
    start = code.find("\ndef ")
    if start < 0 or "def validate(" not in code or "import" in code[start:]:
        raise ValueError("fastjsonschema generates code of an unknown form")
    return code[start:]


def _replace(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def main() -> None:
    """Generate into the source tree."""
    here = os.path.dirname(os.path.abspath(__file__))
    out_file = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "_generated", "config_validator.py")
    generate(schema.directory(), out_file)


if __name__ == "__main__":
    main()
