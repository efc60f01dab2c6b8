"""The bundle that most benchmarks run: busybox alone, and a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
APPLETS = ("sh", "sleep", "true")


def make_bundle(directory: Path, *args: str, **annotations: str) -> Path:
    """What `rundctl spec` says, without a terminal; each annotation's name without its ``io.rundctl.rootfs.``."""
    for name in ("bin", "proc", "sys", "dev", "etc"):
        (directory / "rootfs" / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", directory / "rootfs/bin/busybox")
    for applet in APPLETS:
        (directory / "rootfs/bin" / applet).symlink_to("busybox")
    subprocess.run([RUNDCTL, "spec", "--bundle", directory], check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"].update(terminal=False, args=list(args))
    config["annotations"] = {f"io.rundctl.rootfs.{name}": value for name, value in annotations.items()}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
