"""Which transport a rootfs gets, and why; each in real VMs: tests/system/test_rootfs_contract.py."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.rootfs import choice, hybrid_rootfs, transport
from rundctl.engine.rootfs.images import build, overlay, overlay_marks, store
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.content import Content, Image
from rundctl.engine.rootfs.images.overlay import Overlay
from rundctl.engine.settings import Settings
from rundctl.errors import ConfigError, HostError
from rundctl.host import files, memo, workspace
from rundctl.host.mounts import mount
from rundctl.oci import options
from rundctl.vmm import qemu

from .choice_rig import ABLE, bundle_of, chosen_for

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings()
    found.home = str(tmp_path / "home")
    return found


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the images that would be built."""
    keys: list[str] = []

    def start(_: Settings, content: images.Content) -> str:
        keys.append(content.key)
        return "one is being built"

    monkeypatch.setattr(images, "start_background", start)
    return keys


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> Image:
    """The one that is there, whatever is asked for."""
    found = Image("key", "/images/key/image", 50 * MIB)
    monkeypatch.setattr(images, "find_open", lambda *_: found)
    return found


def _layer(directory: Path) -> str:
    """As podman keeps them."""
    layer = directory / "overlay" / "0a1b" / "diff"
    layer.mkdir(parents=True)
    return str(layer)


def test_a_directory_may_change_and_is_shared_live(tmp_path: Path, settings: Settings, image: Image) -> None:
    del image
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert (chosen.transport, chosen.device, chosen.path) == ("9p", "9p", str(tmp_path / "rootfs"))
    assert "may change" in chosen.reason


def test_a_disk_only_where_it_is_asked_for(tmp_path: Path, settings: Settings, image: Image) -> None:
    rootfs = tmp_path / "rootfs"
    copied = chosen_for(bundle_of(rootfs, lower="blk"), settings, frozenset())
    assert (copied.transport, copied.device, copied.path, copied.image) == ("blk", "disk", str(rootfs), None)
    assert copied.device_mib == 4096, "2048 to write to, and a power of two"
    kept = chosen_for(bundle_of(rootfs, lower="blk", immutable="1"), settings, frozenset())
    assert (kept.device, kept.path, kept.image, kept.device_mib) == ("disk", image.path, image, 50)
    for chosen in (copied, kept):
        (mounted,) = hybrid_rootfs.join(chosen)
        assert mounted.arguments[:3] == (qemu.DISK_PATH, "/root", "ext4")
        assert len(hybrid_rootfs.join(chosen, volumes=True)) == 2
    assert chosen_for(bundle_of(rootfs, immutable="1"), settings).transport == "erofs"


@pytest.mark.parametrize("upper", ["empty", "written", ""])
def test_a_disk_of_layers_is_of_their_image_unless_something_lies_upon_them(
    tmp_path: Path, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch, upper: str
) -> None:
    for name in ("empty", "written/file"):
        (tmp_path / name).mkdir(parents=True)
    parts = Overlay((_layer(tmp_path),), str(tmp_path / upper) if upper else None, None, ())
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (parts, ""))
    chosen = chosen_for(bundle_of(tmp_path / "rootfs", lower="blk"), settings)
    assert (chosen.image is image) == (upper != "written")
    assert chosen.live == ""


def test_what_was_asked_for_comes_first(tmp_path: Path, settings: Settings, image: Image) -> None:
    del image
    rootfs = tmp_path / "rootfs"
    assert chosen_for(bundle_of(rootfs, immutable="1", lower="9p"), settings).transport == "9p"
    settings.lower = "9p"
    assert chosen_for(bundle_of(rootfs, immutable="1"), settings).transport == "9p"
    assert chosen_for(bundle_of(rootfs, immutable="1", lower="auto"), settings).transport == "erofs"


def test_an_immutable_directory_waits_for_no_image(tmp_path: Path, settings: Settings, background: list[str]) -> None:
    chosen = chosen_for(bundle_of(tmp_path / "rootfs", immutable="1"), settings)
    assert (chosen.transport, chosen.reason) == ("9p", "one is being built")
    assert len(background) == 1


