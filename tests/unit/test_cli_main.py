"""The front door: errors become one line, a log line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from rundctl import cli
from rundctl.commands import kill, output, spec, table
from rundctl.commands import list as list_verb
from rundctl.commands.declare import Options, Verb
from rundctl.errors import ConfigError, GuestError, HostError, RundctlError, UsageError
from rundctl.lean import os as lean_os

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make ``rundctl features`` fail with an error."""

    def make(error: BaseException) -> None:
        def run(_options: Options) -> NoReturn:
            raise error

        monkeypatch.setattr(table, "load", lambda name: Verb(name, "Fails.", run))

    return make


def test_error_is_one_line(failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]) -> None:
    failing(HostError("mount overlay on /: EINVAL\nand more", hint="is the lower a directory?"))
    assert cli.main(["features"]) == 1
    assert capsys.readouterr().err == "rundctl: mount overlay on /: EINVAL; and more (is the lower a directory?)\n"


def test_error_brings_its_own_exit_code(failing: Callable[[BaseException], None]) -> None:
    failing(RundctlError("gone", exit_code=7))
    assert cli.main(["features"]) == 7


def test_json_log(failing: Callable[[BaseException], None], tmp_path: Path) -> None:
    failing(ConfigError('no "args" in config.json'))
    log = tmp_path / "log"
    log.write_text("earlier\n")
    assert cli.main(["--log", str(log), "--log-format=json", "features"]) == 1
    earlier, line = log.read_text().splitlines()
    entry = json.loads(line)
    assert earlier == "earlier"
    assert (entry["level"], entry["msg"]) == ("error", 'no "args" in config.json')
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["time"])


def test_text_log(failing: Callable[[BaseException], None], tmp_path: Path) -> None:
    failing(ConfigError("bad"))
    log = tmp_path / "log"
    assert cli.main(["--log", str(log), "features"]) == 1
    assert re.fullmatch(r'time="[^"]+" level=error msg="bad"\n', log.read_text())


@pytest.mark.parametrize("format_", ["json", "text"])
def test_what_others_wrote_changes_no_terminal(
    failing: Callable[[BaseException], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    """A guest's words are in it: they neither end the line, nor move the cursor, nor turn its direction."""
    failing(GuestError("said:\x1b[2J\r\x9b1A\u202ee\u0301\nlast\n"))
    log = tmp_path / "log"
    assert cli.main(["--log", str(log), "--log-format", format_, "features"]) == 1
    said = "said:?[2J??1A?e\u0301; last"
    assert capsys.readouterr().err == f"rundctl: {said}\n"
    text = log.read_text()
    assert (json.loads(text)["msg"] if format_ == "json" else text.partition("msg=")[2].strip()[1:-1]) == said


def test_log_that_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--log", str(tmp_path), "features"]) == 1
    assert capsys.readouterr().err == f"rundctl: open log {tmp_path}: is a directory\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: no space left on device"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x: is missing"),
        (ValueError("odd"), "internal error: ValueError: odd (--debug shows where)"),
    ],
)
def test_foreign_errors(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], error: BaseException, line: str
) -> None:
    failing(error)
    assert cli.main(["features"]) == 1
    assert capsys.readouterr().err == f"rundctl: {line}\n"


def test_traceback_only_with_debug(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ValueError("odd"))
    assert cli.main(["--debug", "features"]) == 1
    assert "rundctl: debug: Traceback" in capsys.readouterr().err


def test_interrupt(failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["features"]) == 130
    assert capsys.readouterr().err == ""


def test_verb_s_own_usage_error_is_kept(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(UsageError("unknown signal 'X'"))
    assert cli.main(["features"]) == 1
    assert capsys.readouterr().err == "rundctl: unknown signal 'X'\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["creat"], "Did you mean 'create'?"),
        (["create", "--bundel", "b", "c"], "--bundle"),
        (["template"], "missing command"),
        (["template", "buid"], "Did you mean 'build'?"),
        (["kill"], "missing argument 'ID'"),
        (["--log-format", "xml", "list"], "'xml' is not one of 'text', 'json'"),
    ],
)
def test_usage_errors_suggest(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1
    output = capsys.readouterr()
    assert part in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize("verb", [[], *([name] for name in table.VERBS), ["template", "show"], ["kernel", "fetch"]])
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb, "--help"]) == 0
    assert " ".join(["Usage: rundctl", *verb]) in capsys.readouterr().out


