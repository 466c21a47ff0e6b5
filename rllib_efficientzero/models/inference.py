"""The network for acting and reanalysis: fast inference without gradients, with weights that rarely change."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_efficientzero.models.action_distributions import ActionDistribution
from rllib_efficientzero.models.compilation import CompiledFunction, is_worth_compiling
from rllib_efficientzero.models.cpu_modules import arrange
from rllib_efficientzero.models.cuda_graphs import GraphedFunction
from rllib_efficientzero.models.folding import FoldedCopy
from rllib_efficientzero.models.network import EfficientZeroNetwork, NetworkOutput
from rllib_efficientzero.models.observations import Stacks, window_planes
from rllib_efficientzero.models.precision import MixedPrecision, autocast, low_precision
from rllib_efficientzero.models.triton_support import succeeds

CPU_CHUNK = 64
"""Observations encoded at a time on a CPU. The activations of more would exceed its cache, and malloc's heap."""

GPU_GRAPHED, GPU_MULTIPLE = 256, 128
"""Up to GPU_GRAPHED observations, a GPU encodes given planes with a CUDA graph, which keeps a copy of its input. Graphs
that make the planes themselves from stacks exist for multiples of GPU_MULTIPLE observations."""

Function = Callable[..., tuple[Tensor, ...]]