def test_its_image_is_used_once_there(tmp_path: Path, settings: Settings, image: Image) -> None:
    chosen = chosen_for(bundle_of(tmp_path / "rootfs", immutable="1"), settings)
    assert (chosen.transport, chosen.device, chosen.device_mib, chosen.path) == ("erofs", "pmem", 64, image.path)
    assert chosen.live == ""


@pytest.mark.usefixtures("image", "private")
def test_what_is_mounted_inside_later_is_in_no_image(tmp_path: Path, settings: Settings) -> None:
    rootfs = tmp_path / "rootfs"
    bundles = {name: bundle_of(rootfs, lower=name, immutable="1") for name in ("auto", "9p", "erofs", "blk")}
    assert chosen_for(bundles["auto"], settings).transport == "erofs"
    (rootfs / "srv").mkdir()
    mount("none", str(rootfs / "srv"), "tmpfs")
    chosen = chosen_for(bundles["auto"], settings)
    assert (chosen.transport, chosen.reason) == ("9p", f"something is mounted inside of it, at {rootfs}/srv")
    assert chosen_for(bundles["9p"], settings).transport == "9p"
    for name in ("erofs", "blk"):
        with pytest.raises(ConfigError, match=f"mounted .*{rootfs}/srv") as caught:
            chosen_for(bundles[name], settings)
        assert caught.value.hint == transport.MOUNTS_HINT


def test_an_overlay_s_own_upper_is_stacked_on_the_image(
    tmp_path: Path, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    del image
    parts = Overlay((_layer(tmp_path),), "/containers/1/diff", "/containers/1/work", ())
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (parts, ""))
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert (chosen.transport, chosen.live) == ("erofs", "/containers/1/diff")
    *_, joined = hybrid_rootfs.join(chosen, volumes=True, live="/volumes/2")
    assert str(joined.arguments[4]).startswith("lowerdir=/volumes/2:/lower,")
    assert "no 9p" in chosen_for(bundle_of(tmp_path / "rootfs"), settings, ABLE - {"9p"}).reason


def test_a_kernel_that_cannot_is_told(tmp_path: Path, settings: Settings, image: Image) -> None:
    del image
    rootfs = tmp_path / "rootfs"
    assert "no erofs and no pmem" in chosen_for(bundle_of(rootfs, immutable="1"), settings, frozenset(("9p",))).reason
    with pytest.raises(ConfigError, match="no erofs and no pmem") as caught:
        chosen_for(bundle_of(rootfs, immutable="1", lower="erofs"), settings, frozenset(("9p",)))
    assert "kernel build" in caught.value.hint


def test_an_image_of_what_may_change_is_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"rootfs\.lower: erofs: .*may change") as caught:
        chosen_for(bundle_of(tmp_path / "rootfs", lower="erofs"), settings)
    assert options.IMMUTABLE in caught.value.hint


def test_a_refusal_names_what_asked(tmp_path: Path, settings: Settings) -> None:
    settings.lower = "erofs"
    with pytest.raises(ConfigError, match=r"^lower = erofs: rootfs /.*may change"):
        chosen_for(bundle_of(tmp_path / "rootfs"), settings)


@pytest.mark.parametrize(("size_mib", "memory_mib", "device"), [(1, 64, "pmem"), (200, 128, "pmem"), (300, 128, "blk")])
def test_page_structs_take_at_most_a_25th_of_the_memory(size_mib: int, memory_mib: int, device: str) -> None:
    chosen = transport.erofs(Image("key", "/image", size_mib * MIB), memory_mib)
    assert chosen.device == device
    assert device == "blk" or chosen.device_mib / 64 <= memory_mib / 25


@given(st.integers(0, 1 << 44))
def test_windows_are_few_and_large_enough(size: int) -> None:
    mib = images.device_mib(size)
    assert size <= mib * MIB
    assert mib & (mib - 1) == 0
    assert mib == 64 or mib * MIB < 2 * size


