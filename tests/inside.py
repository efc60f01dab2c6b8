"""Tests that run in a virtual machine: collected on the host, executed in a VM over the host's root (host_vm.py), reported here one by one.

On the host the tests of a directory are not run: one VM runs a pytest over all that were chosen, that one writes each report down as it comes, and the host
reports them as its own, tracebacks and captured output included (the serialization is pytest's own, made for pytest-xdist). A test without a complete report has
failed, whatever the reason, and so has every test of a run that ended other than by pytest. Where this host can have no such VM, each is skipped, with the reason.

A test that is marked `outside` is one of the host all the same: it has machines of its own.
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
import kvm_bed

from rundctl.errors import RundctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Runner = Callable[[list[str], Path, dict[str, str]], tuple[int, str]]

_CHECKOUT = Path(__file__).resolve().parent.parent
_MARK = "RUNDCTL_TEST_INSIDE"  # set in the VM
INSIDE = os.environ.get(_MARK, "")
OUTSIDE = "outside"
_REPORTS = "reports"
_PHASES = ["setup", "call", "teardown"]
_QUIET = ("cacheprovider", "doctest", "junitxml", "pastebin", "legacypath", "debugging", "stepwise", "faulthandler")
_TAIL = 6000
_KVM_SILENCE_S = 420.0  # the longest test of `make test` takes a minute
_KVM_TRIES = 3
_KVM_DISK_MIB = 8192
# pytest's own: all passed, some failed. Anything else is no result.
_EXIT_CODES = (0, 1)


def argv(nodes: list[str]) -> list[str]:
    """The command that runs these tests in the VM. Importing is what costs under emulation: no plugin that is not needed."""
    off = [word for name in _QUIET for word in ("-p", f"no:{name}")]
    return [sys.executable, "-m", "pytest", f"--rootdir={_CHECKOUT}", f"-c{_CHECKOUT}/pyproject.toml", *off, *nodes]


def command(nodes: list[str]) -> list[str]:
    """The same, in the checkout, from wherever a VM begins."""
    return ["/bin/sh", "-c", f'cd {_CHECKOUT} && exec "$@"', "sh", *argv(nodes)]


def run(nodes: list[str], results: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The usual way: pytest in the cgroup ``/init`` of the VM, controllers given to the other children of the root."""
    return host_vm.run(command(nodes), results, environment=environment)


def run_with_kvm(nodes: list[str], results: Path, environment: dict[str, str]) -> tuple[int, str]:
    """pytest in an emulated machine in which KVM works. Each test is skipped, with the reason, where there can be none."""
    if lacking := kvm_bed.missing():
        pytest.skip(lacking)
    machine = kvm_bed.Machine(disk_mib=_KVM_DISK_MIB)
    for tries_left in reversed(range(_KVM_TRIES)):
        try:
            with kvm_bed.Bed(command(nodes), results, machine, environment) as bed:
                return _watched(bed, results / _REPORTS)
        except kvm_bed.BedError as error:
            if "is not done after" not in str(error) or not tries_left:
                return -1, str(error)
            # Emulated, it stands still now and then: what it has not reported is run in another.
            nodes = _unreported(nodes, results / _REPORTS)
        except (RundctlError, OSError) as error:
            return -1, str(error)
    raise AssertionError


def _watched(bed: kvm_bed.Bed, reports: Path) -> tuple[int, str]:
    """Wait for its end, as long as it goes on reporting. BedError if it does not."""
    size = -1
    while True:
        try:
            return bed.wait(_KVM_SILENCE_S)
        except kvm_bed.BedError:
            before, size = size, reports.stat().st_size if reports.exists() else 0
            if size == before:
                raise


def _unreported(nodes: list[str], reports: Path) -> list[str]:
    """Those whose end was not reported; what was told of their beginning is taken out."""
    lines = reports.read_text().splitlines() if reports.exists() else []
    told = [(json.loads(line), line) for line in lines]
    done = {report["nodeid"] for report, _ in told if report["when"] == "teardown"}
    reports.write_text("".join(line + "\n" for report, line in told if report["nodeid"] in done))
    return [node for node in nodes if node not in done]


