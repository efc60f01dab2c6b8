"""The contract of lower transports: a container sees its rootfs as it is on the host, changes it as it likes, and nobody else sees that.

A container a transport runs rootfs_probe.c, whose answers are tests of their own; a second one on the same rootfs looks at the tree, and
changes it, while the first lives. runc is held to the same expectations, over an overlay mount of the host as podman makes it: so they are
those of any container. What differs is in ``DIFFERENCES``, with the reason, and must differ just so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from . import rootfs_data
from .conftest import JsonDict
from .rootfs_data import Entry
from .runtimes import DEADLINE_S, LAYERS, RUNC, RUNC_ON_LAYERS, Runtime, nothing_is_left, running, runtime_of

pytestmark = pytest.mark.vm
TRANSPORTS = ("9p", "virtiofs", "erofs", "erofs on pmem", LAYERS, "blk")
WITHOUT_OVERLAY = ("blk",)
SOURCES = [Path(__file__).with_name(f"rootfs_{part}.c") for part in ("probe", "manifest", "lower", "overlay", "upper")]
CHECKS = [name for source in SOURCES for name in re.findall(r'\{"(\w+)", \w+\}', source.read_text())]
ATTRIBUTES = [field.name for field in fields(Entry) if field.name not in ("inode", "d_inode", "device")]
OF_NO_MEANING_FOR_DIRECTORIES = ("links", "size")  # each file system counts them in its own way

# Attributes a transport carries, by the start of their names; of all others, none may be seen. What an upper directory has comes by 9p.
XATTRS = {"9p": ("user.", "system.posix_acl_"), "virtiofs": ("user.", "system.posix_acl_", "security.")}
_9P_XATTRS = "QEMU's 9p server passes user.* and POSIX ACLs, and refuses all others (hw/9pfs/9p-xattr.c)"
_NO_TRUSTED = (
    "virtiofsd has no CAP_SYS_ADMIN, without which trusted.* is hidden (xattr(7)); for nothing else would it need that"
)
_NO_HOLES = "Linux's 9p and EROFS find no holes (SEEK_DATA), so overlayfs copies up their zeroes; seen with Linux 6.1"
_2_FILE_SYSTEMS = (
    "overlayfs with its layers on two file systems gives files of the lower another st_dev than directories; "
    "xino=on would mend it, and make it look up each entry of the lower to list a directory that was changed"
)
VMS = "VMs"
OVERLAYS = "overlays"


@dataclass(frozen=True)
class Difference:
    """What is said instead of "ok", and why that is all that can be had. ``until``: the first kernel that does better."""

    said: str
    reason: str
    until: tuple[int, ...] = (99,)


# (container, "VMs" for all transports with an overlay in the guest, or "overlays" for these and runc, whose is on the host; check)
DIFFERENCES: dict[tuple[str, str], Difference] = {
    (OVERLAYS, "hard_links_stay_one_file"): Difference(
        'says(O "hard/b", "new\\n")', "overlayfs copies up one name of a file and leaves the others, unless index=on"
    ),
    (OVERLAYS, "temporary_without_a_name"): Difference(
        "Operation not supported", "overlayfs of older kernels has no O_TMPFILE; seen: 6.1 without, 6.18 with", (6, 10)
    ),
    ("9p", "linked_names_have_one_inode"): Difference(
        "first.st_ino == second.st_ino",
        "without file handles of the lower overlayfs goes by the name; seen with Linux 6.1",
        (6, 5),
    ),
    ("9p", "file_capability_takes_effect"): Difference('exit_of("/t/exec/capable"', _9P_XATTRS),
    ("9p", "trusted_xattrs_are_copied_up"): Difference("Operation not supported", _9P_XATTRS),
    ("9p", "chmod_keeps_a_capability"): Difference("size == 20", _9P_XATTRS),
    ("9p", "writing_drops_a_capability"): Difference("Operation not supported", _9P_XATTRS),
    **{
        (name, "appended_after_a_hole"): Difference("st_blocks", _NO_HOLES)
        for name in ("9p", "erofs", "erofs on pmem", LAYERS)
    },
    ("virtiofs", "trusted_xattrs_are_copied_up"): Difference("No data available", _NO_TRUSTED),
    ("blk", "statfs_is_plausible"): Difference("f_type == OVERLAYFS_SUPER_MAGIC", "there is no overlay: it is ext4"),
    (LAYERS, "one_device"): Difference(
        "3 devices", f"image, upper directory and the container's own: {_2_FILE_SYSTEMS}"
    ),
    (VMS, "one_device"): Difference("2 devices", _2_FILE_SYSTEMS),
    (VMS, "d_ino"): Difference("differ", _2_FILE_SYSTEMS),
}
# Several containers share the host's file system.
NOT_BY_RUNC = {"writes_take_space"}
# mkfs.erofs writes all its zeroes: half a minute, for `make test-stress`. The others have it always.
WITHOUT_LARGEST = () if os.environ.get("RUNDCTL_TEST_LONG") else ("erofs", "erofs on pmem")
OF_LARGEST = {"large_sparse_file"}


@dataclass
class View:
    """What containers of one transport told of one tree: before any change, and a second one after the first's changes."""

    container: str
    kernel: tuple[int, ...]
    first: dict[str, Entry]
    second: dict[str, Entry]
    host: dict[str, Entry]
    checks: dict[str, str]
    exit_codes: tuple[int, int]
    changes_on_host: set[bytes]
    tree: Tree

    def of_upper(self, path: str) -> bool:
        """Whether an entry comes of the upper directory, which is 9p's business."""
        return self.container == LAYERS and path in self.tree.in_upper


