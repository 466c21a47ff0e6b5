import builtins
import dataclasses
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing

from rllib_efficientzero.env.atari import (
    ATARI_100K_GAMES,
    AtariProtocol,
    EpisodicLife,
    is_atari_id,
    make_atari,
)

pytest.importorskip("ale_py")

# Sizes of the minimal action sets.
NUM_ACTIONS = dict(zip(ATARI_100K_GAMES, [18, 10, 7, 9, 18, 18, 18, 4, 18, 9, 6, 3, 18, 8, 18], strict=False)) | {
    "Jamesbond": 18, "Kangaroo": 18, "Krull": 18, "KungFuMaster": 14, "MsPacman": 9, "Pong": 6, "PrivateEye": 18,
    "Qbert": 6, "RoadRunner": 18, "Seaquest": 18, "UpNDown": 6,
}  # fmt: skip


def evaluation(game: str, **settings: Any) -> dict[str, Any]:
    return dataclasses.asdict(AtariProtocol.evaluation(game, **settings))


def ale_of(env: gym.Env) -> Any:
    return env.unwrapped.ale


class Scripted(gym.Env):
    """An ALE-like game of given (lives, reward, terminated, truncated) per step; observations count the steps."""

    observation_space = gym.spaces.Discrete(1000)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, script: list[tuple[int, float, bool, bool]], first_lives: int = 3) -> None:
        self.script, self.first_lives = script, first_lives
        self.ale = self
        self.actions: list[int] = []
        self.num_resets = 0
        self._lives = 0

    def lives(self) -> int:
        return self._lives

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.num_resets += 1
        self._lives = self.first_lives
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self._lives, reward, terminated, truncated = self.script[len(self.actions)]
        self.actions.append(action)
        return len(self.actions), reward, terminated, truncated, {}


# --- ids and settings ------------------------------------------------------------------------------------------------


def test_is_atari_id() -> None:
    assert all(map(is_atari_id, ["ale_py:ALE/Pong-v5", "ALE/Pong-v5", "Pong", "ALE/Tetris-v5"]))
    assert not any(map(is_atari_id, ["CartPole-v1", "Pong-v4", "dm_control/cartpole-swingup-v0", "Tetris", "pong", ""]))


@pytest.mark.parametrize("name", ["Pong", "ALE/Pong-v5", "ale_py:ALE/Pong-v5"])
def test_names_of_a_game(name: str) -> None:
    assert AtariProtocol(name).env_id == "ALE/Pong-v5"
    assert AtariProtocol(name) == AtariProtocol("Pong")


