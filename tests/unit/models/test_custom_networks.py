"""Networks of the user's own: the documentation's, those whose parts do not fit, those whose layers are in no order."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_helpers import write_tiny_policy
from torch import Tensor, nn
from typer.testing import CliRunner

from rllib_efficientzero import Networks
from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.checkpoint.policy_files import write_policy
from rllib_efficientzero.checkpoint.spaces import space_to_json
from rllib_efficientzero.cli.main import app
from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.models import InferenceNetwork, ModelConfig, build_network
from rllib_efficientzero.models.prediction import Prediction
from rllib_efficientzero.policy import load_policy

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "custom_networks.md"
SIZES = {"lstm_hidden": 8, "head_hidden": (8,), "mlp_hidden": (8,), "latent_size": 12, "support_size": 4, "channels": 4}
IMAGE, VECTOR = (2, 40, 32, 3), (2, 5)


def build(networks: Any, shape: tuple[int, ...] = VECTOR, **sizes: Any) -> Any:
    torch.manual_seed(0)
    return build_network(shape, 3, ModelConfig.from_dict(SIZES | sizes | {"networks": networks}))


# --- The documentation ------------------------------------------------------------------------------------------------


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


@pytest.fixture
def strided(monkeypatch: pytest.MonkeyPatch) -> type[Networks]:
    """The document's class, in the module of which the document says that it is."""
    module = types.ModuleType("my_networks")
    exec(blocks()[0], module.__dict__)
    monkeypatch.setitem(sys.modules, "my_networks", module)
    return module.Strided


def test_the_documents_network_has_20_lines_and_works(strided: type[Networks]) -> None:
    lines = [line for line in blocks()[0].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 20
    assert all(len(line) <= 120 for line in lines)
    network = build("my_networks.Strided", IMAGE).eval()
    assert network.latent_shape == (128,)
    root = network.initial_inference(torch.rand(5, 6, 40, 32))
    step = network.recurrent_inference(root.latent, root.reward_hidden, torch.arange(5) % 3)
    assert step.latent.shape == (5, 128)
    assert step.policy_logits.shape == (5, 3)


def test_it_is_an_efficientzero_config(strided: type[Networks]) -> None:
    namespace = {"Strided": strided}
    exec(blocks()[1], namespace)
    config = namespace["config"]
    assert config.model_config["networks"] is strided


def test_the_documents_error_is_the_real_one() -> None:
    class Mismatched(Networks):
        def representation(self) -> nn.Module:
            return nn.Linear(self.in_features, 128)

        def dynamics(self, latent_shape: tuple[int, ...]) -> nn.Module:
            return Dynamics(latent_shape[0], 64)

    with pytest.raises(ValueError, match="128") as error:
        build(Mismatched)
    assert str(error.value) in " ".join(DOCUMENT.read_text().split())


class Dynamics(nn.Module):
    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, out)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.layer(latent)


# --- What fits, and what does not -------------------------------------------------------------------------------------


def test_without_a_choice_they_are_the_built_in_ones() -> None:
    plain, named = build(None), build(Networks)
    assert plain.state_dict().keys() == named.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), named.state_dict().values(), strict=True))


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_the_rest_fits_itself_to_the_representation(shape: tuple[int, ...]) -> None:
    class Other(Networks):
        def representation(self) -> nn.Module:
            if len(self.stacked_shape) == 2:
                return nn.Sequential(nn.Linear(self.in_features, 36), nn.Unflatten(1, (4, 3, 3)))
            return nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(self.in_features, 7, 1))

    network = build(Other, shape).train()
    assert network.latent_shape == ((4, 3, 3) if shape == VECTOR else (7, 5, 4))
    planes = torch.rand(4, network_inputs(shape), *shape[1:-1])
    latent = network.represent(planes)
    following, _ = network.step(latent, network.initial_reward_hidden(latent), torch.tensor([0, 1, 2, 0]))
    assert following.shape == latent.shape


def network_inputs(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[-1]


class Tokens(Networks):
    def representation(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.in_features, 36), nn.Unflatten(1, (4, 9)))


class WrongInput(Networks):
    def representation(self) -> nn.Module:
        return nn.Linear(7, 12)


class WrongPolicy(Networks):
    def prediction(self, latent_shape: tuple[int, ...]) -> Prediction:
        return Prediction(nn.Identity(), nn.Linear(latent_shape[0], 5), nn.Linear(latent_shape[0], self.support))


class WrongValue(Networks):
    def prediction(self, latent_shape: tuple[int, ...]) -> Prediction:
        return Prediction(nn.Identity(), nn.Linear(latent_shape[0], 3), nn.Linear(latent_shape[0], 1))


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (Tokens, r"latents of shape \(4, 9\), where \(channels, height, width\) or \(size,\)"),
        (WrongInput, r"the representation cannot take inputs of shape \(10,\)"),
        (WrongPolicy, r"policy logits of a latent have shape \(5,\), where \(3,\) is needed"),
        (WrongValue, r"value logits of a latent have shape \(1,\), where \(9,\) is needed"),
        ("nowhere.Networks", "'nowhere.Networks' cannot be imported: No module named 'nowhere'"),
        ("torch.nn.Linear", "must be a subclass of rllib_efficientzero.Networks, not <class"),
        ("Networks", "cannot be imported"),
        (3, "must be a subclass"),
    ],
)
def test_what_does_not_fit_is_said_with_both_shapes(networks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(networks)


# --- Acting -----------------------------------------------------------------------------------------------------------


class InNoOrder(nn.Module):
    """Defines its normalisation right after a layer that it does not belong to."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.last = nn.Linear(12, 12)
        self.norm = nn.BatchNorm1d(12)
        self.first = nn.Linear(size, 12)

    def forward(self, vector: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(vector))))


class PreActivation(nn.Module):
    """The last layer of one Sequential stands before the normalisation that begins another."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Linear(size, size))
        self.residual = nn.Sequential(nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size))

    def forward(self, vector: Tensor) -> Tensor:
        return self.shortcut(vector) + self.residual(vector)


