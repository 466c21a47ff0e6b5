"""The experiments that need networks, on data with a known answer."""

from __future__ import annotations

import json
import pathlib
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.analysis import fixed_replay
from rllib_efficientzero.analysis.document import Table, Text
from rllib_efficientzero.analysis.experiments import decoder, value_targets
from rllib_efficientzero.analysis.experiments.value_prefix import reward_sums
from rllib_efficientzero.analysis.measurement import Measured, Measurement
from rllib_efficientzero.analysis.play import Player, discounted_returns
from rllib_efficientzero.analysis.positions import Position, sample_positions
from rllib_efficientzero.replay import PrioritizedReplay
from rllib_efficientzero.replay.episode import POSITIONS, REWARDS
from rllib_efficientzero.replay.windows import WindowShape

GAMMA = 0.9


class Corridor(gym.Env):
    """Reward t at step t, for the action 1; ends after `length` steps. The observation is the time."""

    observation_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 12) -> None:
        self.length = length
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.time * int(action))
        self.time += 1
        return np.array([self.time], np.float32), reward, self.time == self.length, False, {}


class AlwaysOne:
    """Acts by 1 as the policy that knows the corridor, and values its states truly."""

    device = torch.device("cpu")
    description = {"frame_stack": 2}  # noqa: RUF012

    def __init__(self, length: int = 12) -> None:
        self.network, self.length = self, length
        self.search_config = type("Search", (), {"discount": GAMMA})

    def act(self, frames: np.ndarray, **options: Any) -> Any:
        return type("Result", (), {"action": np.ones(len(frames), np.int64)})

    def value(self, planes: torch.Tensor) -> torch.Tensor:
        return torch.tensor([true_value(int(time), self.length) for time in planes[:, -1]])


def true_value(time: int, length: int = 12) -> float:
    return sum(GAMMA ** (t - time) * t for t in range(time, length))


def drawn(policy: Any, make: Any, count: int, rng: np.random.Generator) -> list[Position]:
    settings: dict[str, Any] = {"unroll_steps": 5, "reach": 10, "temperature": 1.0, "max_game_steps": 100}
    return list(sample_positions(policy, make, count, **settings, rng=rng).positions)


def games_of(positions: list[Position]) -> np.ndarray:
    return np.array([position.game for position in positions])


def test_a_player_goes_on_from_a_saved_state() -> None:
    player, other = Player(Corridor, 2), Player(Corridor, 2)
    player.reset()
    for _ in range(5):
        player.step(1)
    other.restore(player.save())
    assert other.stacked.tolist() == [[4.0], [5.0]]
    assert [other.step(1) for _ in range(7)][-1] == (11.0, True)
    assert player.stacked.tolist() == [[4.0], [5.0]]  # the state was copied


def test_discounted_returns_are_the_true_values() -> None:
    player, states = Player(Corridor, 2), []
    player.reset()
    for _ in range(12):
        states.append(player.save())
        player.step(0)
    options = {"gamma": GAMMA, "max_steps": 100}
    found = discounted_returns(AlwaysOne(), Corridor, states, **options)  # type: ignore[arg-type]
    assert found == pytest.approx([true_value(time) for time in range(12)])
    cut = discounted_returns(AlwaysOne(), Corridor, states[:1], gamma=GAMMA, max_steps=3)  # type: ignore[arg-type]
    assert cut == pytest.approx(0.9 * 1 + 0.81 * 2)


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_targets_of_a_perfect_network_on_its_own_play_are_true(horizon: int) -> None:
    policy: Any = AlwaysOne()
    rng = np.random.default_rng(0)
    positions = drawn(policy, Corridor, 20, rng)
    truth = value_targets.true_values(policy, Corridor, positions, max_steps=50)
    found = value_targets.targets(policy, positions, horizon, "network", rng)
    errors = value_targets.errors_by_step(np.abs(found - truth), games_of(positions))
    assert errors["all"] == pytest.approx(0.0, abs=1e-4)
    # Positions near the end have no truth beyond it, and zero at it.
    ended = [row for row, position in zip(truth, positions, strict=True) if position.steps_left < 5]
    assert ended
    assert all(
        row[position.steps_left] == 0 for row, position in zip(truth, positions, strict=True) if position.steps_left < 5
    )


def test_rewards_of_another_policy_spoil_long_horizons_more() -> None:
    policy: Any = AlwaysOne()
    lazy: Any = AlwaysOne()
    lazy.act = lambda frames, **options: type("Result", (), {"action": np.zeros(len(frames), np.int64)})
    rng = np.random.default_rng(0)
    positions = drawn(lazy, Corridor, 20, rng)
    truth = value_targets.true_values(policy, Corridor, positions, max_steps=50)
    distances = [
        np.abs(value_targets.targets(policy, positions, horizon, "network", rng) - truth) for horizon in (1, 3, 5)
    ]
    games = games_of(positions)
    errors = [value_targets.errors_by_step(distance, games)["all"] for distance in distances]
    assert errors[0] < errors[1] < errors[2]
    assert value_targets.paired_difference(distances[0], distances[2], games)["mean"] < 0


