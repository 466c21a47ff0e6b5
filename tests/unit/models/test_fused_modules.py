"""Parts that are one kernel compute what the parts they stand for compute; without a GPU kernels are interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rllib_efficientzero.models import EfficientZeroNetwork, ModelConfig, build_network
from rllib_efficientzero.models.folding import NORMALISATIONS, FoldedCopy

pytest.importorskip("triton")

from rllib_efficientzero.models import block_kernels, fused_modules
from rllib_efficientzero.models.block_kernels import residual_blocks
from rllib_efficientzero.models.dynamics import ImageDynamics
from rllib_efficientzero.models.fused_modules import FusedBlocks, FusedDynamics, fuse, try_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter multiplies matrices of bfloat16 as if they were integers.
TOLERANCES = [(torch.float32, 1e-3 if DEVICE.type == "cuda" else 1e-5)]  # TF32
TOLERANCES += [(torch.bfloat16, 1e-2)] if DEVICE.type == "cuda" else []
NUM_ACTIONS = 5
SIZES = {"channels": 16, "reduced_channels": 4, "lstm_hidden": 8, "support_size": 5, "head_hidden": (8,)}


def make(size: tuple[int, int] = (96, 80), **changed: object) -> EfficientZeroNetwork:
    """In eval mode, with statistics that leave nothing at its default."""
    torch.manual_seed(0)
    network = build_network((2, *size, 3), NUM_ACTIONS, ModelConfig(**(SIZES | changed)))  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, NORMALISATIONS):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.to(DEVICE).eval()


def random_latents(network: EfficientZeroNetwork, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    latents = torch.rand(batch, *network.latent_shape, generator=torch.Generator().manual_seed(1))
    return latents.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """By the size of all numbers: those near zero are sums of large ones."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.float() - expected.float()).norm() <= tolerance * expected.float().norm()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("batch", [2, 7])  # a program for each, and for several, of which the last has room
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_fused_parts_compute_what_those_they_replace_compute(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, batch: int, num_blocks: int
) -> None:
    monkeypatch.setattr(block_kernels, "FEW_IMAGES", 2)
    network = make(num_blocks=num_blocks)
    plain, fused = FoldedCopy(network, dtype).module, FoldedCopy(network, dtype, fuse).module
    assert isinstance(fused.dynamics, FusedDynamics)
    assert isinstance(fused.prediction.trunk, FusedBlocks)
    latents, actions = random_latents(network, batch, dtype), torch.arange(batch, device=DEVICE) % NUM_ACTIONS
    with torch.inference_mode():
        expected = plain.dynamics(latents, actions)
        assert_close(fused.dynamics(latents, actions), expected, tolerance)
        assert not torch.equal(expected[:1], plain.dynamics(latents[:1], actions[:1] + 1))
        assert_close(fused.prediction.trunk(latents), plain.prediction.trunk(latents), tolerance)


def test_what_is_not_a_number_stays_none() -> None:
    """A search tells by it that a network is broken."""
    network = make()
    latents = random_latents(network, 3)
    latents[1, 0, 2, 3] = torch.nan
    trunk = FoldedCopy(network, torch.float32, fuse).module.prediction.trunk
    with torch.inference_mode():
        found = trunk(latents).isnan().flatten(1).any(dim=1)
    assert found.tolist() == [False, True, False]


def test_fused_parts_follow_the_networks_weights_where_their_own_lie() -> None:
    network = make()
    copy = FoldedCopy(network, torch.float32, fuse)
    places = [buffer.data_ptr() for buffer in copy.module.buffers()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.8)
    copy.update()
    assert [buffer.data_ptr() for buffer in copy.module.buffers()] == places
    latents, actions = random_latents(network, 3), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with torch.inference_mode():
        for one, other in zip(
            copy.module.recurrent_inference(latents, torch.zeros(3, 16, device=DEVICE), actions),
            network.recurrent_inference(latents, torch.zeros(3, 16, device=DEVICE), actions),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)  # TF32, on a GPU


def test_parameters_keep_their_names() -> None:
    network = make()
    plain, fused = FoldedCopy(network, torch.float32).module, FoldedCopy(network, torch.float32, fuse).module
    assert fused.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "changed",
    [
        {"size": (16, 16), "channels": 24},  # no power of two
        {"size": (16, 16), "channels": 16, "action_encoding": "one_hot"},  # several planes
        {"size": (80, 320), "channels": 16},  # 2 x 5 cells, fewer than tensor cores take
    ],
)
def test_what_does_not_fit_stays_as_it_is(changed: dict[str, object]) -> None:
    copy = FoldedCopy(make(**changed), torch.float32, fuse)  # type: ignore[arg-type]
    assert type(copy.module.dynamics) is ImageDynamics


def test_kernels_are_tried_at_the_sizes_of_the_papers_network(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[str, list[int]] = {}

    def watch(name: str) -> None:
        real = getattr(fused_modules, name)

        def watched(x: Tensor, *args: Any) -> Tensor:
            launched.setdefault(name, []).append(len(x))
            return real(x, *args)

        monkeypatch.setattr(fused_modules, name, watched)

    for name in ("residual_blocks", "image_head", "prefix_head"):
        watch(name)
    monkeypatch.setattr(fused_modules, "FEW_IMAGES", 2)  # few enough for the interpreter
    generator = torch.get_rng_state()
    try_kernels(DEVICE, torch.float32)
    assert torch.equal(torch.get_rng_state(), generator)
    batches = {name: sorted(set(sizes)) for name, sizes in launched.items()}
    assert batches == {"residual_blocks": [1, 3], "image_head": [1, 3], "prefix_head": [1, 3]}


def test_a_part_of_a_users_own_stays_as_it_is() -> None:
    network = make()
    network.prediction.trunk = nn.Sequential(nn.Identity())
    copy = FoldedCopy(network, torch.float32, fuse)
    assert type(copy.module.prediction.trunk) is nn.Sequential
    assert isinstance(copy.module.dynamics, FusedDynamics)


def test_a_compiled_function_takes_the_kernel_for_any_batch() -> None:
    torch.manual_seed(0)
    weights, biases = torch.randn(2, 3, 3, 16, 16, device=DEVICE) / 12, torch.randn(2, 16, device=DEVICE)
    none = torch.empty(0, device=DEVICE)

    def function(x: Tensor) -> Tensor:
        return 2 * residual_blocks(x, weights, biases, none, none)

    compiled = torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)
    for batch in (3, 4, 9):
        x = torch.rand(batch, 16, 5, 7, device=DEVICE).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(x), function(x))