class TwoSequentials(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(size, 12))
        self.second = nn.Sequential(nn.BatchNorm1d(12), nn.ReLU())

    def forward(self, vector: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(vector)))


class Unsigned(nn.Linear):
    """What follows its product cannot be scaled before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


class Shifted(nn.Module):
    """With a buffer that no checkpoint has."""

    offset: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 12)
        self.register_buffer("offset", torch.zeros(size), persistent=False)

    def forward(self, vector: Tensor) -> Tensor:
        return self.layer(vector - self.offset)


def with_one_relu(size: int) -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(size, 12), relu, nn.BatchNorm1d(12), nn.Linear(12, 12), relu, nn.BatchNorm1d(12))


def with_one_block_twice(size: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size))
    return nn.Sequential(block, nn.ReLU(), block)


def with_one_norm_twice(size: int) -> nn.Module:
    norm = nn.BatchNorm1d(size)
    return nn.Sequential(nn.Linear(size, size), norm, nn.Linear(size, size), norm)


ORDERS = (
    *(InNoOrder, PreActivation, TwoSequentials, Shifted, with_one_relu, with_one_block_twice, with_one_norm_twice),
    lambda size: nn.Sequential(Unsigned(size, 12), nn.BatchNorm1d(12)),
)


def assert_acts_alike(network: Any) -> None:
    network.eval()
    generator = torch.Generator().manual_seed(1)
    inference, planes = InferenceNetwork(network), torch.rand(6, 10)
    for _ in range(2):  # as it is built, and when weights have arrived
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                tensor.data.uniform_(0.2 if name.endswith("running_var") else -0.9, 0.9, generator=generator)
        inference.refresh()
        expected, found = network.initial_inference(planes), inference.initial_inference(planes)
        for name in ("latent", "value", "policy_logits"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ORDERS, ids=lambda part: part.__name__)
def test_acting_does_not_depend_on_the_order_in_which_layers_are_defined(part: Any) -> None:
    class Custom(Networks):
        def representation(self) -> nn.Module:
            return part(self.in_features)

    assert_acts_alike(build(Custom))


def test_parts_that_begin_with_a_normalisation_keep_it() -> None:
    class Custom(Networks):
        def prediction(self, latent_shape: tuple[int, ...]) -> Prediction:
            (size,) = latent_shape
            trunk = nn.Sequential(nn.BatchNorm1d(size), nn.ReLU())
            return Prediction(trunk, nn.Linear(size, self.policy_size), nn.Linear(size, self.support))

    assert_acts_alike(build(Custom, latent_size=9))  # as many numbers as there are value prefix logits


# --- Loading ----------------------------------------------------------------------------------------------------------


class Wide(Networks):
    def representation(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.in_features, 20), nn.BatchNorm1d(20), nn.ReLU())


def test_policies_ask_for_the_class_and_import_nothing(tmp_path: pathlib.Path) -> None:
    network = build(Wide).eval()
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in SIZES.items()}
    write_policy(
        tmp_path,
        network.state_dict(),
        observation_space=space_to_json(gym.spaces.Box(-1, 1, VECTOR, np.float32)),
        action_space=space_to_json(gym.spaces.Discrete(3)),
        model=sizes | {"networks": f"{__name__}.Wide"},
        search=dataclasses.asdict(SearchConfig(num_simulations=2)),
        mixed_precision=False,
    )
    for given in (Wide, f"{__name__}.Wide"):
        policy = load_policy(tmp_path, networks=given)
        assert policy.act(np.zeros((4, *VECTOR), np.float32)).action.shape == (4,)
    with pytest.raises(ValueError, match=r"'nowhere\.Wide' cannot be imported"):
        load_policy(tmp_path, networks="nowhere.Wide")
    for given in (None, Networks):
        with pytest.raises(CheckpointError, match=r"networks of .*Wide.*networks=\.\.\."):
            load_policy(tmp_path, networks=given)


def test_commands_take_the_class_by_its_path(tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path, num_actions=2, env="CartPole-v1", networks=Wide)
    for options, code, words in (
        ([], 2, f"networks of {__name__}.Wide"),
        (["--networks", "nowhere.Wide"], 2, "--networks: model_config['networks'] 'nowhere.Wide' cannot be imported"),
        (["--networks", f"{__name__}.Wide"], 0, "over 1 episode"),
    ):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--episodes", "1", *options])
        assert result.exit_code == code, result.output
        assert words in " ".join(result.output.split())
