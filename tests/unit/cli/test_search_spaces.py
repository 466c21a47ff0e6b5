"""Search spaces and schedulers of experiment files: what they mean to Tune, and which mistakes in them are found."""

from __future__ import annotations

import pathlib
import runpy

import pytest
import yaml

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides, load_experiments
from rllib_efficientzero.search_space import has_search_space, is_search_space

EXAMPLES = pathlib.Path(__file__).parents[3] / "tuned_examples"


def load(directory: pathlib.Path, config: str = "{}", **keys: str) -> Experiment:
    lines = ["search:", "  run: EfficientZero", "  env: CartPole-v1"]
    lines += [f"  {key}: {value}" for key, value in keys.items()]
    (directory / "search.yaml").write_text("\n".join([*lines, f"  config: {config}"]))
    (experiment,) = load_experiments(directory / "search.yaml", Overrides())
    return experiment


def test_spaces_are_checked_value_by_value(tmp_path: pathlib.Path) -> None:
    config = load(tmp_path, "{lr: {loguniform: ['1e-4', 1]}, num_simulations: {choice: [8, 16.0]}}").config
    assert config["lr"] == {"loguniform": [1e-4, 1.0]}
    assert config["num_simulations"] == {"choice": [8, 16]}
    assert has_search_space(config)
    assert not is_search_space({"uniform": [0, 1], "lr": 2})


def test_spaces_are_found_wherever_tune_looks_for_them(tmp_path: pathlib.Path) -> None:
    """In mappings and lists; numbers that YAML reads as strings are numbers there, and as steps."""
    from rllib_efficientzero.cli.algorithms import _variants

    inner = "{a: [{loguniform: ['1e-4', 1]}, 2], b: {quniform: [0, 1, '5e-1']}}"
    config = load(tmp_path, f"{{env_config: {inner}, lr: {{quniform: [0, '1e-2', '1e-3']}}}}").config
    assert config["lr"] == {"quniform": [0.0, 0.01, 0.001]}
    assert config["env_config"] == {"a": [{"loguniform": [1e-4, 1]}, 2], "b": {"quniform": [0, 1, 0.5]}}
    (variant,) = _variants(config)
    assert not has_search_space(variant)
    (drawn, given), stepped = variant["env_config"]["a"], variant["env_config"]["b"]
    assert 1e-4 <= drawn <= 1
    assert given == 2
    assert stepped in (0, 0.5, 1)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{lr: {uniform: 3}}", "'uniform' of 'lr' must be [low, high]"),
        ("{lr: {uniform: [1, 0.5]}}", "must go upwards: 1.0 to 0.5"),
        ("{lr: {loguniform: [0, 1]}}", "must begin above 0"),
        ("{lr: {quniform: [0, 1]}}", "must be [low, high, step]"),
        ("{lr: {choice: []}}", "at least one value"),
        ("{lr: {choice: [1, fast]}}", "'lr' must be"),
        ("{num_simulations: {uniform: [4, 8]}}", "takes whole numbers: use 'randint'"),
        ("{num_simulations: {randint: [4, eight]}}", "'num_simulations' must be a whole number"),
        ("{num_simulations: {randint: [-4, 8]}}", "'num_simulations' must be at least"),
        ("{lr: {quniform: [0, 1, slow]}}", "must be [low, high, step], numbers"),
        ("{lr: {quniform: [0.1, 1, 0.3]}}", "must begin and end at multiples of its step 0.3"),
        ("{lr: {uniform: [0, .inf]}}", "must be [low, high], numbers"),
        ("{env_config: {size: {uniform: 3}}}", "'uniform' of 'size' must be [low, high]"),
        ("{env_config: {sizes: [{choice: []}]}}", "'choice' of 'sizes' must be a list of at least one value"),
    ],
)
def test_bad_spaces_are_refused_with_their_line(tmp_path: pathlib.Path, config: str, complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, config)
    assert complaint in str(refusal.value)
    assert refusal.value.where.endswith("search.yaml:4")


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"scheduler": "ashha"}, "unknown scheduler 'ashha'; did you mean 'asha'?"),
        ({"scheduler": "{max_t: 3}"}, "'scheduler' needs a name"),
        ({"scheduler": "{name: asha, maxt: 3}"}, "did you mean 'max_t'?"),
        ({"scheduler": "{name: asha, max_t: long}"}, "'max_t' must be a whole number"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {lr: 3}}"}, "must be a search space or a list"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {lr: {}}}"}, "'lr' must map keys of the config"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {uniform: [0, 1]}}"}, "must map keys of the config"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {lrr: [1]}}"}, "did you mean 'lr'?"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {training: {env: [A]}}}"}, "in group 'training'"),
        ({"scheduler": "{name: pbt, hyperparam_mutations: {lr: [fast]}}"}, "'lr' must be"),
        ({"mode": "best"}, "'mode' must be 'max' or 'min'"),
        ({"metric": "reward"}, "unknown metric 'reward'"),
        ({"max_concurrent": "0"}, "'max_concurrent' must be at least 1"),
    ],
)
def test_bad_schedulers_are_refused_with_their_line(
    tmp_path: pathlib.Path, keys: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, **keys)
    assert complaint in str(refusal.value)
    assert refusal.value.where.endswith("search.yaml:4")


