"""What is written of a divergence: which metric showed it first, and the last updates."""

from __future__ import annotations

import json

import numpy as np

from rllib_efficientzero.divergence import MIN_HISTORY, NUM_DESCRIBED, DivergenceWatch


def watch_of(**series: list[float]) -> DivergenceWatch:
    watch = DivergenceWatch()
    for update in range(max(map(len, series.values()))):
        watch.record(update, {name: np.array(values[update]) for name, values in series.items()})
    return watch


def test_the_earliest_of_several_metrics_is_named() -> None:
    watch = watch_of(
        value_loss=[1.0] * 15 + [2.0, 2.0, 500.0, float("nan")],
        gradient_norm=[0.5] * 15 + [0.6, 90.0, 4e5, float("nan")],
    )
    assert watch.first_symptom() == ("gradient_norm showed it first: 90 at update 16, where its median had been 0.5")


def test_of_one_update_the_metric_recorded_first_is_named() -> None:
    watch = watch_of(target_value=[1.0, 1.0, float("inf")], value_loss=[1.0, 1.0, float("nan")])
    assert watch.first_symptom() == "target_value showed it first: inf at update 2, where its median had been 1"


def test_a_metric_that_was_never_finite_has_no_median() -> None:
    assert watch_of(loss=[float("nan")]).first_symptom() == "loss showed it first: nan at update 0"


def test_large_values_stand_out_only_against_a_history() -> None:
    early = [1.0] * (MIN_HISTORY - 1) + [1e6]
    assert watch_of(loss=early).first_symptom() == f"no recorded metric stood out within the last {len(early)} updates"


def test_only_the_last_updates_are_kept() -> None:
    watch = DivergenceWatch(window=3)
    for update, value in enumerate((float("nan"), 1.0, 1.0, 1.0)):
        watch.record(update, {"loss": np.array(value)})
    assert "within the last 3 updates" in watch.first_symptom()


def test_the_last_updates_can_be_read_elsewhere() -> None:
    watch = DivergenceWatch()
    for update in range(NUM_DESCRIBED + 5):
        loss = np.array(float("nan") if update > NUM_DESCRIBED else 0.5)
        watch.record(update, {"loss": loss}, np.array([update, 2**40 + 1], np.float64))
    described = json.loads(json.dumps(watch.last_updates(), allow_nan=False))
    assert [entry["update"] for entry in described] == list(range(5, NUM_DESCRIBED + 5))
    assert described[0] == {"update": 5, "metrics": {"loss": 0.5}, "position_ids": [5, 2**40 + 1]}
    assert described[-1]["metrics"] == {"loss": "nan"}
