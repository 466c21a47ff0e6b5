"""What is checked once ray is imported, and still before it is started: classes, values, Python files."""

from __future__ import annotations

import pathlib
import sys
import textwrap

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from rllib_efficientzero import known_keys
from rllib_efficientzero.cli.main import app

MODULE = """
import gymnasium
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rllib_efficientzero import EfficientZero
from tests.malformed_envs import TextObservations

class MyConfig(PPOConfig):
    def __init__(self, algo_class=None):
        super().__init__(algo_class=algo_class or MyPPO)
        self.my_setting = 3

class MyPPO(PPO):
    @classmethod
    def get_default_config(cls):
        return MyConfig()

class MyEfficientZero(EfficientZero):
    pass

class MyCallback(RLlibCallback):
    pass

class MyRunner(SingleAgentEnvRunner):
    pass

tune.register_env("registered", lambda config: gymnasium.make("CartPole-v1"))
tune.register_env("texts", lambda config: TextObservations())
tune.register_env("elsewhere", lambda config: 1 / config.worker_index)

def Texts(config):
    return TextObservations()

def CartPole(config):
    return gymnasium.make("CartPole-v1", **config)
"""


@pytest.fixture
def directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry_run(text: str, *arguments: str, name: str = "x.yaml") -> Result:
    pathlib.Path(name).write_text(textwrap.dedent(text))
    return CliRunner().invoke(app, ["train", "file", name, "--dry-run", *arguments])


def experiment(run: str = "PPO", env: str = "CartPole-v1", config: str = "{}", imports: str = "[]") -> str:
    return f"x:\n  run: {run}\n  env: {env}\n  imports: {imports}\n  config: {config}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (experiment(run="no_such.module.Algo"), 2, ("'run'", "no_such")),
        (experiment(run="my_module.Missing"), 2, ("'my_module' has no 'Missing'",)),
        (experiment(run="my_module.MyCallback"), 2, ("no subclass of RLlib's Algorithm",)),
        (experiment(imports="[no_such_module]"), 4, ("'imports'", "no_such_module")),
        (experiment(env="my_module.NoEnv"), 3, ("'env'", "'NoEnv'")),
        (experiment(env="regstered", imports="[my_module]"), 3, ("unknown environment 'regstered'",)),
        (experiment("EfficientZero", "texts", imports="[my_module]"), 3, ("cannot read", "Supported are")),
        (experiment("EfficientZero", "my_module.Texts"), 3, ("cannot read", "Supported are")),
        (experiment(config="{env_runner_cls: my_module.Nope}"), 5, ("'env_runner_cls'", "'Nope'")),
        (experiment(config="{minibatch_size: 100, train_batch_size_per_learner: 10}"), 5, ("`minibatch_size` (100)",)),
        (experiment(config="{lr: {grid_search: [0.1]}, minibatch_size: 9999}"), 5, ("`minibatch_size` (9999)",)),
        (experiment(config="{framework: tf2}"), 5, ("framework",)),
        (experiment("EfficientZero", config="{search: uct}"), 5, ("`search` must be one of", "'uct'")),
        (experiment("EfficientZero", config="{search: {grid_search: [puct, uct]}}"), 5, ("'uct'",)),
        (experiment("my_module.MyPPO", config="{my_settin: 4}"), 5, ("did you mean 'my_setting'",)),
        (experiment("my_module.MyPPO", config="{env_runners: {explor: 4}}"), 5, ("did you mean 'explore'",)),
    ],
)
def test_mistakes_found_by_importing(directory: pathlib.Path, text: str, line: int, words: tuple[str, ...]) -> None:
    result = dry_run(text)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: x.yaml:{line}: ")
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) == 1


def test_own_classes_and_registered_envs(directory: pathlib.Path) -> None:
    config = "{my_setting: 4, env_runner_cls: my_module.MyRunner, callbacks: my_module.MyCallback, num_workers: 0}"
    result = dry_run(experiment("my_module.MyPPO", "registered", config, "[my_module]"))
    assert result.exit_code == 0, result.output
    plan = yaml.safe_load(result.stdout)["x"]["config"]
    assert plan["my_setting"] == 4
    assert plan["env"] == "registered"
    assert plan["env_runner_cls"] == "my_module.MyRunner"
    assert plan["callbacks"] == "my_module.MyCallback"
    assert result.stderr == "warning: 'num_workers' is now called 'num_env_runners'\n"


