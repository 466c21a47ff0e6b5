"""How long a run would take: what is timed, and how often it is counted."""

from __future__ import annotations

import threading

import pytest
import torch

from rllib_efficientzero import cost, threads
from rllib_efficientzero.models import ModelConfig, build_network
from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig


def test_networks_are_timed_on_one_thread_as_ray_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(cost, "_fastest", lambda call: threads.append(torch.get_num_threads()) or 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cost.seconds_per_call(build_network((1, 4), 2, ModelConfig(lstm_hidden=8)), (1, 4))
        assert (threads, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("told", "expected"), [(None, 1), ("2", 2)])
def test_whoever_says_how_many_threads_has_them(
    told: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    found: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads.one_thread_unless_told():
            # The threads that answer requests are begun in the block.
            thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            found.append(torch.get_num_threads())
        assert (found, torch.get_num_threads()) == ([expected, expected], 2)
    finally:
        torch.set_num_threads(before)


def test_values_that_are_searched_cost_simulations() -> None:
    plain, root = (
        cost.run_seconds(
            0.0,
            1.0,
            ReanalyzeConfig(value_target=kind, reanalyze_ratio=1.0),
            batch_size=1,
            env_steps=0,
            updates=1,
        )
        for kind in ("network", "root")
    )
    assert root - plain == 5 * 50  # of the five positions behind the last of six
