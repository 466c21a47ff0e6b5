"""Whatever happens while a checkpoint is written, the one before it, or the new one, is there and whole."""

from __future__ import annotations

import os
import pathlib
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from checkpoint_helpers import assert_equal, fingerprint, tiny_config, train

from rllib_efficientzero.checkpoint.files import replaced_path, staging_path
from rllib_efficientzero.checkpoint.manifest import find_newest, read_manifest, verify

KILLS = 50


@pytest.fixture(scope="module")
def algo(shared_ray: None) -> Iterator[Any]:
    algorithm = train(tiny_config().build_algo(), 20)
    yield algorithm
    algorithm.stop()


def in_child(work: Callable[[], object]) -> int:
    """Forks a process that does `work` and nothing else. An algorithm without remote actors needs no Ray to save."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_killed_at_random_moments(algo: Any, tmp_path: pathlib.Path, measured: Callable[[str], None]) -> None:
    """New directories in turn with replaced ones; in between the next process clears up and goes on."""
    algo.num_interactions = 0
    algo.save_to_path(tmp_path / "checkpoint_000000")
    started = time.monotonic()
    os.waitpid(in_child(lambda: algo.save_to_path(tmp_path / "rehearsal")), 0)
    duration = time.monotonic() - started
    rng = random.Random(0)
    finished = leftovers = 0
    newest = tmp_path / "checkpoint_000000"
    for kill in range(1, KILLS + 1):
        before = read_manifest(newest)["counters"]["num_interactions"]
        target = newest if kill % 2 else tmp_path / f"checkpoint_{kill:06d}"
        algo.num_interactions = kill
        child = in_child(lambda target=target: algo.save_to_path(target))
        time.sleep(rng.uniform(0.0, 1.1 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        leftovers += staging_path(target).exists() or replaced_path(target).exists()
        newest = find_newest(tmp_path)
        assert newest is not None
        survivor = verify(newest)["counters"]["num_interactions"]
        assert survivor in (before, kill)
        finished += survivor == kill
    assert leftovers >= 5, "the test should hit the writing itself"
    assert finished >= 1
    measured(f"{KILLS} kills: {finished} saves had finished, {leftovers} left something half written, 0 lost a run")
    # The last survivor is a checkpoint like any other.
    algo.num_interactions = read_manifest(newest)["counters"]["num_interactions"]
    expected = fingerprint(algo)
    train(algo, 3)
    algo.restore_from_path(newest)
    found = fingerprint(algo)
    # Python seeds its own generator anew in every forked process.
    found.pop("process generators")
    expected.pop("process generators")
    assert_equal(found, expected)


@pytest.mark.parametrize("limit", [100, 5_000, 20_000])
def test_disk_full(algo: Any, tmp_path: pathlib.Path, limit: int) -> None:
    """No file may grow beyond `limit` bytes in the child, which is how a full disk looks to it: writes fail."""
    saved = pathlib.Path(algo.save_to_path(tmp_path / "checkpoint_000000"))
    before = read_manifest(saved)

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        algo.save_to_path(saved)

    _, status = os.waitpid(in_child(save), 0)
    assert os.waitstatus_to_exitcode(status) == 1, "saving must fail"
    assert verify(saved) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000000"], "nothing half written stays"