def test_the_paired_difference_leaves_out_what_positions_differ_in() -> None:
    without, games = np.array([[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]), np.arange(3)
    assert value_targets.errors_by_step(without, games) == pytest.approx(
        {"current": 5.0, "next": 5.0, "all": 5.0, "standard_error": np.std([1, 5, 9], ddof=1) / np.sqrt(3)}
    )
    constant = value_targets.paired_difference(without - 0.5, without, games)
    assert constant == pytest.approx({"mean": -0.5, "standard_error": 0.0})


def test_the_difference_is_that_of_both_errors_over_all_states() -> None:
    # The second position lies at an end, and has one state.
    without, with_ = (
        np.array([[1.0, 2.0, 6.0], [9.0, np.nan, np.nan]]),
        np.array([[1.0, 1.0, 1.0], [1.0, np.nan, np.nan]]),
    )
    games = np.arange(2)
    alls = [value_targets.errors_by_step(distance, games)["all"] for distance in (with_, without)]
    assert alls == [1.0, 18 / 4]
    assert value_targets.paired_difference(with_, without, games)["mean"] == alls[0] - alls[1]


def test_positions_of_one_game_are_no_more_than_that_game_tells() -> None:
    once, games = np.array([[1.0], [5.0], [9.0]]), np.arange(3)
    error = value_targets.clustered_standard_error(once, games)
    again = value_targets.clustered_standard_error(np.repeat(once, 7, axis=0), np.repeat(games, 7))
    assert error == pytest.approx(np.std([1, 5, 9], ddof=1) / np.sqrt(3))
    assert again == pytest.approx(error)
    assert value_targets.clustered_standard_error(once, np.zeros(3)) is None
    assert value_targets._with_error(1.0, {"standard_error": None}) == "1.000"


@pytest.mark.parametrize(("updates", "expected"), [(10, 1.0), (50_000, 0.5), (99_999, 0.25)])
def test_a_stage_is_played_at_the_temperature_of_its_update(updates: int, expected: float) -> None:
    policy: Any = AlwaysOne()
    policy.description = {"num_updates": updates, "temperature_schedule": [[0, 1.0], [50_000, 0.5], [75_000, 0.25]]}
    assert value_targets._temperature(policy, lambda text: None) == expected
    told: list[str] = []
    policy.description = {"num_updates": updates}
    assert value_targets._temperature(policy, told.append) == 1.0
    assert "temperature" in told[0]


def test_a_policy_says_at_what_temperatures_self_play_acted() -> None:
    config = EfficientZeroConfig().environment("CartPole-v1").training(temperature_schedule=[(0, 1.0), (9, 0.5)])
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1.0, 1.0, (4, 4), np.float32), gym.spaces.Discrete(2))}
    run: Any = SimpleNamespace(config=config, spaces=spaces, num_updates=9, num_interactions=0)
    described = json.loads(json.dumps(EfficientZero._describe_policy(run)))
    assert described["temperature_schedule"] == [[0, 1.0], [9, 0.5]]


def test_sums_of_rewards_from_prefixes_of_any_horizon() -> None:
    rewards = np.array([[1.0, 0.0, 2.0, 0.0, 3.0]])
    sums = np.cumsum(rewards, axis=1)
    assert reward_sums(rewards, 1).tolist() == sums.tolist()
    assert reward_sums(sums, 5).tolist() == sums.tolist()
    assert reward_sums(np.array([[1.0, 1.0, 2.0, 2.0, 3.0]]), 2).tolist() == sums.tolist()


