"""stdio arrives whole and in order, however slow or dead its other end."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

from .conftest import DEADLINE_S, Cli, digest
from .runtimes import bind

MIB = 1 << 20
SIZE = 50 * MIB


def test_50_mb_through_stdout(sh, tmp_path: Path) -> None:
    """Of a file that the host made: to make as much, and its digest, takes an emulated guest a minute."""
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    done = sh("cat /data", change=lambda config: config["mounts"].append(bind(tmp_path / "data", "/data", "ro")))
    assert len(done.stdout) == SIZE
    assert digest(done.stdout) == digest(data)


def test_50_mb_through_stdin(sh) -> None:
    data = os.urandom(SIZE)
    assert sh("sha256sum", stdin=data).stdout.decode().split()[0] == digest(data)


def test_both_ways_at_once(sh) -> None:
    data = os.urandom(4 * MIB)
    assert digest(sh("cat", stdin=data).stdout) == digest(data)


def test_stdin_at_end_of_file(sh) -> None:
    assert sh("cat; echo end").stdout == b"end\n"


def test_streams_do_not_mix(sh) -> None:
    done = sh("for i in $(seq 2000); do echo out$i; echo err$i >&2; done")
    assert done.stdout.split() == [b"out%d" % i for i in range(1, 2001)]
    assert done.stderr.split() == [b"err%d" % i for i in range(1, 2001)]


def test_output_of_the_last_moment_is_not_lost(sh) -> None:
    for _ in range(5):
        assert len(sh("head -c 100000 /dev/zero; exit 3", code=3).stdout) == 100000


def test_a_reader_that_goes_away_ends_the_writer(cli: Cli, bundle) -> None:
    with cli.popen("run", "--bundle", str(bundle("/bin/yes")), "yes", stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.read(4) == b"y\ny\n"
        run.stdout.close()
        assert run.wait(DEADLINE_S) in (1, 141)  # busybox reports the error; SIGPIPE is PID 1's to ignore


def test_a_slow_reader_loses_nothing_and_delays_nobody(cli: Cli, bundle) -> None:
    where = bundle("/bin/sh", "-c", "head -c 3000000 /dev/zero & echo alive >&2; wait")
    with cli.popen("run", "--bundle", str(where), "slow", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stderr.readline() == b"alive\n"  # although nobody reads stdout
        assert cli.status("slow") == "running"
        assert len(run.stdout.read()) == 3000000
        assert run.wait(DEADLINE_S) == 0


def test_kill_works_while_nobody_reads(cli: Cli, bundle) -> None:
    with cli.popen("run", "--bundle", str(bundle("/bin/yes")), "stuck", stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.read(2) == b"y\n"
        cli("kill", "stuck", "KILL")
        assert run.wait(DEADLINE_S) == 137


def test_files_as_stdio(cli: Cli, bundle, tmp_path) -> None:
    (tmp_path / "in").write_bytes(b"hello\n")
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("ab") as stdout:
        stdout.write(b"before\n")
        stdout.flush()
        with cli.popen("run", "--bundle", str(bundle("/bin/cat")), "files", stdin=stdin, stdout=stdout) as run:
            assert run.wait(DEADLINE_S) == 0
    assert (tmp_path / "out").read_bytes() == b"before\nhello\n"


def test_the_callers_descriptions_stay_blocking(cli: Cli, bundle) -> None:
    read_end, write_end = os.pipe()
    sink = threading.Thread(target=lambda: os.read(read_end, 100))
    sink.start()
    with cli.popen("run", "--bundle", str(bundle("/bin/echo", "x")), "block", stdout=write_end) as run:
        assert run.wait(DEADLINE_S) == 0
    sink.join()
    assert os.get_blocking(write_end)
    os.close(read_end)
    os.close(write_end)


def test_no_other_descriptor_is_held(cli: Cli, bundle) -> None:
    """A script's ``flock 9`` must not live as long as the VM."""
    read_end, write_end = os.pipe()
    cli.create("fd", bundle("/bin/sleep", "1000"), pass_fds=(write_end,))
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
