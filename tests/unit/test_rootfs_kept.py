"""Where a container's writes to its root go if nobody says: to be read by an engine, or to die with the VM. With podman: tests/system/test_podman_writes.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.engine.rootfs import choice
from rundctl.engine.settings import Settings
from rundctl.errors import ConfigError
from rundctl.host.mounts import PrivateMounts, mount
from rundctl.oci import options
from rundctl.oci.bundle import Bundle

from .choice_rig import ABLE, bundle_of, chosen_for

if TYPE_CHECKING:
    from pathlib import Path

MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings()
    found.home = str(tmp_path / "home")
    return found


def _of_an_engine(directory: Path, *, home: str = "bundle", **asked: object) -> Bundle:
    """Its rootfs is outside of the bundle."""
    (directory / "rootfs").mkdir()
    spec = {"root": {"readonly": asked.pop("readonly", False)}, "annotations": asked}
    annotations = {name: str(value) for name, value in asked.items() if name.startswith(options.PREFIX)}
    return Bundle(str(directory / home), spec, str(directory / "rootfs"), options.parse(annotations))


def test_what_an_engine_will_read_is_written_to_at_once(tmp_path: Path, settings: Settings) -> None:
    settings.virtiofsd = "/no/such"
    chosen = chosen_for(_of_an_engine(tmp_path), settings)
    assert (chosen.transport, chosen.persistent, chosen.path) == ("9p", True, str(tmp_path / "rootfs"))
    assert "outside of the bundle" in chosen.reason


@pytest.mark.parametrize(
    "asked",
    [
        {"readonly": True},
        {"io.podman.annotations.autoremove": "TRUE"},
        {options.IMMUTABLE: "1", options.LOWER: "9p"},
        {options.ROOTFS: "volatile"},
    ],
)
def test_what_nobody_will_read_dies_with_the_vm(tmp_path: Path, settings: Settings, asked: dict[str, object]) -> None:
    assert not chosen_for(_of_an_engine(tmp_path, **asked), settings).persistent


def test_settings_and_annotations_overrule(tmp_path: Path, settings: Settings) -> None:
    settings.virtiofsd = "/no/such"
    bundle = _of_an_engine(tmp_path, **{"io.podman.annotations.autoremove": "FALSE"})
    assert chosen_for(bundle, settings).persistent
    settings.rootfs = "volatile"
    assert not chosen_for(bundle, settings).persistent
    bundle.options.rootfs = "auto"
    assert chosen_for(bundle, settings).persistent
    settings.rootfs = "auto"
    bundle.options.rootfs = "volatile"
    assert not chosen_for(bundle, settings).persistent


def test_a_plain_directory_of_the_bundle_is_no_engine_s(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    assert choice.reader_of(bundle_of(rootfs)) == ""
    assert choice.reader_of(Bundle(str(rootfs), {}, str(rootfs))) == "", "root.path is a dot"
    (tmp_path / "link").symlink_to(tmp_path)
    assert choice.reader_of(Bundle(str(tmp_path / "link"), {}, str(rootfs))) == ""
    (tmp_path / "root").mkdir()
    assert choice.reader_of(Bundle(str(tmp_path / "root"), {}, str(rootfs))), (
        "begins with the bundle's name, and is beside it"
    )
    (tmp_path / "umoci.json").touch()
    assert "umoci.json" in choice.reader_of(bundle_of(rootfs))


def test_a_mount_in_the_bundle_is_an_engine_s_if_it_can_be_written_to(tmp_path: Path) -> None:
    """By the kinds of buildah: an overlay, and with its driver vfs a bind mount of the same file system."""
    rootfs, other = tmp_path / "rootfs", tmp_path / "other"
    bundle = bundle_of(rootfs)
    other.mkdir()
    with PrivateMounts():
        mount(str(other), str(rootfs), None, MS_BIND)
        assert "is a mount" in choice.reader_of(bundle)
        mount("", str(rootfs), None, MS_REMOUNT | MS_BIND | MS_RDONLY)
        assert choice.reader_of(bundle) == "", "nothing can be written there"
        mount("none", str(tmp_path / "other"), "tmpfs")
        for name in ("layer", "upper", "work"):
            (other / name).mkdir()
        layer, upper, work = (str(other / name) for name in ("layer", "upper", "work"))
        mount("overlay", str(rootfs), "overlay", 0, f"lowerdir={layer},upperdir={upper},workdir={work}")
        assert "is a mount" in choice.reader_of(bundle)
        mount("overlay", str(rootfs), "overlay", 0, f"lowerdir={layer}:{upper}")
        assert choice.reader_of(bundle) == "", "it has no upper directory"


@pytest.mark.parametrize("lower", ["erofs", "blk"])
def test_what_cannot_be_kept_and_would_be_read_is_refused(tmp_path: Path, settings: Settings, lower: str) -> None:
    bundle = _of_an_engine(tmp_path, **{options.LOWER: lower})
    with pytest.raises(
        ConfigError, match=rf"{options.LOWER}: .*outside of the bundle.*by {lower} .*{options.ROOTFS}=volatile"
    ):
        chosen_for(bundle, settings)


@pytest.mark.parametrize(
    ("says", "transport_of_it"), [("virtiofsd version 7.2.1", "virtiofs"), ("virtiofsd 1.13.2", "9p"), ("what?", "9p")]
)
def test_persistent_without_a_word_on_how(tmp_path: Path, settings: Settings, says: str, transport_of_it: str) -> None:
    """QEMU's virtiofsd in C is of a QEMU whose 9p server makes no FIFOs."""
    program = tmp_path / "virtiofsd"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    settings.virtiofsd = str(program)
    (tmp_path / "home").mkdir()
    bundle = _of_an_engine(tmp_path)
    assert chosen_for(bundle, settings).transport == transport_of_it
    assert chosen_for(bundle, settings, ABLE - {"virtiofs"}).transport == "9p"
