"""Other people's environments that need a view of them to be played at all. Importable by name."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def minigrid_image(env_config: Any) -> gym.Env:
    """What MiniGrid's agent sees (7 x 7 x 3), without the mission's text."""
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", **env_config))


class SpielGame(gym.Env):
    """A game of OpenSpiel for one player, whose legal moves differ from state to state."""

    def __init__(self, env_config: Any) -> None:
        import pyspiel

        self.game = pyspiel.load_game(env_config["game"])
        size = int(np.prod(self.game.observation_tensor_shape()))
        self.action_space = gym.spaces.Discrete(int(self.game.num_distinct_actions()))
        self.observation_space = gym.spaces.Dict(
            {
                "observations": gym.spaces.Box(-np.inf, np.inf, (size,), np.float32),
                "action_mask": gym.spaces.MultiBinary(int(self.action_space.n)),
            }
        )
        self.limit = env_config.get("limit", 15)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state, self.time = self.game.new_initial_state(), 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert action in self.state.legal_actions()
        self.state.apply_action(int(action))
        self.time += 1
        observation, terminated = self._observe(), self.state.is_terminal()
        return observation, self.state.player_reward(0), terminated, not terminated and self.time >= self.limit, {}

    def _observe(self) -> dict[str, np.ndarray]:
        while self.state.is_chance_node():
            outcomes, probabilities = zip(*self.state.chance_outcomes(), strict=True)
            self.state.apply_action(int(self.np_random.choice(outcomes, p=probabilities)))
        mask = np.zeros(self.action_space.n, np.int8)
        tensor = np.zeros(self.observation_space["observations"].shape, np.float32)
        if not self.state.is_terminal():
            mask[self.state.legal_actions()] = 1
            tensor[:] = np.ravel(self.state.observation_tensor())
        return {"observations": tensor, "action_mask": mask}
