"""Where networks compute in bfloat16, and that they learn there as they do in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_efficientzero.losses import losses, total_loss
from rllib_efficientzero.models import ModelConfig, build_consistency_heads, build_network
from rllib_efficientzero.models import precision as precision_module
from rllib_efficientzero.models.precision import autocast, cpu_has_bfloat16, low_precision
from rllib_efficientzero.models.unroll import unroll

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("capabilities", [{"avx512_bf16": True}, {"avx512_bf16": False, "amx_bf16": True}])
def test_a_cpu_with_instructions_for_it_is_used_only_if_asked(
    capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert low_precision(CPU, "cpu") is torch.bfloat16
    assert low_precision(CPU, True) is low_precision(CPU, False) is None


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": False, "avx512_f": True}])
def test_other_cpus_stay_with_float32(capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert low_precision(CPU, "cpu") is None


def test_a_torch_that_cannot_tell_stays_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not cpu_has_bfloat16()


@pytest.mark.parametrize(("enabled", "expected"), [(True, torch.bfloat16), ("cpu", torch.bfloat16), (False, None)])
def test_a_gpu_is_used_unless_told_not_to(
    enabled: bool | str, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: True)
    assert low_precision(GPU, enabled) is expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: False)
    assert low_precision(GPU, enabled) is None


def learning_curve(enabled: bool | str, updates: int = 25) -> Tensor:
    """`[updates]` losses of a small network that learns one batch by heart."""
    torch.manual_seed(0)
    sizes = ModelConfig(channels=8, latent_side=4, lstm_hidden=16, support_size=5, projector_hidden=32)
    network = build_network((2, 16, 16, 1), 3, sizes)
    heads = build_consistency_heads(network.latent_shape, sizes)
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    batch = _batch(torch.Generator().manual_seed(7))
    coefficients = {"policy": 1.0, "value": 0.25, "value_prefix": 1.0, "consistency": 2.0}
    found = []
    for _ in range(updates):
        with autocast(CPU, enabled):
            predicted = unroll(
                network,
                batch["root"],
                batch["actions"],
                consistency=heads,
                target_planes=batch["following"],
                value_prefix_horizon=5,
            )
        loss = total_loss(losses(predicted, batch), coefficients, torch.ones(16), steps=3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def _batch(generator: torch.Generator) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "root": normal(16, 2, 16, 16),
        "following": normal(16, 3, 2, 16, 16),
        "actions": torch.randint(0, 3, (16, 3), generator=generator),
        "target_policy": torch.softmax(2.0 * normal(16, 4, 3), dim=-1),
        "target_value": 3.0 * normal(16, 4),
        "target_value_prefix": normal(16, 3),
        "mask": torch.ones(16, 3),
    }


def test_bfloat16_learns_as_float32_does(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = learning_curve(False)
    monkeypatch.setattr(precision_module, "cpu_has_bfloat16", lambda: True)  # where it does not, torch emulates it
    low = learning_curve("cpu")
    assert not torch.equal(low, exact)
    progress = exact[0] - exact[-1]
    assert progress > 1.0
    assert low[0] - low[-1] > 0.95 * progress
    assert (low - exact).abs().max() < 0.05 * progress  # at every update; 0.03 where this was written
