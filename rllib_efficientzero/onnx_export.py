"""Exports the three networks as ONNX, for searches outside of this package. The batch size stays dynamic."""

from __future__ import annotations

import logging
import pathlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rllib_efficientzero.models import EfficientZeroNetwork, observation_planes
from rllib_efficientzero.models.scalar_transform import categorical_to_scalar
from rllib_efficientzero.policy import OBSERVATIONS, Policy


class OnnxMissingError(ImportError):
    """torch's exporter needs packages that are not installed."""


class _Representation(nn.Module):
    """planes `[B, S * C, H, W]` or `[B, S * D]` -> latent."""

    def __init__(self, network: EfficientZeroNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        return self.network.represent(planes)


class _Dynamics(nn.Module):
    """latent, LSTM state `[B, 2H]`, action i64`[B]` or f32`[B, D]` -> the next latent and LSTM state, value prefix."""

    def __init__(self, network: EfficientZeroNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        next_latent, next_hidden = self.network.step(latent, reward_hidden, action)
        return next_latent, next_hidden, categorical_to_scalar(self.network.read_value_prefix(next_hidden))


class _Prediction(nn.Module):
    """latent -> policy logits `[B, A]`, value `[B]`."""

    def __init__(self, network: EfficientZeroNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        policy_logits, value_logits = self.network.predict(latent)
        return policy_logits, categorical_to_scalar(value_logits)


def export_onnx(policy: Policy, directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes `representation.onnx`, `dynamics.onnx` and `prediction.onnx`, and returns their paths.

    Raises:
        OnnxMissingError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxMissingError(
            "ONNX needs packages that are not installed: pip install 'rllib_efficientzero[onnx]'"
        ) from error
    space = policy.observation_space
    if hasattr(space, "spaces"):
        space = space[OBSERVATIONS]
    network = policy.network
    # A batch of 2: the exporter would treat a size of 1 as constant.
    frames = torch.zeros((2, *(space.shape or ())), dtype=torch.uint8 if str(space.dtype) == "uint8" else torch.float32)
    planes = observation_planes(frames.to(policy.device))
    latent = network.represent(planes)
    hidden = network.initial_reward_hidden(latent)
    action = torch.zeros(2, dtype=torch.int64, device=policy.device)
    if policy.network.distribution is not None:
        action = torch.zeros(2, policy.network.distribution.action_size, device=policy.device)
    return [
        _write(directory / "representation.onnx", _Representation(network), (planes,), ("planes",), ("latent",)),
        _write(
            directory / "dynamics.onnx",
            _Dynamics(network),
            (latent, hidden, action),
            ("latent", "reward_hidden", "action"),
            ("next_latent", "next_reward_hidden", "value_prefix"),
        ),
        _write(directory / "prediction.onnx", _Prediction(network), (latent,), ("latent",), ("policy_logits", "value")),
    ]


def _write(
    path: pathlib.Path,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> pathlib.Path:
    batch = torch.export.Dim("batch")
    # The exporter's warnings concern only itself, and packages that are not needed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path
