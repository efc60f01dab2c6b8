"""Many files and many binds for a caller whose soft limit of open files is a login shell's: as far as its hard limit goes they work."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.oci import options

from .conftest import DEADLINE_S, Cli, JsonDict
from .runtimes import bind

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm
SOFT = 1024
FILES = 1200
OPENED = 1500
BINDS, FEWER = 300, 256  # a bind costs an emulated guest 10 ms
# Makes files, removes each while it is open, and writes to each after that.
UNLINKED = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
enum { COUNT = %d, FIRST = 10 };
int main(void)
{
	for (int i = 0; i < COUNT; i++) {
		char name[32];
		snprintf(name, sizeof name, "/v/%%d", i);
		int fd = open(name, O_CREAT | O_RDWR, 0600);
		if (fd < 0 || unlink(name) < 0)
			return perror(name), 1;
		if (dup2(fd, FIRST + i) != fd && close(fd))
			return 1;
	}
	for (int i = 0; i < COUNT; i++)
		if (write(FIRST + i, "x", 1) != 1)
			return perror("write"), 1;
	puts("all");
	return 0;
}
"""


def _run(cli: Cli, where: Path, *limits: str) -> subprocess.CompletedProcess[bytes]:
    """``run`` by a caller with these limits, util-linux's prlimit."""
    argv = ["prlimit", *(limits or [f"--nofile={SOFT}:"]), *cli.argv("run", "--bundle", str(where), "d")]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False)


def _changed(*mounts: JsonDict, **annotations: str) -> Callable[[JsonDict], None]:
    def change(config: JsonDict) -> None:
        config["annotations"] = annotations
        config["mounts"] += mounts
        del config["process"]["rlimits"]

    return change


def _many(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for number in range(FILES):
        (directory / f"{number}").write_text("x")
    return directory


def test_many_files_by_virtiofs(cli: Cli, bundle: Callable[..., Path], rootfs: Path, tmp_path: Path) -> None:
    """Of the rootfs and of a volume; the container's own limit stays what its caller has."""
    root = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", rootfs, root], check=True)
    _many(root / "many")
    script = "cat /many/* | wc -c; cat /v/* | wc -c; ulimit -Sn"

    def change(config: JsonDict) -> None:
        _changed(bind(_many(tmp_path / "volume"), "/v", "bind"), **{options.LOWER: "virtiofs"})(config)
        config["root"]["path"] = str(root)

    done = _run(cli, bundle("/bin/sh", "-c", script, change=change))
    assert done.stdout.split() == [b"%d" % number for number in (FILES, FILES, SOFT)], done


def test_many_open_and_unlinked_files_by_9p(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    argv = ["gcc", "-static", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o", tmp_path / "unlinked"]
    subprocess.run(argv, input=(UNLINKED % OPENED).encode(), check=True)
    mounts = bind(volume, "/v", "bind"), bind(tmp_path / "unlinked", "/unlinked", "bind", "ro")
    done = _run(cli, bundle("/bin/sh", "-c", "ulimit -Sn 4000 && /unlinked", change=_changed(*mounts)))
    assert (done.returncode, done.stdout) == (0, b"all\n"), done


def test_many_binds(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """More than the soft limit lets be open; hooks run with the caller's own."""
    (tmp_path / "source").write_text("x")
    mounts = [bind(tmp_path / "source", f"/v/{number}", "bind", "ro") for number in range(BINDS)]
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"ulimit -Sn > {tmp_path}/hooks"]}

    def change(config: JsonDict) -> None:
        _changed(*mounts)(config)
        config["hooks"] = {"createRuntime": [hook]}

    done = _run(cli, bundle("/bin/sh", "-c", "cat /v/* | wc -c; ulimit -Sn", change=change), f"--nofile={FEWER}:")
    assert done.stdout.split() == [b"%d" % BINDS, b"%d" % FEWER], done
    assert (tmp_path / "hooks").read_text() == f"{FEWER}\n"


def test_more_binds_than_the_hard_limit(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    mounts = [bind(tmp_path, f"/v/{number}", "bind") for number in range(BINDS)]
    done = _run(cli, bundle("/bin/true", change=_changed(*mounts)), f"--nofile={FEWER}:{FEWER}")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert f"{BINDS} bind mounts: " in line
    assert "too many open files (each bind mount takes a descriptor: a higher hard limit" in line
