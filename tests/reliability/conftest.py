"""The campaign's table: what was injected, how often, how often it was survived, and what it cost."""

import pytest

RECORDS = []


class Campaign:
    """Collects what the tests of this folder injected."""

    def record(self, fault: str, injected: int, survived: int, lost: str) -> None:
        """One line of the table."""
        RECORDS.append((fault, injected, survived, lost))


@pytest.fixture(scope="session")
def campaign() -> Campaign:
    return Campaign()


def pytest_terminal_summary(terminalreporter) -> None:
    for fault, injected, survived, lost in RECORDS:
        terminalreporter.write_line(f"| {fault} | {injected} | {survived} | {lost} |")
