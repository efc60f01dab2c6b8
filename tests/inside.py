"""Tests that run in a virtual machine: collected on the host, executed in a VM over the host's root (host_vm.py), reported here one by one.

On the host the tests of a directory are not run: one VM runs a pytest over all that were chosen, that one writes each report down as it comes, and the host
reports them as its own, tracebacks and captured output included (the serialization is pytest's own, made for pytest-xdist). A test without a complete report has
failed, whatever the reason, and so has every test of a run that ended other than by pytest.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import host_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parent.parent
_MARK = "RUNDCTL_TEST_INSIDE"  # set in the VM
INSIDE = os.environ.get(_MARK, "")
_REPORTS = "reports"
_PHASES = ["setup", "call", "teardown"]
_QUIET = ("cacheprovider", "doctest", "junitxml", "pastebin", "legacypath", "debugging", "stepwise", "faulthandler")
_TAIL = 6000
# pytest's own: all passed, some failed. Anything else is no result.
_EXIT_CODES = (0, 1)


def argv(nodes: list[str]) -> list[str]:
    """The command that runs these tests in the VM. Importing is what costs under emulation: no plugin that is not needed."""
    off = [word for name in _QUIET for word in ("-p", f"no:{name}")]
    return [sys.executable, "-m", "pytest", f"--rootdir={_CHECKOUT}", f"-c{_CHECKOUT}/pyproject.toml", *off, *nodes]


def run(nodes: list[str], results: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The usual way: pytest in the cgroup ``/init`` of the VM, controllers given to the other children of the root."""
    return host_vm.run(
        ["/bin/sh", "-c", f'cd {_CHECKOUT} && exec "$@"', "sh", *argv(nodes)], results, environment=environment
    )


class Writer:
    """In the VM: writes every report down."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with (Path(host_vm.RESULTS) / _REPORTS).open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")


class Reader:
    """On the host: what a VM reported of the tests of one directory; the VM runs when the first of them is due."""

    def __init__(self, config: pytest.Config, directory: Path, runner: Any) -> None:
        self._config = config
        self._directory = directory
        self._runner = runner
        self._reports: dict[str, list[pytest.TestReport]] | None = None
        self._code = -1
        self._printed = ""

    def _is_ours(self, item: pytest.Item) -> bool:
        return item.path.is_relative_to(self._directory)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report what happened instead of making it happen."""
        if not self._is_ours(item):
            return None
        if self._reports is None:
            self._reports = self._run([each.nodeid for each in item.session.items if self._is_ours(each)])
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run(self, nodes: list[str]) -> dict[str, list[pytest.TestReport]]:
        found: dict[str, list[pytest.TestReport]] = {}
        with tempfile.TemporaryDirectory(prefix="inside-") as scratch:
            results = Path(scratch)
            environment = {
                _MARK: "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "TMPDIR": "/var/tmp",
            }
            self._code, self._printed = self._runner(nodes, results, environment)
            for report in self._read(results / _REPORTS):
                found.setdefault(report.nodeid, []).append(report)
        return found

    def _read(self, path: Path) -> Iterator[pytest.TestReport]:
        for line in path.read_text().splitlines() if path.exists() else ():
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
            if isinstance(report, pytest.TestReport):
                if isinstance(report.longrepr, list):  # a skip's place, which JSON knows no tuples for
                    report.longrepr = tuple(report.longrepr)
                yield report

    def _of(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Its reports; if they do not tell all, one that says so and fails."""
        assert self._reports is not None
        reports = self._reports.get(item.nodeid, [])
        phases = [report.when for report in reports]
        skipped = any(report.skipped for report in reports)
        broken = any(report.failed for report in reports)
        complete = phases == _PHASES or ((skipped or broken) and phases[:1] == ["setup"] and phases[-1] == "teardown")
        if complete and self._code in _EXIT_CODES:
            return reports
        words = (
            f"the run in the VM is no result: it ended with {self._code}, and reported of this test: {phases or 'nothing'}\n"
            f"{self._printed[-_TAIL:]}"
        )
        return [
            *(report for report in reports if report.failed),
            pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call"),
        ]


def install(config: pytest.Config, directory: Path, runner: Any = run) -> None:
    """Called by a conftest.py for its directory."""
    if INSIDE:
        if not config.pluginmanager.has_plugin("inside"):
            config.pluginmanager.register(Writer(config), "inside")
    else:
        config.pluginmanager.register(Reader(config, directory, runner), f"inside-{directory.name}")
