"""Parts arranged for a CPU compute what the parts they stand for compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rllib_efficientzero.models import EfficientZeroNetwork, InferenceNetwork, ModelConfig, build_network
from rllib_efficientzero.models.cpu_modules import Float32Head, WeightsFirstPrefixHead, arrange
from rllib_efficientzero.models.folding import FoldedCopy

SHAPES = {"image": (2, 24, 24, 1), "vector": (3, 4)}
LSTM_HIDDEN = 12
SIZES = ModelConfig(
    channels=8, reduced_channels=4, latent_size=16, lstm_hidden=LSTM_HIDDEN, support_size=5, head_hidden=(8,)
)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def make(kind: str, dtype: torch.dtype = torch.float32) -> EfficientZeroNetwork:
    """In eval mode; every part's output depends on its input."""
    torch.manual_seed(0)
    network = build_network(SHAPES[kind], 3, SIZES).to(dtype)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return network.eval()


def copies(network: EfficientZeroNetwork, dtype: torch.dtype) -> tuple[EfficientZeroNetwork, EfficientZeroNetwork]:
    """Plain, and arranged."""
    plain, arranged = FoldedCopy(network, dtype).module, FoldedCopy(network, dtype, arrange).module
    assert isinstance(arranged.value_prefix, WeightsFirstPrefixHead)
    return plain, arranged


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("batch", [1, 2, 9])
@torch.inference_mode()
def test_the_state_of_the_prefix_advances_alike(kind: str, dtype: torch.dtype, batch: int) -> None:
    plain, arranged = copies(make(kind, torch.promote_types(dtype, torch.float32)), dtype)
    latent, state = torch.randn(batch, *plain.latent_shape, dtype=dtype), torch.randn(batch, 24, dtype=dtype)
    found, expected = (network.advance_value_prefix(latent, state) for network in (arranged, plain))
    assert found.dtype == expected.dtype == dtype
    assert_close(found, expected, dtype)
    assert not torch.equal(found[0, :LSTM_HIDDEN], found[0, LSTM_HIDDEN:])  # h first, then c
    assert_close(arranged.read_value_prefix(found), plain.read_value_prefix(expected), dtype)


@pytest.mark.parametrize("kind", SHAPES)
@torch.inference_mode()
def test_heads_are_computed_in_float32_where_all_else_is_in_bfloat16(kind: str) -> None:
    plain, arranged = copies(make(kind), torch.bfloat16)
    latent = torch.randn(5, *plain.latent_shape, dtype=torch.bfloat16)
    for found, expected in zip(arranged.predict(latent), plain.predict(latent), strict=True):
        assert found.dtype == torch.float32
        assert_close(found, expected, torch.bfloat16)
    assert arranged.read_value_prefix(torch.zeros(5, 24, dtype=torch.bfloat16)).dtype == torch.float32


def test_heads_in_float32_stay_as_they_are() -> None:
    _, arranged = copies(make("image"), torch.float32)
    assert not any(isinstance(module, Float32Head) for module in arranged.modules())


def test_heads_of_other_kinds_stay_as_they_are() -> None:
    """Who writes a head of his own decides on its precision, beside heads of ours."""

    class Own(nn.Linear):
        pass

    network = make("vector")
    network.prediction.value = Own(16, 11)
    plain, arranged = copies(network, torch.bfloat16)
    assert type(arranged.prediction.value) is Own
    latent, state = torch.randn(5, 16, dtype=torch.bfloat16), torch.randn(5, 24, dtype=torch.bfloat16)
    action = torch.tensor([0, 1, 2, 0, 1])
    with torch.inference_mode():
        found, expected = (network.recurrent_inference(latent, state, action) for network in (arranged, plain))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_follow_the_networks_weights_where_their_own_lie(dtype: torch.dtype) -> None:
    network = make("image")
    copy = FoldedCopy(network, dtype, arrange)
    tensors = (*copy.module.parameters(), *copy.module.buffers())
    places = [tensor.data_ptr() for tensor in tensors]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.8).add_(0.01)
    copy.update()
    assert [tensor.data_ptr() for tensor in tensors] == places
    latent, state, action = torch.rand(3, 8, 6, 6), torch.rand(3, 24), torch.tensor([0, 1, 2])
    with torch.inference_mode():
        found = copy.module.recurrent_inference(latent.to(dtype), state.to(dtype), action)
        expected = network.recurrent_inference(latent, state, action)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, dtype)


def test_parameters_keep_their_names() -> None:
    plain, arranged = copies(make("image"), torch.bfloat16)
    assert arranged.state_dict().keys() == plain.state_dict().keys()


def test_inference_on_a_cpu_is_by_these_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    advanced = []
    real = WeightsFirstPrefixHead.advance
    monkeypatch.setattr(
        WeightsFirstPrefixHead, "advance", lambda self, *inputs: advanced.append(True) or real(self, *inputs)
    )
    network = InferenceNetwork(make("vector"))
    root = network.initial_inference(torch.zeros(2, 12))
    network.recurrent_inference(root.latent, root.reward_hidden, torch.zeros(2, dtype=torch.int64))
    assert advanced