def test_the_presets() -> None:
    training, evaluating = AtariProtocol.training("Pong"), AtariProtocol.evaluation("Pong")
    assert training == AtariProtocol("Pong")
    assert dataclasses.asdict(training) == {
        "game": "Pong",
        "frame_skip": 4,
        "noop_max": 30,
        "screen_size": 96,
        "grayscale": False,
        "repeat_action_probability": 0.0,
        "full_action_space": False,
        "terminal_on_life_loss": True,
        "clip_rewards": True,
        "max_frames": 108_000,
    }
    assert evaluating == dataclasses.replace(training, terminal_on_life_loss=False, clip_rewards=False)
    assert training.max_steps == 27_000
    described = json.loads(json.dumps(evaluating.describe()))
    assert described["env_id"] == "ALE/Pong-v5"
    assert described["observation_shape"] == [96, 96, 3]
    assert described["versions"]["ale_py"]
    assert AtariProtocol.evaluation("Pong", repeat_action_probability=0.25).repeat_action_probability == 0.25


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"game": "Pong", "frameskip": 4}, '"frameskip" .* did you mean "frame_skip"'),
        ({"game": "Pong", "clip_reward": True}, 'did you mean "clip_rewards"'),
        ({"game": "Pong", "zzzzz": 1}, "known are game, frame_skip"),
        ({}, 'needs "game"'),
        ({"game": "CartPole-v1"}, '"CartPole-v1" is not an Atari game'),
        ({"game": "Pnog"}, 'no game "Pnog": did you mean "Pong"'),
        ({"game": "Pong", "noop_max": -1}, "noop_max >= 0"),
        ({"game": "Pong", "frame_skip": 0}, "frame_skip >= 1"),
        ({"game": "Pong", "max_frames": 3}, "at least one step of 4"),
        ({"game": "Pong", "repeat_action_probability": 1.5}, r"lie in \[0, 1\]"),
        ({"game": "Pong", "clip_rewards": "no"}, "clip_rewards must be of type bool, got 'no'"),
        ({"game": "Pong", "screen_size": 96.0}, "screen_size must be of type int"),
    ],
)
def test_bad_settings_are_sentences(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_atari(config)


def test_missing_ale_py_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_ale_py(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ale_py":
            raise ModuleNotFoundError("No module named 'ale_py'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ale_py)
    with pytest.raises(ImportError, match=r"pip install 'rllib_efficientzero\[atari\]'"):
        make_atari({"game": "Pong"})


# --- the emulator's side ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ATARI_100K_GAMES)
def test_every_game_of_the_benchmark(game: str) -> None:
    env = make_atari({"game": game})
    assert env.action_space == gym.spaces.Discrete(NUM_ACTIONS[game])
    assert env.unwrapped.get_action_meanings()[0] == "NOOP"
    assert env.observation_space == gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, reward, *_ = env.step(env.action_space.n - 1)
    assert env.observation_space.contains(observation)
    assert type(reward) is float
    env.close()


def test_other_settings_reach_the_game() -> None:
    env = make_atari({"game": "Pong", "grayscale": True, "screen_size": 64, "full_action_space": True})
    assert env.observation_space.shape == (64, 64, 1)
    assert env.action_space.n == 18
    assert env.reset(seed=0)[0].shape == (64, 64, 1)
    assert ale_of(env).getFloat("repeat_action_probability") == 0
    assert ale_of(env).getInt("max_num_frames_per_episode") == 0
    sticky = make_atari({"game": "Pong", "repeat_action_probability": 0.25})
    assert ale_of(sticky).getFloat("repeat_action_probability") == 0.25


def test_a_step_is_exactly_four_raw_frames() -> None:
    env = make_atari({"game": "Pong"})
    env.reset(seed=0)
    frames = [ale_of(env).getFrameNumber()]
    for _ in range(100):
        env.step(env.action_space.sample())
        frames.append(ale_of(env).getFrameNumber())
    assert set(np.diff(frames)) == {4}


def test_frame_skip_twice_is_refused() -> None:
    import ale_py

    gym.register_envs(ale_py)
    with pytest.raises(ValueError, match="Disable frame-skipping"):
        AtariPreprocessing(gym.make("ALE/Pong-v5"))


def test_no_op_starts() -> None:
    env = make_atari({"game": "Pong"})
    env.reset(seed=0)
    counts = []
    for _ in range(200):
        env.reset()
        counts.append(ale_of(env).getEpisodeFrameNumber())
    assert set(counts) <= set(range(1, 31))
    assert min(counts) <= 3
    assert max(counts) >= 28
    assert abs(np.mean(counts) - 15.5) < 2  # its standard error is 0.6
    env = make_atari({"game": "Pong", "noop_max": 0})
    env.reset(seed=0)
    assert ale_of(env).getEpisodeFrameNumber() == 0


def test_observations_are_pooled_and_resized_by_area() -> None:
    import cv2

    env = make_atari({"game": "Seaquest"})
    observation, _ = env.reset(seed=0)
    # A reset shows one raw frame.
    screen = ale_of(env).getScreenRGB()
    np.testing.assert_array_equal(observation, cv2.resize(screen, (96, 96), interpolation=cv2.INTER_AREA))
    for _ in range(20):
        state = ale_of(env).cloneState(include_rng=True)
        action = int(env.action_space.sample())
        observation, *_ = env.step(action)
        after = ale_of(env).cloneState(include_rng=True)
        ale_of(env).restoreState(state)
        screens = []
        for _ in range(4):
            ale_of(env).act(env.unwrapped._action_set[action])
            screens.append(ale_of(env).getScreenRGB())
        expected = cv2.resize(np.maximum(screens[2], screens[3]), (96, 96), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(observation, expected)
        ale_of(env).restoreState(after)


def trajectory(seed: int) -> list[Any]:
    env = make_atari({"game": "Breakout"})
    env.action_space.seed(0)
    observation, _ = env.reset(seed=seed)
    log: list[Any] = [observation.tobytes()]
    for _ in range(300):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        log.append((observation.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            log.append(env.reset()[0].tobytes())
    return log


def test_seeds_decide_the_trajectory() -> None:
    first = trajectory(1)
    assert first == trajectory(1)
    assert first != trajectory(2)


# --- lives -----------------------------------------------------------------------------------------------------------


def test_breakout_loses_five_lives_in_five_episodes_of_one_game() -> None:
    env = make_atari({"game": "Breakout"})
    env.action_space.seed(0)
    env.reset(seed=0)
    assert ale_of(env).lives() == 5
    for lives in (4, 3, 2, 1, 0):
        terminated = False
        while not terminated:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            assert not truncated
        assert ale_of(env).lives() == lives
        frame = ale_of(env).getEpisodeFrameNumber()
        _, info = env.reset()
        if lives > 0:  # the same game, four raw frames later
            assert ale_of(env).getEpisodeFrameNumber() == frame + 4
            assert info["hidden_steps"] == env.get_wrapper_attr("hidden_steps") == 5 - lives
    assert ale_of(env).lives() == 5
    assert ale_of(env).getEpisodeFrameNumber() <= 30
    assert env.get_wrapper_attr("hidden_steps") == 4


def test_evaluation_plays_all_lives() -> None:
    env = make_atari(evaluation("Breakout"))
    env.action_space.seed(0)
    env.reset(seed=0)
    terminated, lives = False, set()
    while not terminated:
        _, _, terminated, _, _ = env.step(env.action_space.sample())
        lives.add(ale_of(env).lives())
    assert lives == {0, 1, 2, 3, 4, 5}
    assert env.get_wrapper_attr("hidden_steps") == 0
    assert env.reset()[1]["hidden_steps"] == 0


def test_every_interaction_is_seen_or_hidden() -> None:
    env = make_atari({"game": "Breakout"})
    env.action_space.seed(3)
    env.reset(seed=3)
    steps, played, start = 0, 0, ale_of(env).getEpisodeFrameNumber()
    while steps < 1000:
        _, _, terminated, _, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated:
            if ale_of(env).game_over():
                played += ale_of(env).getEpisodeFrameNumber() - start
                env.reset()
                start = ale_of(env).getEpisodeFrameNumber()
            else:
                env.reset()
    played += ale_of(env).getEpisodeFrameNumber() - start
    hidden = env.get_wrapper_attr("hidden_steps")
    assert hidden > 0
    # Only the last step of a game may be shorter than four frames.
    assert 0 <= 4 * (steps + hidden) - played <= 3 * (steps // 50)


def test_life_loss_rules() -> None:
    goes_on, over, out_of_time = (False, False), (True, False), (False, True)
    # A gain, a loss, a fall to 0, which is left to the game, and its end.
    script = [(4, 1.0, *goes_on), (3, 2.0, *goes_on), (3, 7.0, *goes_on), (0, 3.0, *goes_on), (0, 0.0, *over)]
    game = Scripted(script)
    env = EpisodicLife(game)
    env.reset()
    assert env.step(1) == (1, 1.0, False, False, {})
    assert env.step(1) == (2, 2.0, True, False, {})
    assert env.game_goes_on
    assert env.reset() == (3, {"hidden_steps": 1})
    assert game.actions == [1, 1, 0]
    assert env.step(1)[2] is False
    assert env.step(1)[2] is True
    assert not env.game_goes_on
    assert env.reset() == (0, {"hidden_steps": 1})
    assert game.num_resets == 2

    # The step without action may itself end the game, or lose a life.
    game = Scripted([(2, 0.0, *goes_on), (0, 0.0, *over), (2, 0.0, *goes_on), (1, 0.0, *goes_on), (1, 0.0, *goes_on)])
    env = EpisodicLife(game)
    env.reset()
    env.step(1)
    assert env.reset() == (0, {"hidden_steps": 1})
    assert env.step(1)[2] is True
    assert env.reset() == (4, {"hidden_steps": 2})
    assert env.step(1)[2] is False

    # Time is over, a seed is given, or reset is called twice: a new game.
    for script, seed, resets in (
        ([(2, 0.0, *out_of_time)], None, 1),
        ([(2, 0.0, *goes_on)], 7, 1),
        ([(2, 0.0, *goes_on), (2, 0.0, *goes_on)], None, 2),
    ):
        game = Scripted(script)
        env = EpisodicLife(game)
        env.reset()
        env.step(1)
        for _ in range(resets):
            observation, _ = env.reset(seed=seed)
        assert (observation, game.num_resets) == (0, 2)


# --- rewards and time ------------------------------------------------------------------------------------------------


def rewards_of(config: dict[str, Any], num_steps: int) -> np.ndarray:
    env = make_atari(config)
    env.action_space.seed(0)
    env.reset(seed=0)
    rewards = []
    for _ in range(num_steps):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rewards.append(reward)
        if terminated or truncated:
            env.reset()
    return np.array(rewards)


def test_rewards_are_clipped_in_training_and_raw_in_evaluation() -> None:
    raw = rewards_of(evaluation("Qbert"), 500)
    clipped = rewards_of(evaluation("Qbert", clip_rewards=True), 500)
    assert raw.max() >= 25
    np.testing.assert_array_equal(clipped, np.sign(raw))
    assert -1.0 in (pong := set(rewards_of({"game": "Pong"}, 600)))
    assert pong <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("preset", [AtariProtocol.training, AtariProtocol.evaluation])
def test_the_time_limit_truncates(preset: Any) -> None:
    env = make_atari(dataclasses.asdict(preset("Pong", max_frames=402)))
    for _ in range(2):
        env.reset(seed=0)
        for step in range(1, 101):
            observation, _, terminated, truncated, _ = env.step(0)
            assert not terminated
            assert truncated == (step == 100)
        assert env.observation_space.contains(observation)
    start = ale_of(env).getEpisodeFrameNumber()
    env.reset()
    assert ale_of(env).getEpisodeFrameNumber() < start


def test_hidden_steps_count_towards_the_time_limit() -> None:
    env = make_atari({"game": "Breakout", "max_frames": 480})
    env.action_space.seed(0)
    env.reset(seed=0)
    steps, truncated = 0, False
    while not truncated:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        assert not ale_of(env).game_over()
        if terminated and not truncated:
            env.reset()
    hidden = env.get_wrapper_attr("hidden_steps")
    assert hidden > 0
    assert steps + hidden == 120
