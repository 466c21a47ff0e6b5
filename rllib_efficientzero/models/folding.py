"""Folding of batch normalisations into the layers before them, for inference with weights that rarely change.

In inference, a batch normalisation is a scale and a shift per channel, which the layer before it can do as well.
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
"""Layers that can include a normalisation after them. These types exactly: a user's subclass may compute anything."""
IN_ORDER = (ResidualBlock, Reduce, ImageDynamics)
"""Modules that call their layers in the order in which they define them."""


class FoldedCopy:
    """A copy of a network in eval mode, without normalisations except those that use the batch's own statistics.

    `module` gives the original's results up to rounding. `update` writes into its tensors in place, so that traced
    functions and CUDA graphs that use them stay valid.
    """

    def __init__(
        self,
        original: EfficientZeroNetwork,
        dtype: torch.dtype,
        replace: Callable[[EfficientZeroNetwork], None] = lambda network: None,
    ) -> None:
        """Args:
        original: a network in any mode.
        dtype: of the copy, except for normalisations that could not be folded.
        replace: puts other modules with the same parameters into the copy, after its normalisations were folded.
        """
        self._original = original
        occurrences = original.named_modules(remove_duplicate=False)
        self._normalisations = [name for name, module in occurrences if _is_constant(module)]
        self._normalised_by = foldable(original)
        # Outside of inference mode, because tensors made in it cannot be written to outside of it.
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
        """Copies the original's weights and statistics, and folds them again."""
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
            if name in weights:  # tensors that only the copy has are computed in `precompute`
                tensor.copy_(weights[name])
        for module in self.module.modules():
            if (precompute := getattr(module, "precompute", None)) is not None:
                precompute(self._original.latent_shape[1:])


class ScaleAndShift(nn.Module):
    """A normalisation in eval mode, in its own precision, as a scale and a shift; many times as fast for few rows."""

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
    """Parameters and buffers by name, including buffers that are not in the state dict."""
    return dict(network.named_buffers(remove_duplicate=False)) | network.state_dict(keep_vars=True)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """`[C]` each: the normalisation of x in eval mode is scale * x + shift."""
    scale = 1.0 / torch.sqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _is_constant(module: nn.Module | None) -> bool:
    """Whether a module is a normalisation that uses running statistics in eval mode, not those of its batch."""
    return type(module) in NORMALISATIONS and getattr(module, "running_var", None) is not None


def foldable(network: nn.Module) -> dict[str, str]:
    """Layer name -> name of the normalisation, for layers whose output goes to a normalisation and nowhere else.

    Only where the order of calls is certain and each module is called once: within an `nn.Sequential`, including nested
    ones, and within the modules of `IN_ORDER`. Any other normalisation, or one after anything but a convolution or a
    linear layer (such as an LSTM), stays in its place as a scale and a shift.
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
    """Names and modules of a module's children, with the children of an `nn.Sequential` in its place."""
    for child_name, child in holder._modules.items():  # `children()` would leave repeated modules out
        path = f"{name}.{child_name}" if name else child_name
        if type(child) is nn.Sequential:
            yield from _in_order(child, path)
        else:
            yield path, child
