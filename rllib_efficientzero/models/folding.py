"""A network as it is while its weights stand still: what depends on them alone is computed once, not in every call.

Batch normalisation in inference is a scale and a shift per channel, which the layer in front of it can do as well.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.network import EfficientZeroNetwork

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedCopy:
    """A copy of a network as it is in eval mode, without normalisations but those by statistics of the batch.

    `module` equals the original up to rounding. Its tensors stay where they are: `update` writes into them, so that
    what was traced or captured with them remains valid.
    """

    def __init__(
        self,
        original: EfficientZeroNetwork,
        dtype: torch.dtype,
        replace: Callable[[EfficientZeroNetwork], None] = lambda network: None,
    ) -> None:
        """Args:
        original: defines its layers as `foldable` says.
        dtype: the copy's, but for what still scales.
        replace: puts other modules with the same parameters into the copy, whose normalisations are gone.
        """
        self._original = original
        self._normalisations = [name for name, module in original.named_modules() if _is_constant(module)]
        self._normalised_by = foldable(original)
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.module = copy.deepcopy(original).requires_grad_(False).eval()
            self.module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for layer_name in self._normalised_by:
                layer = self.module.get_submodule(layer_name)
                if layer.bias is None:
                    layer.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)), requires_grad=False)
            for name in self._normalisations:
                is_folded = name in self._normalised_by.values()
                parent, _, attribute = name.rpartition(".")
                replacement = nn.Identity() if is_folded else ScaleAndShift(original.get_submodule(name))
                setattr(self.module.get_submodule(parent), attribute, replacement)
            replace(self.module)
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Take over the original's weights and statistics."""
        weights = self._original.state_dict(keep_vars=True)
        for name in self._normalisations:
            scale, shift = _scale_and_shift(self._original.get_submodule(name))
            weights[f"{name}.weight"], weights[f"{name}.bias"] = scale, shift
        for layer_name, norm_name in self._normalised_by.items():
            scale, shift = weights[f"{norm_name}.weight"], weights[f"{norm_name}.bias"]
            weight, bias = weights[f"{layer_name}.weight"], weights.get(f"{layer_name}.bias")
            weights[f"{layer_name}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            weights[f"{layer_name}.bias"] = shift if bias is None else shift + bias * scale
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            tensor.copy_(weights[name])
        for module in self.module.modules():
            if (hold := getattr(module, "hold", None)) is not None:
                hold(self._original.latent_shape[1:])


class ScaleAndShift(nn.Module):
    """What a normalisation is in eval mode, in its own precision; many times as fast for few rows."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]

    def __init__(self, norm: Any) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            self.register_buffer(name, torch.empty_like(norm.running_mean))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape)).to(x.dtype)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """`[C]` each: the normalisation of x in eval mode is scale * x + shift."""
    scale = 1.0 / torch.sqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _is_constant(module: nn.Module) -> bool:
    """Whether it is a normalisation that uses statistics of the past, not those of its batch."""
    return isinstance(module, NORMALISATIONS) and module.running_var is not None


def foldable(network: nn.Module) -> dict[str, str]:
    """Names of the layers whose output goes to a normalisation and nowhere else, and of that normalisation.

    All networks of this package define their layers in the order in which they call them, so that a normalisation
    belongs to the layer before it. One that follows anything but a convolution or a linear layer (an LSTM) stays in its
    place, as a scale and a shift, and so does one in a user's module, whose order may be any.
    """
    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    return {
        layer_name: norm_name
        for (layer_name, layer), (norm_name, norm) in itertools.pairwise(leaves)
        if _is_constant(norm) and isinstance(layer, nn.Conv2d | nn.Linear)
        if _calls_in_order(network, layer_name) and _calls_in_order(network, norm_name)
    }


def _calls_in_order(network: nn.Module, name: str) -> bool:
    """Whether what holds a layer is known to call its layers in the order in which it defines them."""
    holder = type(network.get_submodule(name.rpartition(".")[0]))
    return holder is nn.Sequential or holder.__module__.startswith(f"{__package__}.")
