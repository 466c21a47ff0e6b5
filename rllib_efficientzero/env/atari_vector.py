"""ALE's own vector of games, in C++ threads, played by the same `AtariProtocol` as single games.

`ale_py.vector_env.AtariVectorEnv` steps, pools and resizes as gymnasium's `AtariPreprocessing` does, pixel for pixel (a
test compares them step by step). Two differences are removed here:

- A lost life does not begin a new game; the step after it is a no-op, whose observation the user gets as a reset's.
- Its time limit cuts a frame skip short. Here agent steps are counted, and the last one has all its frames.

One difference remains: a game begins with 0 to `noop_max` no-op frames, not with at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.env.atari import NOOP, AtariProtocol, import_ale

NO_LIMIT = 2**31 - 1


def make_atari_vector(env_config: Mapping[str, Any]) -> gym.vector.VectorEnv:
    """Makes a vector of `env_config["num_envs"]` games; the other keys are those of `AtariProtocol.from_config`.

    Returns:
        Observations u8`[num_envs, 96, 96, 3]`.
    """
    settings = dict(env_config)
    num_envs = settings.pop("num_envs")
    return AtariVector(AtariProtocol.from_config(settings), num_envs)


class AtariVector(gym.vector.VectorEnv):
    """See the module's docstring; the autoreset mode is NEXT_STEP."""

    def __init__(self, protocol: AtariProtocol, num_envs: int) -> None:
        self.closed = True  # in case making the games below fails: there would be nothing to close
        import_ale(protocol)
        from ale_py.vector_env import AtariVectorEnv

        self._protocol = protocol
        self._games = AtariVectorEnv(
            gym.spec(protocol.env_id).kwargs["game"],
            num_envs,
            img_height=protocol.screen_size,
            img_width=protocol.screen_size,
            grayscale=protocol.grayscale,
            stack_num=1,
            frameskip=protocol.frame_skip,
            noop_max=protocol.noop_max + 1 if protocol.noop_max else 0,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            max_num_frames_per_episode=NO_LIMIT,
            use_fire_reset=False,
            reward_clipping=protocol.clip_rewards,
            life_loss_info=protocol.terminal_on_life_loss,
        )
        self.closed = False
        self.num_envs = num_envs
        self.metadata = {**self._games.metadata}
        channels = 1 if protocol.grayscale else 3
        shape = (protocol.screen_size, protocol.screen_size, channels)
        self.single_observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.single_action_space, self.action_space = self._games.single_action_space, self._games.action_space
        self.hidden_steps = 0
        """No-op agent steps taken after lost lives, as in `EpisodicLife`, summed over all games."""
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._lives = np.zeros(num_envs, dtype=np.int64)
        self._frame_numbers = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._cut = np.zeros(num_envs, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins new games."""
        observations, infos = self._games.reset(seed=seed)
        self._steps[:] = 0
        self._ended[:] = self._cut[:] = False
        self._note(infos)
        return self._frames(observations), infos

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all games. A game whose episode ended ignores its action and returns the next episode's first frame."""
        ended, cut = self._ended, self._cut
        observations, rewards, terminated, _, infos = self._games.step(np.where(ended, NOOP, actions))
        began = infos["episode_frame_number"] < self._frame_numbers  # ALE has reset these games after a game over
        hidden = ended & ~began & ~cut
        self.hidden_steps += int(hidden.sum())
        self._steps = np.where(began, 0, self._steps + 1)
        life_lost = (infos["lives"] > 0) & (infos["lives"] < self._lives) & self._protocol.terminal_on_life_loss
        over = terminated & ~life_lost
        late = self._steps >= self._protocol.max_steps
        # Games to reset now: those cut by the time limit, and those that ended in the no-op step after a lost life.
        anew = cut | (hidden & (over | late))
        if anew.any():
            fresh, infos = self._games.reset(options={"reset_mask": anew})
            observations = np.where(anew.reshape(-1, 1, 1, 1, *[1] * (observations.ndim - 4)), fresh, observations)
            self._steps[anew] = 0
        self._note(infos)
        resting = ended | cut
        terminated = (over | life_lost) & ~resting
        self._cut = late & ~resting
        self._ended = terminated & ~self._cut
        return self._frames(observations), np.where(resting, 0.0, rewards), terminated, self._cut.copy(), infos

    def _note(self, infos: dict[str, Any]) -> None:
        self._lives, self._frame_numbers = infos["lives"].copy(), infos["episode_frame_number"].copy()

    def _frames(self, observations: np.ndarray) -> np.ndarray:
        """Observations without the axis of stacked frames, and with a channel axis for grey images."""
        return observations.reshape(self.num_envs, *self.single_observation_space.shape)

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the emulators and ends their threads."""
        self._games.close()