def test_mutations_are_written_as_a_config(tmp_path: pathlib.Path) -> None:
    written = "{training: {lr: {loguniform: ['1e-4', 1]}}, num_workers: [1, 2.0], env_config: {a: {b: [x, y]}}}"
    experiment = load(tmp_path, scheduler=f"{{name: pbt, hyperparam_mutations: {written}}}")
    assert experiment.search.scheduler_settings["hyperparam_mutations"] == {
        "lr": {"loguniform": [1e-4, 1.0]},
        "num_env_runners": {"choice": [1, 2]},
        "env_config": {"a": {"b": {"choice": ["x", "y"]}}},
    }
    assert "'num_workers' is now called 'num_env_runners'" in experiment.warnings


PBT = "{name: pbt, quantile_fraction: 0.5}"


def test_pbt_takes_neighbours_of_choices_and_multiplies_numbers() -> None:
    """However they are written, and wherever they stand; a file in Python has Tune's own objects."""
    from ray import tune
    from ray.tune.schedulers.pbt import _explore

    from rllib_efficientzero.cli.schedulers import mutations

    space = {
        "grid": {"grid_search": ["a", "b", "c"]},
        "list": {"inner": {"choice": [0.25, 0.5, 1.0]}, "fixed": [{"choice": [1]}]},
        "ours": {"uniform": [0, 1]},
        "theirs": tune.loguniform(1e-3, 1),
        "their_choice": {"inner": tune.choice([1, 3])},
        "function": tune.sample_from(lambda spec: 1),
        "gamma": 0.9,
    }
    mutated = mutations(space)
    assert set(mutated) == {"grid", "list", "ours", "theirs", "their_choice"}
    assert (mutated["grid"], mutated["list"]) == (["a", "b", "c"], {"inner": [0.25, 0.5, 1.0]})
    assert mutated["their_choice"] == {"inner": [1, 3]}
    config = {
        "grid": "b",
        "list": {"inner": 0.5, "fixed": [1]},
        "ours": 0.5,
        "theirs": 0.5,
        "their_choice": {"inner": 1},
    }
    for _ in range(50):
        new, _ = _explore(config, mutated, 0.1, (1.2, 0.8), None)
        assert new["grid"] in "abc"
        assert new["list"]["inner"] in (0.25, 0.5, 1.0)
        assert new["list"]["fixed"] == [1]
        assert new["their_choice"]["inner"] in (1, 3)
        assert 0 < new["ours"] <= 1


