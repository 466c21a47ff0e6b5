"""What the fault tests measure is reported: at the end of the run, and in the file that FAULTS_REPORT names."""

from __future__ import annotations

import datetime
import os
import pathlib
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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines: list[str] = []
    for node_id, (outcome, seconds) in config.stash.get(OUTCOMES, {}).items():
        lines.append(f"{outcome:7} {seconds:8.1f} s  {node_id.removeprefix('tests/integration/faults/')}")
        lines += [f"{'':20}{note}" for note in config.stash.get(MEASURED, {}).get(node_id, [])]
    file = os.environ.get("FAULTS_REPORT")
    if file:
        title = f"Fault tests, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs"
        pathlib.Path(file).write_text("\n".join([title, "", *lines, ""]))
    noted = [line for line in lines if line.startswith(" ")]
    if noted:
        terminalreporter.section("measured")
        terminalreporter.write("\n".join(lines) + "\n")
