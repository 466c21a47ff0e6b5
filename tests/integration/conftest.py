"""One Ray session for all tests that do not need one of their own, since every start of one takes seconds."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator

import pytest
import ray

HERE = pathlib.Path(__file__).parent
NUM_CPUS = 6
SECONDS_TO_CLEAR = 10.0
"""That processes of the module before are given to end."""
ATTEMPTS = 3
"""Ray gives itself 30 s to start, and a busy machine may need more."""

# Lets Ray's processes import what is defined in tests. A runtime_env would cost each of them a start of its own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*map(str, (HERE, HERE / "faults", HERE.parents[1])), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(scope="session")
def _at_the_end() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def shared_ray(_at_the_end: None) -> None:
    """Ray with `NUM_CPUS` CPUs, none of them in use: what is left over from the module before costs a new session.

    A module that starts Ray itself calls `ray.shutdown()` first.
    """
    if ray.is_initialized() and not _is_clear():
        ray.shutdown()
    if not ray.is_initialized():
        _start()


@pytest.fixture(scope="module")
def cluster(shared_ray: None) -> str:
    """The address of a ray that runs already: it spares each command the start of its own."""
    return ray.get_runtime_context().gcs_address


def _start() -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _is_clear() -> bool:
    deadline = time.monotonic() + SECONDS_TO_CLEAR
    while ray.available_resources().get("CPU", 0.0) < NUM_CPUS:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return ray.cluster_resources()["CPU"] == NUM_CPUS