@pytest.mark.parametrize(
    ("keys", "config", "complaint"),
    [
        ({"scheduler": PBT}, "{lr: 0.1}", "'pbt' mutates search spaces: write one into the config"),
        ({"scheduler": "{name: pbt, quantile_fraction: 0.7}"}, "{lr: {choice: [1, 2]}}", "`quantile_fraction`"),
        ({"scheduler": "{name: asha, grace_period: 9, max_t: 3}"}, "{lr: 0.1}", "grace_period must be <= max_t"),
        (
            {"scheduler": "{name: pbt, hyperparam_mutations: {model_config: {latent_size: [8, 16]}}}"},
            "{model_config: {head_hiddens: [8]}}",
            "the config's 'model_config' must have a 'latent_size' for 'pbt' to begin with",
        ),
    ],
)
def test_what_tune_would_refuse_is_refused_before_ray_starts(
    tmp_path: pathlib.Path, keys: dict[str, str], config: str, complaint: str
) -> None:
    from rllib_efficientzero.cli.algorithms import prepare

    with pytest.raises(InputError) as refusal:
        prepare(load(tmp_path, config, **keys))
    assert complaint in str(refusal.value)
    assert refusal.value.where.endswith("search.yaml:4")


def test_pbt_mutates_nested_spaces_alone(tmp_path: pathlib.Path) -> None:
    from rllib_efficientzero.cli.algorithms import prepare
    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.signals import Stop

    prepared = prepare(load(tmp_path, "{optimizer: {type: sgd, momentum: {uniform: [0, 0.9]}}}", scheduler=PBT))
    scheduler = make_scheduler(prepared.experiment.search, prepared.param_space, Stop())
    assert list(scheduler._hyperparam_mutations["optimizer"]) == ["momentum"]


def test_pbt_mutates_the_spaces_of_a_file_in_python(tmp_path: pathlib.Path) -> None:
    from rllib_efficientzero.cli.algorithms import prepare
    from rllib_efficientzero.cli.python_source import load_python_experiment
    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.signals import Stop

    lines = ["from ray import tune", "from ray.rllib.algorithms.ppo import PPOConfig"]
    lines += [
        "config = PPOConfig().environment('CartPole-v1', env_config={'max_episode_steps': tune.choice([20, 30])})"
    ]
    lines += ["config = config.training(lr=tune.loguniform(1e-4, 1e-2))"]
    (tmp_path / "x.py").write_text("\n".join(lines))
    prepared = prepare(load_python_experiment(tmp_path / "x.py", Overrides(scheduler={"name": "pbt"})))
    mutated = make_scheduler(prepared.experiment.search, prepared.param_space, Stop())._hyperparam_mutations
    assert set(mutated) == {"lr", "env_config"}
    assert mutated["env_config"] == {"max_episode_steps": [20, 30]}


def test_mutations_of_a_class_of_ones_own_are_checked_once_it_is_imported(tmp_path: pathlib.Path) -> None:
    from rllib_efficientzero.cli.algorithms import prepare

    def prepared(mutations: str) -> dict[str, object]:
        lines = ["search:", "  run: rllib_efficientzero.EfficientZero", "  env: CartPole-v1"]
        lines += ["  config: {}", f"  scheduler: {{name: pbt, hyperparam_mutations: {mutations}}}"]
        (tmp_path / "search.yaml").write_text("\n".join(lines))
        (experiment,) = load_experiments(tmp_path / "search.yaml", Overrides())
        return prepare(experiment).experiment.search.scheduler_settings["hyperparam_mutations"]

    assert prepared("{training: {lr: ['1e-3', 1]}}") == {"lr": {"choice": [0.001, 1.0]}}
    with pytest.raises(InputError, match=r"search.yaml:5: unknown key 'lrr'.*did you mean 'lr'"):
        prepared("{lrr: [1]}")


@pytest.mark.parametrize(("kept", "is_warned_of"), [(2, True), (4, False)])
def test_pbt_needs_more_than_two_checkpoints(tmp_path: pathlib.Path, kept: int, is_warned_of: bool) -> None:
    from rllib_efficientzero.cli.algorithms import prepare

    keys = {"scheduler": PBT, "checkpoint_config": f"{{num_to_keep: {kept}}}"}
    warnings = prepare(load(tmp_path, "{lr: {choice: [1, 2]}}", **keys)).experiment.warnings
    assert any("may be deleted before 'pbt' has copied it" in warning for warning in warnings) is is_warned_of


def test_old_names_are_translated(tmp_path: pathlib.Path) -> None:
    experiment = load(tmp_path, scheduler="AsyncHyperBand", metric="episode_reward_mean")
    assert experiment.search.scheduler == "asha"
    assert experiment.search.metric == "env_runners/episode_return_mean"
    assert any("episode_reward_mean" in warning for warning in experiment.warnings)


