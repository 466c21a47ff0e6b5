"""Models without networks, whose searches can be judged exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.models import NetworkOutput


@dataclasses.dataclass
class TabularModel:
    """A deterministic decision process as a model. Latent `[B, 1]`: the state. LSTM state `[B, 1]`: the value prefix so
    far, which the search has to reset."""

    next_state: np.ndarray  # [S, A]
    reward: np.ndarray  # [S, A]
    value: np.ndarray  # [S]
    logits: np.ndarray  # [S, A]

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        return self._output(planes[:, 0].long(), torch.zeros(len(planes)))

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        state = latent[:, 0].long()
        reward = torch.from_numpy(self.reward)[state, action].float()
        return self._output(torch.from_numpy(self.next_state)[state, action], reward_hidden[:, 0] + reward)

    def _output(self, state: Tensor, value_prefix: Tensor) -> NetworkOutput:
        return NetworkOutput(
            latent=state[:, None].float(),
            reward_hidden=value_prefix[:, None],
            value=torch.from_numpy(self.value)[state].float(),
            value_prefix=value_prefix,
            policy_logits=torch.from_numpy(self.logits)[state].float(),
        )


def random_process(seed: int, num_states: int = 12, num_actions: int = 4) -> TabularModel:
    """Random transitions and small integer rewards (exact in float32), no knowledge of values."""
    rng = np.random.default_rng(seed)
    return TabularModel(
        next_state=rng.integers(num_states, size=(num_states, num_actions)),
        reward=rng.integers(-2, 3, size=(num_states, num_actions)).astype(float),
        value=np.zeros(num_states),
        logits=rng.normal(size=(num_states, num_actions)),
    )


def corridor(length: int = 2) -> TabularModel:
    """States 0..length: action 1 moves on, and out of the last one for a reward of 1; action 0 stays; action 2 gives
    0.2 and leads into a dead end. Neither values nor priors say so."""
    num_states, dead = length + 1, length
    next_state = np.full((num_states, 3), dead)
    reward = np.zeros((num_states, 3))
    for state in range(length):
        next_state[state] = [state, state + 1, dead]
        reward[state, 2] = 0.2
    reward[length - 1, 1] = 1.0
    return TabularModel(next_state, reward, np.zeros(num_states), np.zeros((num_states, 3)))


def optimal_q(model: TabularModel, discount: float, sweeps: int = 500) -> np.ndarray:
    """`[S, A]` by value iteration."""
    q = np.zeros_like(model.reward)
    for _ in range(sweeps):
        q = model.reward + discount * q.max(axis=1)[model.next_state]
    return q
