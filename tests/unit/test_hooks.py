"""Hooks: real processes, their input, environment, failures and deadlines."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.errors import HostError
from rundctl.oci import hooks

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"ociVersion": "1.2.1", "id": "c1", "status": "creating", "annotations": {"big": "x" * 200_000}}


def _shell(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def test_state_on_stdin_and_exact_environment(tmp_path: Path) -> None:
    script = f'/bin/cat > {tmp_path}/state; /usr/bin/env > {tmp_path}/env; echo "$0" > {tmp_path}/name'
    hooks.run("prestart", [{"path": "/bin/sh", "args": ["sh", "-c", script, "me"], "env": ["A=b=c", "D="]}], STATE)
    assert json.loads((tmp_path / "state").read_text()) == STATE
    lines = set((tmp_path / "env").read_text().splitlines())
    assert {"A=b=c", "D="} <= lines
    assert {line.partition("=")[0] for line in lines} <= {"A", "D", "PWD", "_", "SHLVL", "OLDPWD"}
    assert (tmp_path / "name").read_text() == "me\n"


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    wanted = [_shell("exit 0"), _shell("echo bad >&2; echo luck; exit 3"), _shell(f"touch {tmp_path}/never")]
    with pytest.raises(HostError) as caught:
        hooks.run("createRuntime", wanted, STATE)
    assert caught.value.message == "error running createRuntime hook #1 /bin/sh: exit status 3: bad luck"
    assert not list(tmp_path.iterdir())


def test_all_run_where_failures_are_only_told(tmp_path: Path) -> None:
    wanted = [_shell("exit 1"), {"path": "/no/such/hook"}, _shell(f"touch {tmp_path}/ran"), _shell("kill -9 $$")]
    assert hooks.run_all(wanted, STATE, "poststop") == [
        "error running poststop hook #0 /bin/sh: exit status 1",
        "error running poststop hook #1 /no/such/hook: No such file or directory",
        "error running poststop hook #3 /bin/sh: killed by signal 9",
    ]
    assert (tmp_path / "ran").exists()


def test_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(HostError, match="no end within 1 s"):
        hooks.run("prestart", [_shell("exec /bin/sleep 60", timeout=1)], STATE)
    assert 1 <= time.monotonic() - started < 30


def test_a_daemon_left_behind_does_not_block(tmp_path: Path) -> None:
    started = time.monotonic()
    hooks.run("prestart", [_shell(f"/bin/sleep 60 & echo $! > {tmp_path}/pid")], STATE)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("path", ["sh", "a\0b", ""])
def test_paths_must_be_absolute_and_whole(path: str) -> None:
    with pytest.raises(HostError):
        hooks.run("prestart", [{"path": path}], STATE)


def test_no_descriptor_leaks() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    hooks.run_all([_shell("exit 1"), {"path": "/no"}], STATE, "poststop")
    assert sorted(os.listdir("/proc/self/fd")) == before
