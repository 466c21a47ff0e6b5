"""`rllib train-decoder`: a network that draws what a policy imagines, learned from the frames of its run."""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_efficientzero.cli.checkpoints import Networks, loading_explained, one_trial
from rllib_efficientzero.cli.console import say, say_warning
from rllib_efficientzero.cli.errors import InputError, exit_codes

if TYPE_CHECKING:
    from rllib_efficientzero.analysis.fixed_replay import FixedReplay
    from rllib_efficientzero.models.decoder import Decoder
    from rllib_efficientzero.policy import Policy

SUFFIX = ".safetensors"
HELD_OUT = 0.1
NUM_TEST_FRAMES = 256
TOLD_EVERY = 100


def train_decoder_command(
    checkpoint: Annotated[
        pathlib.Path, typer.Argument(help="A checkpoint, or the directory of a trial (its newest) or its experiment.")
    ],
    file: Annotated[pathlib.Path, typer.Argument(help="Where to; ends in .safetensors.")],
    updates: Annotated[int, typer.Option("--updates", min=1, help="Gradient steps of the decoder.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Frames of a gradient step.")] = 64,
    width: Annotated[int, typer.Option("--width", min=1, max=1024, help="Channels inside of the decoder.")] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of its weights, and of the frames drawn.")] = 0,
    device: Annotated[str, typer.Option("--device", help="'cpu' or 'cuda'.")] = "cpu",
    networks: Networks = None,
) -> None:
    """Teach a decoder to draw what a policy imagines, for `rllib play CHECKPOINT --decoder FILE`.

    It learns from the frames of the checkpoint's replay, and fits the weights of this checkpoint only; they stay as
    they are. For policies that see images and choose among numbered actions. The checkpoint need not be trusted.
    """
    with exit_codes():
        if file.suffix != SUFFIX:
            raise InputError(f"must end in {SUFFIX}, not {file.suffix!r}", str(file))
        with loading_explained(device):
            policy, train, held_out = _load(one_trial(checkpoint), device, networks, seed)
        from rllib_efficientzero.playing.imagination import write_decoder

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            decoder = _train(policy, train, updates=updates, batch_size=batch_size, width=width, seed=seed)
            _say_errors(policy, decoder, held_out, batch_size)
            write_decoder(file, decoder, policy, width)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", str(file)) from error
        say(f"{file}  {file.stat().st_size:,} bytes")


def _load(
    checkpoint: pathlib.Path, device: str, networks: str | None, seed: int
) -> tuple[Policy, FixedReplay, FixedReplay]:
    """Loads the policy, the frames to learn from and those held out.

    Raises:
        CheckpointError: the policy cannot be loaded, or its latents cannot be decoded into frames.
        InputError: there is no replay, or too little in it.
    """
    from rllib_efficientzero.analysis import fixed_replay
    from rllib_efficientzero.checkpoint.policy_files import newest_policy
    from rllib_efficientzero.playing.imagination import check_decodable
    from rllib_efficientzero.policy import load_policy
    from rllib_efficientzero.replay.storage import ReplayLoadError

    path = newest_policy(checkpoint, warn=say_warning)
    policy = load_policy(path, device=device, networks=networks)
    check_decodable(policy)
    try:
        return policy, *fixed_replay.load(path, held_out=HELD_OUT, unroll_steps=0, seed=seed)
    except ReplayLoadError as error:
        raise InputError(f"{error} A decoder learns from the frames of a run: give one of its checkpoints.") from error
    except ValueError as error:
        raise InputError(str(error)) from error


def _train(policy: Policy, train: FixedReplay, *, updates: int, batch_size: int, width: int, seed: int) -> Decoder:
    import numpy as np
    import torch

    from rllib_efficientzero.models.decoder import train_decoder
    from rllib_efficientzero.replay.windows import WindowShape

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape = WindowShape(policy.description["frame_stack"], unroll_steps=0, td_steps=0)

    def draw() -> torch.Tensor:
        return torch.as_tensor(train.sample(batch_size, shape, rng).frames, device=policy.device)

    def tell(update: int, error: float) -> None:
        if (update + 1) % TOLD_EVERY == 0:
            say(f"update {update + 1} of {updates}: PSNR {_decibels(error):.1f} dB")

    return train_decoder(policy.network, draw, updates=updates, width=width, log=tell)


def _say_errors(policy: Policy, decoder: Decoder, held_out: FixedReplay, batch_size: int) -> None:
    """Prints how well held-out frames are decoded, and how well their mean would do in place of each."""
    import numpy as np
    import torch

    from rllib_efficientzero.models import observation_planes
    from rllib_efficientzero.models.decoder import newest_frame
    from rllib_efficientzero.replay.windows import WindowShape

    shape = WindowShape(policy.description["frame_stack"], unroll_steps=0, td_steps=0)
    windows = held_out.spread(NUM_TEST_FRAMES, shape, np.random.default_rng(0))
    stacks = torch.as_tensor(windows.frames, device=policy.device)
    with torch.inference_mode():
        latents = torch.cat([policy.network.represent(observation_planes(part)) for part in stacks.split(batch_size)])
        decoded = torch.cat([decoder(part) for part in latents.split(batch_size)])
        frames = newest_frame(stacks)
        found, of_mean = (float(((made - frames) ** 2).mean()) for made in (decoded, frames.mean(dim=0)))
    say(
        f"PSNR of {len(frames)} held-out frames: {_decibels(found):.1f} dB; of their mean in the place of each: "
        f"{_decibels(of_mean):.1f} dB"
    )


def _decibels(squared_error: float) -> float:
    """PSNR of images in 0..1."""
    return -10 * math.log10(max(squared_error, 1e-12))
