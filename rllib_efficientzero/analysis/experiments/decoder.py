"""Figure 8: what a decoder of frozen latents shows of imagined states, with and without the consistency loss.

The decoder learns only from latents of real frames, from other parts of the episodes than those shown. How well it
decodes an imagined latent shows how close the dynamics stay to the latents that the representation would give.

Both variants use the replay of the agent with the consistency loss. That agent has learned from all of it, also from
the parts held out from the decoder; the other agent has learned from its own replay.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_efficientzero.analysis import fixed_replay, plots
from rllib_efficientzero.analysis.document import Block, Figure, Table
from rllib_efficientzero.analysis.experiments import variant_label
from rllib_efficientzero.analysis.measurement import Log, Measured, Measurement
from rllib_efficientzero.models import EfficientZeroNetwork, observation_planes
from rllib_efficientzero.models.decoder import Decoder, newest_frame, train_decoder
from rllib_efficientzero.policy import load_policy
from rllib_efficientzero.replay.windows import Windows, WindowShape

UNROLL_STEPS = 5
HELD_OUT = 0.1
NUM_SHOWN = 2
REPLAY_OF = "efficientzero"
"""Both decoders learn from, and are shown on, the frames of this variant's replay."""


def measure(
    checkpoints: Mapping[str, pathlib.Path], parameters: Mapping[str, Any], *, device: str, log: Log
) -> Measured:
    """Trains a decoder per variant and decodes imagined latents of held-out parts of episodes.

    Args:
        checkpoints: variant -> checkpoint; observations must be images.
        parameters: `updates`, `batch_size`, `test_positions`, `width` of the decoder; `seed` (0).
        device: to compute on.
        log: called with messages on the progress.
    """
    seed = int(parameters.get("seed", 0))
    train, held_out = fixed_replay.load(checkpoints[REPLAY_OF], held_out=HELD_OUT, unroll_steps=UNROLL_STEPS, seed=seed)
    values: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for variant, checkpoint in checkpoints.items():
        policy = load_policy(checkpoint, device=device)
        if len(policy.observation_space.shape or ()) != 4:
            raise ValueError(f"{checkpoint} was trained on vectors: there are no frames to decode")
        shape = WindowShape(policy.description["frame_stack"], UNROLL_STEPS, td_steps=0)
        torch.manual_seed(seed)
        decoder = _train_decoder(policy.network, train, shape, parameters, np.random.default_rng(seed), variant, log)
        test = held_out.spread(parameters["test_positions"], shape, np.random.default_rng(seed))
        values[variant], pictures = _evaluate(policy.network, decoder, test, parameters["batch_size"])
        arrays |= {f"{variant} {name}": images for name, images in pictures.items()}
    return Measured({"variants": values, **fixed_replay.count(train=train, held_out=held_out)}, arrays)


def _train_decoder(
    network: EfficientZeroNetwork,
    train: fixed_replay.FixedReplay,
    shape: WindowShape,
    parameters: Mapping[str, Any],
    rng: np.random.Generator,
    variant: str,
    log: Log,
) -> Decoder:
    device = next(network.parameters()).device
    present_only = WindowShape(shape.frame_stack, 0, 0)
    updates = parameters["updates"]

    def draw() -> Tensor:
        return _stacks(train.sample(parameters["batch_size"], present_only, rng), shape.frame_stack, device)[:, 0]

    def tell(update: int, error: float) -> None:
        if update % 500 == 0 or update == updates - 1:
            log(f"{variant}: decoder's update {update} of {updates}, MSE {error:.5f}")

    return train_decoder(network, draw, updates=updates, width=parameters["width"], log=tell)


