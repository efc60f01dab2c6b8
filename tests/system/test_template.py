"""Templates for real: built once, found cheaply, rebuilt when damaged, nothing left of a killed builder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rundctl.engine import settings
from rundctl.engine.template import clock, kernel_template, prune, store
from rundctl.engine.template.inputs import Request
from rundctl.engine.template.prune import Limits
from rundctl.errors import GuestError
from rundctl.guest import kernel_fetch
from rundctl.host import memo, patience
from rundctl.types import Accelerator
from rundctl.vmm import cmdline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rundctl.engine.settings import Settings
    from rundctl.engine.template.store import Template

pytestmark = pytest.mark.vm
_ENSURE = """
import sys
from rundctl.engine import settings
from rundctl.engine.template import kernel_template
from rundctl.engine.template.inputs import Request
from rundctl.host import memo
host = settings.load()
print(kernel_template.ensure(host, memo.of_home(host.home), print, Request(memory_mib=int(sys.argv[1]))).key)
"""
_DEADLINE_S = patience.seconds(120.0)
_DEFAULT = Request()


def _quiet(_: str) -> None:
    """No progress is shown in tests."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a home of its own, on the host's fetched kernels."""
    usual = settings.load()
    if not Path(usual.home, "kernels/current").exists():
        kernel_fetch.fetch(usual.home, _quiet)
    usual.home, shared = str(tmp_path_factory.mktemp("home")), usual.home
    for name in ("kernels", "qemu"):
        if Path(shared, name).exists():
            Path(usual.home, name).symlink_to(f"{shared}/{name}")
    return usual


@pytest.fixture(scope="module")
def template(home: Settings) -> Template:
    """A template, built."""
    return _ensure(home)


def _find(home: Settings, request: Request = _DEFAULT) -> Template | None:
    return kernel_template.find(home, memo.of_home(home.home), request)


def _ensure(home: Settings, progress: Callable[[str], None] = _quiet) -> Template:
    return kernel_template.ensure(home, memo.of_home(home.home), progress)


