"""Bundles: everything that can be wrong with one is said in one line."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.errors import ConfigError, UsageError
from rundctl.oci import bundle, identity, options, spec, support

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    _write(tmp_path, spec.example())
    return tmp_path


def _write(path: Path, config: Any) -> None:
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def _message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        bundle.load(str(path))
    assert "\n" not in str(caught.value)
    return caught.value.message


def test_good(path: Path) -> None:
    loaded = bundle.load(str(path))
    assert (loaded.path, loaded.rootfs) == (str(path), str(path / "rootfs"))
    assert loaded.spec == spec.example()
    assert loaded.options.template is None


def test_relative_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert bundle.load(path.name).rootfs == str(path / "rootfs")


def test_absolute_rootfs(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    _write(path, spec.example() | {"root": {"path": str(other)}})
    assert bundle.load(str(path)).rootfs == str(other)


@pytest.mark.parametrize(
    "spelling", ["rootfs/", "./rootfs/../rootfs/.", "link", "link/", "links/a/../b", "/proc/self/cwd/rootfs"]
)
def test_a_rootfs_is_its_real_path(path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mountinfo has it: links and ``..`` lead where the kernel says."""
    (path / "link").symlink_to("rootfs")
    (path / "elsewhere/a").mkdir(parents=True)
    (path / "elsewhere/b").symlink_to(path / "rootfs")
    (path / "links").symlink_to("elsewhere")
    monkeypatch.chdir(path)
    _write(path, spec.example() | {"root": {"path": spelling}})
    assert bundle.load(str(path)).rootfs == str(path / "rootfs")


def test_a_rootfs_in_another_mount_namespace_is_none(path: Path) -> None:
    """Its path would name another directory here, or none."""
    inside = path / "rootfs"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs x {inside}; mkdir {inside}/sub; echo; read x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        for name in ("", "/sub"):
            there = f"/proc/{other.pid}/root{inside}{name}"
            _write(path, spec.example() | {"root": {"path": there}})
            assert _message(path) == f"config.json: root.path: rootfs {there}: in another mount namespace"
        other.communicate(b"")


def test_missing(tmp_path: Path) -> None:
    assert _message(tmp_path / "no") == f"bundle {tmp_path}/no: does not exist"
    assert _message(tmp_path) == f"JSON specification file {tmp_path}/config.json not found"
    (tmp_path / "file").touch()
    assert _message(tmp_path / "file") == f"bundle {tmp_path}/file: not a directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "a": }', "line 2 column 7: malformed JSON: Expecting value"),
        ("", "line 1 column 1: malformed JSON: Expecting value"),
        ('{"ociVersion": NaN}', "malformed JSON: NaN is not JSON"),
        ("[" * 100_000, "nested more than 10000 levels deep"),
        ("[" * 9_000 + "\n", "line 2 column 1: malformed JSON: Expecting value"),
        ("[]", "expected object, got array"),
        ("null", "expected object, got null"),
    ],
)
def test_malformed(path: Path, text: str, message: str) -> None:
    _write(path, text)
    assert _message(path) == f"config.json: {message}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"h\xe2\x82A\xff\xed\xa0\x80", "h\ufffd\ufffdA\ufffd\ufffd\ufffd\ufffd"),
        (rb"\udc00\ud800x\ud83d\ude00", "\ufffd\ufffdx\U0001f600"),
        ("ü€".encode(), "ü€"),
    ],
)
def test_what_is_no_unicode_is_replaced_as_by_runc(text: bytes, value: str) -> None:
    assert bundle.parse(b'{"' + text + b'": ["' + text + b'"]}') == {value: [value]}


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a": "\0"}', b"\xff{}"])
def test_other_encodings_are_malformed(text: bytes) -> None:
    with pytest.raises(ConfigError, match="malformed JSON"):
        bundle.parse(text)


@pytest.mark.parametrize("depth", [23, 24, 25, 500, 985, 5_000, 9_998])
@pytest.mark.parametrize("opened", [("[", "]"), ('{"a":', "}")])
def test_the_unknown_may_be_deep(path: Path, depth: int, opened: tuple[str, str]) -> None:
    left, right = opened
    deep = left * depth + ("1" if "a" in left else "") + right * depth
    text = json.dumps(spec.example() | {"hostname": "["})[:-1] + f', "unknown": {deep}, "domainname": "[\\"]"}}'
    (path / "config.json").write_text(text)
    loaded = bundle.load(str(path)).spec
    assert (loaded["hostname"], loaded["domainname"]) == ("[", '["]')
    assert support.check(loaded) == [] or depth < 24


def test_a_field_that_is_deep_is_named(path: Path) -> None:
    for depth in (600, 5_000):
        text = json.dumps(spec.example() | {"hostname": "@"}).replace('"@"', "[" * depth + "]" * depth)
        (path / "config.json").write_text(text)
        assert _message(path) == "config.json: hostname: expected string, got array"