class InferenceNetwork:
    """Fast `initial_inference`, `recurrent_inference` and `value` of a network in eval mode.

    They run on a copy whose batch normalisations are folded into its convolutions. On a CPU they are traced graphs that
    run without Python; on a GPU the encoding of few observations is a CUDA graph. Results equal the network's up to
    rounding. The same inputs and weights always give the same results, whatever was computed before.

    The network's weights may change at any time. Every write to a tensor increments its version; the versions are
    compared, and the copy is updated, before observations are evaluated, but not in `recurrent_inference`, so that a
    search sees one set of weights. Some writes do not increment the version: those of a fused optimizer, of a CUDA
    graph, or through `tensor.data`. After these, call `torch.autograd.graph.increment_version`, as the Learner does, or
    `refresh`.

    Args:
        network: in any mode, since the copy is in eval mode. It must not move to another device.
        mixed_precision: where to compute in bfloat16; see `precision`.
        compiled: False calls the network itself, which must then be in eval mode.
        fused: on a GPU, let `torch.compile` fuse kernels of large networks for images. The first calls take a minute.

    Example:
        >>> from rllib_efficientzero.models import ModelConfig, build_network
        >>> network = InferenceNetwork(build_network((1, 4), 2, ModelConfig()))
        >>> root = network.initial_inference(torch.zeros(3, 4))
        >>> network.recurrent_inference(root.latent, root.reward_hidden, torch.zeros(3, dtype=torch.int64)).value.shape
        torch.Size([3])
    """

    def __init__(
        self,
        network: EfficientZeroNetwork,
        *,
        mixed_precision: MixedPrecision = False,
        compiled: bool = True,
        fused: bool = False,
    ) -> None:
        self.network = network
        self.mixed_precision = mixed_precision
        self.compiled = compiled
        self.fused = fused
        parameter = next(network.parameters())
        self.device = parameter.device
        self.dtype = (low_precision(self.device, mixed_precision) if compiled else None) or parameter.dtype
        """of network inputs; other inputs are converted to it"""
        # The dicts, not their tensors: a list of tensors would miss one that is replaced by another.
        self._tensors = [tensors for part in network.modules() for tensors in (part._parameters, part._buffers)]
        self._versions: list[tuple[int, int]] = []
        self._copy: FoldedCopy | None = None
        self._functions: dict[str, Function] = {}

    # --- What search and targets call --------------------------------------------------------------------------------

    @torch.inference_mode()
    def initial_inference(self, planes: Tensor | Stacks) -> NetworkOutput:
        """As `EfficientZeroNetwork.initial_inference`; also takes what `input_of` returns."""
        return NetworkOutput(*self._encode("initial_inference", planes))

    @torch.inference_mode()
    def value(self, planes: Tensor | Stacks) -> Tensor:
        """As `EfficientZeroNetwork.value`; also takes what `input_of` returns."""
        (value,) = self._encode("value", planes)
        return value

    def input_of(self, stacks: Stacks) -> Tensor | Stacks:
        """Converts stacks to the fastest input: planes, or the stacks themselves if a CUDA graph makes their planes."""
        return stacks if self.is_capturable else window_planes(stacks, self.dtype)

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        """As `EfficientZeroNetwork.recurrent_inference`, with the weights that the last `initial_inference` or `value`
        used."""
        return NetworkOutput(*self._call("recurrent_inference", latent, reward_hidden, action))

    @property
    def distribution(self) -> ActionDistribution | None:
        """The action distribution of the network's policy head, if it has one."""
        return self.network.distribution

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph that contains `recurrent_inference` stays valid, since weights change in place only."""
        return self.compiled and self.device.type == "cuda"

    # --- Weights -----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Copies the network's weights, whether or not their versions have changed."""
        if self._copy is not None:
            self._copy.update()
        self._versions = self._current_versions()

    def _current_versions(self) -> list[tuple[int, int]]:
        return [
            (tensor.data_ptr(), tensor._version)
            for tensors in self._tensors
            for tensor in tensors.values()
            if tensor is not None
        ]

    # --- Functions ---------------------------------------------------------------------------------------------------

    def _encode(self, name: str, planes: Tensor | Stacks) -> tuple[Tensor, ...]:
        if self._versions != self._current_versions():
            self.refresh()
        if isinstance(planes, Stacks):
            return self._encode_stacks(name, planes)
        planes = planes.to(self.dtype)
        if self.device.type != "cpu" or len(planes) <= CPU_CHUNK:
            return self._call(name, planes)
        chunks = [self._call(name, chunk) for chunk in planes.split(CPU_CHUNK)]
        return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def _encode_stacks(self, name: str, stacks: Stacks) -> tuple[Tensor, ...]:
        """Evaluates stacks with a CUDA graph; their number is rounded up, so that few graphs are needed."""
        count = len(stacks.rows)
        rows, times = (F.pad(numbers, (0, -count % GPU_MULTIPLE)) for numbers in (stacks.rows, stacks.times))
        key = f"{name} of {stacks.frame_stack}"
        function = self._functions.get(key)
        if function is None:
            evaluate = self._compile(name)

            def of_stacks(frames: Tensor, rows: Tensor, times: Tensor) -> tuple[Tensor, ...]:
                made = Stacks(frames, rows, times, stacks.frame_stack)
                return evaluate(window_planes(made, self.dtype, layout=self.network.plane_layout))

            function = self._functions[key] = GraphedFunction(of_stacks)
        return tuple(tensor[:count] for tensor in function(stacks.frames, rows, times))

    def _call(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._build(name, inputs)
        return function(*inputs)

    def _build(self, name: str, inputs: tuple[Tensor, ...]) -> Function:
        if not self.compiled:
            return functools.partial(self._call_network, name)
        if self.device.type == "cpu":
            return _trace(self._folded(), name, inputs)
        function = self._compile(name)
        # Callers that need `recurrent_inference` many times record it in their own graph, with what is around it.
        return function if name == "recurrent_inference" else _graphed_if_small(function)

    def _compile(self, name: str) -> Function:
        """The method as a function for a GPU, compiled if that is worth it."""
        function = _method(self._folded(), name)
        if self.fused and is_worth_compiling(self.network):
            return CompiledFunction(function, dynamic=True)
        return function

    def _folded(self) -> nn.Module:
        """The copy, which is made in the first call."""
        if self._copy is None:
            self._copy = FoldedCopy(self.network, self.dtype, self._replacement())
        return self._copy.module

    def _replacement(self) -> Callable[[EfficientZeroNetwork], None]:
        """A function that puts faster modules for this device into the copy; see `FoldedCopy`."""
        if self.device.type == "cpu":
            return arrange
        replacements: list[Callable[[EfficientZeroNetwork], None]] = []
        if self.fused and self.dtype == torch.bfloat16 and self.device.type == "cuda":
            if _has_convolutions(self.device):
                from rllib_efficientzero.models.rectified_convolutions import rectify

                replacements.append(rectify)
            if _has_kernels(self.device):
                from rllib_efficientzero.models.fused_modules import fuse

                replacements.append(fuse)

        def replace(network: EfficientZeroNetwork) -> None:
            for replacement in replacements:
                replacement(network)

        return replace

    def _call_network(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(), autocast(self.device, self.mixed_precision):
            return _method(self.network, name)(*inputs)

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments only: copies and compiled functions are made anew after unpickling."""
        return {key: getattr(self, key) for key in ("network", "mixed_precision", "compiled", "fused")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@functools.cache
def _has_convolutions(device: torch.device) -> bool:
    def attempt() -> None:
        from rllib_efficientzero.models.rectified_convolutions import try_convolutions

        try_convolutions(device, torch.bfloat16)

    return succeeds(attempt, f"{device} rectifies apart from convolutions, which takes longer")


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    def attempt() -> None:
        from rllib_efficientzero.models.fused_modules import try_kernels

        try_kernels(device, torch.bfloat16)

    return succeeds(attempt, f"{device} computes blocks and heads step by step, which makes searches slower")


def _graphed_if_small(function: Function) -> Function:
    graphed = GraphedFunction(function)
    return lambda planes: (graphed if len(planes) <= GPU_GRAPHED else function)(planes)


def _method(network: nn.Module, name: str) -> Function:
    """A method of a network as a function that returns a tuple, as the tracer needs it."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        output = getattr(network, name)(*inputs)
        return (output,) if isinstance(output, Tensor) else tuple(output)

    return call


class _Flat(nn.Module):
    """A method of a network with the network's tensors, but without its submodules. The tracer would make a script
    module of each, which takes five times as long as tracing."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        for number, parameter in enumerate(network.parameters()):
            self.register_parameter(f"parameter_{number}", parameter)
        for number, buffer in enumerate(network.buffers()):
            self.register_buffer(f"buffer_{number}", buffer)
        self._function = _method(network, name)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)


def _trace(network: nn.Module, name: str, inputs: tuple[Tensor, ...]) -> Function:
    """A method as a traced graph for any batch size, which runs without Python. It reads the weights at every call."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # The deprecated tracer, since its successors compile for minutes, and anew for every batch size.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Only `forward`, which is the graph: calling the module around it costs as much as several operations.
        return torch.jit.trace(_Flat(network, name), inputs, check_trace=False).forward
