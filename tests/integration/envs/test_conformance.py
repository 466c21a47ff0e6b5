"""Environments that nobody here wrote: each trains two iterations, is saved, loaded and evaluated."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import views
from ray.tune.registry import register_env
from scale_helpers import NETWORK

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.env.minigrid import make_pixels

pytestmark = pytest.mark.usefixtures("shared_ray")

SHORT = {"max_episode_steps": 15}
"""Of gymnasium's own: so that an evaluation takes a moment."""
MADE_BY = {"minigrid-image": views.minigrid_image, "minigrid-pixels": make_pixels}
"""Functions; RLlib takes classes and names only."""
GAME = {"screen_size": 32, "grayscale": True, "max_frames": 60}
TASK = {"action_repeat": 100}
IMAGE_NETWORK = NETWORK | {"channels": 4, "reduced_channels": 2, "latent_side": 4}


class Case(NamedTuple):
    env: Any
    env_config: dict[str, Any]
    needs: str | None = None
    is_long: bool = False


CASES = {
    "CartPole": Case("CartPole-v1", SHORT),
    "Acrobot": Case("Acrobot-v1", SHORT, is_long=True),
    "MountainCar": Case("MountainCar-v0", SHORT, is_long=True),
    "FrozenLake": Case("FrozenLake-v1", SHORT),
    "Taxi": Case("Taxi-v3", SHORT, is_long=True),
    "CliffWalking": Case("CliffWalking-v1", SHORT, is_long=True),
    "Blackjack": Case("Blackjack-v1", {}),
    "LunarLander": Case("LunarLander-v3", SHORT, "Box2D", is_long=True),
    "LunarLander, continuous": Case("LunarLander-v3", {**SHORT, "continuous": True}, "Box2D"),
    "Pendulum": Case("Pendulum-v1", SHORT),
    "MountainCar, continuous": Case("MountainCarContinuous-v0", SHORT, is_long=True),
    "MiniGrid, what it sees": Case("minigrid-image", {"max_steps": 15}, "minigrid", is_long=True),
    "MiniGrid, in pixels": Case(
        "minigrid-pixels", {"name": "MiniGrid-Empty-5x5-v0", "max_steps": 15}, "minigrid", is_long=True
    ),
    "Pong": Case("ale_py:ALE/Pong-v5", GAME, "ale_py"),
    "Breakout": Case("ale_py:ALE/Breakout-v5", GAME, "ale_py", is_long=True),
    "DMControl, from its state": Case("dmc/cartpole-swingup-state", TASK, "dm_control"),
    "DMControl, from pixels": Case("dmc/reacher-easy", {**TASK, "image_size": 16}, "dm_control", is_long=True),
    "DMControl, continuous": Case(
        "dmc/walker-walk-state", {**TASK, "bins_per_dimension": None}, "dm_control", is_long=True
    ),
    "OpenSpiel's 2048, masked": Case(views.SpielGame, {"game": "2048"}, "pyspiel"),
    "OpenSpiel's solitaire, masked": Case(views.SpielGame, {"game": "solitaire"}, "pyspiel", is_long=True),
}


def config(case: Case) -> EfficientZeroConfig:
    return (
        EfficientZeroConfig()
        .environment(case.env, env_config=case.env_config)
        .debugging(seed=0, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(
            num_simulations=2,
            frame_stack=2,
            total_env_steps=100,
            total_updates=None,
            replay_ratio=0.25,
            num_steps_sampled_before_learning_starts=8,
            train_batch_size_per_learner=8,
            self_play_update_freq=1,
            optimizer={"type": "adam"},
            lr=0.001,
            mixed_precision=False,
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .evaluation(evaluation_duration=2)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=IMAGE_NETWORK)
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.long] if case.is_long else []) for name, case in CASES.items()],
)
def test_trains_saves_loads_and_evaluates(case: Case, tmp_path: pathlib.Path) -> None:
    if case.needs:
        pytest.importorskip(case.needs)
    for name, make in MADE_BY.items():
        register_env(name, make)
    algo = config(case).build_algo()
    for _ in range(2):
        result = algo.train()
    played = result["num_interactions_lifetime"]
    assert played >= 16
    assert result["num_updates_lifetime"] >= 2
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    algo.save_to_path(tmp_path / "checkpoint")
    expected = weights(algo)
    algo.stop()

    loaded = EfficientZero.from_checkpoint(tmp_path / "checkpoint")
    assert loaded.num_interactions == played
    found = weights(loaded)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    evaluation = loaded.evaluate()["env_runners"]
    assert evaluation["num_episodes"] >= 2
    assert np.isfinite(evaluation["episode_return_mean"])
    loaded.stop()


def weights(algo: EfficientZero) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in algo.get_module().network.state_dict().items()}


def test_there_are_as_many_as_promised() -> None:
    assert len(CASES) >= 15
