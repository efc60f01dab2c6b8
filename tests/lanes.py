"""Two tests at a time: what of the tests must run one after the other, and in which order the parts begin (``make test``, ``make check``: pytest-xdist's ``-n 2``).

A part is run by one worker, from its first test to its last, and no two tests of a part run at once. Most suites of VMs are one part, because they look at
processors, cgroups and mounts of a machine that other containers of theirs would keep busy; those of `_BESIDE` look at nothing but their own containers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_SYSTEM = "tests/system"
_KVM = "tests/kvm"
# One VM runs all of them (inside.py), and that of tests/kvm keeps one processor busy; the C programs are built once.
_WHOLE = (_KVM, "tests/cgroup2", "tests/systemd", "tests/native")
_BESIDE = tuple(
    f"{_SYSTEM}/test_{name}.py"
    for name in (
        "rootfs_contract",
        "rootfs_errors",
        "volumes",
        "persistent",
        "errors",
        "volumes_procfs",
        "container",
        "verbs",
        "hooks",
        "stdio",
        "descriptors",
    )
)
# What is longest begins first, so that both workers end at about the same time.
_ORDER = (_SYSTEM, _KVM, *_BESIDE, *_WHOLE[1:], "tests/contract", "tests/house", "tests/unit")


def part_of(nodeid: str) -> str:
    """The name of the part that a test belongs to."""
    file = nodeid.partition("::")[0]
    if file.startswith(f"{_SYSTEM}/"):
        return file if file in _BESIDE else _SYSTEM
    return next((directory for directory in _WHOLE if file.startswith(f"{directory}/")), file)


def _rank(item: pytest.Item) -> int:
    part = part_of(item.nodeid)
    name = part if part in _ORDER else part.rpartition("/")[0]
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


class _Parts(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's scheduling by class or module, with our parts and their order."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return part_of(nodeid)


class Worker:
    """Brings the tests into the order in which their parts begin."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_rank)


class Controller:
    """Hands the parts out, and says what begins and what fails when it does: CI may stop before the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.monotonic()
        self._seen: set[str] = set()

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> _Parts:
        return _Parts(config, log)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file = nodeid.partition("::")[0]
        if file not in self._seen:
            self._seen.add(file)
            self._say(file)  # the dots of its tests come behind

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say(f"FAILED {report.nodeid}\n{report.longreprtext[-2000:]}\n")

    def _say(self, words: str) -> None:
        reporter: TerminalReporter = self._config.pluginmanager.get_plugin("terminalreporter")
        reporter.write(f"\n{time.monotonic() - self._began:4.0f} s  {words} ", flush=True)


def install(config: pytest.Config) -> None:
    """Called by tests/conftest.py."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker(), "lanes")
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Controller(config), "lanes")