class Writer:
    """In the VM: writes every report down."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with (Path(host_vm.RESULTS) / _REPORTS).open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")


class Batch:
    """What one VM said of the tests that it was given: its exit code, what it printed, each report; ``lacking``: why there can be no such VM."""

    def __init__(self) -> None:
        self.code = -1
        self.printed = ""
        self.lacking = ""
        self.reports: dict[str, list[pytest.TestReport]] = {}


class Reader:
    """On the host: what VMs reported of the tests of one directory. A VM runs when the first of its tests is due.

    One runs all of them, or one those of each file. ``left_out`` says why a test is not run in there; "": it is.
    """

    def __init__(
        self,
        config: pytest.Config,
        directory: Path,
        runner: Runner,
        *,
        by_file: bool = False,
        left_out: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._config = config
        self._directory = directory
        self._runner = runner
        self._by_file = by_file
        self._left_out = left_out
        self._batches: dict[Path, Batch] = {}

    def _is_ours(self, item: pytest.Item) -> bool:
        return item.path.is_relative_to(self._directory) and item.get_closest_marker(OUTSIDE) is None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Report what happened instead of making it happen."""
        if not self._is_ours(item):
            return None
        # Of one that ran before: pytest has kept for this one what the two would share.
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _batch_of(self, item: pytest.Item) -> Batch:
        """Of the file, or of all; run, if it was not."""
        name = item.path if self._by_file else self._directory
        if name not in self._batches:
            ours = [
                each.nodeid for each in item.session.items if self._is_ours(each) and each.path.is_relative_to(name)
            ]
            self._batches[name] = self._run([nodeid for nodeid in ours if not self._left_out(nodeid)])
        return self._batches[name]

    def _run(self, nodes: list[str]) -> Batch:
        batch = Batch()
        with tempfile.TemporaryDirectory(prefix="inside-") as scratch:
            results = Path(scratch)
            environment = {
                _MARK: "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "TMPDIR": "/var/tmp",
            }
            try:
                batch.code, batch.printed = self._runner(nodes, results, environment)
            except pytest.skip.Exception as skipped:
                batch.lacking = str(skipped)
            for report in self._read(results / _REPORTS):
                batch.reports.setdefault(report.nodeid, []).append(report)
        return batch

    def _read(self, path: Path) -> Iterator[pytest.TestReport]:
        for line in path.read_text().splitlines() if path.exists() else ():
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
            if isinstance(report, pytest.TestReport):
                if isinstance(report.longrepr, list):  # a skip's place, which JSON knows no tuples for
                    report.longrepr = tuple(report.longrepr)
                yield report

    def _of(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Its reports; if they do not tell all, one that says so and fails."""
        if reason := self._left_out(item.nodeid):
            return _skipped(item, reason)
        batch = self._batch_of(item)
        if batch.lacking:
            return _skipped(item, batch.lacking)
        reports = batch.reports.get(item.nodeid, [])
        phases = [report.when for report in reports]
        skipped = any(report.skipped for report in reports)
        broken = any(report.failed for report in reports)
        complete = phases == _PHASES or ((skipped or broken) and phases[:1] == ["setup"] and phases[-1] == "teardown")
        if complete and batch.code in _EXIT_CODES:
            return reports
        words = (
            f"the run in the VM is no result: it ended with {batch.code}, and reported of this test: {phases or 'nothing'}\n"
            f"{batch.printed[-_TAIL:]}"
        )
        return [
            *(report for report in reports if report.failed),
            pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call"),
        ]


def _skipped(item: pytest.Item, reason: str) -> list[pytest.TestReport]:
    place = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {reason}")
    return [
        pytest.TestReport(item.nodeid, item.location, {}, "skipped", place, "setup"),
        pytest.TestReport(item.nodeid, item.location, {}, "passed", None, "teardown"),
    ]


def install(config: pytest.Config, directory: Path, runner: Runner = run, **options: Any) -> None:
    """Called by a conftest.py for its directory; ``options`` are the reader's. A runner may raise what `pytest.skip` raises: there can be no such VM here."""
    if INSIDE:
        if not config.pluginmanager.has_plugin("inside"):
            config.pluginmanager.register(Writer(config), "inside")
    else:
        config.pluginmanager.register(Reader(config, directory, runner, **options), f"inside-{directory.name}")
