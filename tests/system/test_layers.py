"""An overlay mount over layers of an engine, as podman gives it: the image of its layers, and on it what its own upper directory has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.host import patience
from rundctl.oci import options

from .conftest import Cli, JsonDict, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Done = subprocess.CompletedProcess[bytes]

pytestmark = pytest.mark.vm
_DEADLINE_S = patience.seconds(120)
_LOOK = "cat /app/*; ls -d /app/* /app/sub/* /moved /moved/* /data/* 2>/dev/null; cat /moved/inside /data/file; true"
_REMOVER = """
import shutil, sys
from rundctl import cli
from rundctl.engine.template import kernel_template
image, find = sys.argv.pop(), kernel_template.find

def after_the_choice(*arguments, **named):
    shutil.rmtree(image)
    return find(*arguments, **named)

kernel_template.find = after_the_choice
sys.exit(cli.main(sys.argv[1:]))
"""


class Rootfs:
    """An overlay mount as an engine makes it, which is changed through what is mounted."""

    def __init__(self, directory: Path) -> None:
        self.merged = directory / "merged"
        self.layer = directory / "overlay/1/diff"
        self.upper = directory / "overlay/2/diff"
        for part in (self.merged, self.upper, directory / "overlay/2/work"):
            part.mkdir(parents=True)

    def mount(self, option: str = "") -> None:
        data = f"lowerdir={self.layer},upperdir={self.upper},workdir={self.upper.with_name('work')}{option}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", data, self.merged], check=True)

    def host(self, script: str) -> str:
        """What a script tells that runs in it without a container."""
        return subprocess.run(
            ["chroot", self.merged, "/bin/sh", "-c", script], check=True, capture_output=True, text=True
        ).stdout


@pytest.fixture
def layered(rootfs: Path, tmp_path: Path) -> Iterator[Rootfs]:
    """Not mounted yet."""
    made = Rootfs(tmp_path / "layered")
    made.layer.parent.mkdir()
    subprocess.run(["cp", "-a", rootfs, made.layer], check=True)
    for name, text in (
        ("app/old", "old\n"),
        ("app/sub/old", "old\n"),
        ("from/inside", "inside\n"),
        ("data/file", "layer\n"),
    ):
        (made.layer / name).parent.mkdir(exist_ok=True, parents=True)
        (made.layer / name).write_text(text)
    yield made
    subprocess.run(["umount", made.merged], check=False)


@pytest.fixture
def run(cli: Cli, bundle: Callable[..., Path], layered: Rootfs) -> Callable[..., Done]:
    """Run a script on it, with --debug."""
    count = 0

    def start(script: str, lower: str = "auto", code: int = 0, **hooks: list[JsonDict]) -> Done:
        nonlocal count
        count += 1

        def change(config: JsonDict) -> None:
            config["root"]["path"] = str(layered.merged)
            config["annotations"] = {options.LOWER: lower}
            config["hooks"] = hooks

        where = bundle("/bin/sh", "-c", script, change=change)
        return cli("--debug", "run", "--bundle", str(where), f"c{count}", code=code)

    return start


def _transport(done: Done) -> str:
    """What was chosen, and why."""
    (line,) = (line for line in done.stderr.decode().splitlines() if "rootfs by " in line)
    return line.partition("rootfs by ")[2]


def _make_anew(merged: Path) -> None:
    subprocess.run(["rm", "-r", merged / "app"], check=True)
    (merged / "app").mkdir()
    (merged / "app/new").write_text("new\n")


def _rename(merged: Path) -> None:
    (merged / "from").rename(merged / "moved")


def _change(merged: Path) -> None:
    """Nothing that needs a mark."""
    (merged / "app/old").unlink()
    (merged / "app/new").write_text("new\n")
    (merged / "data/file").write_text("upper\n")
    (merged / "moved").mkdir()
    (merged / "moved/inside").write_text("upper\n")


@pytest.mark.parametrize(
    ("change", "option", "mark"),
    [
        (_make_anew, "", "trusted.overlay.opaque"),
        (_rename, ",redirect_dir=on", "trusted.overlay.redirect"),
    ],
)
def test_an_upper_with_marks_is_not_laid_on_an_image(
    layered: Rootfs, run: Callable[..., Done], change: Callable[[Path], None], option: str, mark: str
) -> None:
    """The guest would not see them: what was deleted would be there again, and what was renamed be empty."""
    layered.mount(option)
    assert _transport(run("true", "erofs")).startswith("erofs")  # now there is an image
    change(layered.merged)
    seen = run(_LOOK)
    assert seen.stdout.decode() == layered.host(_LOOK)
    assert _transport(seen).startswith("9p ")
    assert mark in _transport(seen)
    refused = run("true", "erofs", code=1).stderr.decode().splitlines()[-1]
    assert "io.rundctl.rootfs.lower: erofs: " in refused
    assert mark in refused


def test_first_live_then_by_the_image(layered: Rootfs, run: Callable[..., Done]) -> None:
    """As podman's containers come, by ``auto``: no start waits for the image, and later ones see the same."""
    layered.mount()
    _change(layered.merged)
    expected = layered.host(_LOOK)
    first = run(_LOOK)
    assert _transport(first).startswith("9p ")
    key = _transport(first).split("image ")[1].split()[0]
    home = settings.load().home
    eventually(Path(home, "images", key).exists, "the image is there", _DEADLINE_S)
    second = run(_LOOK)
    assert _transport(second) == f"erofs (pmem): image {key}"
    assert (first.stdout.decode(), second.stdout.decode()) == (expected, expected)


def test_a_mark_that_comes_while_the_vm_starts(layered: Rootfs, run: Callable[..., Done]) -> None:
    """A hook of the host's makes it; the next start has it in time."""
    layered.mount()
    run("true", "erofs")
    script = f"cd {layered.merged} && test -e app/old && rm -r app && mkdir app && echo new > app/new; true"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    failed = run(_LOOK, code=1, createRuntime=[hook])
    assert b"the rootfs was changed while its VM started" in failed.stderr
    assert b"trusted.overlay.opaque" in failed.stderr
    assert run(_LOOK, createRuntime=[hook]).stdout.decode() == layered.host(_LOOK)


def test_an_image_that_is_removed_before_it_is_used(cli: Cli, bundle: Callable[..., Path], layered: Rootfs) -> None:
    """Between the choice and QEMU's start, where a template may be built: nothing of it is missed."""
    layered.mount()
    _change(layered.merged)

    def change(config: JsonDict) -> None:
        config["root"]["path"] = str(layered.merged)
        config["annotations"] = {options.LOWER: "erofs"}

    where = str(bundle("/bin/sh", "-c", _LOOK, change=change))
    transport = _transport(cli("--debug", "run", "--bundle", where, "first"))
    image = Path(settings.load().home, "images", transport.split("image ")[1])
    argv = cli.argv("--debug", "run", "--bundle", where, "second", str(image))
    done = subprocess.run([sys.executable, "-P", "-c", _REMOVER, *argv[1:]], capture_output=True, check=True)
    assert not image.exists()
    assert done.stdout.decode() == layered.host(_LOOK)
