"""Reconstructs frames from latents: a decoder that is trained on a network's latents and never changes the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_efficientzero.models.network import EfficientZeroNetwork
from rllib_efficientzero.models.observations import observation_planes

LEARNING_RATE = 1e-3


class Decoder(nn.Module):
    """`[B, C, h, w]` latents -> `[B, c, H, W]` frames in 0..1, by doubling the size until it reaches the frame's."""

    def __init__(self, latent_shape: tuple[int, ...], frame_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self._frame_size = frame_shape[1:]
        layers: list[nn.Module] = [nn.Conv2d(latent_shape[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        side = latent_shape[1]
        while side < frame_shape[1]:
            layers += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            side *= 2
        self._layers = nn.Sequential(*layers, nn.Conv2d(width, frame_shape[0], 3, padding=1), nn.Sigmoid())

    def forward(self, latent: Tensor) -> Tensor:
        frame = self._layers(latent.float())
        if frame.shape[2:] != self._frame_size:
            frame = F.interpolate(frame, size=self._frame_size, mode="bilinear", align_corners=False)
        return frame


def train_decoder(
    network: EfficientZeroNetwork,
    draw: Callable[[], Tensor],
    *,
    updates: int,
    width: int,
    log: Callable[[int, float], object],
) -> Decoder:
    """Trains a decoder to reconstruct, from a network's latents, the newest of the frames that were encoded.

    Args:
        network: in eval mode; its latents are `[C, h, w]`.
        draw: returns `[B, S, H, W, C]` stacked frames of play, oldest first, on the network's device.
        updates: gradient steps, at least one.
        width: channels inside the decoder.
        log: called after each update with its number, from 0, and its mean squared error.

    Returns:
        The decoder, in eval mode.
    """
    decoder: Decoder | None = None
    optimizer: torch.optim.Optimizer | None = None
    for update in range(updates):
        stacks = draw()
        with torch.no_grad():
            latent = network.represent(observation_planes(stacks))
        target = newest_frame(stacks)
        if decoder is None or optimizer is None:
            decoder = Decoder(tuple(latent.shape[1:]), tuple(target.shape[1:]), width).to(latent.device)
            optimizer = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
        loss = F.mse_loss(decoder(latent), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log(update, loss.item())
    assert decoder is not None  # at least one update
    return decoder.eval()


def newest_frame(stacks: Tensor) -> Tensor:
    """`[B, S, H, W, C]` u8 -> `[B, C, H, W]` in 0..1."""
    newest = stacks[:, -1].movedim(-1, 1)
    return newest.float() / 255 if newest.dtype == torch.uint8 else newest.float()
