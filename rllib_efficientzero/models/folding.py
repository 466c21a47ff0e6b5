"""Batch normalisation folded into the layer in front of it: in inference it is a scale and a shift per channel."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedCopy:
    """A copy of a network as it is in eval mode, without the normalisations that can be folded.

    `module` equals the original up to rounding. Its tensors stay where they are: `update` writes into them, so that
    what was traced or captured with them remains valid.
    """

    def __init__(self, original: nn.Module, dtype: torch.dtype) -> None:
        """`original` defines its layers as `foldable` says; `dtype` is the copy's, but for what is still normalised."""
        self._original = original
        self._normalised_by = foldable(original)
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.module = copy.deepcopy(original).requires_grad_(False).eval()
            self.module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for layer_name, norm_name in self._normalised_by.items():
                layer = self.module.get_submodule(layer_name)
                if layer.bias is None:
                    layer.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)), requires_grad=False)
                parent, _, attribute = norm_name.rpartition(".")
                setattr(self.module.get_submodule(parent), attribute, nn.Identity())
            for module in self.module.modules():
                if isinstance(module, NORMALISATIONS):
                    module.float()
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Take over the original's weights and statistics."""
        weights = self._original.state_dict(keep_vars=True)
        for layer_name, norm_name in self._normalised_by.items():
            eps = self._original.get_submodule(norm_name).eps
            scale = weights[f"{norm_name}.weight"] / torch.sqrt(weights[f"{norm_name}.running_var"] + eps)
            shift = weights[f"{norm_name}.bias"] - weights[f"{norm_name}.running_mean"] * scale
            weight, bias = weights[f"{layer_name}.weight"], weights.get(f"{layer_name}.bias")
            weights[f"{layer_name}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            weights[f"{layer_name}.bias"] = shift if bias is None else shift + bias * scale
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            tensor.copy_(weights[name])


def foldable(network: nn.Module) -> dict[str, str]:
    """Names of the layers whose output goes to a normalisation and nowhere else, and of that normalisation.

    All networks of this package define their layers in the order in which they call them, so that a normalisation
    belongs to the layer before it. One that follows anything but a convolution or a linear layer (an LSTM) stays, and
    so does one in a user's module, whose order may be any.
    """
    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    return {
        layer_name: norm_name
        for (layer_name, layer), (norm_name, norm) in itertools.pairwise(leaves)
        if isinstance(norm, NORMALISATIONS) and isinstance(layer, nn.Conv2d | nn.Linear)
        if _calls_in_order(network, layer_name) and _calls_in_order(network, norm_name)
    }


def _calls_in_order(network: nn.Module, name: str) -> bool:
    """Whether what holds a layer is known to call its layers in the order in which it defines them."""
    holder = type(network.get_submodule(name.rpartition(".")[0]))
    return holder is nn.Sequential or holder.__module__.startswith(f"{__package__}.")
