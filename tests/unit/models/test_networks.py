"""Sizes, shapes and meaning of the networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rllib_efficientzero.models import (
    EfficientZeroNetwork,
    ModelConfig,
    build_consistency_heads,
    build_network,
    observation_planes,
)
from rllib_efficientzero.models import dynamics as dynamics_module
from rllib_efficientzero.models.catalog import num_halvings
from rllib_efficientzero.models.dynamics import ImageDynamics, ValuePrefixHead, VectorDynamics, action_encoding

ATARI = (4, 96, 96, 3)
SMALL = ModelConfig(
    channels=8,
    reduced_channels=4,
    latent_size=16,
    mlp_hidden=(16,),
    head_hidden=(8,),
    lstm_hidden=12,
    support_size=5,
    projector_hidden=16,
    projector_out=16,
    predictor_hidden=8,
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(shape: tuple[int, ...], num_actions: int = 3, seed: int = 0) -> EfficientZeroNetwork:
    torch.manual_seed(seed)
    return build_network(shape, num_actions, SMALL).eval()


def randomise(module: nn.Module) -> None:
    """Undo the zeros of the heads, and give the normalisations statistics of their own."""
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        tensor.data.uniform_(0.1, 0.5)


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_actions", "total"), [(4, 8_350_246), (6, 8_350_312), (18, 8_350_708)])
def test_parameters_in_all(num_actions: int, total: int) -> None:
    network = build_network(ATARI, num_actions, ModelConfig())
    heads = build_consistency_heads(network.latent_shape, ModelConfig())
    assert count(network) + count(heads) == total


def test_parameters_of_each_part() -> None:
    network = build_network(ATARI, 18, ModelConfig())
    heads = build_consistency_heads(network.latent_shape, ModelConfig())
    assert count(network.representation) == 318_016
    assert count(network.dynamics) == 37_568 + 73_984
    prefix = network.value_prefix
    assert (count(prefix.features), count(prefix.lstm), count(prefix.norm), count(prefix.head)) == (
        1_072,
        2_232_320,
        1_024,
        36_313,
    )
    assert count(network.prediction) == 133_611
    assert count(build_network(ATARI, 4, ModelConfig()).prediction) == 133_149
    assert count(heads.projector) == 4_465_664
    assert count(heads.predictor) == 1_051_136


def test_shapes_inside_the_atari_representation() -> None:
    network = build_network(ATARI, 6, ModelConfig()).eval()
    shapes: list[tuple[int, ...]] = []
    for stage in network.representation.stages:
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        latent = network.represent(torch.zeros(1, 12, 96, 96))
    assert shapes == [
        (32, 48, 48),  # convolution, normalisation, ReLU
        (32, 48, 48),
        (32, 48, 48),
        (32, 48, 48),  # residual blocks
        (64, 24, 24),
        (64, 24, 24),
        (64, 12, 12),  # pool, block
        (64, 12, 12),
        (64, 6, 6),  # pool, block
        (64, 6, 6),
    ]
    assert latent.shape == (1, 64, 6, 6)
    assert torch.all(latent >= 0)


@pytest.mark.parametrize("shape", [(2, 20, 20, 3), (2, 4)])
def test_shapes_of_both_inferences(shape: tuple[int, ...]) -> None:
    network = small(shape)
    planes = observation_planes(torch.rand(5, *shape))
    root = network.initial_inference(planes)
    step = network.recurrent_inference(root.latent, root.reward_hidden, torch.arange(5) % 3)
    for output in (root, step):
        assert output.latent.shape == root.latent.shape
        assert output.reward_hidden.shape == (5, 24)
        assert output.value.shape == output.value_prefix.shape == (5,)
        assert output.policy_logits.shape == (5, 3)
        assert output.value.dtype == output.value_prefix.dtype == output.policy_logits.dtype == torch.float32
    assert torch.all(root.reward_hidden == 0)
    assert torch.all(root.value_prefix == 0)
    assert torch.any(step.reward_hidden != 0)
    _, reward_hidden = network.step(root.latent, root.reward_hidden, torch.zeros(5, dtype=torch.int64))
    value_prefix_logits = network.read_value_prefix(reward_hidden)
    policy_logits, value_logits = network.predict(root.latent)
    assert value_prefix_logits.shape == value_logits.shape == (5, 11)
    assert policy_logits.shape == (5, 3)


@pytest.mark.parametrize("shape", [(2, 20, 20, 3), (2, 4)])
def test_fresh_heads_know_nothing(shape: tuple[int, ...]) -> None:
    network = small(shape)
    root = network.initial_inference(torch.rand_like(observation_planes(torch.rand(4, *shape))))
    step = network.recurrent_inference(root.latent, root.reward_hidden, torch.zeros(4, dtype=torch.int64))
    for output in (root, step):
        assert torch.all(output.policy_logits == 0)
        assert torch.all(output.value.abs() < 1e-6)
        assert torch.all(output.value_prefix.abs() < 1e-6)


@pytest.mark.parametrize("side", range(8, 97))
def test_every_image_size_has_a_latent_of_about_six_cells(side: int) -> None:
    halvings = num_halvings(side, side, 6)
    cells = side
    for _ in range(halvings):
        cells = (cells + 1) // 2
    assert 4 <= cells <= 9


@pytest.mark.parametrize(
    ("height", "width", "latent"),
    [
        (8, 8, (8, 8)),
        (9, 13, (5, 7)),
        (24, 24, (6, 6)),
        (64, 48, (8, 6)),
        (84, 84, (6, 6)),
        (210, 160, (7, 5)),
        (8, 200, (1, 7)),
    ],
)
def test_latent_grids_and_their_heads_fit(height: int, width: int, latent: tuple[int, int]) -> None:
    network = small((1, height, width, 2))
    root = network.initial_inference(torch.rand(2, 2, height, width))
    assert root.latent.shape == (2, 8, *latent)
    network.recurrent_inference(root.latent, root.reward_hidden, torch.zeros(2, dtype=torch.int64))
    heads = build_consistency_heads(network.latent_shape, SMALL).eval()
    assert heads.predict(root.latent).shape == heads.project(root.latent).shape == (2, 16)


def test_larger_images_are_halved_more_often_than_the_papers() -> None:
    assert [num_halvings(side, side, 6) for side in (96, 210, 400, 1000)] == [4, 5, 6, 7]


# --- Dynamics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "encoded"),
    [("scaled", [[0.0], [0.5], [5 / 6]]), ("one_hot", np.eye(6)[[0, 3, 5]].tolist())],
)
@pytest.mark.parametrize("biased", [False, True])  # as trained, and as folded
def test_the_action_enters_images_as_constant_planes(kind: str, encoded: list[list[float]], biased: bool) -> None:
    dynamics = ImageDynamics(4, action_encoding(6, kind), num_blocks=1).double()
    if biased:
        dynamics.conv.bias = nn.Parameter(torch.rand(4, dtype=torch.float64))
    latent = torch.rand(3, 4, 5, 7, dtype=torch.float64)
    planes = torch.tensor(encoded, dtype=torch.float64)[:, :, None, None].expand(-1, -1, 5, 7)
    expected = dynamics.conv(torch.cat((latent, planes), dim=1))
    found = dynamics._convolve(latent, torch.tensor([0, 3, 5]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(x.square().sum(), dynamics.conv.weight)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_scaled_actions_stay_apart(dtype: torch.dtype) -> None:
    dynamics = ImageDynamics(16, action_encoding(361, "scaled"), num_blocks=1).eval().to(dtype)
    with torch.inference_mode():
        latents = torch.rand(1, 16, 8, 8).to(dtype).repeat(361, 1, 1, 1)
        assert len(torch.unique(dynamics(latents, torch.arange(361)).flatten(1), dim=0)) == 361


def test_image_dynamics_adds_the_latent_before_its_blocks() -> None:
    dynamics = ImageDynamics(4, action_encoding(2, "scaled"), num_blocks=1).eval()
    nn.init.zeros_(dynamics.conv.weight)
    latent = torch.rand(2, 4, 3, 3)
    expected = dynamics.blocks(latent)
    torch.testing.assert_close(dynamics(latent, torch.tensor([0, 1])), expected)


def test_the_action_enters_vectors_one_hot() -> None:
    dynamics = VectorDynamics(4, action_encoding(3, "one_hot"), hidden=(5,)).eval()
    seen: list[Tensor] = []
    dynamics.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    latent = torch.rand(2, 4)
    dynamics(latent, torch.tensor([2, 0]))
    assert torch.equal(seen[0], torch.cat((latent, torch.tensor([[0.0, 0, 1], [1, 0, 0]])), dim=1))


def test_the_lstm_is_the_same_where_it_is_compiled() -> None:
    cell = nn.LSTMCell(7, 5).double()
    x, h, c = (torch.randn(3, size, dtype=torch.float64) for size in (7, 5, 5))
    torch.testing.assert_close(dynamics_module._lstm_step(cell, x, (h, c)), cell(x, (h, c)))


def test_value_prefix_is_predicted_from_normalised_and_its_state_is_not() -> None:
    head = ValuePrefixHead(nn.Identity(), in_features=3, lstm_hidden=4, hidden=(5,), out=7).eval()
    randomise(head)
    features, state = torch.randn(2, 3), torch.randn(2, 8)
    next_state = head.advance(features, state)
    logits = head.read(next_state)
    h, c = head.lstm(features, (state[:, :4], state[:, 4:]))
    torch.testing.assert_close(next_state, torch.cat((h, c), dim=1))
    normalised = (h - head.norm.running_mean) / torch.sqrt(head.norm.running_var + 1e-5)
    normalised = normalised * head.norm.weight + head.norm.bias
    torch.testing.assert_close(logits, head.head(torch.relu(normalised)))


def test_the_value_prefix_reads_the_next_latent() -> None:
    network = small((1, 4))
    randomise(network.value_prefix)
    root = network.initial_inference(torch.rand(2, 4))
    next_latent, reward_hidden = network.step(root.latent, root.reward_hidden, torch.tensor([1, 2]))
    logits = network.read_value_prefix(reward_hidden)
    expected = network.value_prefix.read(network.value_prefix.advance(next_latent, root.reward_hidden))
    torch.testing.assert_close(logits, expected)


def test_every_parameter_is_reached_by_some_output() -> None:
    """No dead modules."""
    network = build_network((1, 20, 20, 1), 3, SMALL).train()
    for head in (network.value_prefix.head, network.prediction.policy, network.prediction.value):
        randomise(head)
    latent = network.represent(torch.rand(4, 1, 20, 20))
    next_latent, reward_hidden = network.step(latent, torch.rand(4, 24), torch.arange(4) % 3)
    prefix = network.read_value_prefix(reward_hidden)
    outputs = (*network.predict(next_latent), prefix)
    sum(output.square().sum() for output in outputs).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 96, 96), (4, 2, 96, 96, 3)])
def test_other_observations_are_refused_in_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images are"):
        build_network(shape, 3, ModelConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": 3}, "unknown key 'chanels' in model_config; did you mean 'channels'"),
        ({"channels": 0}, "'channels'.*positive integer"),
        ({"channels": -4}, "'channels'.*positive integer"),
        ({"channels": 2.5}, "'channels'.*positive integer"),
        ({"channels": "64"}, "'channels'.*positive integer"),
        ({"channels": True}, "'channels'.*positive integer"),
        ({"channels": None}, "'channels'.*positive integer"),
        ({"channels": [64]}, "'channels'.*positive integer"),
        ({"head_hidden": 32}, "'head_hidden'.*list of"),
        ({"head_hidden": [32, -1]}, "'head_hidden'.*list of"),
        ({"mlp_hidden": ["a"]}, "'mlp_hidden'.*list of"),
    ],
)
def test_bad_sizes_are_refused_in_a_sentence(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_sizes_from_yaml() -> None:
    config = ModelConfig.from_dict({"channels": 32, "head_hidden": [64, 32], "mlp_hidden": []})
    assert (config.channels, config.head_hidden, config.mlp_hidden) == (32, (64, 32), ())
    network = build_network((1, 4), 2, config)
    assert network.initial_inference(torch.rand(2, 4)).policy_logits.shape == (2, 2)


def test_an_unknown_action_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="action_encoding"):
        ModelConfig.from_dict({"action_encoding": "onehot"})
