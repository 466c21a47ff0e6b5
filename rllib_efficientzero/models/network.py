"""The three functions of MuZero with EfficientZero's value prefix, as one module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.action_distributions import ActionDistribution
from rllib_efficientzero.models.dynamics import ValuePrefixHead
from rllib_efficientzero.models.plane_layout import PLAIN, PlaneLayout
from rllib_efficientzero.models.prediction import Prediction
from rllib_efficientzero.models.scalar_transform import categorical_to_scalar


class NetworkOutput(NamedTuple):
    """The result of one network evaluation for B states, as the search needs it."""

    latent: Tensor  # [B, C, h, w] or [B, D]
    reward_hidden: Tensor  # [B, 2 * lstm_hidden]
    value: Tensor  # [B] float32, reward units
    value_prefix: Tensor  # [B] float32, undiscounted sum of rewards since the LSTM's last reset
    policy_logits: Tensor  # [B, A] float32; if actions are sampled, the parameters [B, P] of their distribution


class EfficientZeroNetwork(nn.Module):
    """Representation h, dynamics g with value prefix, prediction f.

    Build it with `models.build_network`. Acting and search use `initial_inference` and `recurrent_inference` (through
    `InferenceNetwork`, which is faster); the learner uses the parts, whose predictions are logits.
    """

    def __init__(
        self,
        *,
        representation: nn.Module,
        dynamics: nn.Module,
        value_prefix: ValuePrefixHead,
        prediction: Prediction,
        latent_shape: tuple[int, ...],
        distribution: ActionDistribution | None = None,
    ) -> None:
        super().__init__()
        self.representation = representation
        self.dynamics = dynamics
        self.value_prefix = value_prefix
        self.prediction = prediction
        self.latent_shape = latent_shape
        """`(C, h, w)` or `(D,)`"""
        self.distribution = distribution
        """the distribution whose parameters the policy head predicts; None: it predicts logits of enumerated actions"""

    @property
    def plane_layout(self) -> PlaneLayout:
        """A layout of planes that `represent` accepts as well as the one that `observation_planes` makes."""
        return getattr(self.representation, "plane_layout", PLAIN)

    # --- The parts, for the learner ----------------------------------------------------------------------------------

    def represent(self, planes: Tensor) -> Tensor:
        """h: `[B, S * C, H, W]` or `[B, S * D]` network input (see `observation_planes`) -> latent."""
        return self.representation(planes)

    def step(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """g: latent, LSTM state `[B, 2H]`, action `[B]` or `[B, D]` -> next latent, next LSTM state."""
        next_latent = self.imagine(latent, action)
        return next_latent, self.advance_value_prefix(next_latent, reward_hidden)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        """The first half of g: latent, action -> next latent."""
        return self.dynamics(latent, action)

    def advance_value_prefix(self, next_latent: Tensor, reward_hidden: Tensor) -> Tensor:
        """The second half of g: next latent, LSTM state -> next LSTM state."""
        return self.value_prefix.advance(next_latent, reward_hidden)

    def read_value_prefix(self, reward_hidden: Tensor) -> Tensor:
        """LSTM state `[B, 2H]` -> `[B, support]` value prefix logits."""
        return self.value_prefix.read(reward_hidden)

    def predict(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """f: latent -> `[B, A]` policy logits (see `NetworkOutput`), `[B, support]` value logits."""
        return self.prediction(latent)

    def initial_reward_hidden(self, latent: Tensor) -> Tensor:
        """The LSTM state with which a value prefix begins: zeros `[B, 2H]`."""
        return latent.new_zeros(latent.shape[0], 2 * self.value_prefix.lstm.hidden_size)

    # --- What search and targets call ---------------------------------------------------------------------------------

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        """Network input -> output at the root; value prefix zero."""
        latent = self.represent(planes)
        policy_logits, value_logits = self.predict(latent)
        value = categorical_to_scalar(value_logits)
        return NetworkOutput(
            latent, self.initial_reward_hidden(latent), value, torch.zeros_like(value), policy_logits.float()
        )

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        """Computes one imagined step for each of B states."""
        latent, reward_hidden = self.step(latent, reward_hidden, action)
        policy_logits, value_logits = self.predict(latent)
        # Both are transformed at once: with few states, the time depends on the number of operations.
        logits = torch.stack((value_logits, self.read_value_prefix(reward_hidden)))
        value, value_prefix = categorical_to_scalar(logits).unbind()
        return NetworkOutput(latent, reward_hidden, value, value_prefix, policy_logits.float())

    def value(self, planes: Tensor) -> Tensor:
        """Network input -> only the value, `[B]` float32, equal to that of `initial_inference`."""
        return categorical_to_scalar(self.prediction.value_logits(self.represent(planes)))
