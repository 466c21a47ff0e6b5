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
    """How the dynamics encodes an action."""

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
    """`[B, C, h, w]` latent, actions -> `[B, C, h, w]` next latent; an action is encoded as E constant planes."""

    held_weight: Tensor | None
    held_responses: Tensor | None
    """See `precompute`."""

    def __init__(self, channels: int, encoding: ActionEncoding, num_blocks: int) -> None:
        super().__init__()
        self.num_planes, self.encode_action = encoding
        self.conv = conv3x3(channels + self.num_planes, channels)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.register_buffer("held_weight", None, persistent=False)
        self.register_buffer("held_responses", None, persistent=False)

    @torch.no_grad()
    def precompute(self, size: Sequence[int]) -> None:
        """Computes and keeps what depends on the weights alone, for latents of this size. Repeat if they change."""
        weight, responses = self._weight_of_latent(), self._responses(size)
        if self.held_weight is None or self.held_responses is None:
            self.held_weight = weight.contiguous(memory_format=torch.channels_last)
            self.held_responses = responses.contiguous()
        else:
            self.held_weight.copy_(weight)
            self.held_responses.copy_(responses)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        x = self.norm(self._convolve(latent, action))
        return self.blocks(F.relu(x.add_(latent), inplace=True))

    def _convolve(self, latent: Tensor, action: Tensor) -> Tensor:
        """Computes `conv` of the latent and the action's planes, without making the planes.

        A convolution is linear: its response to a constant plane is the constant times its response to a plane of ones.
        On a GPU, concatenating and padding the channels took longer than the convolution.
        """
        weight, responses = self.held_weight, self.held_responses
        if weight is None or responses is None:
            weight, responses = self._weight_of_latent(), self._responses(latent.shape[2:])
        x = F.conv2d(latent, weight, self.conv.bias, padding=1)
        encoded, flat = self.encode_action(action), responses.flatten(1)
        if self.num_planes == 1:
            # The usual case: a product without a sum can be fused with what follows. Only the product is rounded, as
            # bfloat16 could not tell apart, say, 361 scaled actions between 0 and 1.
            of_action = (encoded * flat).to(x.dtype)
        else:
            of_action = encoded.to(latent.dtype) @ flat
        return x.add_(of_action.unflatten(1, responses.shape[1:]).permute(0, 3, 1, 2))

    def _weight_of_latent(self) -> Tensor:
        """The part of `conv`'s weight that applies to the latent, without that for the action's planes."""
        return self.conv.weight[:, : self.conv.out_channels]

    def _responses(self, size: Sequence[int]) -> Tensor:
        """`[E, h, w, C]`: the response of `conv` to a plane of ones for each of the E, channels last as the latent."""
        weight = self.conv.weight[:, self.conv.out_channels :]
        ones = torch.eye(self.num_planes, dtype=weight.dtype, device=weight.device)
        return F.conv2d(ones[:, :, None, None].expand(-1, -1, *size), weight, padding=1).permute(0, 2, 3, 1)


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


def _lstm_step(cell: nn.LSTMCell, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same function as the cell's, written as single operations."""
    h, c = state
    gates = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
    enters, stays, new, leaves = gates.chunk(4, dim=1)
    c = torch.sigmoid(stays) * c + torch.sigmoid(enters) * torch.tanh(new)
    return torch.sigmoid(leaves) * torch.tanh(c), c


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
        features = self.features(next_latent)
        # torch.compile cannot fuse torch's own cell; on a GPU that is slower than the fused operations.
        step = _lstm_step if torch.compiler.is_compiling() else nn.LSTMCell.__call__
        return torch.cat(step(self.lstm, features, (h, c)), dim=1)

    def read(self, reward_hidden: Tensor) -> Tensor:
        """LSTM state -> value prefix logits."""
        h, _ = reward_hidden.chunk(2, dim=1)
        # Only the prediction uses normalised features; the recurrent state stays as the LSTM computed it.
        return self.head(F.relu(self.norm(h)))
