"""Environments with one mistake each. Importable by name, as users' own are."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text


class Walk(gym.Env):
    """Without a mistake: a random walk that ends at a random time."""

    def __init__(self, env_config: Any = None) -> None:
        self.observation_space: Any = Box(-1e3, 1e3, (2,), np.float32)
        self.action_space: Any = Discrete(3)
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observe(), 1.0, bool(self.np_random.random() < 0.05), False, {}

    def observe(self) -> Any:
        return np.array([self.time, self.np_random.normal()], np.float32)


class RaisesWhenMade(Walk):
    def __init__(self, env_config: Any = None) -> None:
        raise FileNotFoundError("no such level: 7")


class NoEnv:
    def __init__(self, env_config: Any = None) -> None:
        """Takes what environments take."""

    def step(self, action: Any) -> None:
        """Nothing."""


class NoObservationSpace(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.observation_space = None


class SpaceIsAList(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.action_space = [0, 1, 2]


class TextObservations(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.observation_space = Text(5)


gym.register("Texts-v0", TextObservations)


class MaskOfWrongLength(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.observation_space = Dict({"observations": self.observation_space, "action_mask": MultiBinary(2)})


class MaskOfContinuousActions(Walk):
    """A mask of factors, of actions that are too many to be enumerated."""

    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.action_space = Box(-1, 1, (3,))
        self.observation_space = Dict({"observations": self.observation_space, "action_mask": MultiBinary(3)})


class OldReset(Walk):
    def reset(self) -> Any:
        return np.zeros(2, np.float32)


class RaisesInReset(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return len(self.time), {}


class ResetWithoutInfo(Walk):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class ChangingSpace(Walk):
    def reset(self, **kwargs: Any) -> Any:
        self.action_space = Discrete(5)
        return super().reset(**kwargs)


class FourValues(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class RaisesInStep(Walk):
    def step(self, action: Any) -> Any:
        if self.time == 3:
            raise KeyError("lost")
        return super().step(action)


class NanObservation(Walk):
    def observe(self) -> Any:
        return super().observe() / np.float32(0 if self.time == 2 else 1)


class WrongShape(Walk):
    def observe(self) -> Any:
        return np.zeros(3, np.float32)


class WrongDtype(Walk):
    def observe(self) -> Any:
        return super().observe().astype(complex)


class ListObservation(Walk):
    def observe(self) -> Any:
        return list(super().observe())


class OutsideItsSpace(Walk):
    def observe(self) -> Any:
        return super().observe() + 1_001


class NanReward(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), float("nan"), False, False, {}


class NoReward(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), None, False, False, {}


class TerminatedIsNone(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), 0.0, None, False, {}


class InfoIsNone(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), 0.0, False, False, None


class Masked(Walk):
    """With a mask; nothing is legal from the third step on."""

    mask = np.array([1, 0, 1], np.int8)

    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.observation_space = Dict(
            {"observations": self.observation_space, "action_mask": Box(0, 10, (3,), np.int8)}
        )

    def observe(self) -> Any:
        mask = self.mask * (self.time < 3)
        return {"observations": super().observe(), "action_mask": mask.astype(np.int8)}


class MaskOfPriorities(Masked):
    mask = np.array([1, 2, 3], np.int8)


# --- What can be played, but is hardly learned from -------------------------------------------------------------------


class Unseeded(Walk):
    def observe(self) -> Any:
        return np.random.normal(size=2).astype(np.float32)  # noqa: NPY002 - the mistake itself


class LimitAsTermination(Walk):
    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observe(), 1.0, self.time == 25, False, {}


class SaysTimeLimit(Walk):
    def step(self, action: Any) -> Any:
        self.time += 1
        done = bool(self.np_random.random() < 0.2)
        return self.observe(), 1.0, done, False, {"TimeLimit.truncated": done}


class HugeRewards(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), 1e6, bool(self.np_random.random() < 0.1), False, {}


class TinyRewards(Walk):
    def step(self, action: Any) -> Any:
        return self.observe(), 1e-6, bool(self.np_random.random() < 0.1), False, {}


class Endless(Walk):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Doubles(Walk):
    def observe(self) -> Any:
        return super().observe().astype(np.float64)


class FloatImages(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.observation_space = Box(0, 255, (16, 16, 3), np.float32)

    def observe(self) -> Any:
        return np.full((16, 16, 3), 200.0, np.float32)


class OneAction(Walk):
    def __init__(self, env_config: Any = None) -> None:
        super().__init__()
        self.action_space = Discrete(1)


class Slow(Walk):
    def step(self, action: Any) -> Any:
        end = __import__("time").monotonic() + 0.06
        while __import__("time").monotonic() < end:
            pass
        return super().step(action)


class CannotClose(Walk):
    def close(self) -> None:
        raise OSError("window is gone")