def test_tune_draws_from_what_the_file_says() -> None:
    """Imports ray, and starts none."""
    from rllib_efficientzero.cli.algorithms import _variants
    from rllib_efficientzero.cli.schedulers import make_scheduler, tune_space
    from rllib_efficientzero.cli.search_settings import SearchSettings
    from rllib_efficientzero.cli.signals import Stop

    space = {
        "lr": {"loguniform": [1e-4, 1e-2]},
        "num_simulations": {"grid_search": [4, 8]},
        "td_steps": {"qrandint": [5, 15, 5]},
        "nested": {"inner": {"choice": [7]}},
        "gamma": 0.9,
    }
    drawn = list(_variants(space))
    assert [variant["num_simulations"] for variant in drawn] == [4, 8]
    for variant in drawn:
        assert 1e-4 <= variant["lr"] <= 1e-2
        assert variant["td_steps"] in (5, 10, 15)
        assert variant["nested"] == {"inner": 7}
    for name in ("fifo", "asha", "median", "pbt"):
        stop = Stop()
        scheduler = make_scheduler(SearchSettings(scheduler=name), space, stop)
        assert scheduler.set_search_properties("a", "max")
        assert scheduler.choose_trial_to_run.__name__ == "choose_trial_to_run"
        stop.handle(2, None)
        assert scheduler.on_trial_result(None, None, {}) == "PAUSE"
        assert scheduler.choose_trial_to_run(None) is None
    assert set(make_scheduler(SearchSettings(scheduler="pbt"), space, stop)._hyperparam_mutations) >= {"lr", "td_steps"}
    assert tune_space(space)["gamma"] == 0.9


def test_a_trial_without_a_return_is_judged_by_its_next_one() -> None:
    """At ASHA's rung RLlib may report NaN: no episode has ended in this iteration."""
    from types import SimpleNamespace

    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.search_settings import SearchSettings
    from rllib_efficientzero.cli.signals import Stop

    settings = {"grace_period": 2, "max_t": 10, "reduction_factor": 2}
    asha = make_scheduler(SearchSettings("asha", settings), {}, Stop())
    assert asha.set_search_properties("a/b", "max")
    good, bad = (SimpleNamespace(trial_id=name) for name in ("good", "bad"))
    for trial in (good, bad):
        asha.on_trial_add(None, trial)

    def report(trial: SimpleNamespace, iteration: int, value: float) -> str:
        return asha.on_trial_result(None, trial, {"training_iteration": iteration, "a/b": value})

    assert report(good, 2, float("nan")) == "CONTINUE"
    assert report(good, 3, 9.0) == "CONTINUE"
    assert report(bad, 2, float("nan")) == "CONTINUE"
    assert report(bad, 3, 1.0) == "STOP"


@pytest.mark.parametrize("name", ["fifo", "asha", "median", "pbt"])
@pytest.mark.parametrize("result", [{}, {"a/b": float("nan")}])
def test_a_result_without_the_metric_is_not_judged(name: str, result: dict[str, float]) -> None:
    """The first results have no return, and most have no evaluation; a trial may end with such a one."""
    from unittest.mock import Mock

    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.search_settings import SearchSettings
    from rllib_efficientzero.cli.signals import Stop

    settings = {
        "fifo": {},
        "asha": {"grace_period": 1},
        "median": {"grace_period": 1, "min_samples_required": 1},
        "pbt": {"perturbation_interval": 1, "hyperparam_mutations": {"lr": {"choice": [1, 2]}}},
    }
    scheduler = make_scheduler(SearchSettings(name, settings[name]), {}, Stop())
    assert scheduler.set_search_properties("a/b", "max")
    without, judged = trials = [Mock(trial_id=trial_id, config={"lr": 1}) for trial_id in "12"]
    controller = Mock(search_alg=None, get_live_trials=lambda: trials, get_trials=lambda: trials)
    for trial in trials:
        trial.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = None
        scheduler.on_trial_add(controller, trial)
    result = {"training_iteration": 2, **result}
    assert scheduler.on_trial_result(controller, without, result) == "CONTINUE"
    scheduler.on_trial_complete(controller, without, result)
    assert scheduler.on_trial_result(controller, judged, {"training_iteration": 2, "a/b": 3.0}) == "CONTINUE"