@pytest.fixture
def build(home: Settings, template: Template) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts builders, which end with the test. Which accelerator works is known."""
    del template
    prune.prune(home, Limits(everything=True))
    with ExitStack() as undo:

        def start(memory_mib: int = home.memory_mib) -> subprocess.Popen[str]:
            environment = {**os.environ, "RUNDCTL_HOME": home.home}
            argv = [sys.executable, "-u", "-c", _ENSURE, str(memory_mib)]
            builder = undo.enter_context(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True))
            undo.callback(builder.kill)
            return builder

        yield start


def _stop_while_it_boots(builder: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its QEMU goes on, and is returned: until it is stopped, too, the builder is where it cannot go on by itself."""
    assert builder.stdout is not None
    assert any("booting" in line for line in builder.stdout)
    deadline = time.monotonic() + _DEADLINE_S
    while not (children := psutil.Process(builder.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.send_signal(signal.SIGSTOP)
    return children


def test_built_template_is_found(home: Settings, template: Template) -> None:
    found = _find(home)
    assert found is not None
    assert found.key == template.key
    assert _ensure(home).manifest == template.manifest


def test_manifest_tells_accelerator_and_why(template: Template) -> None:
    verdict = template.manifest["accelerator"]
    assert verdict["name"] in ("kvm", "tcg")
    assert verdict["reason"]


def test_finding_starts_no_process_and_hashes_nothing(home: Settings, template: Template) -> None:
    code = (
        "import sys; from rundctl.engine.template import kernel_template; from rundctl.engine import settings; from rundctl.host import memo\n"
        "sys.addaudithook(lambda event, _: sys.exit(event) if event in ('os.posix_spawn', 'subprocess.Popen', 'os.fork') else None)\n"
        "host = settings.load()\n"
        "print(kernel_template.find(host, memo.of_home(host.home)).key)\n"
        "assert not {'subprocess', 'hashlib', 'shutil', 'dataclasses', 'tempfile'} & set(sys.modules), sorted(sys.modules)\n"
    )
    environment = {**os.environ, "RUNDCTL_HOME": home.home}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, template.key), done.stderr


def test_another_size_is_another_template(home: Settings, template: Template) -> None:
    del template
    assert _find(home, Request(memory_mib=256)) is None


def test_damaged_is_rebuilt(home: Settings, template: Template) -> None:
    os.truncate(template.memory, 4096)
    assert _find(home) is None
    rebuilt = _ensure(home)
    assert rebuilt.key == template.key
    assert os.stat(rebuilt.memory).st_size == home.memory_mib << 20


def test_concurrent_builders_build_once_and_who_waits_says_for_whom(
    build: Callable[..., subprocess.Popen[str]],
) -> None:
    first = build()
    _stop_while_it_boots(first)
    second = build()
    assert second.stdout is not None
    assert second.stdout.readline() == f"waiting for pid {first.pid}, which builds this template\n"
    first.send_signal(signal.SIGCONT)
    outputs = [builder.communicate(timeout=_DEADLINE_S)[0].splitlines() for builder in (first, second)]
    assert outputs[0][0] == "saving the guest"
    assert outputs[1] == [outputs[0][-1]]


def test_different_templates_are_built_at_once_and_nobody_disturbs_a_builder(
    home: Settings, build: Callable[..., subprocess.Popen[str]]
) -> None:
    """Neither who builds another, nor who prunes: what a stopped builder has begun is there when it goes on."""
    stopped = build(96)
    _stop_while_it_boots(stopped)
    other = _ensure(home)
    assert prune.prune(home, Limits(everything=True)) == [other.key]
    stopped.send_signal(signal.SIGCONT)
    key = stopped.communicate(timeout=_DEADLINE_S)[0].splitlines()[-1]
    assert sorted(os.listdir(store.root(home.home))) == [".lock", key]


def test_killed_builder_leaves_no_qemu_and_is_swept_up_after(
    home: Settings, build: Callable[..., subprocess.Popen[str]]
) -> None:
    builder = build()
    children = _stop_while_it_boots(builder)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert psutil.wait_procs(children, timeout=_DEADLINE_S)[1] == []
    built = _ensure(home)
    assert sorted(os.listdir(store.root(home.home))) == [".lock", built.key]
    assert not [path for path in Path(built.directory).iterdir() if path.suffix == ".log"]


def test_prune_keeps_the_current_one(home: Settings) -> None:
    current = _ensure(home)
    stale = Path(store.root(home.home), "0" * 32)
    stale.mkdir()
    assert prune.prune(home, Limits()) == [stale.name]
    assert _find(home) is not None
    assert prune.prune(home, Limits(everything=True)) == [current.key]
    assert store.entries(home.home) == []


def _misremember_rate(home: Settings, khz: int) -> None:
    """As if a guest whose kernel measured this had been believed."""
    known = memo.of_home(home.home)
    clock.remember(known, clock.Figures(1, 1, khz))
    known.save()


def test_the_clock_of_a_saved_guest_was_compared_with_the_hosts(home: Settings) -> None:
    found = _ensure(home).manifest["clock"]
    assert 1 - clock.TOLERANCE <= found["rate_least"] <= 1 <= found["rate_most"] <= 1 + clock.TOLERANCE
    assert clock.remembered(memo.of_home(home.home)) == found["tsc_khz"] > 0


def test_a_guest_whose_clock_is_wrong_is_booted_again(home: Settings) -> None:
    """With a rate that a kernel had measured on a busy host: what it has measured once it keeps, unless the second result is within 1 %."""
    right_khz = _ensure(home).tsc_khz
    if _ensure(home).shape.accelerator is Accelerator.KVM:
        pytest.skip("KVM tells its guests how fast the clock runs")
    prune.prune(home, Limits(everything=True))
    _misremember_rate(home, right_khz // 75)
    said: list[str] = []
    built = _ensure(home, said.append)
    wrong = [re.search(r"the guest's clock runs ([\d.]+) times as fast", line) for line in said]
    (factor,) = [float(found[1]) for found in wrong if found]
    assert 60 < factor < 90
    assert built.tsc_khz == pytest.approx(right_khz, rel=0.001)
    assert clock.remembered(memo.of_home(home.home)) == built.tsc_khz


def test_a_guest_whose_clock_stays_wrong_is_not_saved(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    template = _ensure(home)
    if template.shape.accelerator is Accelerator.KVM:
        pytest.skip("KVM tells its guests how fast the clock runs")
    prune.prune(home, Limits(everything=True))
    slow = f"{cmdline.VERBOSE[0]} tsc_early_khz={template.tsc_khz * 3 // 2}"  # of two the kernel takes the last
    monkeypatch.setattr(cmdline, "VERBOSE", (slow, *cmdline.VERBOSE[1:]))
    with pytest.raises(GuestError, match=r"the guest's clock runs 0\.6\d+ times as fast as the host's, in 3 boots"):
        _ensure(home)
    assert os.listdir(store.root(home.home)) == [".lock"]
    assert _find(home) is None
