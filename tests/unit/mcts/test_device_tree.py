"""Trees in a GPU's memory: the same searches as on the host. Without a GPU, Triton's interpreter runs the kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from search_models import TabularModel, random_process
from torch import Tensor

from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult
from rllib_efficientzero.mcts import device_tree as device_tree_module
from rllib_efficientzero.mcts import parts as parts_module
from rllib_efficientzero.mcts.device_tree import DeviceTree, has_triton
from rllib_efficientzero.mcts.extension import BatchedTree
from rllib_efficientzero.mcts.host_tree import host_tree
from rllib_efficientzero.mcts.parts import DevicePart, HostPart, Layout, halves, rounded, whole
from rllib_efficientzero.models import NetworkOutput

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULTS = ("visit_counts", "root_values", "qvalues", "improved_policy", "selected_actions")
POLICIES = ["puct", "gumbel"]


def trees(config: SearchConfig, roots: int, actions: int, first_root: int = 0) -> tuple[BatchedTree, DeviceTree]:
    """One on the host and one on the device, of the same configuration."""
    on_host = host_tree(config, roots, actions, first_root=first_root)
    return on_host, DeviceTree(roots, actions, config, DEVICE, first_root=first_root)


def random_roots(rng: np.random.Generator, policy: str, roots: int, actions: int, legal: float) -> dict[str, Any]:
    """What `reset` takes, of random searches with a share of legal actions."""
    given: dict[str, Any] = {
        "policy_logits": rng.normal(size=(roots, actions)).astype(np.float32),
        "value": rng.normal(size=roots).astype(np.float32),
        "seed": int(rng.integers(2**63)),
    }
    if legal < 1.0:
        given["legal_actions"] = rng.random((roots, actions)) < legal
        given["legal_actions"][np.arange(roots), rng.integers(actions, size=roots)] = True
    if policy == "puct":
        given["noise"] = rng.dirichlet(np.full(actions, 0.3), size=roots).astype(np.float32)
    else:
        given["gumbel"] = rng.gumbel(size=(roots, actions)).astype(np.float32)
    return given


def random_outputs(rng: np.random.Generator, roots: int, actions: int) -> list[np.ndarray]:
    """Value prefixes, values and logits of leaves, some of them forbidden."""
    logits = 2 * rng.normal(size=(roots, actions))
    logits[:, 1:][rng.random((roots, actions - 1)) < 0.05] = -np.inf
    return [x.astype(np.float32) for x in (rng.normal(size=roots), rng.normal(size=roots), logits)]


def simulate(tree: DeviceTree, outputs: list[np.ndarray]) -> None:
    tree.select()
    tree.expand_and_backup(*(torch.from_numpy(x).to(DEVICE) for x in outputs))


@pytest.mark.parametrize(
    ("policy", "first_visit", "tie_break"),
    [
        ("puct", "uniform", "random"),
        ("puct", "uniform", "first"),
        ("puct", "prior", "random"),
        ("puct", "prior", "first"),
        ("gumbel", "uniform", "random"),
    ],
)
@pytest.mark.parametrize(("actions", "legal"), [(1, 1.0), (3, 1.0), (6, 0.7), (40, 0.5)])
def test_leaves_and_results_are_those_of_the_tree_on_the_host(
    policy: str, first_visit: str, tie_break: str, actions: int, legal: float
) -> None:
    rng = np.random.default_rng(actions)
    simulations, roots = (50, 200) if DEVICE.type == "cuda" else (9, 2)  # the interpreter is slow
    config = SearchConfig(
        policy=policy,
        num_simulations=simulations,
        first_visit=first_visit,
        tie_break=tie_break,
        value_prefix_horizon=2,
        max_considered_actions=4,
    )
    on_host, on_device = trees(config, roots, actions, first_root=3)
    given, rows = random_roots(rng, policy, roots, actions, legal), np.arange(roots)
    on_host.reset(**given)
    on_device.reset(**given)
    is_same = np.ones(roots, bool)
    for slot in range(1, simulations + 1):
        parent, action, depth = (x.copy() for x in on_host.select())
        outputs = random_outputs(rng, roots, actions)
        on_host.expand_and_backup(*outputs)
        simulate(on_device, outputs)
        state_parent = np.where((depth - 1) % 2 == 0, 0, parent)
        expected = [*(slots * roots + rows for slots in (parent, state_parent, np.full(roots, slot))), action]
        is_same &= (on_device.index.cpu().numpy() == expected).all(axis=0)
    # On a GPU multiplications and additions are fused, and near ties may fall otherwise.
    assert is_same.mean() >= (0.97 if DEVICE.type == "cuda" else 1.0)
    for name in RESULTS:
        found, known = getattr(on_device, name)()[is_same], getattr(on_host, name)()[is_same]
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5, err_msg=name)
    root = int(is_same.argmax())
    for name, column in on_host.node_table(root).items():
        np.testing.assert_allclose(on_device.node_table(root)[name], column, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tree_can_be_used_again(policy: str) -> None:
    config, rng = SearchConfig(policy=policy, num_simulations=6), np.random.default_rng(0)
    given, outputs = random_roots(rng, policy, 2, 4, 0.8), [random_outputs(rng, 2, 4) for _ in range(6)]
    _, tree = trees(config, 2, 4)
    results = []
    for begin in (given, random_roots(rng, policy, 2, 4, 1.0), given):
        tree.reset(**begin)
        for output in outputs:
            simulate(tree, output)
        results.append([getattr(tree, name)() for name in RESULTS])
    for first, again in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(results[0][3], results[1][3])


# --- What is wrong with inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("output", "value"), [(0, np.nan), (1, np.inf), (2, np.nan), (2, np.inf), (1, 2e30)])
def test_outputs_that_are_not_finite_end_the_search_with_an_error(policy: str, output: int, value: float) -> None:
    rng = np.random.default_rng(0)
    _, tree = trees(SearchConfig(policy=policy, num_simulations=3), 2, 3)
    tree.reset(**random_roots(rng, policy, 2, 3, 1.0))
    for simulation in range(3):
        outputs = random_outputs(rng, 2, 3)
        if simulation == 1:
            outputs[output][1] = value
        simulate(tree, outputs)
    with pytest.raises(ValueError, match="below root 1 is not finite"):
        tree.visit_counts()
    tree.reset(**random_roots(rng, policy, 2, 3, 1.0))
    for _ in range(3):
        simulate(tree, random_outputs(rng, 2, 3))
    assert tree.visit_counts().sum(axis=1).tolist() == [3, 3]


def test_logits_that_forbid_everything_are_an_error_too() -> None:
    _, tree = trees(SearchConfig(num_simulations=1), 1, 3)
    tree.reset(**random_roots(np.random.default_rng(0), "puct", 1, 3, 1.0))
    zero = np.zeros(1, np.float32)
    simulate(tree, [zero, zero, np.full((1, 3), -np.inf, np.float32)])
    with pytest.raises(ValueError, match="not finite"):
        tree.root_values()


def test_roots_are_checked_as_on_the_host() -> None:
    _, tree = trees(SearchConfig(num_simulations=1), 1, 3)
    given = random_roots(np.random.default_rng(0), "puct", 1, 3, 1.0)
    with pytest.raises(ValueError, match="allow no action"):
        tree.reset(**given, legal_actions=np.zeros((1, 3), bool))
    with pytest.raises(ValueError, match="hold NaN"):
        tree.reset(**(given | {"policy_logits": np.full((1, 3), np.nan, np.float32)}))


def test_a_configuration_is_checked_as_on_the_host() -> None:
    for changed in ({"tie_break": "lowest"}, {"first_visit": "never"}, {"pb_c_init": -1.0}, {"discount": 2.0}):
        (name,) = changed
        with pytest.raises(ValueError, match=name):
            trees(SearchConfig(**changed), 1, 2)
        with pytest.raises(ValueError, match=name):
            DeviceTree(1, 2, SearchConfig(**changed), DEVICE)


def test_without_triton_trees_stay_on_the_host_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(device_tree_module, "DeviceTree", missing)
    has_triton.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [has_triton(DEVICE) for _ in range(2)] == [False, False]
    has_triton.cache_clear()
    (record,) = caplog.records
    assert "No module named 'triton'" in record.getMessage()
    monkeypatch.setattr(parts_module, "has_triton", lambda device: False)
    gpu, on_host = torch.device("cuda"), Layout(halves, HostPart)
    assert parts_module.layout_for(gpu, 18, 50) == on_host
    monkeypatch.setattr(parts_module, "has_triton", lambda device: True)
    assert parts_module.layout_for(gpu, 18, 50) == Layout(rounded, DevicePart)
    # Too wide for a program of a kernel.
    assert parts_module.layout_for(gpu, 5000, 50) == parts_module.layout_for(gpu, 18, 5000) == on_host
    assert parts_module.layout_for(torch.device("cpu"), 18, 50) == Layout(whole, HostPart)


def test_triton_is_found() -> None:
    assert has_triton(DEVICE)


# --- Searches --------------------------------------------------------------------------------------------------------


class OnDevice(TabularModel):
    """A model whose tables and outputs are on the tests' device."""

    def _output(self, *args: Any) -> NetworkOutput:
        return NetworkOutput(*(tensor.to(DEVICE) for tensor in super()._output(*args)))

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        # For a recording it is asked about states that are none.
        state = latent.cpu().nan_to_num().clamp(0, len(self.value) - 1)
        return super().recurrent_inference(state, reward_hidden.cpu(), action.cpu())


