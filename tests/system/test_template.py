"""Templates for real: built once, found cheaply, rebuilt when damaged, nothing left of a killed builder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rundctl.engine import settings
from rundctl.engine.template import kernel_template, prune, store
from rundctl.engine.template.inputs import Request
from rundctl.engine.template.prune import Limits
from rundctl.guest import kernel_fetch

if TYPE_CHECKING:
    from rundctl.engine.settings import Settings
    from rundctl.engine.template.store import Template

pytestmark = pytest.mark.vm
_ENSURE = "from rundctl.engine.template import kernel_template; from rundctl.engine import settings; print(kernel_template.ensure(settings.load(), print).key)"
_DEADLINE_S = 120.0


def _quiet(_: str) -> None:
    """No progress is shown in tests."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a home of its own, on the host's fetched kernels."""
    usual = settings.load()
    if not Path(usual.home, "kernels/current").exists():
        kernel_fetch.fetch(usual.home, _quiet)
    usual.home, shared = str(tmp_path_factory.mktemp("home")), usual.home
    Path(usual.home, "kernels").symlink_to(f"{shared}/kernels")
    return usual


@pytest.fixture(scope="module")
def template(home: Settings) -> Template:
    """A template, built."""
    return kernel_template.ensure(home, _quiet)


def _builder(home: Settings) -> subprocess.Popen[str]:
    environment = {**os.environ, "RUNDCTL_HOME": home.home}
    return subprocess.Popen([sys.executable, "-u", "-c", _ENSURE], env=environment, stdout=subprocess.PIPE, text=True)


def test_built_template_is_found(home: Settings, template: Template) -> None:
    found = kernel_template.find(home)
    assert found is not None
    assert found.key == template.key
    assert kernel_template.ensure(home, _quiet).manifest == template.manifest


def test_manifest_tells_accelerator_and_why(template: Template) -> None:
    verdict = template.manifest["accelerator"]
    assert verdict["name"] in ("kvm", "tcg")
    assert verdict["reason"]


def test_finding_starts_no_process_and_hashes_nothing(home: Settings, template: Template) -> None:
    code = (
        "import sys; from rundctl.engine.template import kernel_template; from rundctl.engine import settings\n"
        "sys.addaudithook(lambda event, _: sys.exit(event) if event in ('os.posix_spawn', 'subprocess.Popen', 'os.fork') else None)\n"
        "print(kernel_template.find(settings.load()).key)\n"
        "assert not {'subprocess', 'hashlib', 'shutil', 'dataclasses', 'tempfile'} & set(sys.modules), sorted(sys.modules)\n"
    )
    environment = {**os.environ, "RUNDCTL_HOME": home.home}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, template.key), done.stderr


def test_another_size_is_another_template(home: Settings, template: Template) -> None:
    del template
    assert kernel_template.find(home, Request(memory_mib=256)) is None


def test_damaged_is_rebuilt(home: Settings, template: Template) -> None:
    os.truncate(template.memory, 4096)
    assert kernel_template.find(home) is None
    rebuilt = kernel_template.ensure(home, _quiet)
    assert rebuilt.key == template.key
    assert os.stat(rebuilt.memory).st_size == home.memory_mib << 20


def test_concurrent_builders_build_once(home: Settings) -> None:
    prune.prune(home, Limits(everything=True))
    builders = [_builder(home) for _ in range(2)]
    outputs = [builder.communicate(timeout=_DEADLINE_S)[0].splitlines() for builder in builders]
    assert len({lines[-1] for lines in outputs}) == 1
    assert sorted("saving the guest" in lines for lines in outputs) == [False, True]


def test_killed_builder_leaves_no_qemu_and_is_swept_up_after(home: Settings) -> None:
    prune.prune(home, Limits(everything=True))
    builder = _builder(home)
    assert builder.stdout is not None
    assert any("booting" in line for line in builder.stdout)
    deadline = time.monotonic() + _DEADLINE_S
    while not (children := psutil.Process(builder.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    assert psutil.wait_procs(children, timeout=_DEADLINE_S)[1] == []
    built = kernel_template.ensure(home, _quiet)
    assert sorted(os.listdir(store.root(home.home))) == [".lock", built.key]
    assert not [path for path in Path(built.directory).iterdir() if path.suffix == ".log"]


def test_prune_keeps_the_current_one(home: Settings) -> None:
    current = kernel_template.ensure(home, _quiet)
    stale = Path(store.root(home.home), "0" * 32)
    stale.mkdir()
    assert prune.prune(home, Limits()) == [stale.name]
    assert kernel_template.find(home) is not None
    assert prune.prune(home, Limits(everything=True)) == [current.key]
    assert store.entries(home.home) == []
