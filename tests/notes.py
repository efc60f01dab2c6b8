"""What a test that passed has to say: it records a property ``note``, and the summary shows it (`pytest.fixture` ``record_property``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

NAME = "note"


class Notes:
    """Shows them at the end; reports carry them from workers and machines."""

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        for report in terminalreporter.stats.get("passed", ()):
            for name, text in report.user_properties:
                if name == NAME:
                    terminalreporter.write_line(f"note of {report.nodeid}:\n{text}")
