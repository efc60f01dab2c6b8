"""Settings: defaults, file, environment, and every way to get them wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def _load(path: Path, text: str, **environment: str) -> settings.Settings:
    path.write_text(text)
    return settings.load({"RUNDCTL_CONFIG": str(path), **environment})


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "CONFIG_PATH", str(tmp_path / "missing.toml"))
    loaded = settings.load({})
    assert (loaded.home, loaded.memory_mib, loaded.vcpus, loaded.upper_mib) == ("/var/lib/rundctl", 128, 1, 2048)


def test_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert _load(file, 'home = "/a"\nmemory_mib = 256').home == "/a"
    loaded = _load(file, 'home = "/a"\nmemory_mib = 256', RUNDCTL_HOME="/b")
    assert (loaded.home, loaded.memory_mib) == ("/b", 256)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory_mib = 10", "memory_mib: expected an integer from 64"),
        ('memory_mib = "128"', "memory_mib: expected an integer"),
        ("vcpus = true", "vcpus: expected an integer"),
        ("kernel = 1", "kernel: expected a string"),
        ('home = "relative"', "home: expected an absolute path"),
        ('accelerator = "xen"', "accelerator: expected one of auto, kvm, tcg"),
        ("memory = 1", "memory: no such setting"),
        ("memory_mib =", "config.toml: "),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _load(tmp_path / "config.toml", text)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        settings.load({"RUNDCTL_CONFIG": str(tmp_path / "none")})


def test_home_in_the_environment_is_checked() -> None:
    with pytest.raises(ConfigError, match="RUNDCTL_HOME: home: expected an absolute path"):
        settings.load({"RUNDCTL_HOME": "here"})
