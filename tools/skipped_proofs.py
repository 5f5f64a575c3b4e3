"""A pytest plugin: a proof that docs/requirements.toml names fails the run when it is skipped."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


class SkippedProofs:
    """Watches the reports of a run for skipped tests that a requirement calls its proof."""

    def __init__(self, proofs: Iterable[str]) -> None:
        self._proofs = frozenset(proofs)
        self._skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the test when it was skipped; with xdist this runs in the process that prints."""
        if report.skipped and not self._proofs.isdisjoint(_names(report.nodeid)):
            self._skipped.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a run that passed into one that failed."""
        if self._skipped and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which."""
        for name in sorted(self._skipped):
            terminalreporter.write_line(f"FAILED {name}: a proof in docs/requirements.toml was skipped", red=True)


def _names(nodeid: str) -> list[str]:
    """Return the id of a test, of itself without parameters, and of its class and file."""
    names = [nodeid, nodeid.split("[", 1)[0]]
    while "::" in names[-1]:
        names.append(names[-1].rsplit("::", 1)[0])
    return names