class _ShiftNetwork(nn.Module):
    """The latent is the frame itself. Imagining adds `drift` each step; real frames do not change."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.drift = nn.Parameter(torch.tensor(drift))

    def represent(self, planes: torch.Tensor) -> torch.Tensor:
        return planes[:, -1:]

    def initial_reward_hidden(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.new_zeros(len(latent), 2)

    def step(
        self, latent: torch.Tensor, hidden: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return latent + self.drift, hidden


class _Episode:
    """What a replay is filled with."""

    def __init__(self, observations: np.ndarray, rewards: np.ndarray) -> None:
        self.id_, self.t_started, self.is_terminated, self.is_truncated = "episode", 0, True, False
        self._observations, self._rewards = observations, rewards

    def __len__(self) -> int:
        return len(self._rewards)

    def get_observations(self) -> np.ndarray:
        return self._observations

    def get_actions(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)

    def get_rewards(self) -> np.ndarray:
        return self._rewards

    def get_extra_model_outputs(self, key: str) -> np.ndarray:
        return np.zeros(len(self)) if key == "root_value" else np.full((len(self), 2), 0.5)


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """Nothing but a replay: 1200 steps whose frames are noise, and a reward every 100 steps."""
    steps = 1200
    observations = np.random.default_rng(0).integers(0, 256, (steps + 1, 8, 8, 1), np.uint8)
    rewards = (np.arange(steps) % 100 == 99).astype(np.float32)
    replay = PrioritizedReplay(2000, frame_stack=2, unroll_steps=5, td_steps=0, seed=0)
    replay.add([_Episode(observations, rewards)])
    replay.save(tmp_path / "replay")
    return tmp_path


def test_a_fixed_replay_shares_no_step_between_its_halves(checkpoint: pathlib.Path) -> None:
    train, held_out = fixed_replay.load(checkpoint, held_out=0.3, unroll_steps=5)
    used = [
        {int(position) for episode, t in half.positions for position in episode.column(POSITIONS)[t : t + 5]}
        for half in (train, held_out)
    ]
    assert used[0]
    assert used[1]
    assert not used[0] & used[1]
    # 1,200 steps are three parts, the last of them shorter.
    assert (train.num_parts, held_out.num_parts, train.rewarded(5).num_parts) == (2, 1, 2)
    told = fixed_replay.described(fixed_replay.count(train=train, held_out=held_out))
    assert told.startswith(f"Held out are 1 of 3 parts of up to 500 steps, {len(held_out)} positions")
    assert "unknown number of parts" in fixed_replay.described({"positions": {"held_out": 1}})
    assert all(episode.column(REWARDS)[t : t + 5].sum() == 1 for episode, t in train.rewarded(5).positions)
    assert 0 < len(train.rewarded(5)) <= 5 * 12


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_the_decoder_shows_how_far_imagined_latents_drift(checkpoint: pathlib.Path, drift: float) -> None:
    _, held_out = fixed_replay.load(checkpoint, held_out=0.3, unroll_steps=5)
    windows = held_out.spread(40, WindowShape(2, 5, 0), np.random.default_rng(0))
    windows.frames[:] = windows.frames[:, 1:2]  # nothing moves
    network: Any = _ShiftNetwork(drift)
    values, pictures = decoder._evaluate(network, nn.Identity(), windows, 16)  # type: ignore[arg-type]
    if drift == 0.0:
        assert values["psnr_imagined"] == values["psnr_real"]
        assert values["cosine"] == pytest.approx([1.0] * 6)
    else:
        # An error of 0.1 k in every pixel.
        assert values["psnr_imagined"][1:] == pytest.approx([-20 * np.log10(0.1 * k) for k in range(1, 6)], abs=1e-3)
        assert values["cosine"][0] > values["cosine"][1] > values["cosine"][5]
    assert pictures["real"].shape == (2, 6, 8, 8, 1)


def test_a_decoder_gives_frames_of_any_size() -> None:
    made = decoder.Decoder((8, 6, 6), (1, 50, 50), width=4)
    assert made(torch.zeros(2, 8, 6, 6)).shape == (2, 1, 50, 50)


def describe(monkeypatch: pytest.MonkeyPatch, trial: pathlib.Path, steps: dict[str, int]) -> None:
    """Checkpoints of these steps, made in this order."""
    for name in steps:
        (trial / name / "policy").mkdir(parents=True)
        (trial / name / "policy" / "policy.json").touch()
    monkeypatch.setattr(value_targets, "load_description", lambda path: {"num_interactions": steps[path.name]})


def test_of_checkpoints_after_the_last_step_the_first_stands_for_the_last_stage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Updates go on without steps. Files are listed in any order.
    names = [f"checkpoint_{number:06d}" for number in (5, 2, 4, 1, 3)]
    steps = dict.fromkeys(names, 100) | {"checkpoint_000001": 50}
    describe(monkeypatch, tmp_path, steps)
    monkeypatch.setattr(
        pathlib.Path, "glob", lambda path, pattern: (path / name / "policy" / "policy.json" for name in names)
    )
    found = value_targets.stage_checkpoints(tmp_path / "checkpoint_000005", 2)
    assert [path.name for _, path in found] == ["checkpoint_000001", "checkpoint_000002"]


@pytest.mark.parametrize(("stage", "has_table_4"), [(20, True), (100, False)])
def test_table_4_is_of_the_first_stage_or_not_there(stage: int, has_table_4: bool) -> None:
    errors = dict.fromkeys(("current", "next", "all", "standard_error"), 0.5)
    of_stage = {
        "stage": stage,
        "errors": {"with": errors, "without": errors},
        "difference": {"mean": 0.0, "standard_error": None},
        "horizons": {"with": 3, "without": 5},
        "mean_true_value": 1.0,
        "positions": 8,
        "games": 4,
    }
    measured = Measured({"stages": [of_stage], "total": 100})
    blocks = value_targets.present(Measurement(pathlib.Path(), {"parameters": {"stages": 5}}, measured), "")
    titles = [block.title for block in blocks if isinstance(block, Table)]
    assert any(title.startswith("Table 4") for title in titles) == has_table_4
    assert any(isinstance(block, Text) and "no Table 4" in block.text for block in blocks) != has_table_4


def test_stages_take_the_nearest_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"checkpoint_000000": 18, "checkpoint_000001": 45, "checkpoint_000002": 100}
    describe(monkeypatch, tmp_path, steps)
    found = value_targets.stage_checkpoints(tmp_path / "checkpoint_000002", 5)
    assert [(stage, path.name) for stage, path in found] == [
        (20, "checkpoint_000000"),
        (40, "checkpoint_000001"),
        (100, "checkpoint_000002"),
    ]
