"""Heads by one kernel equal their layers; without a GPU the kernels are interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_efficientzero.models.dynamics import ValuePrefixHead
from rllib_efficientzero.models.folding import ScaleAndShift
from rllib_efficientzero.models.layers import Reduce, mlp

pytest.importorskip("triton")

from rllib_efficientzero.models.fused_modules import (
    FusedImageHead,
    FusedPrefixHead,
    image_head_fits,
    prefix_head_fits,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Of a number near one. The interpreter cuts where a GPU rounds, and layers may round between a product and its bias.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-5}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would round the inputs of those that kernels are compared to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_head(
    cells: int = 9,
    out: int = 3,
    dtype: torch.dtype = torch.float32,
    channels: int = 32,
    reduced: int = 16,
    hidden: tuple[int, ...] = (32,),
) -> nn.Sequential:
    """As folding leaves it, with weights that make logits near one."""
    torch.manual_seed(0)
    head = nn.Sequential(Reduce(channels, reduced), mlp(reduced * cells, hidden, out))
    return finished(head, dtype)


def make_prefix_head(dtype: torch.dtype = torch.float32, size: int = 40, out: int = 3) -> ValuePrefixHead:
    """As folding leaves it."""
    torch.manual_seed(0)
    head = ValuePrefixHead(nn.Identity(), 4, size, (32,), out)
    norm = ScaleAndShift(head.norm)
    norm.weight.uniform_(-2.0, 2.0)
    norm.bias.normal_()
    head.norm = nn.Identity()  # not to be cast
    finished(head, dtype).norm = norm.to(DEVICE)
    return head


def finished(head: nn.Module, dtype: torch.dtype) -> nn.Module:
    for module in head.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    for parameter in head.parameters():
        bound = (2.0 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, std=bound)
    return head.requires_grad_(False).eval().to(DEVICE, dtype)


def random_latents(batch: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    latents = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))
    return latents.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("batch", "channels", "size", "out"),
    [(16, 64, (6, 6), 601), (33, 32, (5, 7), 3), (5, 16, (3, 3), 18), (1, 64, (6, 6), 2), (1, 16, (1, 2), 256)],
)
def test_an_image_head_equals_its_layers(
    dtype: torch.dtype, batch: int, channels: int, size: tuple[int, int], out: int
) -> None:
    head = make_head(size[0] * size[1], out, dtype, channels)
    assert image_head_fits(head)
    fused = FusedImageHead(*head)
    assert fused.state_dict().keys() == head.state_dict().keys()
    latents = random_latents(batch, channels, size, dtype)
    expected = head(latents)
    assert_close(fused(latents), expected)
    fused.precompute()
    assert fused.state_dict().keys() == head.state_dict().keys()
    with torch.inference_mode():
        assert_close(fused(latents), expected)
        assert_close(fused(latents.contiguous()), expected)  # channels first


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("batch", "size", "out"), [(33, 512, 601), (5, 40, 3), (1, 129, 18)])
def test_a_value_prefix_is_read_as_by_the_layers(dtype: torch.dtype, batch: int, size: int, out: int) -> None:
    head = make_prefix_head(dtype, size, out)
    assert prefix_head_fits(head)
    fused = FusedPrefixHead(head)
    assert fused.state_dict().keys() == head.state_dict().keys()
    state = torch.randn(batch, 2 * size, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    wider = F.pad(state, (0, 8))[:, : 2 * size]
    with torch.inference_mode():
        assert_close(fused.read(state), head.read(state))
        assert_close(fused.read(wider), head.read(state))
    latent = torch.randn(batch, 4).to(DEVICE, dtype)
    torch.testing.assert_close(fused.advance(latent, state), head.advance(latent, state))


def test_weights_that_changed_in_place_are_held_where_they_were() -> None:
    head = make_head()
    fused = FusedImageHead(*head)
    fused.precompute()
    latents, held = random_latents(2, 32, (3, 3), torch.float32), fused.held_weight
    before = fused(latents)
    for parameter in head.parameters():
        parameter.add_(0.1)
    fused.precompute((3, 3))
    assert fused.held_weight is held
    assert_close(fused(latents), head(latents))
    assert not torch.allclose(before, head(latents), atol=0.1)


def test_what_is_no_number_is_not_hidden() -> None:
    """A search looks at logits alone."""
    head, prefix_head = make_head(), make_prefix_head()
    latents = random_latents(2, 32, (3, 3), torch.float32)
    latents[1, 5, 1, 2] = float("nan")
    found = FusedImageHead(*head)(latents)
    assert torch.isfinite(found).all(dim=1).tolist() == [True, False]
    state = torch.zeros(2, 80, device=DEVICE)
    state[1, 7] = float("nan")
    assert torch.isfinite(FusedPrefixHead(prefix_head).read(state)).all(dim=1).tolist() == [True, False]


def test_compiled_functions_take_the_kernels_as_they_are() -> None:
    head, prefix_head = make_head(), make_prefix_head()
    fused, fused_prefix = FusedImageHead(*head), FusedPrefixHead(prefix_head)
    fused.precompute()

    @torch.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    def both(latents: Tensor, state: Tensor) -> Tensor:
        return torch.stack((fused(latents * 2), fused_prefix.read(state + 1))).float().softmax(-1)

    for batch in (3, 20):
        latents = random_latents(batch, 32, (3, 3), torch.float32)
        state = torch.randn(batch, 80, device=DEVICE)
        expected = torch.stack((head(latents * 2), prefix_head.read(state + 1))).softmax(-1)
        with torch.inference_mode():
            assert_close(both(latents, state), expected)


@pytest.mark.parametrize("op_name", ["image_head", "prefix_head"])
def test_operations_are_what_they_say_they_are(op_name: str) -> None:
    """What torch.compile relies on: shapes known beforehand, and no output that is an input."""
    head, prefix_head = make_head(), make_prefix_head()
    (reduce, layers), norm = head, prefix_head.norm
    of_layers = (layers[0].bias, layers[-1].weight, layers[-1].bias)
    arguments = {
        "image_head": (
            random_latents(2, 32, (3, 3), torch.float32), reduce.conv.weight, reduce.conv.bias,
            torch.randn(9, 16, 32, device=DEVICE), *of_layers,
        ),
        "prefix_head": (
            torch.randn(2, 80, device=DEVICE), norm.weight, norm.bias, prefix_head.head[0].weight, *of_layers,
        ),
    }  # fmt: skip
    torch.library.opcheck(getattr(torch.ops.rllib_efficientzero, op_name).default, arguments[op_name])


def test_heads_that_the_kernels_cannot_compute_are_refused() -> None:
    assert image_head_fits(make_head(dtype=torch.bfloat16, channels=64, hidden=(64,)))
    assert not image_head_fits(make_head(dtype=torch.float16))
    assert not image_head_fits(make_head(channels=128))
    assert not image_head_fits(make_head(channels=24))
    assert not image_head_fits(make_head(reduced=8))
    assert not image_head_fits(make_head(hidden=(20,)))
    assert not image_head_fits(make_head(hidden=(128,)))
    assert not image_head_fits(make_head(hidden=(32, 32)))
    assert not image_head_fits(make_head(hidden=()))
    assert not image_head_fits(make_head(dtype=torch.bfloat16, channels=64, reduced=64, hidden=(64,)))
    assert not image_head_fits(mlp(16, [32], 3))
    with_normalisation = make_head()
    with_normalisation[0].norm = nn.BatchNorm2d(16)
    assert not image_head_fits(with_normalisation)
    with_normalisation = make_head()
    with_normalisation[1][1] = nn.BatchNorm1d(32)
    assert not image_head_fits(with_normalisation)
    mixed = make_head()
    mixed[1].to(torch.bfloat16)
    assert not image_head_fits(mixed)


def test_value_prefix_heads_that_the_kernel_cannot_read_are_refused() -> None:
    assert not prefix_head_fits(make_prefix_head(torch.float16))
    assert not prefix_head_fits(ValuePrefixHead(nn.Identity(), 4, 40, (32,), 3))
    for name, replacement in (("norm", nn.Identity()), ("head", mlp(40, [20], 3)), ("head", nn.Linear(40, 3))):
        head = make_prefix_head()
        setattr(head, name, replacement)
        assert not prefix_head_fits(head)