@pytest.mark.parametrize(("name", "value"), [("lower", "nfs"), ("lower", ""), ("immutable", ""), ("colour", "red")])
def test_typing_errors_in_annotations(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"io.rundctl.rootfs.{name}"):
        bundle_of(tmp_path / "rootfs", **{name: value})


@pytest.mark.parametrize("merging", [("metacopy=on",), ("userxattr",)])
def test_an_upper_that_the_guest_would_misread_stays_live(
    tmp_path: Path, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch, merging: tuple[str, ...]
) -> None:
    del image
    layers = (_layer(tmp_path),)
    found = [Overlay(layers, upper, None, merging) for upper in ("/containers/1/diff", None)]
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (found[0], ""))
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert chosen.transport == "9p"
    assert merging[0] in chosen.reason
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (found[1], ""))
    assert chosen_for(bundle_of(tmp_path / "rootfs"), settings).transport == "erofs"


@pytest.mark.parametrize(
    ("name", "value", "on"),
    [
        ("opaque", b"y", "directory"),
        ("opaque", b"x", "directory/deeper"),
        ("redirect", b"/from", "directory/deeper"),
        ("metacopy", b"", "directory/file"),
        ("whiteout", b"y", "directory/file"),
        ("of_next_year", b"y", ""),
    ],
)
@pytest.mark.usefixtures("image")
def test_an_upper_with_marks_stays_live(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: bytes, on: str
) -> None:
    upper = tmp_path / "upper"
    (upper / "directory/deeper").mkdir(parents=True)
    (upper / "directory/file").touch()
    os.mknod(upper / "whiteout", stat.S_IFCHR, 0)
    (upper / "link").symlink_to("nowhere")
    for harmless in ("origin", "impure", "nlink", "upper", "uuid"):
        os.setxattr(upper / "directory/file", f"trusted.overlay.{harmless}", b"y")
    os.setxattr(upper / "directory/file", "user.overlay.opaque", b"y")
    parts = Overlay((_layer(tmp_path),), str(upper), None, ())
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (parts, ""))
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert (chosen.transport, chosen.live) == ("erofs", str(upper))
    os.setxattr(upper / on, f"trusted.overlay.{name}", value)
    os.mkdir(f"{parts.lowers[0]}/directory")
    with pytest.raises(HostError, match=f"changed while its VM started: .*overlay.{name}"):
        choice.check_live(chosen)
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert (chosen.transport, chosen.path, chosen.live) == ("9p", str(tmp_path / "rootfs"), "")
    assert f"trusted.overlay.{name} on {upper / on}" in chosen.reason
    with pytest.raises(ConfigError, match=rf"rootfs\.lower: erofs: .*trusted\.overlay\.{name}"):
        chosen_for(bundle_of(tmp_path / "rootfs", lower="erofs"), settings)
    assert chosen_for(bundle_of(tmp_path / "rootfs", lower="blk"), settings).image is None


def test_an_upper_of_too_much_to_be_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_marks, "ENTRIES_MAX", 3)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    assert overlay_marks.unseen(str(tmp_path), ()) == ""
    (tmp_path / "0/more").touch()
    assert "too many entries" in overlay_marks.unseen(str(tmp_path), ())


@pytest.mark.usefixtures("private")
def test_a_directory_that_is_only_new_has_no_mark_that_matters(tmp_path: Path) -> None:
    """As the host's overlayfs marks it; and one that was there before."""
    layer, upper, work, merged = (tmp_path / name for name in ("layer", "upper", "work", "merged"))
    for made in (layer / "old", upper, work, merged):
        made.mkdir(parents=True)
    mount("overlay", str(merged), "overlay", 0, f"lowerdir={layer},upperdir={upper},workdir={work},redirect_dir=on")
    (merged / "new/deeper").mkdir(parents=True)
    assert os.getxattr(upper / "new", "trusted.overlay.opaque") == b"y"
    assert overlay_marks.unseen(str(upper), (str(layer),)) == ""
    (merged / "new").rename(merged / "renamed")
    assert overlay_marks.unseen(str(upper), (str(layer),)) == ""
    (merged / "old").rmdir()
    (merged / "old").mkdir()
    assert f"trusted.overlay.opaque on {upper}/old" in overlay_marks.unseen(str(upper), (str(layer),))


