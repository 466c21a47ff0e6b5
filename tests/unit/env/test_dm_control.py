"""DMControl as its benchmark plays it: repeats, bins, time limits, images, names."""

from __future__ import annotations

import ctypes.util
import itertools
import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero.env import rendering
from rllib_efficientzero.env.dm_control import BinnedActions, DmcEnv, DmcProtocol, make_dmc, task_problem
from rllib_efficientzero.env.guard import GuardPolicy
from rllib_efficientzero.env.making import env_maker, make_vector_env
from rllib_efficientzero.env.rendering import RenderingError, choose_renderer

pytest.importorskip("dm_control")
SWINGUP = "dmc/cartpole-swingup"


# --- Names and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "repeat"),
    [("cartpole-swingup", 8), ("reacher-easy", 4), ("ball_in_cup-catch", 4), ("hopper-hop", 2), ("walker-walk", 2)],
)
def test_action_repeats_are_the_benchmarks(task: str, repeat: int) -> None:
    assert DmcProtocol(f"dmc/{task}").action_repeat == repeat
    assert DmcProtocol(task, action_repeat=3).action_repeat == 3


def test_state_observations_by_name_or_by_setting() -> None:
    assert DmcProtocol(SWINGUP).from_pixels is True
    for protocol in (DmcProtocol(f"{SWINGUP}-state"), DmcProtocol(SWINGUP, from_pixels=False)):
        assert (protocol.from_pixels, protocol.task) == (False, "cartpole-swingup")
    assert DmcProtocol(f"{SWINGUP}-state").describe()["observation_shape"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"action_repeats": 4}, 'did you mean "action_repeat"'),
        ({"action_repeat": 0}, "action_repeat must be a whole number of at least 1, not 0"),
        ({"bins_per_dimension": 1}, "at least 2"),
        ({"image_size": "96"}, "image_size must be a whole number"),
        ({"from_pixels": 1}, "from_pixels must be True or False"),
        ({"render_quality": "low"}, "'full' or 'fast'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DmcProtocol.from_config({"task": SWINGUP, **settings})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmc/cartpol-swingup", "there are dmc/cartpole-swingup"),
        ("dmc/walker-fly", "there are dmc/walker-walk, dmc/walker-run, dmc/walker-stand."),
        ("dmc/walker", "dmc/walker-walk"),
        ("dmc/nothing-like-it", "dmc/acrobot-swingup"),
    ],
)
def test_unknown_tasks_are_answered_with_the_nearest(name: str, words: str) -> None:
    assert words in str(task_problem(name))
    with pytest.raises(ValueError, match=words):
        make_dmc({"task": name})


def test_known_tasks_have_no_problem() -> None:
    assert all(task_problem(name) is None for name in (SWINGUP, f"{SWINGUP}-state", "dmc/humanoid_CMU-run"))


# --- Playing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state_env() -> gym.Env:
    return make_dmc({"task": f"{SWINGUP}-state"})


def suite_env(seed: int) -> Any:
    from dm_control import suite

    return suite.load("cartpole", "swingup", task_kwargs={"random": seed})


def test_a_decision_repeats_its_action_and_sums_the_rewards(state_env: gym.Env) -> None:
    plain = suite_env(3)
    first = plain.reset()
    observation, _ = state_env.reset(seed=3)
    np.testing.assert_allclose(observation, np.concatenate(list(first.observation.values())), rtol=1e-6)
    for action in (0, 4, 2, 3, 1):
        rewards = []
        for _ in range(8):
            time_step = plain.step(np.array([-1 + action / 2]))
            rewards.append(time_step.reward)
        observation, reward, terminated, truncated, _ = state_env.step(action)
        assert reward == pytest.approx(sum(rewards))
        np.testing.assert_allclose(observation, np.concatenate(list(time_step.observation.values())), rtol=1e-5)
        assert (terminated, truncated) == (False, False)


def test_the_time_limit_truncates_after_a_thousand_steps(state_env: gym.Env) -> None:
    state_env.reset(seed=0)
    ends = [state_env.step(2)[2:4] for _ in range(125)]
    assert ends == [(False, False)] * 124 + [(False, True)]


def test_a_repeat_that_does_not_divide_the_episode_ends_with_it() -> None:
    env = make_dmc({"task": f"{SWINGUP}-state", "action_repeat": 300})
    env.reset(seed=0)
    assert [env.step(2)[3] for _ in range(4)] == [False, False, False, True]
    env.close()


def test_the_few_tasks_that_end_by_themselves_terminate() -> None:
    class LastStep:
        reward, discount, observation = 1.0, 0.0, {"x": 1.0}

        def last(self) -> bool:
            return True

    class Ends:
        def step(self, action: Any) -> LastStep:
            return LastStep()

    env = DmcEnv(DmcProtocol(f"{SWINGUP}-state"))
    env._env = Ends()
    assert env.step(np.zeros(1))[1:4] == (1.0, True, False)


def test_seeds_decide_episodes(state_env: gym.Env) -> None:
    def play(seed: int | None) -> np.ndarray:
        return np.stack([state_env.reset(seed=seed)[0], *(state_env.step(action)[0] for action in (0, 4, 1))])

    first = play(1)
    assert not np.array_equal(play(None), first), "the next episode is another"
    np.testing.assert_array_equal(play(1), first)
    assert not np.array_equal(play(2), first)


def test_bins_cover_each_dimension_and_all_combinations() -> None:
    env = make_dmc({"task": "dmc/reacher-easy-state"})
    assert env.action_space == gym.spaces.Discrete(25)
    values = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert env.actions.tolist() == [list(pair) for pair in itertools.product(values, values)]
    assert env.action(7).tolist() == [-0.5, 0.0]
    env.close()


