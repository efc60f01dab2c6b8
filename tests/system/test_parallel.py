"""Twenty containers at once: each its own output, exit code and end."""

from __future__ import annotations

import subprocess

from .conftest import DEADLINE_S, Cli

COUNT = 20


def test_twenty_at_once(cli: Cli, bundle) -> None:
    runs = [
        cli.popen(
            "run",
            "--bundle",
            str(bundle("/bin/sh", "-c", f"echo {n}; exit {n}")),
            f"p{n}",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(COUNT)
    ]
    for n, run in enumerate(runs):
        out, errors = run.communicate(timeout=DEADLINE_S)
        assert (out, errors, run.returncode) == (b"%d\n" % n, b"", n)


def test_twenty_alive_together(cli: Cli, bundle) -> None:
    where = bundle("/bin/sleep", "1000")
    creates = [cli.popen("create", "--bundle", str(where), f"a{n}") for n in range(COUNT)]
    assert [create.wait(DEADLINE_S) for create in creates] == [0] * COUNT
    starts = [cli.popen("start", f"a{n}") for n in range(COUNT)]
    assert [start.wait(DEADLINE_S) for start in starts] == [0] * COUNT
    assert {cli.status(f"a{n}") for n in range(COUNT)} == {"running"}
    deletes = [cli.popen("delete", "--force", f"a{n}") for n in range(COUNT)]
    assert [delete.wait(DEADLINE_S) for delete in deletes] == [0] * COUNT
    assert cli("list", "-q").stdout == b""


def test_one_id_is_taken_once(cli: Cli, bundle) -> None:
    where = bundle("/bin/sleep", "1000")
    creates = [cli.popen("create", "--bundle", str(where), "same") for _ in range(8)]
    codes = sorted(create.wait(DEADLINE_S) for create in creates)
    assert codes == [0] + [1] * 7
    assert cli.status("same") == "created"
