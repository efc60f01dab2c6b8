"""A file that QEMU maps gets shorter under it: the kernel kills it (SIGBUS), and what that means is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content
from rundctl.engine.rootfs.images.content import Content

from .conftest import Cli, JsonDict

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm
WORDS = b"qemu was killed by signal 7: a file that it maps, the rootfs' image or the template's memory, was cut short"


def test_an_image_cut_short_under_a_vm(cli: Cli, bundle: Callable[..., Path], rootfs: Path, tmp_path: Path) -> None:
    own = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", rootfs, own], check=True)

    def change(config: JsonDict) -> None:
        config["root"]["path"] = str(own)
        config["annotations"] = {"io.rundctl.rootfs.lower": "erofs", "io.rundctl.rootfs.immutable": "1"}

    where = bundle("/bin/sh", "-c", "while :; do cat /bin/busybox >/dev/null; done", change=change)
    cli.create("t", where)
    cli("start", "t")
    image = content.find(settings.load().home, Content.of_directory(str(own), "1"))
    assert image is not None
    os.truncate(image.path, 0)
    cli.wait_status("t", "stopped")
    record = dict(line.split("=", 1) for line in (cli.root / "t/exit").read_text().splitlines())
    assert (record["reason"], record["code"]) == ("qemu", "255")
    assert record["detail"].encode().startswith(WORDS)
    assert record["detail"].endswith("; see rundctl image verify")
    for verb in ("start", "kill"):
        assert WORDS in cli(verb, "t", code=1).stderr
    cli("delete", "t")
    again = bundle("/bin/sh", "-c", "cat /bin/busybox | wc -c", change=change)
    assert int(cli("run", "--bundle", str(again), "t").stdout) == (own / "bin/busybox").stat().st_size
