"""The vendored JSON schemas, as one document.

The specification's schemas are draft-04 without ids and refer to each other by file name. Here they become one schema
whose
``definitions`` hold what the files define, so that the code generator and jsonschema need no resolver. Cold: only the
build and the
explanation of a failure come here.
"""

from __future__ import annotations

import copy
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "1.2.1"

# Sections for other systems: the specification wants them ignored here, so their schemas would be dead weight at
# every start.
_OTHER_SYSTEMS = ("solaris", "windows", "zos")

# Where callers emit more than the released schemas allow, and runc takes it: (file, path to the keyword's holder,
# keyword, new value or None).
_RELAXATIONS: tuple[tuple[str, tuple[str, ...], str, object], ...] = (
    # 0o1000 as maximum refuses setuid bits and the type bits that Go's and stat(2)'s modes carry.
    ("defs-linux.json", ("definitions", "FileMode"), "maximum", 0xFFFFFFFF),
    # podman and containerd emit the recursive forms, which mount(8) and runc know.
    (
        "defs-linux.json",
        ("definitions", "RootfsPropagation"),
        "enum",
        ["", "private", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable"],
    ),
    # 1.3 names new ones, and an unknown one gets a better answer from the compiler than from an enumeration.
    ("defs-linux.json", ("definitions", "NamespaceType"), "enum", None),
    # Any key will do, the empty one too: that spares a regular expression for every annotation.
    ("defs.json", ("definitions", "mapStringString"), "patternProperties", None),
    ("defs.json", ("definitions", "mapStringString"), "additionalProperties", {"type": "string"}),
    # runc takes a `pids` without a limit as one that asks for nothing.
    (
        "config-linux.json",
        ("linux", "properties", "resources", "properties", "pids"),
        "required",
        None,
    ),
    # The plan compiler knows the very names; and spares two more regular expressions.
    (
        "config-schema.json",
        ("properties", "process", "properties", "rlimits", "items", "properties", "type"),
        "pattern",
        None,
    ),
    ("defs-linux.json", ("definitions", "FileType"), "pattern", None),
    # 0 is Go's way to say "no timeout"; and 68 years are enough: Go's durations overflow at 292.
    ("defs.json", ("definitions", "Hook", "properties", "timeout"), "minimum", 0),
    ("defs.json", ("definitions", "Hook", "properties", "timeout"), "maximum", 2**31 - 1),
)


def directory() -> str:
    """Directory of the schemas: inside the installed package, else in the source tree.

    Raises FileNotFoundError when neither exists (a damaged installation).
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    relative = os.path.join("oci-runtime-spec", VERSION)
    places = (os.path.join(package, "_schemas", relative), os.path.join(os.path.dirname(package), "schemas", relative))
    for place in places:
        if os.path.isdir(place):
            return place
    raise FileNotFoundError(f"OCI schemas are in none of {', '.join(places)}")


def config_schema(schema_dir: str) -> dict[str, Any]:
    """The schema of config.json as one document without references to other files, relaxed as said above."""
    files = {name: _read(schema_dir, name) for name in sorted(os.listdir(schema_dir)) if name.endswith(".json")}
    for name, path, keyword, value in _RELAXATIONS:
        _relax(files[name], path, keyword, value)
    definitions: dict[str, Any] = {}
    root = files["config-schema.json"]
    root["properties"] = {key: value for key, value in root["properties"].items() if key not in _OTHER_SYSTEMS}
    merged: dict[str, Any] = _inline(root, "config-schema.json", files, definitions)
    merged["definitions"] = definitions
    return merged


def _read(schema_dir: str, name: str) -> dict[str, Any]:
    with open(os.path.join(schema_dir, name), encoding="utf-8") as file:
        document: dict[str, Any] = json.load(file)
    return document


def _relax(document: dict[str, Any], path: tuple[str, ...], keyword: str, value: object) -> None:
    holder = document
    for key in path:
        holder = holder[key]
    if value is None:
        del holder[keyword]  # KeyError: a newer schema does not need it any more
    else:
        holder[keyword] = value


def _inline(node: Any, file: str, files: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Copy of a schema node, whose references point into ``definitions``; those it needs are added there."""
    if isinstance(node, list):
        return [_inline(item, file, files, definitions) for item in node]
    if not isinstance(node, dict):
        return copy.copy(node)
    if (
        list(node) == ["anyOf"] and len(node["anyOf"]) == 1
    ):  # one choice is none, and an error's path must not stop at it
        return _inline(node["anyOf"][0], file, files, definitions)
    if isinstance(node.get("$ref"), str):
        return {"$ref": "#/definitions/" + _define(node["$ref"], file, files, definitions)}
    return {key: _inline(value, file, files, definitions) for key, value in node.items()}


def _define(reference: str, file: str, files: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Name, in ``definitions``, of what a reference such as ``defs.json#/definitions/UID`` points to."""
    target, _, pointer = reference.partition("#")
    target = target or file
    keys = pointer.strip("/").split("/")
    name = "_".join([target.removesuffix(".json").replace("-", "_"), *keys])
    if name not in definitions:
        definitions[name] = {}  # a placeholder, so that a schema may refer to itself
        node = files[target]
        for key in keys:
            node = node[key]
        definitions[name] = _inline(node, target, files, definitions)
    return name
