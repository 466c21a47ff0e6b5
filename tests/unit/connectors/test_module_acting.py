"""The module acts on what the connectors hand it: random at first, then by search, within the legal actions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero.efficientzero_rl_module import EfficientZeroRLModule

FRAME_STACK, NUM_ACTIONS = 2, 4
FRAMES = gym.spaces.Box(-1, 1, (FRAME_STACK, 3), np.float32)
MASKED = gym.spaces.Dict({"observations": FRAMES, "action_mask": gym.spaces.Box(0, 1, (NUM_ACTIONS,), np.int8)})
SIZES = {"latent_size": 8, "mlp_hidden": [8], "head_hidden": [8], "lstm_hidden": 8, "support_size": 5}


def build(space: gym.Space = FRAMES, *, inference_only: bool = False, **training: Any) -> EfficientZeroRLModule:
    torch.manual_seed(0)
    config = EfficientZeroConfig().environment(observation_space=space, action_space=gym.spaces.Discrete(NUM_ACTIONS))
    config = config.training(**{"num_simulations": 8, "frame_stack": FRAME_STACK, **training})
    config = config.rl_module(model_config=SIZES)
    spec = config.get_default_rl_module_spec()
    spec.observation_space, spec.action_space = space, gym.spaces.Discrete(NUM_ACTIONS)
    spec.model_config, spec.inference_only = config.model_config, inference_only
    module = spec.build()
    module.rng = np.random.default_rng(0)
    return module


def observations(count: int, masks: np.ndarray | None = None) -> dict[str, Any]:
    frames = torch.rand(count, FRAME_STACK, 3, generator=torch.Generator().manual_seed(0))
    if masks is None:
        return {"obs": frames}
    return {"obs": {"observations": frames, "action_mask": torch.from_numpy(masks)}}


def random_masks(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    masks = (rng.random((count, NUM_ACTIONS)) < 0.5).astype(np.int8)
    masks[np.arange(count), rng.integers(NUM_ACTIONS, size=count)] = 1
    return masks


def assert_legal(output: dict[str, Any], masks: np.ndarray) -> None:
    assert np.all(masks[np.arange(len(masks)), output["actions"]] == 1)
    assert np.all(output["visit_policy"][masks == 0] == 0)
    np.testing.assert_allclose(output["visit_policy"].sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("inference_only", [False, True])
def test_before_the_first_update_actions_are_uniform_and_nothing_is_searched(inference_only: bool) -> None:
    module = build(inference_only=inference_only)
    module.on_search = lambda result: pytest.fail("searched")
    output = module.forward_exploration(observations(4000))
    counts = np.bincount(output["actions"], minlength=NUM_ACTIONS)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi-square, 99.9 %
    assert np.all(output["visit_policy"] == 0.25)
    assert np.all(output["root_value"] == 0)


def test_random_actions_are_legal() -> None:
    masks = random_masks(500)
    output = build(MASKED).forward_exploration(observations(500, masks))
    assert_legal(output, masks)
    np.testing.assert_allclose(output["visit_policy"], masks / masks.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("search", ["puct", "gumbel"])
def test_searched_actions_are_legal(search: str) -> None:
    module, masks = build(MASKED, search=search), random_masks(50)
    module.num_updates += 1
    for forward in (module.forward_exploration, module.forward_inference):
        assert_legal(forward(observations(50, masks)), masks)


def test_a_row_without_legal_actions_does_not_stop_the_others() -> None:
    """RLlib asks for an action even after an episode's end, and throws it away."""
    module, masks = build(MASKED), random_masks(3)
    module.num_updates += 1
    masks[1] = 0
    output = module.forward_inference(observations(3, masks))
    assert_legal({key: value[[0, 2]] for key, value in output.items()}, masks[[0, 2]])