@pytest.mark.parametrize(
    ("bins", "dimensions", "words"),
    [(5, 6, "15,625 actions, more than 1024; bins_per_dimension can be 3 here"), (2, 12, "too many to be cut at all")],
)
def test_too_many_combinations_are_refused(bins: int, dimensions: int, words: str) -> None:
    env = gym.Env()
    env.action_space = gym.spaces.Box(-1, 1, (dimensions,))
    with pytest.raises(ValueError, match=words):
        BinnedActions(env, bins)


def test_bins_need_bounds() -> None:
    env = gym.Env()
    env.action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match="bounded Box"):
        BinnedActions(env, 5)


# --- Images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_env() -> gym.Env:
    try:
        choose_renderer()
    except RenderingError as error:
        pytest.skip(str(error))
    return make_dmc({"task": SWINGUP})


def test_images_show_the_state_after_the_last_repeated_step(image_env: gym.Env) -> None:
    plain = suite_env(3)
    plain.reset()
    observation, _ = image_env.reset(seed=3)
    assert (observation.shape, observation.dtype) == ((96, 96, 3), np.uint8)
    np.testing.assert_array_equal(observation, plain.physics.render(96, 96, camera_id=0))
    for _ in range(8):
        plain.step(np.array([1.0]))
    expected = plain.physics.render(96, 96, camera_id=0)
    np.testing.assert_array_equal(image_env.step(4)[0], expected)
    assert len(np.unique(expected)) > 50, "something is drawn"


@pytest.mark.parametrize(("domain", "task"), [("reacher", "easy"), ("walker", "walk")])
def test_images_are_those_that_the_suite_draws(image_env: gym.Env, domain: str, task: str) -> None:
    from dm_control import suite

    plain, env = suite.load(domain, task, task_kwargs={"random": 5}), DmcEnv(DmcProtocol(f"{domain}-{task}"))
    plain.reset()
    observations = [env.reset(seed=5)[0]]
    action = np.full(env.action_space.shape, 0.5, np.float32)
    expected = [plain.physics.render(96, 96, camera_id=0)]
    for _ in range(3):
        observations.append(env.step(action)[0])
        for _ in range(env.protocol.steps_per_decision):
            plain.step(action.astype(np.float64))
        expected.append(plain.physics.render(96, 96, camera_id=0))
    np.testing.assert_array_equal(observations, expected)
    env.close()


def test_images_are_the_same_in_other_processes(image_env: gym.Env) -> None:
    found = {}
    for mode in ("sync", "async"):
        vector = make_vector_env(
            SWINGUP,
            {"image_size": 32},
            num_envs=2,
            mode=gym.VectorizeMode(mode),
            policy=GuardPolicy(),
            runner="EnvRunner 0",
            timeout_s=120,
        )
        vector.reset(seed=0)
        found[mode] = [vector.step(np.array([0, 4]))[:4] for _ in range(3)]
        vector.close()
    for one, other in zip(found["sync"], found["async"], strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)


def test_fast_quality_draws_the_same_scene_with_fewer_means(image_env: gym.Env) -> None:
    fast = make_dmc({"task": SWINGUP, "render_quality": "fast"})
    difference = np.abs(fast.reset(seed=3)[0].astype(int) - image_env.reset(seed=3)[0])
    assert difference.max() > 0
    assert difference.mean() < 10
    fast.close()


def test_the_renderer_is_chosen_by_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"OSMesa": "libOSMesa.so.8"}
    monkeypatch.setattr(ctypes.util, "find_library", libraries.get)
    assert choose_renderer() == "osmesa"
    libraries.clear()
    assert choose_renderer(required=False) == "disabled"
    with pytest.raises(RenderingError, match=r"apt-get install libegl1 .* apt-get install libosmesa6"):
        choose_renderer()
    monkeypatch.setattr(rendering, "_egl_works", lambda: True)
    assert choose_renderer() == "egl"


def test_rllib_s_own_import_of_dm_control_does_not_decide(image_env: gym.Env) -> None:
    """It settles for GLFW where there is no screen."""
    script = (
        "import ray.rllib.env\n"
        "from rllib_efficientzero.env.dm_control import make_dmc\n"
        f"env = make_dmc({{'task': '{SWINGUP}', 'image_size': 16}})\n"
        "print(env.reset(seed=0)[0].shape)\n"
        "env.close()\n"
    )
    # In the path of integration tests, RLlib does without DMControl.
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert "(16, 16, 3)" in done.stdout, done.stderr


# --- In a config -----------------------------------------------------------------------------------------------------


def test_the_protocol_says_what_the_benchmark_counts() -> None:
    config = EfficientZeroConfig().environment(SWINGUP).training(total_env_steps=12_500)
    described = config.evaluation(evaluation_interval=1).describe_protocol()
    assert described["total_raw_env_steps"] == 100_000
    assert described["training"]["action_repeat"] == 8
    assert described["training"] == described["evaluation"]
    assert described["training"]["versions"]["dm_control"]
    assert config.steps_per_decision() == 8
    assert EfficientZeroConfig().environment("CartPole-v1").steps_per_decision() == 1


def test_the_name_is_enough_for_an_environment() -> None:
    env = env_maker(f"{SWINGUP}-state", {"bins_per_dimension": 3})()
    assert env.action_space == gym.spaces.Discrete(3)
    assert env.observation_space.shape == (5,)
    env.close()
