"""Batch normalisation's statistics, made to fit the weights."""

from __future__ import annotations

import torch
from torch import nn

from rllib_efficientzero.models.normalization import fresh_statistics


def test_statistics_are_those_of_the_passes_within() -> None:
    layer = nn.BatchNorm1d(3)
    layer(torch.rand(50, 3) * 100)  # what was before must leave no trace
    batches = [torch.randn(40, 3) * 2 + shift for shift in (1.0, 3.0)]
    with fresh_statistics(layer):
        for batch in batches:
            layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.stack([batch.mean(0) for batch in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))


def test_afterwards_running_averages_go_on_as_before() -> None:
    layer = nn.BatchNorm1d(2, momentum=0.25)
    with fresh_statistics(layer):
        layer(torch.ones(4, 2))
    assert layer.momentum == 0.25
    layer(torch.full((4, 2), 5.0))
    torch.testing.assert_close(layer.running_mean, torch.full((2,), 0.75 * 1 + 0.25 * 5))


def test_parts_in_eval_mode_are_left_alone() -> None:
    module = nn.ModuleDict({"online": nn.BatchNorm1d(2), "target": nn.BatchNorm1d(2).eval()})
    module["target"].running_mean += 7.0
    with fresh_statistics(module):
        module["online"](torch.ones(4, 2))
    torch.testing.assert_close(module["target"].running_mean, torch.full((2,), 7.0))
    assert module["target"].num_batches_tracked == 0
