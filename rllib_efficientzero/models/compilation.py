"""torch.compile, with a fallback where it does not work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from rllib_efficientzero.models.cuda_graphs import one_at_a_time
from rllib_efficientzero.models.network import EfficientZeroNetwork
from rllib_efficientzero.models.triton_support import reason_of

MIN_PARAMETERS = 1_000_000
"""The smallest network that is worth compiling, which takes a minute; the network for Atari has 2.8 million."""

logger = logging.getLogger(__name__)


def is_worth_compiling(network: EfficientZeroNetwork) -> bool:
    """Whether a network takes images and is large; others are fast without being compiled."""
    return len(network.latent_shape) == 3 and sum(p.numel() for p in network.parameters()) >= MIN_PARAMETERS


class CompiledFunction:
    """A function compiled by `torch.compile`; if that fails, a warning says why and the function itself is called.

    It is compiled in the first call, which takes from seconds to a minute.
    """

    def __init__(self, function: Callable[..., Any], *, dynamic: bool) -> None:
        """Args:
        function: of tensors, without side effects on anything but tensors.
        dynamic: whether sizes vary; if not, every combination of sizes is compiled by itself.
        """
        self._function = function
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=dynamic)

    @property
    def is_compiled(self) -> bool:
        """False if compiling has failed, which is known only after the first call."""
        return self._compiled is not None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self._compiled is not None:
            try:
                with one_at_a_time:
                    return self._compiled(*inputs, **options)
            except Exception as error:
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise  # The recording has failed, not the compiler.
                # Most likely a compiler or Triton is missing; torch may also fail with other than a RuntimeError. An
                # error of the function itself is raised again below.
                reason = reason_of(error)
                logger.warning("torch.compile failed, which makes learning and searching slower: %s", reason)
                self._compiled = None
        return self._function(*inputs, **options)
