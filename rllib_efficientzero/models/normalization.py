"""Statistics of batch normalisation that fit the weights they are used with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def fresh_statistics(module: nn.Module) -> Iterator[None]:
    """Within, forward passes in train mode build running statistics anew, as plain averages over the passes.

    Running averages lag behind the weights. Adam makes that lag matter: batch normalisation hides from the gradient
    every direction that only shifts a layer's output, and plain gradient descent stays away from those; Adam's scaling
    of single weights does not. On Pong, whose frames are nearly all background, the first layer's mean then moves by a
    tenth of its standard deviation per update, and in eval mode a network predicts a quarter of the rewards that it
    predicts in train mode.

    Parts of `module` in eval mode, such as a target network, are left alone.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a cumulative average
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
