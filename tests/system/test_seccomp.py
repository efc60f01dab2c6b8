"""The filter of a container beside runc's: what it leaves, and what a profile need not allow."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import Cli, JsonDict
from .runtimes import RUNC

pytestmark = pytest.mark.vm
# What the agent calls between the wait for START and the exec, or did when the filter came before its last steps. runc needs some of them of its own.
OF_SET_UP = [
    *("openat2", "openat", "fchdir", "chdir", "newfstatat", "fstat", "faccessat2", "faccessat", "close", "close_range", "umask"),
    *("prctl", "capset", "capget", "setgroups", "setresuid", "setresgid", "seccomp", "ppoll", "fcntl", "dup3", "unshare"),
]  # fmt: skip
FACTS = ("Cap", "NoNewPrivs", "Seccomp:", "Uid", "Gid", "Groups")


def _profile(config: JsonDict, denied: list[str], *, uid: int, confined: bool) -> None:
    names = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]
    config["process"]["user"] = {"uid": uid, "gid": uid}
    config["process"]["noNewPrivileges"] = confined
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
def test_what_is_left_is_as_with_runc(cli: Cli, bundle, tmp_path: Path, uid: int, confined: bool) -> None:
    def change(config: JsonDict) -> None:
        _profile(config, ["mkdir", "mkdirat"], uid=uid, confined=confined)

    where = bundle("/bin/sh", "-c", "cat /proc/self/status; mkdir /tmp/x 2>&1", change=change)
    ours = cli("run", "--bundle", str(where), "s", code=1)
    config = json.loads((where / "config.json").read_text())
    config["linux"].pop("cgroupsPath", None)
    (where / "config.json").write_text(json.dumps(config))
    argv = [RUNC, "--root", str(tmp_path / "runc"), "run", "--bundle", str(where), f"seccomp-{os.getpid()}"]
    theirs = subprocess.run(argv, capture_output=True, check=False)
    assert theirs.returncode == 1, theirs.stderr
    found, wanted = (
        [line.split() for line in text.decode().splitlines() if line.startswith(FACTS) or "mkdir" in line]
        for text in (ours.stdout, theirs.stdout)
    )
    assert found == wanted
    assert ["Seccomp:", "2"] in found


def test_a_profile_need_not_allow_what_set_up_does(cli: Cli, bundle) -> None:
    def change(config: JsonDict) -> None:
        _profile(config, OF_SET_UP, uid=1000, confined=False)

    where = bundle("/bin/echo", "started", change=change)
    assert cli("run", "--bundle", str(where), "s").stdout == b"started\n"