@pytest.mark.parametrize("verb", table.REFUSED)
def test_help_of_verbs_to_come_fails(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 1
    assert capsys.readouterr().err.startswith(f"rundctl: {verb} is not supported yet (")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"rundctl version \d+\.\d+\.\d+", lines[0])
    assert lines[-1] == "spec: 1.2.1"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", 15),
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigterm", 15),
        ("kill", 9),
        ("RTMIN+3", 37),
        ("SIGRTMIN", 34),
        ("64", 64),
        ("RTMAX", 64),
        ("0", 0),
    ],
)
def test_signal_names(text: str, number: int) -> None:
    assert kill.signal_number(text) == number


@pytest.mark.parametrize("text", ["65", "", "SIG", "_IGN", "_DFL", "BLOCK", "RTMIN+31", "RTMIN+", "TERM+1", "-9"])
def test_signal_names_unknown(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        kill.signal_number(text)


def test_table_is_as_wide_as_it_must() -> None:
    container = {"id": "a" * 20, "pid": 7, "status": "running", "bundle": "/b", "created": "now", "owner": "root"}
    head, row = list_verb.table([container]).splitlines()
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split() == ["a" * 20, "7", "running", "/b", "now", "root"]
    assert [head.index(word) for word in ("PID", "STATUS")] == [row.index("7"), row.index("running")]


def test_what_others_wrote_moves_no_column() -> None:
    assert output.columns([("ID", "BUNDLE"), ("a", "/x\x1b[2J\n/y")]) == "ID          BUNDLE\na           /x?[2J?/y\n"


def test_spec_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spec", "--bundle", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"]["terminal"] is False
    assert cli.main(["spec", "--bundle", str(tmp_path)]) == 1
    assert "config.json exists" in capsys.readouterr().err
    assert spec.VERB.name == "spec"


def _command(*words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "rundctl", *words], check=False, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_reader_that_went_away_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = _command("--version", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_full_stdout_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = _command("--version", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"rundctl: write to stdout: no space left on device")


def test_nothing_is_made_that_others_can_write(tmp_path: Path) -> None:
    """Whatever the caller's umask lets: kernels and templates are run as root."""
    program = "import os, sys; os.umask(0); sys.argv = ['rundctl', 'spec', '--bundle', sys.argv[1]]; from rundctl.cli import entry; entry()"
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o644


def test_what_runs_on_in_the_background_keeps_none_of_the_caller_s_files(tmp_path: Path) -> None:
    """A script's `flock 9`, or a reader that waits for the end of a pipe, would wait for it."""
    reading, writing = os.pipe()
    program = """
import os, sys
from rundctl.engine import background
os.dup2(int(sys.argv[1]), 99)
lock = os.open(sys.argv[2] + "/lock", os.O_CREAT | os.O_RDWR)
work = "import os, time\\nfrom rundctl.engine import background\\nbackground.keep_only(job)\\nprint(os.getpid(), flush=True)\\ntime.sleep(job['s'])\\n"
background.start(work, {"lock": lock, "s": 60}, lock, sys.argv[2] + "/log")
"""
    subprocess.run([sys.executable, "-c", program, str(writing), tmp_path], check=True, pass_fds=(writing,))
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b""
    log = tmp_path / "log"
    deadline = time.monotonic() + 30
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline, "never happened: it works"
        time.sleep(0.01)
    os.kill(int(log.read_text()), signal.SIGKILL)  # it is still there: the pipe did not end with it


@pytest.mark.parametrize("uid", [0, 1000])
def test_who_is_not_root_is_told_so(
    uid: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was denied, and however deep below the error that is told."""

    def denied(*_: object) -> NoReturn:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/templates/.lock")
        except OSError:
            raise HostError("build it: permission denied") from None

    monkeypatch.setattr(lean_os, "geteuid", lambda: uid)
    monkeypatch.setattr(cli, "_dispatch", denied)
    assert cli.main(["template", "build"]) == 1
    said = "rundctl: build it: permission denied"
    hint = " (rundctl needs root, and was called by user 1000: sudo rundctl ...)" if uid else ""
    assert capsys.readouterr().err == f"{said}{hint}\n"