def searched(layout: Layout, policy: str, simulations: int, batch: int = 4, **changed: Any) -> SearchResult:
    model = OnDevice(**vars(random_process(3)))
    root = model.initial_inference(torch.arange(float(batch))[:, None])
    for name, value in changed.items():
        setattr(model, name, value)
    legal = np.random.default_rng(1).random((batch, 4)) < 0.6
    legal[:, 2] = True
    searcher = Searcher(SearchConfig(policy=policy, num_simulations=simulations), layout)
    for _ in range(2):
        result = searcher.search(
            model, root, legal_actions=legal, rng=np.random.default_rng(7), explore=True, temperature=1.0
        )
    return result


def assert_same(found: SearchResult, expected: SearchResult) -> None:
    assert vars(found).keys() == vars(expected).keys()
    for name, known in vars(expected).items():
        if isinstance(known, np.ndarray):
            assert getattr(found, name).dtype == known.dtype, name
            np.testing.assert_allclose(getattr(found, name), known, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("policy", POLICIES)
def test_searches_find_what_those_on_the_host_find(policy: str) -> None:
    assert_same(searched(Layout(whole, DevicePart), policy, 8), searched(Layout(whole), policy, 8))


@pytest.mark.parametrize("policy", POLICIES)
def test_roots_that_stand_in_change_nothing(policy: str) -> None:
    padded = Layout(lambda batch: [slice(0, batch + 2)], DevicePart)
    assert_same(searched(padded, policy, 5), searched(Layout(whole), policy, 5))


def test_a_simulation_is_recorded_once_and_launched_ever_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recorder that "launches" by calling again."""
    launched: list[str] = []

    def record(
        function: Callable[[], None], device: torch.device, prepare: Callable[[], None]
    ) -> tuple[Callable[[], None], None]:
        for _ in range(3):  # more calls than the search has simulations
            prepare()
            function()
        launched.append("recorded")
        return (lambda: launched.append("launched") or function()), None

    expected = searched(Layout(whole), "puct", 1)
    monkeypatch.setattr(parts_module, "record", record)
    assert_same(searched(Layout(whole, DevicePart), "puct", 1, is_capturable=True), expected)
    assert launched == ["recorded", "launched", "launched"]
    monkeypatch.setattr(parts_module, "record", lambda function, device, prepare: None)
    assert_same(searched(Layout(whole, DevicePart), "puct", 1, is_capturable=True), expected)