def test_inference_is_greedy_and_repeatable() -> None:
    module = build(first_visit="prior")
    module.num_updates += 1
    first, again = (module.forward_inference(observations(20)) for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
    assert np.array_equal(first["actions"], first["visit_policy"].argmax(axis=1))


def test_exploration_follows_the_temperature_and_the_generator() -> None:
    module = build()
    module.num_updates += 1
    module.temperature = 0.0
    output = module.forward_exploration(observations(50))
    assert np.array_equal(output["actions"], output["visit_policy"].argmax(axis=1))
    module.temperature = 1.0
    found = []
    for seed in (1, 1, 2):
        module.rng = np.random.default_rng(seed)
        found.append(module.forward_exploration(observations(50)))
    assert np.any(found[0]["actions"] != found[0]["visit_policy"].argmax(axis=1))
    np.testing.assert_array_equal(found[0]["actions"], found[1]["actions"])
    assert np.any(found[0]["visit_policy"] != found[2]["visit_policy"])


def test_weights_travel_to_a_module_that_only_acts() -> None:
    trained, acting = build(), build(inference_only=True)
    trained.make_target_networks()
    trained.num_updates += 7
    for parameter in trained.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = trained.get_state(inference_only=True)
    assert not any(key.startswith(("target_network", "consistency")) for key in state)
    acting.set_state(state)
    assert int(acting.num_updates) == 7
    assert acting.target_network is None
    outputs = []
    for module in (trained, acting):
        module.rng = np.random.default_rng(0)
        outputs.append(module.forward_inference(observations(5)))
    np.testing.assert_array_equal(outputs[0]["visit_policy"], outputs[1]["visit_policy"])
    assert np.any(outputs[0]["root_value"] != 0)


def test_an_acting_module_is_never_behind_its_weights() -> None:
    """It has compiled its network with the first weights; those that arrive later must be the ones that act."""
    trained, acting = build(), build()
    acting.num_updates += 1

    def act(module: EfficientZeroRLModule) -> np.ndarray:
        module.rng = np.random.default_rng(0)
        return module.forward_inference(observations(20))["root_value"]

    before = act(acting)
    for _ in range(2):
        for parameter in trained.network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        trained.num_updates += 1
        acting.set_state(trained.get_state(inference_only=True))
        np.testing.assert_array_equal(act(acting), act(trained))
        assert not np.allclose(act(acting), before)
        before = act(acting)


def test_the_networks_can_be_left_as_they_are() -> None:
    module, plain = build(), build(compiled_inference=False)
    assert not plain.inference_network.compiled
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain.set_state(module.get_state())
    found, expected = (each.forward_inference(observations(20)) for each in (plain, module))
    np.testing.assert_array_equal(found["visit_policy"], expected["visit_policy"])
    np.testing.assert_allclose(found["root_value"], expected["root_value"], rtol=1e-4, atol=1e-5)


def test_targets_follow_the_target_network() -> None:
    module = build()
    module.make_target_networks()
    planes = observations(5)["obs"].flatten(1)
    before = module.target_inference_network.value(planes)
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert torch.equal(module.target_inference_network.value(planes), before)
    ((online, target),) = module.get_target_network_pairs()
    target.load_state_dict(online.state_dict())
    assert torch.equal(module.target_inference_network.value(planes), module.inference_network.value(planes))
    assert not torch.allclose(module.inference_network.value(planes), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_module_that_has_acted_can_be_copied(duplicate: Callable[[Any], Any]) -> None:
    module = build()
    module.num_updates += 1
    module.forward_inference(observations(3))
    other = duplicate(module)
    module.rng, other.rng = np.random.default_rng(0), np.random.default_rng(0)
    found, expected = other.forward_inference(observations(3)), module.forward_inference(observations(3))
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    assert other.inference_network.network is other.network


def test_other_action_spaces_are_refused_in_a_sentence() -> None:
    spec = EfficientZeroConfig().get_default_rl_module_spec()
    spec.observation_space, spec.action_space = FRAMES, gym.spaces.Box(-2, 2, (2,))
    spec.model_config = EfficientZeroConfig().model_config
    with pytest.raises(ValueError, match=r"Discrete, MultiDiscrete, or Box\(-1, 1\) of one axis, not Box\(-2"):
        spec.build()
