"""The dynamics network g: latent and action -> next latent; and the value prefix head on top of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_efficientzero.models.action_distributions import Actions
from rllib_efficientzero.models.layers import ResidualBlock, conv3x3, mlp


def scaled_action(action: Tensor, num_actions: int) -> Tensor:
    """`[B]` actions -> `[B, 1]`: a / A."""
    return (action / num_actions).unsqueeze(1)


def one_hot_action(action: Tensor, num_actions: int) -> Tensor:
    """`[B]` actions -> `[B, A]`."""
    return F.one_hot(action.long(), num_actions)


class ActionEncoding(NamedTuple):
    """How an action enters the dynamics."""

    size: int  # E
    encode: Callable[[Tensor], Tensor]  # actions [B] or [B, D] -> [B, E]


def action_encoding(actions: Actions, kind: str) -> ActionEncoding:
    """The encoding of enumerated actions by `kind`, "scaled" or "one_hot"; distributions have their own."""
    if not isinstance(actions, int):
        return ActionEncoding(actions.encoded_size, actions.encode)
    if kind == "scaled":
        return ActionEncoding(1, functools.partial(scaled_action, num_actions=actions))
    return ActionEncoding(actions, functools.partial(one_hot_action, num_actions=actions))


class ImageDynamics(nn.Module):
    """`[B, C, h, w]` latent, actions -> `[B, C, h, w]` next latent; the action enters as constant planes."""

    def __init__(self, channels: int, encoding: ActionEncoding, num_blocks: int) -> None:
        super().__init__()
        self.encode_action = encoding.encode
        self.conv = conv3x3(channels + encoding.size, channels)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        encoded = self.encode_action(action).to(latent.dtype)
        planes = encoded[:, :, None, None].expand(-1, -1, *latent.shape[2:])
        x = self.norm(self.conv(torch.cat((latent, planes), dim=1)))
        return self.blocks(F.relu(x.add_(latent), inplace=True))


class VectorDynamics(nn.Module):
    """`[B, L]` latent, actions -> `[B, L]` next latent."""

    def __init__(self, latent_size: int, encoding: ActionEncoding, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encode_action = encoding.encode
        self.layers = nn.Sequential(mlp(latent_size + encoding.size, hidden, latent_size), nn.BatchNorm1d(latent_size))

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        encoded = self.encode_action(action).to(latent.dtype)
        x = self.layers(torch.cat((latent, encoded), dim=1))
        return F.relu(x.add_(latent), inplace=True)


class ValuePrefixHead(nn.Module):
    """Value prefixes by an LSTM over imagined latents (EfficientZero, section 4.2).

    `reward_hidden` is `[B, 2 * lstm_hidden]`: the LSTM's h and c side by side, so that one tensor moves through the
    search's pool. It is all zeros at the root and wherever a new prefix begins.
    """

    def __init__(
        self, features: nn.Module, in_features: int, lstm_hidden: int, hidden: Sequence[int], out: int
    ) -> None:
        super().__init__()
        self.features = features
        self.lstm = nn.LSTMCell(in_features, lstm_hidden)
        self.norm = nn.BatchNorm1d(lstm_hidden)
        self.head = mlp(lstm_hidden, hidden, out, zero_last=True)

    def advance(self, next_latent: Tensor, reward_hidden: Tensor) -> Tensor:
        """Next latent, LSTM state -> next LSTM state."""
        h, c = reward_hidden.chunk(2, dim=1)
        return torch.cat(self.lstm(self.features(next_latent), (h, c)), dim=1)

    def read(self, reward_hidden: Tensor) -> Tensor:
        """LSTM state -> value prefix logits."""
        h, _ = reward_hidden.chunk(2, dim=1)
        # Only the prediction sees normalised features; the recurrent state stays as the LSTM made it.
        return self.head(F.relu(self.norm(h)))
