"""Makes the running statistics of batch normalisation match the current weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def fresh_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block, forward passes in train mode compute running statistics anew, as averages over the passes.

    Running averages lag behind the weights. With Adam that lag matters: batch normalisation removes from the gradient
    every direction that only shifts a layer's output, so that plain gradient descent does not move along those; Adam,
    which scales each weight's step, does. On Pong, whose frames are nearly all background, the first layer's mean then
    moves by a tenth of its standard deviation per update, and in eval mode a network predicts a quarter of the rewards
    that it predicts in train mode.

    Parts of `module` in eval mode, such as a target network, are not changed.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # with None, torch computes a cumulative average
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
