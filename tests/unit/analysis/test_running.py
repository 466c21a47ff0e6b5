"""Which runs an experiment needs, what is trained of them, and what `rllib paper` answers to wrong input."""

from __future__ import annotations

import pathlib
import sys

import pytest
import yaml
from policy_helpers import write_tiny_policy
from synthetic_runs import write_run
from typer.testing import CliRunner

from rllib_efficientzero import cost
from rllib_efficientzero.analysis import estimates, experiments, reference, running
from rllib_efficientzero.analysis.experiments import Plan
from rllib_efficientzero.analysis.runs import Label
from rllib_efficientzero.cli.experiment import Overrides, load_experiments
from rllib_efficientzero.cli.main import app

BUDGETS = ("smoke", "small", "full")


def paper(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["paper", *arguments])
    return result.exit_code, result.output


def plan(seed: int) -> Plan:
    return Plan(Label("smoke", "Pong", "efficientzero", seed), "atari", None, keep_all_checkpoints=False)


def test_the_full_budget_is_the_papers() -> None:
    counts = {experiment.name: len(experiment.plans("full")) for experiment in experiments.load_all()}
    assert counts["atari100k"] == 26 * 3 * 2
    assert counts["dmc100k"] == 3 * 3
    assert counts["ablations"] == 26 * 3 * 5
    assert experiments.load("atari100k").content["episodes"]["full"] == 32


def test_experiments_share_runs() -> None:
    for budget in BUDGETS:
        table_1 = {plan.name for plan in experiments.load("atari100k").plans(budget)}
        assert table_1 & {plan.name for plan in experiments.load("value-prefix").plans(budget)}


def test_a_shared_run_does_what_all_who_want_it_want() -> None:
    names = ("atari100k", "ablations", "value-targets", "decoder")
    plans = running.shared_plans(plan for name in names for plan in experiments.load(name).plans("smoke"))
    assert len(plans) == len({plan.name for plan in plans}) == 6
    (full,) = [plan for plan in plans if plan.label.variant == "efficientzero"]
    assert (full.episodes, full.keep_all_checkpoints) == (2, True)
    assert "num_to_keep" not in experiments.train_spec(full)["checkpoint_config"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_run_is_an_experiment_that_can_be_prepared(budget: str, tmp_path: pathlib.Path) -> None:
    from rllib_efficientzero.cli.algorithms import prepare

    kinds = {
        (plan.suite, plan.label.variant): plan
        for experiment in experiments.load_all()
        for plan in experiment.plans(budget)
    }
    specs = {plan.name: experiments.train_spec(plan) for plan in kinds.values()}
    file = tmp_path / "experiments.yaml"
    file.write_text(yaml.safe_dump(specs))
    labels = {plan.name: plan.label for plan in kinds.values()}
    for experiment in load_experiments(file, Overrides()):
        config, label = prepare(experiment).config, labels[experiment.name]
        with_consistency = ("efficientzero", "without-value-prefix", "without-correction")
        assert config.use_consistency == (label.variant in with_consistency)
        assert config.seed == label.seed
        if budget == "full" and label.task in reference.atari_games():
            assert (config.total_env_steps, config.updates_at_end(), config.num_simulations) == (100_000, 120_000, 50)


def test_value_targets_are_those_that_the_run_learned_from() -> None:
    experiment = experiments.load("value-targets")
    for budget in BUDGETS:
        (plan,) = experiment.plans(budget)
        trained = experiments.train_spec(plan)["config"]["training"]
        assert experiment.parameters(budget).get("td_steps", 5) == trained.get("td_steps", 5)


def test_estimates_time_a_network_once_and_count_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(cost, "seconds_per_call", lambda network, shape: timed.append(shape) or (1.0, 0.0))
    known = estimates.Estimates()
    plans = experiments.load("atari100k").plans("smoke")
    # 200 steps encode once each; 12 updates of 8 positions encode 6 + 5 for values, 3 to learn, 5 for consistency.
    assert [known.seconds(plan) for plan in plans] == [200 + 12 * 8 * (11 + 3 + 5)] * 2
    assert timed == [(4, 48, 48, 1)]


@pytest.mark.parametrize(
    ("seconds", "told"), [(3, "1 minute"), (90 * 60, "90 minutes"), (3 * 3600, "3 hours"), (5e5, "6 days")]
)
def test_durations_are_told_in_the_unit_a_person_would_use(seconds: float, told: str) -> None:
    assert cost.describe(seconds) == told


def test_only_unfinished_runs_are_trained_and_failures_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = running.Setup(tmp_path, "smoke", jobs=2)
    write_run(tmp_path, plan(0).label, [1.0])
    asked: list[list[str]] = []

    def command(plans: list[Plan], number: int, setup: running.Setup) -> list[str]:
        asked.append([plan.name for plan in plans])
        # Seed 1 comes to its end, seed 2 does not.
        for trained in plans:
            write_run(tmp_path, trained.label, [2.0], done=trained.label.seed == 1)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(running, "_command", command)
    failures = running.train([plan(0), plan(1), plan(2)], setup)
    assert asked == [["Pong_efficientzero_seed-1"], ["Pong_efficientzero_seed-2"]]
    assert failures == ["Pong_efficientzero_seed-2 did not reach its end"]


def test_a_missing_checkpoint_fails_its_experiment_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "train", lambda plans, setup: [])
    failures = running.run(
        [experiments.load("decoder"), experiments.load("value-prefix")], running.Setup(tmp_path, "smoke")
    )
    assert len(failures) == 2
    assert all("there is no checkpoint of Pong_efficientzero_seed-0" in failure for failure in failures)


