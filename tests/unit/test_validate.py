"""The generated validator and jsonschema agree; errors name path and expectation; what callers emit passes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator

from rundctl.errors import ConfigError
from rundctl.oci import generate, schema, spec, validate

DATA = Path(__file__).parent / "data"
RECORDED = sorted(DATA.glob("podman-*.json"))


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out_file = tmp_path_factory.mktemp("generated") / "config_validator.py"
    generate.generate(schema.directory(), str(out_file))
    module_spec = importlib.util.spec_from_file_location("fresh_validator", out_file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slow() -> Draft4Validator:
    document = schema.config_schema(schema.directory())
    Draft4Validator.check_schema(document)
    return Draft4Validator(document)


def _fast_accepts(module: Any, config: object) -> bool:
    try:
        module.validate(config)
    except module.JsonSchemaValueException:
        return False
    return True


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_podman_emits_is_valid(path: Path, fast: Any) -> None:
    config = json.loads(path.read_bytes())
    validate.validate(config)
    fast.validate(config)


def test_the_example_is_valid(fast: Any) -> None:
    validate.validate(spec.example())
    fast.validate(spec.example())


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


JUNK = st.sampled_from([None, True, -1, 0, 2**70, 1.5, "", "RLIMIT_NO", [], {}, [None], {"a": 1}])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.data())
def test_both_validators_agree(fast: Any, slow: Draft4Validator, data: st.DataObject) -> None:
    config: Any = json.loads((DATA / "podman-volumes.json").read_bytes())
    config["linux"]["seccomp"]["syscalls"] = config["linux"]["seccomp"]["syscalls"][:3]
    place = data.draw(st.sampled_from(_places(config)[1:]))
    holder = config
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = data.draw(JUNK)
    accepted = _fast_accepts(fast, config)
    assert accepted == slow.is_valid(config)
    if not accepted:
        with pytest.raises(ConfigError) as caught:
            validate.validate(config)
        assert caught.value.message.startswith("config.json: ")
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected a field 'ociVersion', which is missing"),
        ({"ociVersion": 1}, "ociVersion: expected string, got integer"),
        ({"ociVersion": "1.0", "process": {"cwd": "/", "args": "x"}}, "process.args: expected array, got string"),
        ({"ociVersion": "1.0", "process": {}}, "process: expected a field 'cwd', which is missing"),
        ({"ociVersion": "1.0", "mounts": [{"destination": "/x"}, {"destination": "/y", "options": ["ro", 1]}]}, "mounts[1].options[1]: expected string, got integer"),
        ({"ociVersion": "1.0", "linux": {"namespaces": [{"path": "/x"}]}}, "linux.namespaces[0]: expected a field 'type', which is missing"),
        ({"ociVersion": "1.0", "process": {"cwd": "/", "user": {"uid": -1}}}, "process.user.uid: expected a number not below 0, got -1"),
        ({"ociVersion": "1.0", "hooks": {"prestart": [{"path": "/x", "timeout": 2**31}]}}, "hooks.prestart[0].timeout: expected a number not above 2147483647, got 2147483648"),
        ({"ociVersion": "1.0", "process": {"cwd": "/", "user": {"uid": 1.5}}}, "process.user.uid: expected integer, got number"),
        ({"ociVersion": "1.0", "linux": {"resources": {"hugepageLimits": [{"pageSize": "2", "limit": 0}]}}}, "linux.resources.hugepageLimits[0].pageSize: expected a text that matches ^[1-9][0-9]*[KMG]B$, got '2'"),
        ({"ociVersion": "1.0", "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}}}, "linux.seccomp.syscalls[0].names: expected at least 1 element, got 0"),
    ],
)  # fmt: skip
def test_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate.validate(config)
    assert caught.value.message == f"config.json: {message}"


@pytest.mark.parametrize("version", ["1.0", "1.0.0", "1.0.2-dev", "1.2.1", "1.3.0+x", "1.99.0"])
def test_versions(version: str) -> None:
    validate.validate({"ociVersion": version})


@pytest.mark.parametrize("version", ["", "1", "1.", "0.9.0", "2.0.0", "10.0", "1.x", "one"])
def test_refused_versions(version: str) -> None:
    with pytest.raises(ConfigError, match="ociVersion"):
        validate.validate({"ociVersion": version})


def test_what_is_valid_loads_neither_jsonschema_nor_fastjsonschema(fast: Any, tmp_path: Path) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(fast.__file__).parent)!r}); import config_validator as v; "
        f"v.validate(json.load(open({str(RECORDED[0])!r}))); "
        "sys.exit(bool({'jsonschema', 'fastjsonschema', 'decimal', 'typing'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=tmp_path)
