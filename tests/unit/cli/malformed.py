"""Experiment files with one mistake each: what the answer must say, and on which line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Malformed:
    """A file with a mistake on `line`; the one message must contain all `words`."""

    name: str
    text: str
    line: int | None
    words: tuple[str, ...]


def experiment(body: str = "", config: str = "", run: str = "PPO", env: str = "CartPole-v1") -> str:
    """A correct file on whose lines 4 (`body`) and 6 (`config`) a mistake is put."""
    return f"x:\n  run: {run}\n  env: {env}\n  {body or 'num_samples: 1'}\n  config:\n    {config or 'lr: 0.1'}\n"


BOMB = "\n".join(
    ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)

MALFORMED = [
    # --- YAML itself ---
    Malformed("empty", "", None, ("empty",)),
    Malformed("only a comment", "# nothing\n", None, ("empty",)),
    Malformed("tab indent", "x:\n\trun: PPO\n", 2, ("tab", "spaces")),
    Malformed("unclosed bracket", "x:\n  run: PPO\n  stop: [1, 2\n  env: A\n", 4, ("not valid YAML",)),
    Malformed("unclosed brace", "x: {run: PPO, env: CartPole-v1\n", 2, ("not valid YAML",)),
    Malformed("unclosed quote", "x:\n  run: 'PPO\n", 3, ("not valid YAML", "quoted scalar")),
    Malformed("missing colon", "x:\n  run: PPO\n  env CartPole-v1\n  stop: {}\n", 4, ("not valid YAML",)),
    Malformed("bad indent", "x:\n  run: PPO\n   env: CartPole-v1\n", 3, ("not valid YAML",)),
    Malformed("two documents", experiment() + "---\n" + experiment(), 7, ("second document",)),
    Malformed("duplicate key", experiment(config="lr: 0.1\n    lr: 0.2"), 7, ("duplicate key 'lr'", "line 6")),
    Malformed("duplicate experiment", experiment() + experiment(), 7, ("duplicate key 'x'", "line 1")),
    Malformed(
        "python object", experiment(config="lr: !!python/object/apply:os.system ['true']"), 6, ("python/object",)
    ),
    Malformed("python name", experiment(body="stop: !!python/name:os.system"), 4, ("tag", "python/name")),
    Malformed("custom tag", experiment(config="lr: !secret 1"), 6, ("tag '!secret'",)),
    Malformed("binary tag", experiment(config="seed: !!binary aGFsbG8="), 6, ("tag '!!binary'",)),
    Malformed("deep nesting, flow", "x: " + "[" * 10_000, 1, ("nested deeper",)),
    Malformed("deep nesting, block", "".join(" " * i + "a:\n" for i in range(300)), 51, ("nested deeper",)),
    Malformed("alias bomb", BOMB, None, ("aliases", "too much")),
    Malformed("recursive alias", "x: &x\n  run: PPO\n  config: *x\n", 2, ("aliases",)),
    Malformed("unknown alias", experiment(config="lr: *rate"), 6, ("undefined alias", "rate")),
    Malformed("merge of a list", "a: &a [1]\nx:\n  <<: *a\n", 3, ("'<<' merges mappings",)),
    Malformed("null byte", "x:\n  run: P\0PO\n", 2, ("not allowed in YAML",)),
    Malformed("huge", "# " + "x" * 1_100_000, None, ("characters",)),
    Malformed("key is a boolean", "x:\n  run: PPO\n  on: 1\n", 3, ("'on'", "quote it")),
    Malformed("key is a list", "x:\n  ? [a, b]\n  : 1\n", 2, ("plain string",)),
    Malformed("impossible date", experiment(config="seed: 2024-13-45"), 6, ("2024-13-45", "not a valid value")),
    # --- The file's form ---
    Malformed("a list", "- run: PPO\n", 1, ("map experiment names",)),
    Malformed("a word", "PPO\n", 1, ("map experiment names",)),
    Malformed("no experiment name", "run: PPO\nenv: CartPole-v1\n", 1, ("'run' belongs into an experiment",)),
    Malformed("experiment is a string", "x: PPO\n", 1, ("'x' must be a mapping",)),
    Malformed("experiment is empty", "x:\n", 1, ("'x' must be a mapping",)),
    Malformed("experiment name is a number", "1: {run: PPO}\n", 1, ("experiment name 1",)),
    Malformed("experiment name is a path", "a/b: {run: PPO}\n", 1, ("name a directory",)),
    Malformed("second experiment wrong", experiment() + "y:\n  run: PPPO\n", 8, ("'PPPO'", "did you mean 'PPO'")),
    # --- Keys of an experiment ---
    Malformed("no run", "x:\n  env: CartPole-v1\n", 1, ("'run' is missing", "EfficientZero")),
    Malformed("empty run", experiment(run=""), 1, ("'run' is missing",)),
    Malformed("unknown run", experiment(run="EficientZero"), 2, ("did you mean 'EfficientZero'",)),
    Malformed("run in lower case", experiment(run="ppo"), 2, ("did you mean 'PPO'",)),
    Malformed("removed algorithm", experiment(run="ApexDQN-torch"), 2, ("unknown algorithm", "there are APPO")),
    Malformed("run is a list", experiment(run="[PPO]"), 2, ("'run' must be a string",)),
    Malformed("no env", "x:\n  run: PPO\n", 1, ("no environment", "--env")),
    Malformed("unknown env", experiment(env="CartPol-v1"), 3, ("did you mean 'CartPole-v1'",)),
    Malformed("unknown Atari", experiment(env="ale_py:ALE/Pongg-v5"), 3, ("did you mean 'ale_py:ALE/Pong-v5'",)),
    Malformed("Atari without its module", experiment(env="Pong-v4"), 3, ("did you mean 'ale_py:Pong-v4'",)),
    Malformed("missing env module", experiment(env="no_such_module:Env-v0"), 3, ("pip install no_such_module",)),
    Malformed(
        "unsupported observation space",
        experiment(run="EfficientZero", env="tests.malformed_envs:Texts-v0", config="num_simulations: 4"),
        3,
        ("cannot read observations of Text", "Supported are"),
    ),
    Malformed(
        "env that cannot be made",
        experiment(run="EfficientZero", config="{num_simulations: 4, env_config: {speed: 3}}"),
        3,
        ("'CartPole-v1' cannot be trained on: the environment cannot be made", "'speed'"),
    ),
    Malformed(
        "unknown DMControl task",
        experiment(run="EfficientZero", env="dmc/cartpol-swingup"),
        3,
        ("no task 'cartpol-swingup'", "dmc/cartpole-swingup"),
    ),
    Malformed(
        "DMControl task with too many actions",
        experiment(run="EfficientZero", env="dmc/walker-walk-state"),
        3,
        ("15,625 actions", "bins_per_dimension can be 3 here"),
    ),
    Malformed(
        "typo in Atari settings",
        experiment(run="EfficientZero", env="ALE/Pong-v5", config="{env_config: {frame_skp: 3}}"),
        3,
        ("'ale_py:ALE/Pong-v5' cannot be trained on: the environment cannot be made", 'did you mean "frame_skip"'),
    ),
    Malformed("env is a number", experiment(env="1"), 3, ("'env' must be a string", "1")),
    Malformed("unknown experiment key", experiment("num_sample: 2"), 4, ("did you mean 'num_samples'",)),
    Malformed("config key outside config", experiment("gamma: 0.9"), 4, ("'gamma'", "belongs under 'config'")),
    Malformed("num_samples wrong type", experiment("num_samples: many"), 4, ("whole number", "'many'")),
    Malformed("num_samples zero", experiment("num_samples: 0"), 4, ("at least 1",)),
    Malformed("max_failures too small", experiment("max_failures: -2"), 4, ("at least -1",)),
    Malformed("time budget negative", experiment("time_budget_s: -1"), 4, ("at least 0",)),
    Malformed("checkpoint freq wrong type", experiment("checkpoint_freq: often"), 4, ("whole number",)),
    Malformed("checkpoint at end wrong type", experiment("checkpoint_at_end: 'yes'"), 4, ("true or false",)),
    Malformed("unknown checkpoint key", experiment("checkpoint_config: {num_to_kep: 1}"), 4, ("'num_to_keep'",)),
    Malformed(
        "checkpoint order", experiment("checkpoint_config: {checkpoint_score_order: up}"), 4, ("'min' or 'max'",)
    ),
    Malformed("imports is a string", experiment("imports: my.module"), 4, ("'imports' must be a list",)),
    Malformed("imports holds a number", experiment("imports: [1]"), 4, ("'imports'", "1")),
    # --- Stop criteria ---
    Malformed("stop is a number", experiment("stop: 100"), 4, ("'stop' must be a mapping",)),
    Malformed("unknown stop key", experiment("stop: {training_iterations: 1}"), 4, ("'training_iteration'",)),
    Malformed("stop key far from all", experiment("stop: {zzzzzz: 1}"), 4, ("'zzzzzz'", "section/name")),
    Malformed("typo of an old stop key", experiment("stop: {episode_reward_men: 1}"), 4, ("episode_return_mean",)),
    Malformed("stop in a wrong section", experiment("stop: {env_runner/episode_return_mean: 1}"), 4, ("env_runners/",)),
    Malformed("stop threshold is a word", experiment("stop: {training_iteration: ten}"), 4, ("number", "'ten'")),
    Malformed("stop threshold is empty", experiment("stop: {training_iteration: }"), 4, ("number", "None")),
    Malformed(
        "stop key twice by its old name",
        experiment("stop: {timesteps_total: 1, num_env_steps_sampled_lifetime: 2}"),
        4,
        ("given twice",),
    ),
    # --- Config ---
    Malformed("config is a list", "x:\n  run: PPO\n  env: CartPole-v1\n  config: [lr]\n", 4, ("'config' must be a",)),
    Malformed("unknown config key", experiment(config="lrr: 0.1"), 6, ("did you mean 'lr'",)),
    Malformed("another algorithm's key", experiment(config="num_simulations: 50"), 6, ("a key of EfficientZero",)),
    Malformed("typo in a group", experiment(config="env_runners: {num_env_runers: 1}"), 6, ("'num_env_runners'",)),
    Malformed("typo in a nested block", experiment(config="training:\n      clip_parm: 0.1"), 7, ("'clip_param'",)),
    Malformed("key in a wrong group", experiment(config="learners: {num_env_runners: 1}"), 6, ("group 'learners'",)),
    Malformed("typo of a group", experiment(config="env_runner: {num_env_runners: 1}"), 6, ("'env_runners'",)),
    Malformed("group is a number", experiment(config="training: 3"), 6, ("group of settings",)),
    Malformed("int expected", experiment(config="num_env_runners: two"), 6, ("whole number", "'two'")),
    Malformed("int expected, not a fraction", experiment(config="num_env_runners: 1.5"), 6, ("whole number", "1.5")),
    Malformed("int expected, not a boolean", experiment(config="num_env_runners: true"), 6, ("whole number", "true")),
    Malformed("float expected", experiment(config="gamma: high"), 6, ("number", "'high'")),
    Malformed("bool expected", experiment(config="explore: 'no'"), 6, ("true or false",)),
    Malformed("dict expected", experiment(config="env_config: 3"), 6, ("a mapping",)),
    Malformed("class expected", experiment(config="env_runner_cls: MyRunner"), 6, ("dotted path",)),
    Malformed("negative number", experiment(config="num_env_runners: -1"), 6, ("at least 0",)),
    Malformed("gamma above one", experiment(config="gamma: 99"), 6, ("between 0 and 1",)),
    Malformed("negative learning rate", experiment(config="lr: -0.1"), 6, ("at least 0",)),
    Malformed("empty batch", experiment(config="minibatch_size: 0"), 6, ("at least 1",)),
    Malformed("grid search of a scalar", experiment(config="lr: {grid_search: 1}"), 6, ("'grid_search'", "list")),
    Malformed("wrong value in a grid", experiment(config="lr: {grid_search: [1, fast]}"), 6, ("'fast'",)),
    Malformed("flat and nested differ", experiment(config="lr: 1\n    training: {lr: 2}"), 7, ("given twice",)),
    Malformed("typo in evaluation_config", experiment(config="evaluation_config: {explor: true}"), 6, ("'explore'",)),
    Malformed(
        "typo of an EfficientZero key", experiment(run="EfficientZero", config="num_simulation: 8"), 6, ("lations'",)
    ),
]
