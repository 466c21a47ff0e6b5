"""The simulated pipeline against what can be said with a pencil."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import report, scaling_page
from benchmarks.pipeline import Pipeline, ServiceTimes, Simulation

TIMES = ServiceTimes(
    play_step=0.01,
    request=0.001,
    add_step=0.0001,
    sample=0.004,
    transfer=0.002,
    reanalyze_fixed=0.01,
    reanalyze_per_window=0.001,
    learn_fixed=0.02,
    learn_per_window=0.0005,
    reduce_gradients=0.003,
    priorities=0.001,
    publish=0.0,
)
ONE = Pipeline(num_runners=1, fragment=20, batch=64, replay_ratio=0.5)


def steps_per_s(pipeline: Pipeline, *, variation: float = 0.0, times: ServiceTimes = TIMES) -> float:
    return Simulation(times, pipeline, variation=variation).run(20_000).steps_per_s


def test_one_of_each_takes_the_sum_of_all_services() -> None:
    play = 0.001 + 20 * 0.01 + 20 * 0.0001
    update = 0.004 + (0.01 + 64 * 0.001) + (0.02 + 64 * 0.0005) + 0.001
    assert steps_per_s(ONE) == pytest.approx(20 / (play + 10 * update), rel=1e-3)


def test_asynchronous_play_hides_behind_the_learner_until_it_is_the_slower() -> None:
    asynchronous = dataclasses.replace(ONE, asynchronous=True)
    update = 0.004 + (0.01 + 64 * 0.001) + (0.02 + 64 * 0.0005) + 0.001
    driver = 0.001 + 20 * 0.0001
    assert steps_per_s(asynchronous) == pytest.approx(20 / (10 * update + driver), rel=1e-3)
    slow = dataclasses.replace(TIMES, play_step=1.0)
    assert steps_per_s(asynchronous, times=slow) == pytest.approx(1.0, rel=1e-2)
    more = dataclasses.replace(asynchronous, num_runners=8)
    assert steps_per_s(more, times=slow) == pytest.approx(8.0, rel=0.05)


def test_more_runners_cannot_pass_the_learner() -> None:
    rates = [steps_per_s(dataclasses.replace(ONE, num_runners=n, asynchronous=True)) for n in (8, 64, 512)]
    update = 0.004 + (0.01 + 64 * 0.001) + (0.02 + 64 * 0.0005) + 0.001
    assert max(rates) < 2 / update
    outcome = Simulation(TIMES, dataclasses.replace(ONE, num_runners=64, asynchronous=True)).run(20_000)
    assert outcome.limited_by == "Learners"
    assert outcome.runners_busy < 0.1


def test_reanalyze_actors_leave_the_learner_the_gradient_step() -> None:
    """With enough of them; with one, it is waited for."""
    base = dataclasses.replace(ONE, num_runners=64, asynchronous=True)
    learn = 0.02 + 64 * 0.0005
    many = dataclasses.replace(base, num_reanalyze_actors=8)
    per_update = learn + 0.004 + 2 * 0.002 + 0.001
    assert steps_per_s(many) == pytest.approx(2 / per_update, rel=0.05)
    one = dataclasses.replace(base, num_reanalyze_actors=1)
    outcome = Simulation(TIMES, one).run(20_000)
    assert outcome.limited_by == "reanalyze actors"
    assert outcome.steps_per_s == pytest.approx(2 / (0.01 + 64 * 0.001 + 0.002), rel=0.05)


def test_learners_share_the_batch_but_not_what_is_fixed() -> None:
    two = dataclasses.replace(ONE, num_learners=2)
    play = 0.001 + 20 * 0.01 + 20 * 0.0001
    update = 0.004 + 0.002 + (0.01 + 32 * 0.001) + (0.02 + 32 * 0.0005) + 0.003 + 0.001
    assert steps_per_s(two) == pytest.approx(20 / (play + 10 * update), rel=1e-3)


def test_variation_makes_everybody_wait_for_the_slowest() -> None:
    eight = dataclasses.replace(ONE, num_runners=8, replay_ratio=0.01)
    assert steps_per_s(eight, variation=0.5) < 0.8 * steps_per_s(eight)


def test_the_page_shows_the_result() -> None:
    """`python -m benchmarks.scaling_page` brings docs/scaling.md up to date."""
    result = json.loads((report.RESULTS / "scaling.json").read_text())
    page = scaling_page.PAGE.read_text()
    assert scaling_page.fill(page, result) == page
    timed = {number: {"env_steps_per_s": 1.5, "predicted_env_steps_per_s": 2.5} for number in ("1", "2")}
    assert "| 1.5 | 2.5 |" in scaling_page.runners(result | {"measured_training": timed})