def test_a_function_that_makes_an_environment_goes_by_its_path(directory: pathlib.Path) -> None:
    config = "{env_config: {max_episode_steps: 30}}"
    result = dry_run(experiment("EfficientZero", "my_module.CartPole", config))
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout)["x"]["config"]["env"] == "my_module.CartPole"


def test_an_environment_that_only_other_machines_can_make_is_left_to_them(directory: pathlib.Path) -> None:
    text = experiment("EfficientZero", "elsewhere", imports="[my_module]")
    result = dry_run(text, "--ray-address", "auto")
    assert result.exit_code == 0, result.output
    complaint = "the environment 'elsewhere' cannot be made here: ZeroDivisionError: "
    assert f"warning: {complaint}" in result.stderr
    alone = dry_run(text)
    assert alone.exit_code == 2, alone.output
    assert alone.stderr.startswith(f"error: x.yaml:3: {complaint}")


def test_the_extra_of_minigrid_is_named(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("minigrid", "minigrid.wrappers"):
        monkeypatch.setitem(sys.modules, module, None)
    config = "{env_config: {name: MiniGrid-Empty-6x6-v0}}"
    result = dry_run(experiment("EfficientZero", "rllib_efficientzero.env.minigrid.make_pixels", config))
    assert result.exit_code == 2, result.output
    assert "run pip install 'rllib_efficientzero[minigrid]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("algorithm", known_keys.algorithm_names())
def test_every_algorithm_prepares(algorithm: str, directory: pathlib.Path) -> None:
    continuous = {"SAC", "CQL", "IQL"}
    env = "Pendulum-v1" if algorithm in continuous else "CartPole-v1"
    offline = algorithm in {"BC", "CQL", "IQL", "MARWIL"}
    lr = "null" if algorithm == "CQL" else "1e-4"
    data = (
        f"{{offline_data: {{input_: [nowhere], dataset_num_iters_per_learner: 1}}, evaluation_interval: 1, lr: {lr}}}"
    )
    config = data if offline else "{num_env_runners: 0}"
    result = dry_run(experiment(algorithm, env, config))
    assert result.exit_code == 0, result.output
    assert f"# x: {algorithm}, not started" in result.stdout
    assert yaml.safe_load(result.stdout)["x"]["resources_per_trial"]["total"]["CPU"] >= 1


def test_dry_run_shows_what_would_run(directory: pathlib.Path) -> None:
    config = "{training: {gamma: {grid_search: [0.9, 0.99]}}, env_runners: {num_env_runners: 3}}"
    result = dry_run(experiment(config=config), "--stop", '{"timesteps_total": 1e4}', "--seed", "5")
    plan = yaml.safe_load(result.stdout)["x"]
    assert plan["stop"] == {"num_env_steps_sampled_lifetime": 1e4}
    assert plan["search_space"] == {"gamma": {"grid_search": [0.9, 0.99]}}
    assert plan["resources_per_trial"] == {"total": {"CPU": 4}, "bundles": [{"CPU": 1}] * 4}
    assert plan["config"]["seed"] == 5
    assert "sample_timeout_s" not in plan["config"]
    verbose = yaml.safe_load(dry_run(experiment(config=config), "-v").stdout)["x"]
    assert verbose["config"]["sample_timeout_s"] == 60.0


def test_dry_run_warns_of_a_machine_that_is_too_small(directory: pathlib.Path) -> None:
    text = experiment(config="{num_env_runners: 4}")
    result = dry_run(text, "--ray-num-cpus", "2")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: x.yaml:1: one trial needs 5 CPUs (there are 2); ask for less")
    assert dry_run(text, "--ray-num-cpus", "5").stderr == ""
    assert dry_run(text, "--ray-address", "auto").stderr == ""


def test_notices_and_protocol_are_asked_of_the_config(directory: pathlib.Path) -> None:
    module = MODULE + textwrap.indent(
        "\ndef get_notices(self):\n    return ['This takes 3 years.']\n"
        "\ndef describe_protocol(self):\n    return {'frame_skip': 4}\n",
        "",
    )
    module += "\nMyConfig.get_notices = get_notices\nMyConfig.describe_protocol = describe_protocol\n"
    (directory / "talking.py").write_text(module)
    result = dry_run(experiment("talking.MyPPO"))
    assert yaml.safe_load(result.stdout)["x"]["protocol"] == {"frame_skip": 4}
    assert result.stdout.endswith("# This takes 3 years.\n")


def test_python_file(directory: pathlib.Path) -> None:
    text = """
        from ray.rllib.algorithms.ppo import PPOConfig
        config = PPOConfig().environment("CartPole-v1").training(lr=0.25)
        stop = {"episode_reward_mean": 100}
    """
    result = dry_run(text, "--config", '{"env_runners": {"num_env_runners": 1}}', name="my_run.py")
    assert result.exit_code == 0, result.output
    plan = yaml.safe_load(result.stdout)["my_run"]
    assert plan["stop"] == {"env_runners/episode_return_mean": 100}
    assert plan["config"]["lr"] == 0.25
    assert plan["config"]["num_env_runners"] == 1


PYTHON_FILE = """
    from {module} import {algorithm}Config
    config = {algorithm}Config().environment("CartPole-v1")
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (experiment("EfficientZero"), "x.yaml"),
        (experiment("rllib_efficientzero.EfficientZero"), "x.yaml"),
        (experiment("my_module.MyEfficientZero"), "x.yaml"),
        (PYTHON_FILE.format(module="rllib_efficientzero", algorithm="EfficientZero"), "x.py"),
    ],
    ids=["by name", "by path", "a class of one's own", "in Python"],
)
def test_efficientzero_ends_when_its_budget_is_learnt(directory: pathlib.Path, text: str, name: str) -> None:
    assert yaml.safe_load(dry_run(text, name=name).stdout)["x"]["stop"] == {"training_done": 1}
    given = dry_run(text, "--stop", '{"training_iteration": 3, "training_done": 2}', name=name)
    assert yaml.safe_load(given.stdout)["x"]["stop"] == {"training_iteration": 3, "training_done": 2}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (experiment("PPO"), "x.yaml"),
        (experiment("my_module.MyPPO"), "x.yaml"),
        (PYTHON_FILE.format(module="ray.rllib.algorithms.ppo", algorithm="PPO"), "x.py"),
    ],
    ids=["by name", "a class of one's own", "in Python"],
)
def test_what_has_no_budget_goes_on(directory: pathlib.Path, text: str, name: str) -> None:
    assert "stop" not in yaml.safe_load(dry_run(text, name=name).stdout)["x"]


def test_python_file_without_a_config(directory: pathlib.Path) -> None:
    result = dry_run("configuration = 1", name="my_run.py")
    assert result.exit_code == 2
    assert result.stderr == "error: my_run.py: a Python file needs a module-level `config = SomeAlgorithmConfig()...`\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "{"], "--config: not valid JSON"),
        (["--config", '{"lrr": 1}'], "--config: unknown key 'lrr' in the config of PPO; did you mean 'lr'?"),
        (["--stop", '{"training_iterations": 1}'], "--stop: unknown stop criterion"),
        (["--env", "CartPol-v1"], "--env: unknown environment 'CartPol-v1'"),
        (["--checkpoint-freq", "-1"], "--checkpoint-freq"),
        (["--seed", "x"], "--seed"),
        (["--storge-path", "x"], "--storage-path"),
    ],
)
def test_wrong_options(directory: pathlib.Path, arguments: list[str], words: str) -> None:
    result = dry_run(experiment(), *arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:ray", "127.0.0.1:99999999"])
def test_unreachable_cluster_is_refused_at_once(directory: pathlib.Path, address: str) -> None:
    pathlib.Path("x.yaml").write_text(experiment())
    result = CliRunner().invoke(app, ["train", "file", "x.yaml", "--ray-address", address])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --ray-address: no ray cluster answers at")


@pytest.mark.parametrize("name", ["x.yml", "x.json", "missing.yaml"])
def test_wrong_files(directory: pathlib.Path, name: str) -> None:
    pathlib.Path("x.yaml").write_text(experiment())
    pathlib.Path("x.json").write_text("{}")
    result = CliRunner().invoke(app, ["train", "file", name])
    assert result.exit_code == 2
    assert name in result.stderr
    assert ("did you mean 'x.yaml'" in result.stderr) == (name == "x.yml")


def test_an_algorithm_whose_packages_are_missing_is_refused(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.rllib.algorithms import registry

    def needs_more() -> None:
        raise ModuleNotFoundError("No module named 'PIL'")

    monkeypatch.setitem(registry.ALGORITHMS, "DreamerV3", needs_more)
    result = dry_run(experiment("DreamerV3", "CartPole-v1", "{num_env_runners: 0}"))
    assert result.exit_code == 2, result.output
    assert "No module named 'PIL'" in result.output