@pytest.mark.usefixtures("private")
def test_a_directory_below_one_that_a_layer_renamed_is_not_only_new(tmp_path: Path) -> None:
    """What it hides has another name in the layers below."""
    bottom, middle, upper, merged = (tmp_path / name for name in ("bottom", "middle", "upper", "merged"))
    for made in (bottom / "first/inside", middle, upper, merged, tmp_path / "work1", tmp_path / "work2"):
        made.mkdir(parents=True)
    options = f"lowerdir={bottom},upperdir={middle},workdir={tmp_path}/work1,redirect_dir=on"
    mount("overlay", str(merged), "overlay", 0, options)
    (merged / "first").rename(merged / "second")
    subprocess.run(["umount", merged], check=True)
    options = f"lowerdir={middle}:{bottom},upperdir={upper},workdir={tmp_path}/work2,redirect_dir=on"
    mount("overlay", str(merged), "overlay", 0, options)
    (merged / "second/inside").rmdir()
    (merged / "second/inside").mkdir()
    assert "trusted.overlay.opaque on " in overlay_marks.unseen(str(upper), (str(middle), str(bottom)))


@pytest.mark.parametrize(
    ("layer", "known"),
    [
        ("/var/lib/containers/storage/overlay/0a1b/diff", True),
        ("/var/lib/docker/overlay2/0a1b/diff", True),
        ("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs", True),
        ("/home/me/rootfs", False),
        ("/diff", False),
        ("/overlay/diff", False),
    ],
)
def test_layers_of_images_are_known_by_their_store(layer: str, known: bool) -> None:
    assert overlay.is_of_an_image(layer) is known


