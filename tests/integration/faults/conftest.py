"""What the fault tests measure is reported: at the end of the run, and in the file that FAULTS_REPORT names."""

from __future__ import annotations

import collections
import datetime
import os
import platform
from collections.abc import Callable
from typing import Any

import pytest

MEASURED = pytest.StashKey[dict[str, list[str]]]()
OUTCOMES = pytest.StashKey[dict[str, tuple[str, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(MEASURED, {})
    config.stash.setdefault(OUTCOMES, {})


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes a figure for the report: `measured("the checkpoint came after 2.1 s")`."""
    notes = request.config.stash.setdefault(MEASURED, {}).setdefault(request.node.nodeid, [])
    return notes.append


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" or report.outcome != "passed":
        item.config.stash.setdefault(OUTCOMES, {})[item.nodeid] = (report.outcome, report.duration)
        if report.failed:
            reason = str(call_error(report)).split("\n", 1)[0]
            item.config.stash.setdefault(MEASURED, {}).setdefault(item.nodeid, []).append(reason[:200])
        # After every test, so that a run that is cut short keeps what it has done.
        if file := os.environ.get("FAULTS_REPORT"):
            # Tests may stand in another directory.
            path = item.config.invocation_params.dir / file
            title = f"Fault tests, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs"
            path.write_text("\n".join([title, totals(item.config), "", *lines_of(item.config), ""]))


def call_error(report: pytest.TestReport) -> object:
    """What a failed test says in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return report.longrepr if crash is None else crash.message


def totals(config: pytest.Config) -> str:
    """How many tests came to what, in how much time."""
    outcomes = config.stash.get(OUTCOMES, {}).values()
    counts = collections.Counter(outcome for outcome, _ in outcomes)
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{told}; {sum(seconds for _, seconds in outcomes) / 60:.0f} minutes"


def lines_of(config: pytest.Config) -> list[str]:
    """A line per test, and what it measured below."""
    lines: list[str] = []
    for node_id, (outcome, seconds) in config.stash.get(OUTCOMES, {}).items():
        lines.append(f"{outcome:7} {seconds:8.1f} s  {node_id.removeprefix('tests/integration/faults/')}")
        lines += [f"{'':20}{note}" for note in config.stash.get(MEASURED, {}).get(node_id, [])]
    return lines


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if any(config.stash.get(MEASURED, {}).values()):
        terminalreporter.section("measured")
        terminalreporter.write("\n".join([*lines_of(config), totals(config)]) + "\n")
