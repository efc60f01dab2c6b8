"""The support table: complete, true to the schemas, and what the compiler really does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.engine.plan import compiler
from rundctl.errors import ConfigError
from rundctl.oci import schema, spec, support, support_table
from rundctl.oci.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas" / "oci-runtime-spec" / schema.VERSION
STATUSES = {row[0]: row[1] for row in (*support_table.ROWS, *support_table.NEWER)}


def _document() -> dict[str, Any]:
    return schema.config_schema(str(SCHEMAS))


def _fields(node: dict[str, Any], path: str, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "$ref" in node:
        node = document["definitions"][node["$ref"].rpartition("/")[2]]
    for part in node.get("allOf", ()):
        yield from _fields(part, path, document)
    if node.get("type") == "array":
        yield from _fields(node["items"], path + "[]", document)
    for name, child in node.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        yield place, child
        yield from _fields(child, place, document)


def _covered(path: str) -> bool:
    """Whether a row above speaks for the field."""
    parts = path.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    names = (name.removesuffix("[]") for name in above)
    return any(STATUSES.get(name) in (support_table.REFUSED, support_table.MEANINGLESS) for name in names)


def test_every_field_of_the_schema_has_a_row() -> None:
    missing = [path for path, _ in _fields(_document(), "", _document()) if path not in STATUSES and not _covered(path)]
    assert not missing


def test_every_row_is_a_field_of_the_schema() -> None:
    known = {path for path, _ in _fields(_document(), "", _document())}
    others = {"solaris", "windows", "zos"}  # whose schemas are left out
    assert {row[0] for row in support_table.ROWS} - known == others
    assert not {row[0] for row in support_table.NEWER} & known, "a newer schema was vendored"


def test_no_field_has_two_rows() -> None:
    assert len(STATUSES) == len(support_table.ROWS) + len(support_table.NEWER)


def test_statuses_and_reasons() -> None:
    for field, status, words, *_ in (*support_table.ROWS, *support_table.NEWER):
        assert status in {support_table.HONOURED, support_table.REFUSED, support_table.MEANINGLESS}
        assert words or status == support_table.HONOURED, f"{field} needs a reason"


def test_the_document_is_current() -> None:
    assert (ROOT / "docs" / "support.md").read_text() == support.document(), (
        "run: python -m rundctl.oci.support > docs/support.md"
    )


def _sample(node: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value that follows a schema and asks for something."""
    if "$ref" in node:
        node = document["definitions"][node["$ref"].rpartition("/")[2]]
    if "allOf" in node:
        return {key: value for part in node["allOf"] for key, value in _sample(part, document).items()}
    if "enum" in node:
        return [value for value in node["enum"] if value][-1]
    kind = node.get("type")
    if kind == "array":
        return [_sample(node["items"], document)]
    if kind == "object":
        return {name: _sample(child, document) for name, child in node.get("properties", {}).items()} or {
            "key": "value"
        }
    return {"string": "text", "integer": 7, "boolean": True, None: "text"}[kind]


def _config_with(path: str, value: Any) -> dict[str, Any]:
    config: Any = copy.deepcopy(spec.example())
    required: dict[str, Any] = {
        "mounts[]": {"destination": "/x", "type": "tmpfs"},
        "linux.resources.hugepageLimits[]": {"pageSize": "2MB"},
        "linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    }
    holder, place = config, ""
    *above, last = path.split(".")
    for part in above:
        name = part.removesuffix("[]")
        place = f"{place}.{part}" if place else part
        default = copy.deepcopy(required.get(place, {}))
        if part.endswith("[]"):
            if name != "namespaces":  # there is one of each already
                holder.setdefault(name, []).append(default)
            holder = holder[name][-1]
        else:
            holder = holder.setdefault(name, default)
    holder[last] = value
    return dict(config)


REFUSED = [row[0] for row in (*support_table.ROWS, *support_table.NEWER) if row[1] == support_table.REFUSED]
IGNORED = [row[0] for row in support_table.ROWS if row[1] == support_table.MEANINGLESS]


def _compile(config: dict[str, Any]) -> compiler.CompiledPlan:
    return compiler.compile(Bundle("/b", config, "/b/rootfs"), compiler.Facts(rootfs_ops=(), seccomp_bpf=b"\0" * 8))


def _value(path: str) -> Any:
    document = _document()
    fields = dict(_fields(document, "", document))
    return _sample(fields[path], document) if path in fields else {"key": "value"}


@pytest.mark.parametrize("path", REFUSED)
def test_each_refused_field_is_refused_by_its_path(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _compile(_config_with(path, _value(path)))
    message = caught.value.message
    named = message.removeprefix("config.json: ").partition(": ")[0]
    for digit in "0123456789":
        named = named.replace(f"[{digit}]", "[]")
    assert (named, ": not supported: " in message) == (path, True)


@pytest.mark.parametrize("path", IGNORED)
def test_each_meaningless_field_is_listed(path: str) -> None:
    warnings = _compile(_config_with(path, _value(path))).ignored
    assert [line for line in warnings if line.startswith(f"{path}: ignored: ")]


@pytest.mark.parametrize("path", REFUSED)
@pytest.mark.parametrize("nothing", [0, False, "", [], {}, {"limit": 0, "list": []}, -1])
def test_what_asks_for_nothing_passes(path: str, nothing: object) -> None:
    _compile(_config_with(path, nothing))


def test_unknown_fields_are_listed() -> None:
    assert (
        "process.shoeSize: ignored: unknown to this version of the specification"
        in _compile(_config_with("process.shoeSize", 43)).ignored
    )


def test_the_default_personality_passes() -> None:
    _compile(_config_with("linux.personality.domain", "LINUX"))
