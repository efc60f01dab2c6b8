"""What the caller's stdin, stdout and stderr are is what the container finds, beside runc: one file for both outputs, /dev/null, closed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import DEADLINE_S, Cli, JsonDict, eventually
from .runtimes import bind

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = 1000
# Kinds and inodes of the three, then lines to both outputs in turn; what is closed or /dev/null takes all of them.
SCRIPT = f"""
exec 3> /var/kinds
kinds=$(for fd in 0 1 2; do stat -Lc "%F %i" /proc/$$/fd/$fd; done)
echo "$kinds" >&3
i=0
while [ $i -lt {LINES} ]; do echo out$i; echo err$i >&2; i=$((i+1)); done
echo end >&3
"""
OUT = [f"out{number}" for number in range(LINES)]
ERR = [f"err{number}" for number in range(LINES)]
BOTH = [line for pair in zip(OUT, ERR, strict=True) for line in pair]
NULL = "character special file"
# Redirections of a shell; then what must be in the files a and b, and which of 0, 1, 2 are /dev/null.
CASES = (
    ("< in > a 2>&1", BOTH, None, ""),
    ("< in >> a 2>> a", BOTH, None, ""),
    ("< in 2>&1 | cat > a", BOTH, None, ""),
    ("< in > a 2> b", OUT, ERR, ""),
    ("< in > a 2>&-", OUT, None, "2"),
    ("< in 2> b >&-", None, ERR, "1"),
    ("< in > a 2> /dev/null", OUT, None, "2"),
    ("<&- > a 2>&1", BOTH, None, "0"),
    ("< /dev/null > /dev/null 2>&1", None, None, "012"),
)


def _kinds(report: Path) -> tuple[str, bool]:
    """Which of the three are /dev/null, and whether the outputs are one."""
    kinds = [line.rpartition(" ") for line in (report / "kinds").read_text().splitlines()[:3]]
    nulls = "".join(str(fd) for fd, (kind, _, _) in enumerate(kinds) if kind == NULL)
    return nulls, kinds[1] == kinds[2]


@pytest.fixture
def run(bundle: Callable[..., Path], tmp_path: Path) -> Callable[[list[str], str], None]:
    """Run the script to its end, detached: with the very descriptors that a shell's redirections make. With ``run`` in the foreground runc gives pipes."""

    def make(command: list[str], redirections: str) -> None:
        (tmp_path / "report").mkdir()
        (tmp_path / "in").touch()

        def change(config: JsonDict) -> None:
            config["process"]["rlimits"] = []
            config["mounts"].append(bind(tmp_path / "report", "/var", "bind"))

        name = f"kinds-{os.getpid()}"
        words = ["run", "--detach", "--bundle", str(bundle("/bin/sh", "-c", SCRIPT, change=change)), name]
        shell = ["sh", "-c", f'"$@" {redirections}', "sh"]
        subprocess.run([*shell, *command, *words], cwd=tmp_path, check=True, timeout=DEADLINE_S)

        def has_stopped() -> bool:
            state = subprocess.run([*command, "state", name], capture_output=True, check=True).stdout
            return bool(json.loads(state)["status"] == "stopped")

        eventually(has_stopped, "stopped")
        subprocess.run([*command, "delete", name], check=True)

    return make


def _lines(file: Path) -> list[str] | None:
    return file.read_text().splitlines() if file.exists() else None


# Not where something is closed: a runc of Go 1.19, Debian 12's, gives the container a directory of its own there; newer ones open /dev/null.
BESIDE_RUNC = [
    (case, runtime) for case in CASES for runtime in ("rundctl", "runc") if runtime == "rundctl" or "&-" not in case[0]
]


@pytest.mark.parametrize(
    ("case", "runtime"), BESIDE_RUNC, ids=[f"{case[0]} {runtime}" for case, runtime in BESIDE_RUNC]
)
def test_what_the_caller_gave(
    cli: Cli, run, tmp_path: Path, case: tuple[str, object, object, str], runtime: str
) -> None:
    redirections, first, second, nulls = case
    run(cli.argv() if runtime == "rundctl" else ["runc", "--root", str(tmp_path / "runc")], redirections)
    joined = any(sign in redirections for sign in ("2>&1", "2>> a"))
    assert _kinds(tmp_path / "report") == (nulls, joined)
    eventually(lambda: (_lines(tmp_path / "a"), _lines(tmp_path / "b")) == (first, second), "cat has ended")


def test_a_file_that_was_opened_twice_is_two(cli: Cli, run, tmp_path: Path) -> None:
    """Each output then has its own place in it, and overwrites the other's, as with runc."""
    run(cli.argv(), "< in > a 2> a")
    assert _kinds(tmp_path / "report") == ("", False)
    assert (tmp_path / "a").stat().st_size == len("\n".join(OUT)) + 1


def test_what_is_no_program_says_so_where_stdout_goes(cli: Cli, bundle, tmp_path: Path) -> None:
    """The agent's words for a failed exec are the process's own stderr, which is stdout here."""
    script = tmp_path / "text"
    script.write_text("no program")
    script.chmod(0o755)
    where = bundle("/text", change=lambda config: config["mounts"].append(bind(script, "/text", "ro")))
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run(cli.argv("run", "--bundle", str(where), "n"), stdout=log, stderr=log, check=False)
    assert done.returncode == 1
    assert "exec format error" in (tmp_path / "log").read_text()
