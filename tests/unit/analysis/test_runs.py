"""Reading runs: what is whole counts, and what is not is left out with a reason."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import pytest
from synthetic_runs import write_run

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.analysis.billing import cost_of, reserved
from rllib_efficientzero.analysis.experiments import load_all
from rllib_efficientzero.analysis.runs import Label, Runs, read_runs

PONG = Label("full", "Pong", "efficientzero", 0)


def reason(runs: Runs) -> str:
    (left,) = runs.left_out
    return left.reason


def test_a_whole_run_is_read(tmp_path: pathlib.Path) -> None:
    directory = write_run(tmp_path, PONG, [20.0, 21.0], sticky=[10.0, 12.0])
    (run,) = read_runs(tmp_path).runs
    assert (run.path, run.label, run.score) == (directory, PONG, 20.5)
    assert run.returns["sticky"].tolist() == [10.0, 12.0]


def test_its_cost(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, PONG, [1.0], num_env_runners=2, num_gpus_per_env_runner=0.5, num_cpus_per_env_runner=1)
    cost = cost_of(read_runs(tmp_path).runs[0])
    assert (cost.hours, cost.gpu_hours) == (1.0, 2.0)
    assert cost.cpu_hours == 4.0  # two of the main process, one of each EnvRunner
    assert cost.updates_per_s == pytest.approx(120 / 3600)
    assert cost.replay_megabytes is None


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"num_learners": 2, "num_gpus_per_learner": 1},
        {"num_learners": 2},
        {"num_cpus_per_learner": 4},
        {"num_gpus_per_learner": 0.5, "num_cpus_for_main_process": 2},
        {"replay_buffer_config": {"placement": "actor"}},
        {"num_reanalyze_actors": 2, "num_cpus_per_reanalyze_actor": 1.5, "num_gpus_per_reanalyze_actor": 0.25},
        {
            "num_env_runners": 3,
            "num_gpus_per_env_runner": 0.1,
            "evaluation_interval": 1,
            "evaluation_num_env_runners": 2,
            "evaluation_config": {"num_cpus_per_env_runner": 3},
        },
    ],
    ids=lambda layout: ",".join(layout) or "default",
)
def test_what_a_run_reserved_is_what_it_asked_ray_for(layout: dict[str, Any]) -> None:
    # Whatever a session of other tests has.
    config = EfficientZeroConfig().environment("CartPole-v1").update_from_dict({"wait_for_resources": True, **layout})
    asked = EfficientZero.default_resource_request(config).required_resources
    assert reserved(config.to_dict()) == pytest.approx((asked.get("CPU", 0), asked.get("GPU", 0)))


@pytest.mark.parametrize("variant", ["efficientzero", "without-consistency", "without-value-prefix", "muzero"])
def test_a_run_without_label_is_known_by_its_config(tmp_path: pathlib.Path, variant: str) -> None:
    write_run(tmp_path, Label("x", "Pong", variant, 3), [1.0], labelled=False)
    assert read_runs(tmp_path).runs[0].label == Label("unlabelled", "Pong", variant, 3)


@pytest.mark.parametrize(
    ("config", "training", "variant"),
    [
        ({"search": "puct"}, {"from_pixels": True, "bins_per_dimension": 5}, "efficientzero"),
        ({"search": "gumbel"}, {}, "efficientzero, search gumbel"),
        ({"action_representation": "sampled"}, {}, "efficientzero, sampled actions"),
        ({}, {"bins_per_dimension": None, "from_pixels": True}, "efficientzero, sampled actions"),
        ({}, {"bins_per_dimension": 5, "from_pixels": False}, "efficientzero, from states"),
        ({"use_consistency": False, "use_value_prefix": False}, {}, "another variant"),
    ],
)
def test_a_run_without_label_is_the_papers_only_if_it_is_made_like_it(
    tmp_path: pathlib.Path, config: dict[str, Any], training: dict[str, Any], variant: str
) -> None:
    label = Label("x", "reacher-easy", "efficientzero", 0)
    write_run(tmp_path, label, [1.0], labelled=False, training=training, **config)
    runs = read_runs(tmp_path)
    assert runs.runs[0].label.variant == variant
    (experiment,) = [experiment for experiment in load_all() if experiment.name == "dmc100k"]
    table = experiment.present(runs, experiment, "unlabelled", "")[0]
    assert any(cells[-1] for cells in table.rows) == (variant == "efficientzero")


def test_trials_of_a_search_are_runs_of_their_own(tmp_path: pathlib.Path) -> None:
    for number, (channels, seed) in enumerate([(8, 0), (16, 0), (8, 1), (16, 1), (8, 0)]):
        directory = write_run(
            tmp_path,
            Label("x", "Pong", "efficientzero", seed),
            [float(number)],
            labelled=False,
            trial=f"trial_{number}",
            _model_config={"channels": channels},
            __stdout_file__=str(number),
            num_cpus_per_learner=number,
            policy_mapping_fn=f"<function f at 0x7f{number}>",
        )
        os.utime(directory / "result.json", (number, number))
    runs = read_runs(tmp_path)
    assert [run.score for run in runs.of(budget="unlabelled", variant="efficientzero")] == [0.0, 2.0]
    others = [run for run in runs.runs if run.label.variant != "efficientzero"]
    assert [run.score for run in others] == [1.0, 3.0]
    assert len({run.label.variant for run in others}) == 1
    assert others[0].label.variant.startswith("efficientzero, settings ")
    assert reason(runs).startswith("duplicate")


def test_half_a_last_line_is_passed_over(tmp_path: pathlib.Path) -> None:
    directory = write_run(tmp_path, PONG, [5.0])
    with (directory / "result.json").open("a") as file:
        file.write('{"num_updates_lifetime": 1')
    assert read_runs(tmp_path).runs[0].score == 5.0


def test_a_run_that_did_not_end_is_left_out(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, PONG, [5.0], done=False)
    assert reason(read_runs(tmp_path)).startswith("not finished: 60 of 120 updates")


def test_an_evaluation_of_earlier_weights_is_no_score(tmp_path: pathlib.Path) -> None:
    directory = write_run(tmp_path, PONG, [5.0])
    evaluation = json.loads((directory / "evaluation.json").read_text())
    evaluation["evaluations"][0]["num_updates_lifetime"] = 100
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    runs = read_runs(tmp_path)
    assert "not for scores" in reason(runs)
    assert not runs.of(budget="full")
    assert len(runs.runs) == 1  # it has cost something all the same


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("protocol.json", "{", "protocol.json is damaged"),
        ("protocol.json", "[]", "holds no JSON object"),
        ("protocol.json", None, "protocol.json is missing"),
        ("result.json", "", "no whole line"),
        ("result.json", None, "ended before its first iteration"),
        ("result.json", '{"a": 1}', "no config"),
        ("result.json", '{"config": {}, "num_updates_lifetime": 120, "training_done": 1}', "KeyError: 'time_total_s'"),
        ("evaluation.json", '{"evaluations": [{}]}', "damaged: KeyError"),
        (
            "evaluation.json",
            '{"evaluations": [{"num_interactions_lifetime": 1, "num_updates_lifetime": 1}]}',
            "KeyError: 'episode_returns'",
        ),
        ("scores.json", '{"num_updates_lifetime": 120, "protocols": {"standard": {"returns": ["x"]}}}', "damaged"),
        ("scores.json", '{"num_updates_lifetime": 120, "protocols": {"standard": {"returns": []}}}', "not a list of"),
    ],
)
def test_damage_is_left_out_and_named(tmp_path: pathlib.Path, file: str, content: str | None, expected: str) -> None:
    directory = write_run(tmp_path, PONG, [5.0])
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(content)
    write_run(tmp_path, Label("full", "Pong", "efficientzero", 1), [6.0])
    runs = read_runs(tmp_path)
    assert [run.score for run in runs.runs] == [6.0]
    assert expected in reason(runs)


def test_of_two_runs_with_one_label_the_older_counts(tmp_path: pathlib.Path) -> None:
    directory = write_run(tmp_path, PONG, [5.0])
    again = shutil.copytree(directory, directory.with_name("again"))
    os.utime(again / "result.json", (2e9, 2e9))
    runs = read_runs(tmp_path)
    assert [run.path for run in runs.runs] == [directory]
    assert reason(runs).startswith("duplicate")


def test_a_directory_given_twice_is_read_once(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, PONG, [5.0])
    runs = read_runs(tmp_path, tmp_path / "full")
    assert len(runs.runs) == 1
    assert not runs.left_out