def test_a_run_that_another_experiment_trained_has_no_stages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, setup = experiments.load("value-targets"), running.Setup(tmp_path, "smoke")
    trial = write_run(tmp_path, plan(0).label, [1.0])
    for number in (16, 17):
        (trial / f"checkpoint_{number:06d}").mkdir()
    monkeypatch.setattr(running, "train", lambda plans, setup: [])
    monkeypatch.setattr(running, "score", lambda plan, setup: None)
    (failure,) = running.run([experiment], setup)
    assert "has kept its last checkpoints only" in failure
    assert str(trial.parent) in failure
    (trial / running.FIRST_CHECKPOINT).mkdir()
    assert running._checkpoints(experiment, setup, {}) == {"efficientzero": trial / "checkpoint_000017"}
    # Whoever gives a checkpoint gets the stages that lie beside it.
    given = {"efficientzero": tmp_path / "mine"}
    assert running._checkpoints(experiment, setup, given) == given


def test_what_a_given_checkpoint_stands_for_is_not_to_be_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates.Estimates, "seconds", lambda self, plan: 60.0)
    write_tiny_policy(tmp_path / "mine")
    arguments = ["run", "decoder", "--budget", "smoke", "--dry-run", "--runs", str(tmp_path / "runs")]
    code, output = paper(*arguments)
    assert (code, output.count("runs to be trained")) == (0, 2)
    code, output = paper(*arguments, "--checkpoint", f"efficientzero={tmp_path / 'mine'}")
    assert code == 0
    assert output.count("runs to be trained") == 1
    assert "atari, without-consistency: 1 of 1 runs to be trained" in output


def test_the_list_names_every_experiment() -> None:
    code, output = paper("list")
    assert code == 0
    assert all(f"{name}:" in output for name in experiments.NAMES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "table-9", "--budget", "smoke"], "unknown experiment 'table-9'; there are atari100k"),
        (["run", "decoder", "--budget", "huge"], "unknown budget 'huge'; there are smoke, small, full"),
        (["run", "decoder", "--budget", "smoke", "--checkpoint", "nonsense"], "write VARIANT=PATH"),
        (["run", "decoder", "--budget", "smoke", "--checkpoint", "efficientzero=/nowhere"], "write VARIANT=PATH"),
        (["run", "decoder", "--budget", "smoke", "--checkpoint", "efficientzero=/"], "There is no policy in /"),
        (
            ["run", "decoder", "--budget", "smoke", "--checkpoint", "effzero=/"],
            "only efficientzero, without-consistency",
        ),
        (["run", "atari100k", "--budget", "smoke", "--checkpoint", "muzero=/"], "they measure with none"),
        (["report", "/nowhere", "-o", "report"], "there is no directory /nowhere"),
    ],
)
def test_wrong_input_is_answered_by_a_sentence(
    arguments: list[str], expected: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = paper(*arguments)
    assert code == 2
    assert expected in " ".join(output.split())
    assert not list(tmp_path.iterdir())
