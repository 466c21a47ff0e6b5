"""Describes the run that a configuration would make: how its environment is played, its budgets, its cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_efficientzero import cost
from rllib_efficientzero.env.checks import OBSERVATIONS
from rllib_efficientzero.env.dotted import dotted_path_of
from rllib_efficientzero.env.named import Protocol, named_protocol
from rllib_efficientzero.metrics import NUM_INTERACTIONS_LIFETIME, NUM_UPDATES_LIFETIME
from rllib_efficientzero.models import ModelConfig, actions_of, build_network
from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig

LONG_RUN_SECONDS = 6 * 3600.0
MOST_ACTIONS = 18
"""The most actions of an Atari game; used to time networks, and to try them, when the number does not matter."""


class RunDescription(AlgorithmConfig):
    """A base of `EfficientZeroConfig`: methods that describe the run, for the run itself, its files and the command
    line."""

    frame_stack: int
    total_env_steps: int
    total_updates: int | None
    replay_ratio: float

    def reanalyze_config(self) -> ReanalyzeConfig:
        """Settings by which train batches are made from windows."""
        raise NotImplementedError

    def updates_due(self, num_steps: int) -> int:
        """Updates that the replay ratio requires after so many environment steps."""
        return int(self.replay_ratio * num_steps + 1e-9)  # 0.29 * 100 is less than 29

    def updates_at_end(self) -> int:
        """Updates of a whole run."""
        return self.updates_due(self.total_env_steps) if self.total_updates is None else self.total_updates

    def budget(self) -> dict[str, int]:
        """Metric -> its value at the end of a run, which ends once all metrics have reached theirs."""
        return {NUM_INTERACTIONS_LIFETIME: self.total_env_steps, NUM_UPDATES_LIFETIME: self.updates_at_end()}

    def network_sizes(self) -> dict[str, Any]:
        """The settings of the networks from `rl_module(model_config=...)`; see `ModelConfig`."""
        return {key: value for key, value in self.model_config.items() if key not in self._model_config_auto_includes}

    def env_protocol(self) -> Protocol | None:
        """The protocol of an Atari game or DMControl task; None for any other environment."""
        return named_protocol(self.env, self.env_config)

    def steps_per_decision(self) -> int:
        """Steps of the underlying environment per step of the agent: Atari's frame skip, DMControl's action repeat."""
        protocol = self.env_protocol()
        return 1 if protocol is None else protocol.steps_per_decision

    def describe_protocol(self) -> dict[str, Any]:
        """How the environment is played in training and evaluation, and the budgets: what a score depends on."""
        described: dict[str, Any] = {
            "env": self.env if isinstance(self.env, str) else dotted_path_of(self.env),
            "frame_stack": self.frame_stack,
            "total_env_steps": self.total_env_steps,
            "total_updates": self.updates_at_end(),
            f"evaluation_{self.evaluation_duration_unit}": self.evaluation_duration,
        }
        protocol = self.env_protocol()
        if protocol is not None:
            raw_steps = self.total_env_steps * protocol.steps_per_decision
            described |= {"total_raw_env_steps": raw_steps, "training": protocol.describe()}
            evaluation = self.get_evaluation_config_object()
            if evaluation is not None:
                described |= {"evaluation": evaluation.env_protocol().describe()}
        return described

    def check_networks(self, spaces: tuple[gym.Space, gym.Space] | None) -> None:
        """Tries custom networks on zeros.

        Args:
            spaces: converted spaces (`env.spaces`) of observations and actions, if known; without them, only networks
                for Atari games and for DMControl's images are tried.

        Raises:
            ValueError: their parts do not fit each other, or the observations.
        """
        config = ModelConfig.from_dict(self.network_sizes())
        if config.networks is None:
            return
        if spaces is not None:
            observations = spaces[0][OBSERVATIONS] if isinstance(spaces[0], gym.spaces.Dict) else spaces[0]
            build_network((self.frame_stack, *observations.shape), actions_of(spaces[1]), config)
        elif image := self._named_image():
            build_network((self.frame_stack, *image), MOST_ACTIONS, config)

    def _named_image(self) -> Sequence[int] | None:
        """`[H, W, C]` of an Atari game's frames or DMControl's images; None for anything else."""
        protocol = self.env_protocol()
        return None if protocol is None else protocol.describe()["observation_shape"]

    def seconds_per_call(self, image: Sequence[int]) -> tuple[float, float]:
        """Seconds per observation encoded and per simulated step, timed now on this machine's CPU.

        Args:
            image: shape of one frame, `[H, W, C]`.
        """
        shape = (self.frame_stack, *image)
        network = build_network(shape, MOST_ACTIONS, ModelConfig.from_dict(self.network_sizes()))
        return cost.seconds_per_call(network, shape)

    def run_seconds(self, encode: float, simulate: float) -> float:
        """Seconds of a whole run, without environment and evaluation, computed from those of `seconds_per_call`."""
        return cost.run_seconds(
            encode,
            simulate,
            self.reanalyze_config(),
            batch_size=self.total_train_batch_size,
            env_steps=self.total_env_steps,
            updates=self.updates_at_end(),
        )

    def get_notices(self) -> list[str]:
        """Messages for the user before the run: without a GPU, an estimate of its time."""
        image = self._named_image()
        if image is None or torch.cuda.is_available():
            return []
        seconds = self.run_seconds(*self.seconds_per_call(image))
        notice = (
            f"There is no GPU here. At this machine's speed the whole run would take about {cost.describe(seconds)}"
        )
        if seconds < LONG_RUN_SECONDS:
            return [notice + "."]
        return [notice + "; see which of tuned_examples/ are made for machines without one."]
