"""A step on the device is the optimizer's own; one that is not finite is none."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from graph_helpers import FakeRecorder
from torch import Tensor, nn

from rllib_efficientzero import metrics as names
from rllib_efficientzero.gradient_step import FINITE, GradientStep, own_state
from rllib_efficientzero.models import cuda_graphs

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
    "plain sgd": (torch.optim.SGD, {}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.01}),
}


def make(kind: str, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, GradientStep]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 1))
    module.unused = nn.Parameter(torch.ones(2))
    optimizer_class, settings = OPTIMIZERS[kind]
    optimizer = optimizer_class(module.parameters(), lr=0.5, fused=True, **settings)

    def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = module[2](module[1](module[0](batch["x"]))).squeeze(1) - batch["y"]
        return error.square().mean(), {"error": error.detach()}

    return module, optimizer, GradientStep(compute, optimizer, module, **options)


def batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(6, 3, generator=generator), "y": torch.randn(6, generator=generator)} for _ in range(count)
    ]


def state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    of_optimizer = [tensor for values in optimizer.state_dict()["state"].values() for tensor in values.values()]
    return [tensor.clone() for tensor in (*module.state_dict().values(), *of_optimizer)]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(monkeypatch: pytest.MonkeyPatch, kind: str, recorded: bool) -> None:
    monkeypatch.setattr(cuda_graphs, "record", FakeRecorder())
    module, _, step = make(kind, recorded=recorded)
    expected = copy.deepcopy(module)
    optimizer_class, settings = OPTIMIZERS[kind]
    optimizer = optimizer_class(expected.parameters(), lr=1.0, **settings)
    for number, batch in enumerate(batches(4)):
        told = step(batch, 0.1 / (number + 1))
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        error = expected[2](expected[1](expected[0](batch["x"]))).squeeze(1) - batch["y"]
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        assert told[FINITE]
        torch.testing.assert_close(torch.tensor(told["error"]).float(), error.detach())
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_not_finite_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, first: bool, recorded: bool
) -> None:
    """Not even the first step, which would make the optimizer's state."""
    monkeypatch.setattr(cuda_graphs, "record", FakeRecorder())
    module, optimizer, step = make(kind, recorded=recorded)
    good, bad, last = batches(3)
    bad["y"][2] = torch.nan
    if not first:
        step(good, 0.1)
    first_parameter = next(module.parameters())
    before, version = state(module, optimizer), first_parameter._version
    told = step(bad, 0.1)
    assert not told[FINITE]
    assert first_parameter._version > version  # by which others see that weights may have changed
    for old, new in zip(before, state(module, optimizer), strict=True):
        assert torch.equal(old, new)
    assert step(last, 0.1)[FINITE]
    assert not torch.equal(before[1], module[0].weight)


def test_the_gradient_is_scaled_down() -> None:
    steps = []
    for max_norm in (None, 0.01):
        module, _, step = make("plain sgd", max_norm=max_norm)
        before = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        told = step(batches(1)[0], 1.0)
        after = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        steps.append(((after - before).norm().item(), told[names.GRADIENT_NORM].item()))
    (whole, norm), (scaled, same_norm) = steps
    assert whole == pytest.approx(norm, rel=1e-4)
    assert same_norm == norm > 0.01
    assert scaled == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_s_options_stay_what_they_were(kind: str) -> None:
    _, optimizer, step = make(kind)
    before = copy.deepcopy({key: value for key, value in optimizer.param_groups[0].items() if key != "params"})
    step(batches(1)[0], 0.1)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before
    assert not hasattr(optimizer, "found_inf")


def test_batches_of_different_sizes_may_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a graph of its own, and numbers of its own to report; in whatever order its tensors come."""
    monkeypatch.setattr(cuda_graphs, "record", FakeRecorder())
    _, _, step = make("sgd", recorded=True)
    (batch,) = batches(1)
    few = {name: tensor[:4] for name, tensor in reversed(batch.items())}
    for given in (batch, few, batch, few):
        assert step(given, 0.0)["error"].shape == given["y"].shape


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_that_was_laid_out_otherwise_goes_on(kind: str) -> None:
    """Images' weights lie channels last; what comes back from a pickle may not, and fused steps do not look."""
    optimizer_class, settings = OPTIMIZERS[kind]

    def make_layer() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, optimizer_class(layer.parameters(), lr=0.1, fused=True, **settings)

    def step(layer: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor) -> None:
        optimizer.zero_grad()
        layer(image).square().mean().backward()
        optimizer.step()

    (layer, optimizer), (restored, its_optimizer) = make_layer(), make_layer()
    images = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    step(layer, optimizer, images[0])
    restored.load_state_dict(layer.state_dict())
    given = copy.deepcopy(optimizer.state_dict())
    for values, name in itertools.product(given["state"].values(), ("momentum_buffer", "exp_avg")):
        if values.get(name) is not None:
            values[name] = values[name].contiguous()
    its_optimizer.load_state_dict(given)
    own_state(its_optimizer)
    step(layer, optimizer, images[1])
    step(restored, its_optimizer, images[1])
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(restored.state_dict()[name], value)
    given_tensors = {id(tensor) for values in given["state"].values() for tensor in values.values()}
    assert not any(id(tensor) in given_tensors for values in its_optimizer.state.values() for tensor in values.values())