@dataclass(frozen=True)
class Tree:
    """A rootfs on the host; with ``layers``, topmost first, it is an overlay mounted over them, and ``in_upper`` are the paths that the topmost has."""

    rootfs: Path
    layers: tuple[Path, ...] = ()
    in_upper: frozenset[str] = frozenset()

    def fingerprint(self) -> dict[bytes, tuple[object, ...]]:
        """Of all that must not be changed."""
        found: dict[bytes, tuple[object, ...]] = {}
        for place in (self.rootfs, *self.layers):
            found |= rootfs_data.fingerprint(place)
        return found


@pytest.fixture(autouse=True, scope="module")
def nothing_left() -> Iterator[None]:
    """No descriptor after the module; all else that a container could leave is what ``view`` looks for, and a test here has no container."""
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rootfs_probe.c and its parts, compiled."""
    program = tmp_path_factory.mktemp("probe") / "probe"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", *SOURCES, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def tree(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """The rootfs of all containers here but those on layers, and beside it a file that a link in it must not lead to."""
    directory = tmp_path_factory.mktemp("contract")
    (directory / "outside").write_text("outside\n")
    rootfs_data.make(directory / "rootfs", probe, directory / "outside")
    yield Tree(directory / "rootfs")
    shutil.rmtree(directory / "rootfs")  # 12,000 files are not worth keeping


@pytest.fixture(scope="module")
def smaller(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """The same without its largest file."""
    directory = tmp_path_factory.mktemp("smaller")
    (directory / "outside").write_text("outside\n")
    rootfs_data.make_layer(directory / "rootfs", probe, directory / "outside")
    yield Tree(directory / "rootfs")
    shutil.rmtree(directory / "rootfs")


@pytest.fixture(scope="module")
def layered(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """The same as an engine's layer, and changes of it in an upper directory."""
    directory = tmp_path_factory.mktemp("layers")
    (directory / "outside").write_text("outside\n")
    layer, upper, work, merged = (
        directory / name for name in ("overlay/1/diff", "overlay/2/diff", "overlay/2/work", "merged")
    )
    rootfs_data.make_layer(layer, probe, directory / "outside")
    for made in (upper, work, merged):
        made.mkdir(parents=True)
    data = f"lowerdir={layer},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", data, merged], check=True)
    rootfs_data.into_upper(merged)
    yield Tree(merged, (upper, layer), frozenset(rootfs_data.read(upper)))
    subprocess.run(["umount", merged], check=True)
    shutil.rmtree(directory / "overlay")


def _lines_until(run: subprocess.Popen[bytes], last: str) -> list[str]:
    """Lines of its stdout before the one that is ``last``; all if none is."""
    assert run.stdout is not None
    lines: list[str] = []
    for line in run.stdout:
        text = line.decode().rstrip("\n")
        if text == last:
            break
        lines.append(text)
    return lines


def _version(line: str) -> tuple[int, ...]:
    """Of "kernel 6.1.0-56-amd64": what it is counted by."""
    return tuple(map(int, re.findall(r"\d+", line)[:2]))


def _look(runtime: Runtime, container: str, tree: Tree) -> View:
    """Run both containers, and compare the host's tree before and after."""
    host, before = rootfs_data.read(tree.rootfs), tree.fingerprint()
    with running(runtime, "first", ["/probe", "contract"]) as run:
        told = _lines_until(run, "waiting")
        script = "/probe manifest /t && /probe spoil"
        with running(runtime, "second", ["/bin/sh", "-c", script]) as other:
            second = _lines_until(other, "")
            other_code = other.wait(DEADLINE_S)
        assert run.stdin is not None
        run.stdin.close()
        told += _lines_until(run, "")
        code = run.wait(DEADLINE_S)
    after = tree.fingerprint()
    answers = [line.removeprefix("check ").partition(" ") for line in told if line.startswith("check ")]
    return View(
        container=container,
        kernel=next((_version(line) for line in told if line.startswith("kernel ")), ()),
        first=rootfs_data.parse([line for line in told if line.startswith("entry ")]),
        second=rootfs_data.parse([line for line in second if line.startswith("entry ")]),
        host=host,
        checks={name: said for name, _, said in answers},
        exit_codes=(code, other_code),
        changes_on_host={path for path in before.keys() | after.keys() if before.get(path) != after.get(path)},
        tree=tree,
    )


