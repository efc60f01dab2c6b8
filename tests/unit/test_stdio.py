"""What a caller's descriptors are, looked at in a process that has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOOK = "from rundctl.host import stdio; stdio.fill(); found = stdio.look(); import os; os.write(9, f'{found.nulls} {found.joined}'.encode())"
DENY = "import rundctl.host.open_files as files; files._SYS_KCMP = -1; "


@pytest.mark.parametrize(
    ("redirections", "nulls", "joined"),
    [
        ("< in > a 2>&1", 0, True),
        ("< in > a 2> a", 0, False),
        ("< in >> a 2>> a", 0, True),
        ("< in > a 2>> a", 0, False),
        ("< in > a 2> b", 0, False),
        ("< in > a 2>&-", 4, False),
        ("< in 2> a >&-", 2, False),
        ("< in > /dev/null 2>&1", 6, False),
        ("<&- > /dev/full 2>&1", 1, True),
        ("< /dev/null 2>&1 | cat", 1, True),
    ],
)
def test_look(tmp_path: Path, redirections: str, nulls: int, joined: bool) -> None:
    (tmp_path / "in").touch()
    script = f'exec 9> told; "$0" -c "$1" {redirections}'
    subprocess.run(["sh", "-c", script, sys.executable, LOOK], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "told").read_text() == f"{nulls} {joined}"


@pytest.mark.parametrize(("redirections", "joined"), [("> a 2>&1", True), ("> a 2> b", False)])
def test_look_where_the_kernel_does_not_tell(tmp_path: Path, redirections: str, joined: bool) -> None:
    """A container's seccomp filter may deny kcmp(2)."""
    script = f'exec 9> told; "$0" -c "$1" {redirections}'
    subprocess.run(["sh", "-c", script, sys.executable, DENY + LOOK], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "told").read_text().endswith(str(joined))
