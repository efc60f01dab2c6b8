"""The state JSON."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from rundctl.oci import features, linux, schema, spec, state
from rundctl.types import Status

RECORD: dict[str, Any] = {
    "id": "c1", "oci_version": "1.0.2-dev", "bundle": "/b", "rootfs": "/b/rootfs", "created": 1.5, "annotations": {"a": "b"},
    "owner_uid": 0, "shim": {"pid": 4},
}  # fmt: skip


def _validator(name: str) -> Any:
    """The unchanged schema of a file, its references resolved by file name."""
    documents = {}
    for file in os.listdir(schema.directory()):
        if file.endswith(".json"):
            with open(os.path.join(schema.directory(), file), encoding="utf-8") as text:
                documents[file] = json.load(text)
    resources = [(file, Resource.from_contents(document, DRAFT4)) for file, document in documents.items()]
    return Draft4Validator(documents[name], registry=Registry().with_resources(resources))


@pytest.mark.parametrize("status", [Status.CREATING, Status.CREATED, Status.RUNNING, Status.STOPPED])
def test_follows_the_schema(status: Status) -> None:
    _validator("state-schema.json").validate(state.state_json(RECORD, status, 7))


def test_fields_and_order_are_runcs() -> None:
    assert state.state_json(RECORD, Status.STOPPED, 0) == {
        "ociVersion": "1.0.2-dev", "id": "c1", "pid": 0, "status": "stopped", "bundle": "/b", "rootfs": "/b/rootfs",
        "created": "1970-01-01T00:00:01.5Z", "annotations": {"a": "b"}, "owner": "root",
    }  # fmt: skip
    assert list(state.state_json(RECORD, Status.STOPPED, 0))[:5] == ["ociVersion", "id", "pid", "status", "bundle"]
    assert "annotations" not in state.state_json(RECORD | {"annotations": {}}, Status.RUNNING, 1)


def test_owner_without_a_name() -> None:
    assert state.state_json(RECORD | {"owner_uid": 4_000_000_000}, Status.RUNNING, 1)["owner"] == ""


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
    ],
)
def test_timestamps(time_ns: int, text: str) -> None:
    assert state.timestamp(time_ns) == text


def test_features_follow_the_schema_and_the_tables() -> None:
    document = features.document()
    _validator("features-schema.json").validate(document)
    assert document["hooks"] == ["prestart", "createRuntime", "poststart", "poststop"]
    assert not set(linux.REFUSED_OPTIONS) & set(document["mountOptions"])
    assert {"rro", "rbind", "tmpcopyup", "runbindable"} <= set(document["mountOptions"])
    json.dumps(document)


def test_the_example_follows_the_unchanged_schema() -> None:
    _validator("config-schema.json").validate(spec.example())
