"""No config.json and no command line ends in an "internal error". 2,000 of each here; RUNDCTL_FUZZ=100000 for more (make test-stress)."""

from __future__ import annotations

import copy
import functools
import os
import random
import traceback
import types
from typing import TYPE_CHECKING, Any

import pytest

import rundctl.engine.cgroups.limits
from rundctl import cli
from rundctl.commands import table
from rundctl.errors import ConfigError, RundctlError
from rundctl.oci import validate

from . import fuzz_config

if TYPE_CHECKING:
    from pathlib import Path

    from rundctl.commands.declare import Verb

COUNT = int(os.environ.get("RUNDCTL_FUZZ", "2000"))
SEED = int(os.environ.get("RUNDCTL_FUZZ_SEED", "12"))
LONGEST = 12_000  # characters of a line; a path may have 4096


def _fault_of(directory: Path, text: bytes) -> str | None:
    """What is wrong with how a configuration is judged; None if it is refused as it should be, empty if taken."""
    try:
        fuzz_config.judge(directory, text)
    except ConfigError as error:
        is_line = error.message.startswith("config.json: ") and len(str(error)) < LONGEST
        return None if is_line else f"no line: {error!s:.300}"
    except Exception as error:  # noqa: BLE001 - what this is about
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"internal error: {error!r:.300} in {last.name}, line {last.lineno}"
    return ""


def test_any_config_is_taken_or_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_validator", functools.cache(validate._validator))
    (tmp_path / "rootfs").mkdir()
    bases = fuzz_config.bases()
    for config in bases:
        config["root"]["path"] = "rootfs"
    faults: dict[str, int] = {}
    taken = 0
    for number in range(COUNT):
        rng = random.Random(f"{SEED} {number}")
        config = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.randrange(1, 4)):
            fuzz_config.change(rng, config)
        fault = _fault_of(tmp_path, fuzz_config.text_of(rng, config))
        if fault:
            faults.setdefault(fault, number)
        taken += fault == ""
    assert not faults, f"seed {SEED}: what, and for which config first: {faults}"
    assert COUNT / 20 < taken < COUNT * 0.8


class Reached(RundctlError):  # noqa: N818 - no error: where the test ends
    """A command line was understood: now the engine would begin."""


def _reached(*_: object, **__: object) -> None:
    raise Reached("the engine")


def _verbs() -> list[tuple[list[str], Verb]]:
    found = []
    for name in table.VERBS:
        verb = table.load(name)
        found += [(inner.name.split(), inner) for inner in verb.verbs or (verb,)]
    return found


VALUES = (
    *("", "0", "1", "-1", "+1", "00", "9" * 19, "9" * 400, "9" * 4301, "-" + "9" * 400, "1.5", "1e9", "1e400", "nan", "inf", "²", "\u0661", "0x1", " 1"),
    *("1k", "1KiB", "9" * 400 + "g", ".5m", "1.m", ".", "k", "5ms", "1h9999999999m", "s", "1" * 30 + "h", "TERM", "SIGKILL", "RTMIN+" + "9" * 5000),
    *("json", "table", "text", "true", "on", "off", "-", "--", "=", "a=b", "a\nb", "\udcff", "ü", "x" * 300, "../x", "/", "0-3", "pid,comm", "-o"),
)  # fmt: skip


def _line(rng: random.Random, verbs: list[tuple[list[str], Verb]]) -> list[str]:
    """Global flags, a verb, its flags and arguments; each with any value."""
    words, verb = rng.choice(verbs)
    line: list[str] = []
    for flags, some in ((table.GLOBAL_FLAGS, 2), (verb.flags, 4)):
        for _ in range(rng.randrange(some)):
            if flags:
                flag = rng.choice(flags)
                name = flag.short if flag.short and rng.random() < 0.3 else flag.name
                value = rng.choice(flag.choices) if flag.choices and rng.random() < 0.5 else rng.choice(VALUES)
                line += [f"{name}={value}"] if rng.random() < 0.5 else [name, value] if flag.value else [name]
        if flags is table.GLOBAL_FLAGS:
            line += words
    count = len(verb.arguments) if rng.random() < 0.8 else rng.randrange(4)
    line += ["c1" if index == 0 and rng.random() < 0.7 else rng.choice(VALUES) for index in range(count)]
    return [word for word in line if word not in ("--help", "-h")]


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs understand their words, and do nothing."""
    import sys

    import rundctl.engine.container.update as engine_update

    names = (
        "container.lifecycle", "container.events", "container.processes", "cgroups.cgroup_pool", "cgroups.upkeep", "doctor", "rootfs.images.build",
        "rootfs.images.store", "rootfs.images.content", "rootfs.choice", "template.builders", "template.kernel_template", "template.prune",
        "template.reflink_store", "template.store",
    )  # fmt: skip
    others = ("guest.kernel", "guest.kernel_build", "guest.kernel_default", "guest.kernel_fetch", "vmm.qemu_build")
    for name in (*(f"rundctl.engine.{name}" for name in names), *(f"rundctl.{name}" for name in others)):
        __import__(name)
        module = sys.modules[name]
        for function, value in vars(module).items():
            if isinstance(value, types.FunctionType) and value.__module__ == name:
                monkeypatch.setattr(module, function, _reached)

    def update(_ctx: object, _id: str, asked: dict[str, Any]) -> None:
        rundctl.engine.cgroups.limits.parse(asked)
        _reached()

    monkeypatch.setattr(engine_update, "update", update)


@pytest.mark.usefixtures("no_engine")
def test_any_command_line_is_understood_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_explain", lambda error, _words: error)  # 100 ms each, and only more words
    seen: list[BaseException] = []
    describe = cli._describe
    monkeypatch.setattr(cli, "_describe", lambda error: seen.append(error) or describe(error))
    verbs = _verbs()
    reached = 0
    faults: dict[str, int] = {}
    for number in range(COUNT):
        rng = random.Random(f"{SEED} {number}")
        words = _line(rng, verbs)
        seen.clear()
        cli.main(words)
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("rundctl: debug: ")]
        if seen and [line[:9] for line in said] != ["rundctl: "]:
            faults.setdefault(f"no line: {said!s:.300}", number)
        for error in seen:
            reached += isinstance(error, Reached)
            if not isinstance(error, RundctlError | OSError):
                faults.setdefault(f"{error!r:.200} for {[word[:20] for word in words]}", number)
    assert not faults, f"seed {SEED}: what, and for which command line first: {faults}"
    assert reached > COUNT / 20