@torch.no_grad()
def _evaluate(
    network: EfficientZeroNetwork, decoder: Decoder, test: Windows, chunk: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns PSNR of decoded imagined and real latents, and their cosine, by step 0 .. K; and some pictures."""
    device = next(network.parameters()).device
    stack = test.frames.shape[1] - UNROLL_STEPS
    errors, real_errors, imagined, real = [], [], [], []
    pictures: dict[str, np.ndarray] = {}
    parts = test.split(max(1, len(test) // chunk))
    for number, part in enumerate(parts):
        stacks = _stacks(part, stack, device)
        true = torch.stack([newest_frame(stacks[:, k]) for k in range(UNROLL_STEPS + 1)], dim=1)
        latents = _imagine(network, stacks[:, 0], torch.as_tensor(part.actions, device=device))
        real_latents = torch.stack(
            [network.represent(observation_planes(stacks[:, k])) for k in range(UNROLL_STEPS + 1)], dim=1
        )
        decoded, control = (decoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (latents, real_latents))
        errors.append(((decoded - true) ** 2).mean(dim=(2, 3, 4)))
        real_errors.append(((control - true) ** 2).mean(dim=(2, 3, 4)))
        imagined.append(latents.flatten(2))
        real.append(real_latents.flatten(2))
        if number == len(parts) // 2:
            # Far apart within the part, since neighbouring positions look alike.
            shown = np.linspace(0, len(part) - 1, NUM_SHOWN).astype(int)
            pictures = {
                name: images[shown].movedim(2, -1).cpu().numpy()
                for name, images in (("real", true), ("imagined", decoded), ("control", control))
            }
    values = {
        "psnr_imagined": psnr(torch.cat(errors)).tolist(),
        "psnr_real": psnr(torch.cat(real_errors)).tolist(),
        "cosine": centred_cosine(torch.cat(imagined), torch.cat(real)).tolist(),
    }
    return values, pictures


def _imagine(network: EfficientZeroNetwork, stacks: Tensor, actions: Tensor) -> Tensor:
    """Returns `[B, K+1, ...]`: the latents of the observations, then those that the dynamics reach from them."""
    latent = network.represent(observation_planes(stacks))
    hidden = network.initial_reward_hidden(latent)
    latents = [latent]
    for k in range(actions.shape[1]):
        latent, hidden = network.step(latent, hidden, actions[:, k])
        latents.append(latent)
    return torch.stack(latents, dim=1)


def _stacks(windows: Windows, frame_stack: int, device: torch.device) -> Tensor:
    """Returns `[B, K+1, S, H, W, C]` stacked frames of the times t .. t + K."""
    frames = torch.as_tensor(np.array(windows.frames), device=device)
    return torch.stack([frames[:, k : k + frame_stack] for k in range(frames.shape[1] - frame_stack + 1)], dim=1)


def psnr(squared_error: Tensor) -> Tensor:
    """`[M, K+1]` mean squared errors of images in 0..1 -> `[K+1]` decibels of their mean."""
    return -10 * torch.log10(squared_error.mean(dim=0).clamp(min=1e-12))


def centred_cosine(imagined: Tensor, real: Tensor) -> Tensor:
    """`[M, K+1, D]` -> `[K+1]` mean cosine, after the mean real latent is subtracted from both.

    Latents are rectified, so that without this any two of them have a high cosine.
    """
    centre = real.mean(dim=(0, 1))
    return F.cosine_similarity(imagined - centre, real - centre, dim=-1).mean(dim=0)


def present(measurement: Measurement, note: str) -> list[Block]:
    """Pictures, and the table of PSNR and cosine by step."""
    arrays, values = measurement.measured.arrays, measurement.measured.values["variants"]
    steps = [f"k = {k}" for k in range(UNROLL_STEPS + 1)]
    blocks: list[Block] = []
    for shown in range(min(len(arrays[f"{variant} real"]) for variant in values)):
        rows = {"real frame": arrays[f"{next(iter(values))} real"][shown]}
        for variant in values:
            rows[f"imagined,\n{variant_label(variant)}"] = arrays[f"{variant} imagined"][shown]
            rows[f"encoded,\n{variant_label(variant)}"] = arrays[f"{variant} control"][shown]
        png = plots.image_grid(rows, column_titles=steps, note=note)
        caption = "Imagined: decoded from the latent that the dynamics reach. Encoded: from that of the real frame."
        blocks.append(Figure(f"Figure 8, held-out position {shown + 1}", png, caption))
    table = [
        [f"{variant_label(variant)}: {name}", *(f"{value:.2f}" for value in found[key])]
        for variant, found in values.items()
        for key, name in (
            ("psnr_imagined", "PSNR of imagined frames (dB)"),
            ("psnr_real", "PSNR of encoded frames (dB)"),
            ("cosine", "cosine of imagined and encoded latents"),
        )
    ]
    caption = (
        "Over held-out positions; one decoder per variant, one seed. PSNR is of their mean squared error. "
        "The latents' mean is taken from them before their cosine, which is a mean over positions. "
        f"{fixed_replay.described(measurement.measured.values)} The agent {variant_label(REPLAY_OF)} was trained on "
        "them."
    )
    blocks.append(Table("Decoded frames by imagined step", ["", *steps], table, caption))
    return blocks