def test_members_given_twice_are_joined_as_by_runc() -> None:
    text = b'{"process": {"env": ["A=1"], "user": {"uid": 1}}, "b": 1, "b": 2, "process": {"cwd": "/", "user": {"gid": 2}}}'
    assert bundle.parse(text) == {"process": {"env": ["A=1"], "user": {"uid": 1, "gid": 2}, "cwd": "/"}, "b": 2}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"process": {"cwd": "/a\0", "args": ["sh"]}}, "process.cwd"),
        ({"process": {"cwd": "/", "args": ["sh", "a\0b"]}}, "process.args[1]"),
        ({"process": {"cwd": "/", "args": ["sh"], "env": ["A=b", "C=\0"]}}, "process.env[1]"),
        ({"hostname": "a\0b"}, "hostname"),
        ({"root": {"path": "a\0b"}}, "root.path"),
        ({"mounts": [{"destination": "/a"}, {"destination": "/a\0b"}]}, "mounts[1].destination"),
        ({"mounts": [{"destination": "/a", "source": "\0"}]}, "mounts[0].source"),
        ({"mounts": [{"destination": "/a", "options": ["ro", "size=\0"]}]}, "mounts[0].options[1]"),
        ({"hooks": {"poststop": [{"path": "/x", "args": ["\0"]}]}}, "hooks.poststop[0].args[0]"),
        ({"linux": {"cgroupsPath": "/a\0"}}, "linux.cgroupsPath"),
        ({"linux": {"maskedPaths": ["/a\0"]}}, "linux.maskedPaths[0]"),
        ({"linux": {"sysctl": {"net.\0": "1"}}}, "linux.sysctl"),
        ({"linux": {"sysctl": {"net.x": "\0"}}}, "linux.sysctl.net.x"),
        ({"linux": {"devices": [{"path": "/dev/\0", "type": "c"}]}}, "linux.devices[0].path"),
        ({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["\0"], "action": "SCMP_ACT_ALLOW"}]}}}, "linux.seccomp.syscalls[0].names[0]"),
    ],
)  # fmt: skip
def test_a_nul_is_told_with_its_field(path: Path, change: dict[str, Any], field: str) -> None:
    _write(path, spec.example() | change)
    assert _message(path) == f"config.json: {field}: a string with a NUL, which Linux cannot take"


def test_a_nul_that_nobody_reads_is_taken(path: Path) -> None:
    _write(path, spec.example() | {"unknown": ["\0"], "annotations": {"a\0": "\0"}, "windows": {"x": "\0"}})
    assert bundle.load(str(path)).spec["annotations"] == {"a\0": "\0"}


@pytest.mark.parametrize(
    "number", ["9" * 5_000, "-" + "9" * 5_000, "1e400", "1e300", "4294967296", "-1", "0.5", "true"]
)
def test_numbers_out_of_all_bounds_are_told_with_their_field(path: Path, number: str) -> None:
    text = json.dumps(spec.example()).replace('"uid": 0', f'"uid": {number}')
    (path / "config.json").write_text(text)
    message = _message(path)
    assert message.startswith("config.json: process.user.uid: expected ")
    assert len(message) < 200


def test_a_number_of_any_length_that_nobody_reads_is_taken(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(spec.example())[:-1] + f', "unknown": {"9" * 5_000}}}')
    bundle.load(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": {"cwd": "/", "args": []}}, "process.args: must not be empty"),
        ({"process": {"cwd": "/", "args": "sh"}}, "process.args: expected array, got string"),
        ({"root": {"path": "no"}}, "root.path: rootfs {}/no: No such file or directory"),
        ({"root": {"path": "config.json"}}, "root.path: rootfs {}/config.json: not a directory"),
        ({"ociVersion": "2.0.0"}, "ociVersion: expected a version 1.x of the runtime specification, got '2.0.0'"),
    ],
)
def test_wrong_values(path: Path, change: dict[str, Any], message: str) -> None:
    _write(path, spec.example() | change)
    assert _message(path) == f"config.json: {message.format(path)}"


@pytest.mark.parametrize("section", ["process", "root", "linux"])
def test_missing_sections(path: Path, section: str) -> None:
    config = spec.example()
    del config[section]
    _write(path, config)
    assert f"config.json: {section}" in _message(path)


def test_null_is_absent_and_whole_fractions_are_integers(path: Path) -> None:
    config = spec.example() | {"domainname": None}
    config["process"]["user"]["uid"] = 7.0
    _write(path, config)
    loaded = bundle.load(str(path)).spec
    assert "domainname" not in loaded
    assert isinstance(loaded["process"]["user"]["uid"], int)


def test_a_current_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match=r"^bundle \.: the current directory was removed"):
        bundle.load(".")


@pytest.mark.parametrize("text", ["a", "A-z_0.9+", "...", "x" * 255])
def test_ids(text: str) -> None:
    assert identity.container_id(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", ".elsewhere", ".pool", "a/b", "a b", "ä", "a\n", "x" * 256])
def test_bad_ids(text: str) -> None:
    with pytest.raises(UsageError):
        identity.container_id(text)


def test_annotations() -> None:
    assert options.parse({"io.rundctl.template": "off", "other": "x"}).template is False
    assert options.parse({"io.rundctl.template": "on"}).template is True
    for wrong in ({"io.rundctl.template": "of"}, {"io.rundctl.templat": "off"}):
        with pytest.raises(ConfigError, match=r"io\.rundctl\.templat"):
            options.parse(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        bundle.parse(text)