def test_no_population_waits_for_a_trial_that_has_ended() -> None:
    """Of two that perturb together; one that still runs is waited for, and a signal ends them."""
    from unittest.mock import Mock

    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.search_settings import SearchSettings
    from rllib_efficientzero.cli.signals import Stop

    stop = Stop()
    settings = {"perturbation_interval": 2, "synch": True, "hyperparam_mutations": {"lr": {"choice": [1, 2]}}}
    pbt = make_scheduler(SearchSettings("pbt", settings), {}, stop)
    assert pbt.set_search_properties("a/b", "max")
    trials = [Mock(trial_id=trial_id, config={"lr": 1}, status="RUNNING") for trial_id in "12"]
    live = list(trials)
    controller = Mock(search_alg=None, get_live_trials=lambda: live, get_trials=lambda: trials)
    for trial in trials:
        trial.is_finished = lambda trial=trial: trial.status == "TERMINATED"
        trial.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = None
        pbt.on_trial_add(controller, trial)
    waiting, ending = trials
    waiting.status = pbt.on_trial_result(controller, waiting, {"training_iteration": 2, "a/b": 3.0}) + "D"
    assert waiting.status == "PAUSED"
    assert pbt.choose_trial_to_run(controller) is None, "the other one comes yet"
    ending.status = "TERMINATED"
    live.remove(ending)
    assert pbt.choose_trial_to_run(controller) is waiting
    stop.handle(2, None)
    assert pbt.choose_trial_to_run(controller) is None


def test_median_ends_a_trial_that_is_worse_than_the_others_were() -> None:
    """Others that got less far say nothing of it."""
    from unittest.mock import Mock

    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.search_settings import SearchSettings
    from rllib_efficientzero.cli.signals import Stop

    median = make_scheduler(SearchSettings("median", {"grace_period": 2, "min_samples_required": 1}), {}, Stop())
    assert median.set_search_properties("a/b", "max")
    good, bad = (Mock(trial_id=name) for name in ("good", "bad"))

    def report(trial: Mock, iteration: int, value: float) -> str:
        controller = Mock(get_live_trials=lambda: [good, bad])
        return median.on_trial_result(controller, trial, {"training_iteration": iteration, "a/b": value})

    assert report(bad, 1, 1.0) == "CONTINUE", "within the grace period"
    assert [report(good, iteration, 9.0) for iteration in (1, 2)] == ["CONTINUE", "CONTINUE"]
    assert report(bad, 3, 1.0) == "CONTINUE", "nobody got as far"
    assert report(good, 4, 9.0) == "CONTINUE"
    assert report(bad, 4, 1.0) == "STOP"


@pytest.mark.parametrize("name", ["cartpole-ez-tune", "pong-ez-tune"])
def test_examples_of_searches(name: str) -> None:
    (experiment,) = load_experiments(EXAMPLES / f"{name}.yaml", Overrides())
    assert experiment.num_samples == 8
    assert has_search_space(experiment.config)
    assert (
        experiment.search.scheduler
        == yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())[name]["scheduler"]["name"]
    )


def test_the_search_in_python_is_that_of_the_file() -> None:
    from rllib_efficientzero import EfficientZeroConfig
    from rllib_efficientzero.cli.schedulers import tune_space

    twin = runpy.run_path(str(EXAMPLES / "cartpole_ez_tune.py"))["make_config"]().to_dict()
    (experiment,) = load_experiments(EXAMPLES / "cartpole-ez-tune.yaml", Overrides())
    of_file = EfficientZeroConfig().update_from_dict(tune_space(experiment.config)).to_dict()
    searched = {key for key, value in experiment.config.items() if is_search_space(value)}
    assert searched == {"lr", "num_simulations", "td_steps"}
    for key in searched:
        assert twin[key].domain_str == of_file[key].domain_str
    differing = {key for key in twin if twin[key] != of_file[key]} - searched
    assert differing == set()
