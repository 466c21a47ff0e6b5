"""Decodes what a policy imagines along a line of actions into frames; writes and loads the decoder's file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import safetensors
import safetensors.torch
import torch

from rllib_efficientzero.checkpoint.files import write_file
from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.models import observation_planes
from rllib_efficientzero.models.decoder import Decoder
from rllib_efficientzero.policy import Policy

MAX_BYTES = 64 << 20
"""Of a decoder's file. One of 32 channels has 0.3 MB."""
MAX_WIDTH = 1 << 10


@torch.inference_mode()
def imagine(policy: Policy, decoder: Decoder, stack: np.ndarray, actions: Sequence[int]) -> np.ndarray:
    """Decodes the latent of an observation, then those that the dynamics reach from it, action by action.

    Args:
        policy: whose latents the decoder was trained on.
        decoder: as `load_decoder` returns it.
        stack: `[S, H, W, C]` the observation, oldest frame first.
        actions: k numbers of actions.

    Returns:
        u8 `[1 + k, H, W, C]`.
    """
    network = policy.network
    latents = [network.represent(observation_planes(torch.as_tensor(stack[None], device=policy.device)))]
    for action in actions:
        latents.append(network.imagine(latents[-1], torch.tensor([action], device=policy.device)))
    decoded = decoder(torch.cat(latents)).movedim(1, -1)
    return (255 * decoded).round().to(torch.uint8).cpu().numpy()


def check_decodable(policy: Policy) -> None:
    """Checks that a policy's latents can be decoded into frames.

    Raises:
        CheckpointError: they cannot; the message says why.
    """
    if len(policy.frame_shape) != 3:
        raise CheckpointError("The policy sees vectors: there are no frames to decode what it imagines into.")
    if len(policy.network.latent_shape) != 3:
        raise CheckpointError("The policy's custom networks have latents without rows and columns: no decoder fits.")
    if policy.samples_actions:
        raise CheckpointError(
            "The policy samples its actions anew at every node of a search: only lines of numbered ones are decoded."
        )


def write_decoder(path: pathlib.Path, decoder: Decoder, policy: Policy, width: int) -> None:
    """Writes a decoder as safetensors, with its width and with the hash of the policy's weights that it belongs to."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    told = {"policy": policy.description["weights"]["sha256"], "width": str(width)}
    write_file(path, safetensors.torch.save(tensors, told))


def load_decoder(path: pathlib.Path, policy: Policy) -> Decoder:
    """Loads the decoder of a policy's latents, in eval mode on the policy's device. The file need not be trusted.

    Raises:
        CheckpointError: the policy's latents cannot be decoded, or the file is missing, damaged or for other weights.
    """
    check_decodable(policy)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} is no decoder: it has more than {MAX_BYTES} bytes.")
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no decoder: {error}.") from error
    width = told.get("width", "")
    if "policy" not in told or not width.isdecimal() or not 0 < int(width[:9]) <= MAX_WIDTH:
        raise CheckpointError(f"{path} is no decoder: it does not say of which policy, or how wide it is.")
    if told["policy"] != policy.description["weights"]["sha256"]:
        raise CheckpointError(
            f"{path} decodes the latents of other weights than this policy's: train one with `rllib train-decoder`."
        )
    height, columns, channels = policy.frame_shape
    with torch.device("meta"):
        decoder = Decoder(policy.network.latent_shape, (channels, height, columns), int(width))
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in decoder.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
        raise CheckpointError(f"{path} does not fit the policy: its tensors are not those of a decoder of its latents.")
    decoder.load_state_dict(tensors, assign=True)
    return decoder.to(policy.device).eval().requires_grad_(False)
