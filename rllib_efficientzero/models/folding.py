"""A network as it is while its weights stand still: what depends on them alone is computed once, not in every call.

Batch normalisation in inference is a scale and a shift per channel, which the layer in front of it can do as well.
"""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.dynamics import ImageDynamics
from rllib_efficientzero.models.layers import AlignedConv2d, HalvingConv2d, Reduce, ResidualBlock
from rllib_efficientzero.models.network import EfficientZeroNetwork

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
FOLDABLE = (nn.Linear, nn.Conv2d, AlignedConv2d, HalvingConv2d)
"""Layers that can do what a normalisation behind them does. A subclass of somebody else's may compute anything."""
IN_ORDER = (ResidualBlock, Reduce, ImageDynamics)
"""Modules that call the layers which they hold in the order in which they define them."""


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
        original: a network in whatever mode.
        dtype: the copy's, but for what still scales.
        replace: puts other modules with the same parameters into the copy, whose normalisations are gone.
        """
        self._original = original
        occurrences = original.named_modules(remove_duplicate=False)
        self._normalisations = [name for name, module in occurrences if _is_constant(module)]
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
        weights = _tensors(self._original)
        for name in self._normalisations:
            scale, shift = _scale_and_shift(self._original.get_submodule(name))
            weights[f"{name}.weight"], weights[f"{name}.bias"] = scale, shift
        for layer_name, norm_name in self._normalised_by.items():
            scale, shift = weights[f"{norm_name}.weight"], weights[f"{norm_name}.bias"]
            weight, bias = weights[f"{layer_name}.weight"], weights.get(f"{layer_name}.bias")
            weights[f"{layer_name}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            weights[f"{layer_name}.bias"] = shift if bias is None else shift + bias * scale
        for name, tensor in _tensors(self.module).items():
            if name in weights:  # what the copy alone has, it computes
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


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that no checkpoint has included."""
    return dict(network.named_buffers(remove_duplicate=False)) | network.state_dict(keep_vars=True)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """`[C]` each: the normalisation of x in eval mode is scale * x + shift."""
    scale = 1.0 / torch.sqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _is_constant(module: nn.Module | None) -> bool:
    """Whether it is a normalisation that uses statistics of the past, not those of its batch."""
    return type(module) in NORMALISATIONS and getattr(module, "running_var", None) is not None


def foldable(network: nn.Module) -> dict[str, str]:
    """Names of the layers whose output goes to a normalisation and nowhere else, and of that normalisation.

    Only where the order of calls is certain, and each is called once: within an `nn.Sequential`, those in it included,
    and within what is `IN_ORDER`. A normalisation anywhere else, or behind anything but a convolution or a linear
    layer (an LSTM), stays in its place, as a scale and a shift.
    """
    occurrences = collections.Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    found = {}
    for name, holder in network.named_modules():
        if type(holder) is nn.Sequential or type(holder) in IN_ORDER:
            for (layer_name, layer), (norm_name, norm) in itertools.pairwise(_in_order(holder, name)):
                are_single = occurrences[id(layer)] == occurrences[id(norm)] == 1
                if type(layer) in FOLDABLE and _is_constant(norm) and are_single:
                    found[layer_name] = norm_name
    return found


def _in_order(holder: nn.Module, name: str) -> Iterator[tuple[str, nn.Module | None]]:
    """Names and modules of what a module holds, those of an `nn.Sequential` in its place."""
    for child_name, child in holder._modules.items():  # `children()` leaves repetitions out
        path = f"{name}.{child_name}" if name else child_name
        if type(child) is nn.Sequential:
            yield from _in_order(child, path)
        else:
            yield path, child
