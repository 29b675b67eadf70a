"""What all tests share: measured counts are shown at the end of a run, also where workers ran the tests."""

from __future__ import annotations

import pytest

COUNTS = "counts"
"""The property under which a test records what it counted: `record_property(COUNTS, text)`."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A section of all recorded counts."""
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == COUNTS
    ]
    if lines:
        terminalreporter.section("counts")
        for line in sorted(lines):
            terminalreporter.write_line(line)