@pytest.fixture(scope="module", params=(*TRANSPORTS, RUNC, RUNC_ON_LAYERS))
def view(request: pytest.FixtureRequest, template: str, tmp_path_factory: pytest.TempPathFactory) -> View:
    """What was seen with one transport, or by runc. Nothing of the containers is left."""
    directory = tmp_path_factory.mktemp(request.param)
    name = "layered" if LAYERS in request.param else "smaller" if request.param in WITHOUT_LARGEST else "tree"
    tree: Tree = request.getfixturevalue(name)
    runtime = runtime_of(request.param, tree.rootfs, directory, tree.layers)
    seen = _look(runtime, request.param, tree)
    nothing_is_left(directory)
    return seen


def _known(view: View, name: str) -> Difference | None:
    kinds = (VMS if view.container in TRANSPORTS else RUNC, OVERLAYS) if view.container not in WITHOUT_OVERLAY else ()
    found = (DIFFERENCES.get((key, name)) for key in (view.container, *kinds))
    return next((known for known in found if known and view.kernel < known.until), None)


def _expect(view: View, name: str, said: str) -> None:
    """It is "ok", or the known difference."""
    known = _known(view, name)
    if known is None:
        assert said == "ok"
    else:
        assert known.said in said, f"another answer was expected: {known.reason}"


@pytest.mark.parametrize("name", CHECKS)
def test_check(view: View, name: str) -> None:
    if name in OF_LARGEST and view.container in WITHOUT_LARGEST:
        pytest.skip("by make test-stress")
    if view.container in TRANSPORTS or name not in NOT_BY_RUNC:
        _expect(view, name, view.checks.get(name, "was not made"))


def test_both_containers_came_to_their_end(view: View) -> None:
    assert view.exit_codes == (0, 0)
    assert sorted(view.checks) == sorted(CHECKS)


def test_each_path_is_seen_and_no_other(view: View) -> None:
    assert len(view.host) > 600
    assert {"/t/names/%ff%fe", "/t/names/new%0aline"} <= view.host.keys()
    assert view.first.keys() == view.host.keys()


def _right(transport: str, name: str, seen: Entry, host: Entry) -> bool:
    """Whether an attribute is seen as it has to be."""
    if name == "xattrs":
        return seen.xattrs == tuple(pair for pair in host.xattrs if pair.startswith(XATTRS.get(transport, ("",))))
    if host.kind == "d" and name in OF_NO_MEANING_FOR_DIRECTORIES:
        return True
    return bool(getattr(seen, name) == getattr(host, name))


def _differing(view: View, name: str, seen: dict[str, Entry]) -> JsonDict:
    host = view.host
    by = {path: "9p" if view.of_upper(path) else view.container for path in host}
    wrong = [path for path in host if path not in seen or not _right(by[path], name, seen[path], host[path])]
    return {path: (getattr(seen.get(path), name, "not seen"), getattr(host[path], name)) for path in wrong}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute(view: View, name: str) -> None:
    assert len({getattr(entry, name) for entry in view.host.values()}) > 2  # there is something to see
    assert _differing(view, name, view.first) == {}


def test_hard_links_are_one_inode(view: View) -> None:
    expected = rootfs_data.groups(view.host)
    assert {"/t/hard/first", "/t/hard/second", "/t/hard/elsewhere/third"} in expected
    assert rootfs_data.groups(view.first) == expected


def test_the_tree_is_one_device(view: View) -> None:
    """du -x counts what is on the device of its argument, and nothing else."""
    devices = {entry.device for entry in view.first.values()}
    _expect(view, "one_device", "ok" if len(devices) == 1 else f"{len(devices)} devices")


def test_readdir_and_stat_tell_the_same_inode(view: View) -> None:
    differing = [path for path, entry in view.first.items() if entry.inode != entry.d_inode]
    _expect(view, "d_ino", f"{len(differing)} differ, {differing[:3]}" if differing else "ok")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_another_container_sees_the_tree_as_it_was(view: View, name: str) -> None:
    """While the first has changed it."""
    assert view.second.keys() == view.host.keys()
    assert _differing(view, name, view.second) == {}


def test_the_lower_is_never_changed(view: View) -> None:
    assert view.changes_on_host == set()
    assert rootfs_data.read(view.tree.rootfs) == view.host
