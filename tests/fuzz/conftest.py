"""Shows what became of the hostile payloads at the end of the test run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

Tables = dict[str, Mapping[str, int]]
TABLES: pytest.StashKey[Tables] = pytest.StashKey()


@pytest.fixture
def tables(request: pytest.FixtureRequest) -> Tables:
    """Give the tables, title to counts, that are printed when all tests have run."""
    return request.config.stash.setdefault(TABLES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables, however quiet pytest is."""
    for title, counts in config.stash.get(TABLES, {}).items():
        terminalreporter.section(title)
        for name, count in sorted(counts.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{name:<24}{count:>8,}")