def test_an_overlay_over_somebody_s_directory_may_change(
    tmp_path: Path, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``podman run --rootfs DIR:O``."""
    del image
    parts = Overlay((str(tmp_path),), "/containers/1/diff", "/containers/1/work", ())
    monkeypatch.setattr(overlay, "of_rootfs", lambda _: (parts, ""))
    chosen = chosen_for(bundle_of(tmp_path / "rootfs"), settings)
    assert chosen.transport == "9p"
    assert "may change" in chosen.reason


def test_an_image_is_in_use_from_the_choice_on(tmp_path: Path, settings: Settings) -> None:
    """A template may be built before QEMU starts; who removes the image meanwhile takes nothing from this start."""
    bundle = bundle_of(tmp_path / "rootfs", lower="erofs", immutable="1")
    with ExitStack() as undo:
        chosen = hybrid_rootfs.choose(undo, bundle, settings, memo.of_home(settings.home), 128, lambda: ABLE)
        assert [entry.in_use for entry in store.entries(settings.home)] == [True]
        store.prune(settings.home, everything=True)
        assert os.fstat(chosen.open(undo)).st_size == 64 * MIB
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(chosen.open(undo))


def test_who_waits_for_an_image_long_is_told(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes it may have been stopped."""
    monkeypatch.setattr(workspace, "_PATIENCE_S", 0.0)
    bundle = bundle_of(tmp_path / "rootfs", lower="erofs", immutable="1")
    images.make_root(settings.home)
    lock = files.lock_directory(
        images.workspace(settings.home, Content.of_directory(bundle.rootfs, "1").key), wait=False
    )
    assert lock is not None
    said: list[str] = []

    def warn(line: str) -> None:
        said.append(line)
        os.close(lock)

    with ExitStack() as undo:
        hybrid_rootfs.choose(undo, bundle, settings, memo.of_home(settings.home), 128, lambda: ABLE, warn=warn)
    assert said == [f"waiting for pid {os.getpid()}, which makes this image"]


def test_an_image_that_goes_while_it_is_found(
    tmp_path: Path, settings: Settings, background: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Image("key", str(tmp_path / "gone"), MIB)
    monkeypatch.setattr(images, "find", lambda *_: gone)
    assert chosen_for(bundle_of(tmp_path / "rootfs", immutable="1"), settings).transport == "9p"
    assert len(background) == 1
    monkeypatch.setattr(build, "build", lambda *_, **__: gone)
    with pytest.raises(HostError, match="removed as soon as it was made"):
        chosen_for(bundle_of(tmp_path / "rootfs", lower="erofs", immutable="1"), settings)


@pytest.fixture
def daemon(tmp_path: Path, settings: Settings) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text("#!/bin/sh\necho virtiofsd 1.13.2\n")
    program.chmod(0o755)
    settings.virtiofsd = str(program)
    (tmp_path / "home").mkdir()


@pytest.mark.usefixtures("daemon")
def test_virtiofs_is_for_those_who_ask_for_it(tmp_path: Path, settings: Settings) -> None:
    rootfs = tmp_path / "rootfs"
    chosen = chosen_for(bundle_of(rootfs, lower="virtiofs"), settings)
    assert (chosen.transport, chosen.device, chosen.device_mib, chosen.path) == ("virtiofs", "virtiofs", 0, str(rootfs))
    assert [op.arguments[2] for op in hybrid_rootfs.join(chosen, volumes=True)] == [
        "virtiofs",
        "virtiofs",
        "overlay",
    ]
    assert chosen_for(bundle_of(rootfs), settings).transport == "9p"
    assert chosen_for(bundle_of(rootfs, lower="auto"), settings).transport == "9p"
    settings.lower = "virtiofs"
    assert chosen_for(bundle_of(rootfs), settings).transport == "virtiofs"


@pytest.mark.usefixtures("daemon")
def test_persistent_by_virtiofs(tmp_path: Path, settings: Settings) -> None:
    settings.rootfs = "persistent"
    chosen = chosen_for(bundle_of(tmp_path / "rootfs", lower="virtiofs"), settings)
    assert (chosen.transport, chosen.persistent) == ("virtiofs", True)
    (mount,) = hybrid_rootfs.join(chosen)
    assert mount.arguments[1:5] == (transport.ROOT, "virtiofs", 0, "")


def test_virtiofs_that_cannot_be_had(tmp_path: Path, settings: Settings) -> None:
    settings.virtiofsd = "/no/such"
    with pytest.raises(HostError, match="there is none: /no/such"):
        chosen_for(bundle_of(tmp_path / "rootfs", lower="virtiofs"), settings)
    with pytest.raises(ConfigError, match=r"virtiofs: .*kernel has no virtiofs"):
        chosen_for(bundle_of(tmp_path / "rootfs", lower="virtiofs"), settings, ABLE - {"virtiofs"})


def test_persistent_is_the_directory_itself_and_nothing_else(tmp_path: Path, settings: Settings) -> None:
    bundle = bundle_of(tmp_path / "rootfs")
    bundle.options.rootfs = "persistent"
    settings.virtiofsd = "/no/such"
    chosen = chosen_for(bundle, settings)
    assert (chosen.transport, chosen.path, chosen.persistent) == ("9p", bundle.rootfs, True)
    assert len(hybrid_rootfs.join(chosen)) == 1
    assert not chosen_for(bundle_of(tmp_path / "rootfs"), settings).persistent


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"lower": "erofs"}, "erofs is read-only"),
        ({"lower": "blk"}, "blk dies with the VM"),
        ({"immutable": "1"}, "immutable"),
    ],
)
def test_what_nobody_writes_to_is_not_persistent(
    tmp_path: Path, settings: Settings, asked: dict[str, str], why: str
) -> None:
    settings.rootfs = "persistent"
    with pytest.raises(ConfigError, match=f"rootfs = persistent: .*{why}"):
        chosen_for(bundle_of(tmp_path / "rootfs", **asked), settings)
