"""Broken environments in a run whose EnvRunner is in the same process: raised in a sentence, or dropped and counted."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_faults import CountedEnv, assert_replay_is_whole, config, steps_taken, train_until

from rllib_efficientzero.env.guard import BadEnvStepError, EnvFailedError
from tests.faulty_envs import SPACE, ScriptedEnv, crash, explode, hang, once

NAN = {"observation": np.array([0, np.nan], np.float32)}
FEW_UPDATES = 0.02
"""Per step, where what is learned does not matter and a thousand steps are played."""

pytestmark = pytest.mark.usefixtures("shared_ray")


def last_episodes(episode: int) -> bool:
    """Whether an episode of `ScriptedEnv` is one of those told to break: every fifth."""
    return episode % 5 == 4


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_bad_step_ends_the_run_in_a_sentence_and_nothing_of_it_is_stored(mode: str) -> None:
    algo = config(break_at={7: {"reward": math.nan}}, in_episodes=last_episodes)
    algo = algo.env_runners(gym_env_vectorize_mode=mode).build_algo()
    with pytest.raises(
        BadEnvStepError, match=r"^environment \d of EnvRunner 0, step 7 of its episode: the reward is nan"
    ):
        train_until(algo, 1000)
    assert_replay_is_whole(algo)
    algo.stop()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("fault", [{"reward": math.inf}, NAN], ids=["reward", "observation"])
def test_bad_episodes_are_dropped_and_counted(mode: str, fault: dict[str, Any], tmp_path: pathlib.Path) -> None:
    count_file = tmp_path / "steps"
    settings = {"break_at": {7: fault}, "in_episodes": last_episodes, "count_file": str(count_file)}
    # Several samples per iteration, since RLlib's work between iterations takes longer than these.
    algo = config(**settings).reporting(min_time_s_per_iteration=0.05).training(replay_ratio=FEW_UPDATES)
    algo = algo.env_runners(gym_env_vectorize_mode=mode)
    algo = algo.fault_tolerance(on_bad_env_step="drop_episode").build_algo()
    result = train_until(algo, 600)
    runners = result["env_runners"]
    # Every fifth episode breaks in its seventh step: one in 87 of the others' steps and its own.
    assert runners["num_bad_env_steps_lifetime"] == pytest.approx(result["num_interactions_lifetime"] / 87, abs=2)
    assert_replay_is_whole(algo)
    dropped = runners["num_dropped_env_steps_lifetime"]
    assert steps_taken(count_file) == result["num_interactions_lifetime"] + dropped
    # A chunk has four steps at most, of which the last was bad.
    assert dropped <= 4 * runners["num_bad_env_steps_lifetime"]
    # Broken episodes are no scores, and a result may have none.
    while math.isnan(runners["episode_return_min"]):
        runners = algo.train()["env_runners"]
    assert runners["episode_return_min"] == runners["episode_return_max"] == 20
    algo.stop()


def test_a_dropped_episode_is_no_score_of_an_evaluation() -> None:
    algo = config(break_at={7: NAN}, in_episodes=last_episodes)
    algo = algo.fault_tolerance(on_bad_env_step="drop_episode")
    algo = algo.evaluation(evaluation_interval=1, evaluation_duration=12).build_algo()
    runners = algo.train()["evaluation"]["env_runners"]
    assert list(runners["episode_returns"]) == [20.0] * 12
    assert list(runners["episode_lengths"]) == [20] * 12
    assert runners["num_bad_env_steps_lifetime"] > 0
    algo.stop()


def test_an_error_of_the_environment_is_shown_with_its_place() -> None:
    algo = config(break_at={7: explode}, in_episodes=last_episodes).build_algo()
    with pytest.raises(EnvFailedError, match=r"environment \d of EnvRunner 0 raised KeyError: 'the simulator lost its"):
        train_until(algo, 1000)
    assert_replay_is_whole(algo)
    algo.stop()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_environment_that_raises_now_and_then_costs_its_own_fragments_only(
    mode: str, tmp_path: pathlib.Path
) -> None:
    """p = 1e-3 would be one in a thousand steps; here it is one in 87, and still 80 % of the steps are kept."""
    count_file = tmp_path / "steps"
    settings = {"break_at": {7: explode}, "in_episodes": lambda episode: episode == 4, "count_file": str(count_file)}
    # Several samples per iteration, since RLlib's work between iterations takes longer than these.
    algo = config(**settings).reporting(min_time_s_per_iteration=0.05).training(replay_ratio=FEW_UPDATES)
    algo = algo.env_runners(gym_env_vectorize_mode=mode)
    algo = algo.fault_tolerance(restart_failed_sub_environments=True).build_algo()
    result = train_until(algo, 600)
    runners = result["env_runners"]
    assert runners["num_env_restarts_lifetime"] == pytest.approx(result["num_interactions_lifetime"] / 87, abs=3)
    assert_replay_is_whole(algo)
    assert result["num_interactions_lifetime"] / steps_taken(count_file) > 0.95
    algo.stop()


@pytest.mark.parametrize("fault", [crash, hang])
def test_processes_of_environments_that_die_or_hang_are_replaced(fault: Any, tmp_path: pathlib.Path) -> None:
    settings = {"break_at": {7: once(str(tmp_path / "marker"), fault)}}
    algo = config(**settings).env_runners(gym_env_vectorize_mode="async", sample_timeout_s=5)
    algo = algo.fault_tolerance(restart_failed_sub_environments=True).build_algo()
    begun = time.monotonic()
    result = train_until(algo, 200)
    assert time.monotonic() - begun < 60
    assert result["env_runners"]["num_env_restarts_lifetime"] == 2
    assert_replay_is_whole(algo)
    # The environments that came after it play with seeds of their own.
    algo.stop()


def test_processes_that_die_end_the_run_in_a_sentence_unless_told_otherwise(tmp_path: pathlib.Path) -> None:
    algo = config(break_at={7: once(str(tmp_path / "marker"), crash)})
    algo = algo.env_runners(gym_env_vectorize_mode="async", sample_timeout_s=5).build_algo()
    with pytest.raises(EnvFailedError, match="environments of EnvRunner 0 failed together"):
        train_until(algo, 200)
    algo.stop()


def test_the_budget_is_kept_when_environments_fail_together(tmp_path: pathlib.Path) -> None:
    """RLlib begins to count a sample anew after such a failure, and would return more than was asked for."""
    settings = {"length": 5, "break_at": {3: once(str(tmp_path / "marker"), crash)}, "in_episodes": lambda e: e == 2}
    algo = config(**settings).env_runners(gym_env_vectorize_mode="async", rollout_fragment_length=50)
    algo = algo.training(total_env_steps=100).fault_tolerance(restart_failed_sub_environments=True).build_algo()
    for _ in range(5):
        result = algo.train()
    assert 98 <= result["num_interactions_lifetime"] <= 100
    assert result["env_runners"]["num_env_restarts_lifetime"] == 2
    algo.stop()


@pytest.mark.parametrize("reward", [1e6, -1e6, 1e-8, 0.0])
def test_rewards_of_any_size_are_learned_from(reward: float) -> None:
    algo = config(break_at={time: {"reward": reward} for time in range(1, 21)}).build_algo()
    result = train_until(algo, 300)
    learner = result["learners"]["default_policy"]
    assert learner["num_non_finite_updates_lifetime"] == 0
    assert np.isfinite(learner["total_loss"])
    saturated = result["env_runners"]["num_saturated_rewards_lifetime"]
    # support_size 20 expresses 418; a million is beyond it.
    assert saturated == (result["num_interactions_lifetime"] if abs(reward) > 418 else 0)
    assert learner["saturated_targets"] == pytest.approx(1.0 if abs(reward) > 418 else 0.0, abs=0.3)
    algo.stop()


@pytest.mark.long
def test_a_thousand_updates_on_rewards_of_every_size(measured: Callable[[str], None]) -> None:
    rewards = {time: {"reward": (-1) ** time * 10.0 ** (time - 9)} for time in range(1, 16)}
    algo = config(break_at=rewards | {time: {"reward": -0.0} for time in range(16, 19)}).build_algo()
    worst = 0.0
    while (result := algo.train())["num_updates_lifetime"] < 1000:
        learner = result.get("learners", {}).get("default_policy", {})
        worst = max(worst, learner.get("total_loss", 0.0))
        assert np.isfinite(worst)
    assert learner["num_non_finite_updates_lifetime"] == 0
    algo.stop()
    measured(f"1000 updates on rewards from 1e-8 to 1e6: all finite, total loss {worst:.1f} at most")


class RandomMasks(CountedEnv):
    """Legal actions at random, often a single one; an illegal action is an error."""

    def __init__(self, env_config: Any) -> None:
        super().__init__(env_config)
        self.observation_space = gym.spaces.Dict({"observations": SPACE, "action_mask": gym.spaces.MultiBinary(3)})
        self.legal = np.ones(3, np.int8)

    def step(self, action: Any) -> Any:
        assert self.legal[action] == 1, "an illegal action"
        return super().step(action)

    def _observation(self) -> Any:
        self.legal = np.zeros(3, np.int8)
        self.legal[self.np_random.integers(3, size=self.np_random.integers(1, 4))] = 1
        return {"observations": super()._observation(), "action_mask": self.legal}


@pytest.mark.parametrize("search", ["puct", "gumbel"])
def test_masked_actions_are_never_taken_and_never_learned(search: str, measured: Callable[[str], None]) -> None:
    algo = config(RandomMasks).training(search=search, num_simulations=6, reanalyze_ratio=1.0).build_algo()
    train_until(algo, 600)
    replay, batches = algo.local_replay_buffer, []
    for episode in replay._episodes.values():
        legal = episode.column("action_mask")[: len(episode)]
        policy = episode.column("visit_policy")
        assert (policy[legal == 0] == 0).all()
        np.testing.assert_allclose(policy.sum(axis=1), 1.0, atol=1e-6)
    learner = algo.learner_group._learner
    connector = learner._learner_connector
    num_searched = len(replay)
    while num_searched < 10_000:
        windows = replay.sample(64, beta=1.0)
        batch = connector(rl_module=learner.module, batch={}, episodes=[windows])["default_policy"]
        batches.append((windows, batch["target_policy"].numpy()))
        num_searched += batch["target_policy"].shape[:2].numel()
    for windows, policy in batches:
        legal = windows.action_mask[:, : policy.shape[1]]
        assert (policy[legal == 0] == 0).all()
    algo.stop()
    measured(f"0 illegal actions in {num_searched} searches")


def test_no_legal_action_is_a_sentence() -> None:
    class NoneLegal(RandomMasks):
        def _observation(self) -> Any:
            observation = super()._observation()
            if self.episode == 1 and self.time == 3:
                observation["action_mask"] = np.zeros(3, np.int8)
            return observation

    algo = config(NoneLegal).build_algo()
    with pytest.raises(BadEnvStepError, match="step 3 of its episode: no action is legal"):
        train_until(algo, 200)
    algo.stop()


def test_scripted_episodes_are_stored_whole_without_faults() -> None:
    """The look at the replay that the other tests rely on finds what is missing."""
    algo = config().build_algo()
    train_until(algo, 200)
    assert_replay_is_whole(algo)
    episode = next(iter(algo.local_replay_buffer._episodes.values()))
    episode.terminated = False
    with pytest.raises(AssertionError):
        assert_replay_is_whole(algo)
    episode.terminated = True
    del episode.frames[3]
    with pytest.raises(AssertionError):
        assert_replay_is_whole(algo)
    assert isinstance(ScriptedEnv(), gym.Env)
    algo.stop()
