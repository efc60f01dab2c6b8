"""Bundles: everything that can be wrong with one is said in one line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.errors import ConfigError, UsageError
from rundctl.oci import bundle, identity, options, spec

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
        ('{"ociVersion": NaN}', "malformed JSON: NaN is no JSON"),
        (
            "[" * 100_000,
            "malformed JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        ),
        ("[]", "expected object, got array"),
        ("null", "expected object, got null"),
    ],
)
def test_malformed(path: Path, text: str, message: str) -> None:
    _write(path, text)
    assert _message(path) == f"config.json: {message}"


def test_not_utf8(path: Path) -> None:
    (path / "config.json").write_bytes(b'{"a": "\xff"}')
    assert "UTF-8" in _message(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": {"cwd": "/", "args": []}}, "process.args: must not be empty"),
        ({"process": {"cwd": "/", "args": "sh"}}, "process.args: expected array, got string"),
        ({"root": {"path": "no"}}, "root.path: rootfs {}/no: No such file or directory"),
        ({"root": {"path": "config.json"}}, "root.path: rootfs {}/config.json: not a directory"),
        ({"root": {"path": "a\0b"}}, "root.path: rootfs {}/a\0b: embedded null byte"),
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


def test_deeper_than_python_goes() -> None:
    # The first is too deep for us and not for json, whose limit and ours both rose with Python 3.12.
    for depth in (600 if sys.version_info < (3, 12) else 2000, 100_000):
        with pytest.raises(ConfigError, match="malformed JSON"):
            bundle.parse(b'{"a": null, "b": ' + b"[" * depth + b"]" * depth + b"}")


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
