"""A system test that fails is run once more, with all its fixtures made anew; one that passes then is called unstable, by name.

Real virtual machines on a busy host are where a test fails that is right most of the time. It shall not stop a change that has nothing to do with it, and it shall
not be forgotten either: the last line of the summary names it, and what it said at first is printed. Where more than a few fail that is no chance, and none is repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

_UNSTABLE = "unstable"  # in a report's user_properties, which xdist carries from its workers
_REPEATED_MOST = 5


def _said(reports: list[pytest.TestReport]) -> str:
    return "\n".join(f"{report.when}: {report.longreprtext}" for report in reports if report.failed)


class Repeater:
    """Runs the tests of a directory, those that fail twice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._repeated = 0

    @pytest.hookimpl  # before pytest's own, and behind what reports of a VM (inside.py)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not item.path.is_relative_to(self._directory):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        first = runtestprotocol(item, log=False, nextitem=nextitem)
        if not any(report.failed for report in first) or self._repeated >= _REPEATED_MOST:
            return first
        self._repeated += 1
        # As after the last test of all: fixtures of every scope end, also those that tests before this one began.
        end = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(None), "teardown")
        if end.excinfo is not None:
            first.append(item.ihook.pytest_runtest_makereport(item=item, call=end))
        second = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in second if report.failed]
        for report in failed:
            report.sections.append(("what it said when it ran first", _said(first)))
        if not failed:
            second[-1].user_properties.append((_UNSTABLE, _said(first)))
        return second


class Names:
    """Tells which were unstable: at the end what they said, and in pytest's closing line their names."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
        """Of its last phase, which is not counted otherwise. The closing line is made of the first words."""
        for name, said in report.user_properties if isinstance(report, pytest.TestReport) else ():
            if name == _UNSTABLE:
                self._said[report.nodeid] = str(said)
                return f"unstable: {report.nodeid}", "U", "UNSTABLE"
        return None

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        for name, said in self._said.items():
            terminalreporter.section(f"unstable: {name}", "_")
            terminalreporter.write_line(said)
        if not self._said:
            terminalreporter.write_line("unstable: none")
