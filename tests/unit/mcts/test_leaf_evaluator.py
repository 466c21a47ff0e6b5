"""What surrounds the network calls of a search: where states are kept, what is allocated, what a GPU is told."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult
from rllib_efficientzero.mcts import leaf_evaluator as leaf_evaluator_module
from rllib_efficientzero.mcts import node_states as node_states_module
from rllib_efficientzero.mcts.leaf_evaluator import LeafEvaluator
from rllib_efficientzero.mcts.parts import DevicePart, HostPart, Layout, halves, rounded, whole
from rllib_efficientzero.models import InferenceNetwork, ModelConfig, NetworkOutput, build_network

NUM_ACTIONS = 3
IMAGES, VECTORS = (1, 6, 7, 2), (2, 4)
SIZES = ModelConfig(channels=8, reduced_channels=4, latent_size=16, mlp_hidden=(16,), lstm_hidden=12, support_size=5)


def make(shape: tuple[int, ...]) -> tuple[InferenceNetwork, Tensor]:
    """A network whose heads say something, and the planes of 5 observations."""
    torch.manual_seed(0)
    network = build_network(shape, NUM_ACTIONS, SIZES)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    planes = torch.rand(5, *((shape[0] * shape[3], *shape[1:3]) if len(shape) == 4 else (shape[0] * shape[1],)))
    return InferenceNetwork(network), planes


class Constant:
    """A model that allocates nothing: its outputs are made beforehand."""

    def __init__(self, batch: int, state_size: int = 8) -> None:
        logits = torch.zeros(batch, NUM_ACTIONS)
        value = torch.zeros(batch)
        self.output = NetworkOutput(torch.zeros(batch, state_size), torch.ones(batch, 4), value, value, logits)

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        return self.output

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        return self.output


def run(searcher: Searcher, model: Any, root: NetworkOutput) -> SearchResult:
    return searcher.search(model, root, rng=np.random.default_rng(0), explore=True)


# --- States ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("by_rows", [True, False])  # as on a GPU, and as on a CPU
def test_states_come_back_as_they_were_kept(
    channels_last: bool, by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = node_states_module._StatePool
    monkeypatch.setattr(node_states_module, "_StatePool", lambda *args, **_: pool(*args, by_rows=by_rows))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch, simulations, horizon = 3, 4, 2
    root = NetworkOutput(
        torch.rand(batch, 2, 3, 5).contiguous(memory_format=layout),
        torch.zeros(batch, 6),
        torch.zeros(batch),
        torch.zeros(batch),
        torch.zeros(batch, NUM_ACTIONS),
    )
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Recorder:
        def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
            seen.append((latent.clone(), reward_hidden.clone(), action.clone()))
            assert latent.is_contiguous(memory_format=layout)
            number = float(len(seen))
            return NetworkOutput(
                latent=(latent + number).contiguous(),
                reward_hidden=reward_hidden + number,
                value=torch.full((batch,), number),
                value_prefix=torch.full((batch,), number + 1),
                policy_logits=torch.arange(batch * NUM_ACTIONS).view(batch, NUM_ACTIONS) + number,
            )

    evaluator = LeafEvaluator(Recorder(), root, batch, simulations, horizon)  # type: ignore[arg-type]
    evaluator.set_roots(root.latent)
    # (parent slots, depths of the leaves) of three simulations of three searches
    plan = [([0, 0, 0], [1, 1, 1]), ([1, 0, 1], [2, 1, 2]), ([2, 2, 1], [3, 2, 2])]
    for slot, (parents, depths) in enumerate(plan, start=1):
        evaluator.launch(slot, *(np.array(x, dtype=np.int32) for x in (parents, [2, 1, 0], depths)))
        value_prefix, value, policy_logits = evaluator.collect()
        assert value_prefix.tolist() == [slot + 1.0] * batch
        assert value.tolist() == [float(slot)] * batch
        np.testing.assert_array_equal(policy_logits, np.arange(9).reshape(3, 3) + slot)
    # Latents are the root's plus the numbers of the simulations on the way; LSTM states too, but from zero, and anew
    # below leaves of depth 2.
    for simulation, (added_latent, added_hidden) in enumerate([([0, 0, 0], [0, 0, 0]), ([1, 0, 1], [1, 0, 1])]):
        latent, hidden, action = seen[simulation]
        torch.testing.assert_close(latent, root.latent + torch.tensor(added_latent).view(3, 1, 1, 1))
        assert hidden.tolist() == [[float(x)] * 6 for x in added_hidden]
        assert action.tolist() == [2, 1, 0]
    latent, hidden, _ = seen[2]
    torch.testing.assert_close(latent, root.latent + torch.tensor([1 + 2, 2, 1]).view(3, 1, 1, 1))
    assert hidden.tolist() == [[0.0] * 6, [2.0] * 6, [1.0] * 6]


@pytest.mark.parametrize("shape", [IMAGES, VECTORS])
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_the_compiled_network_searches_like_the_plain_one(shape: tuple[int, ...], policy: str) -> None:
    inference, planes = make(shape)
    plain = InferenceNetwork(inference.network.eval(), compiled=False)
    config = SearchConfig(policy=policy, num_simulations=20)
    found, expected = (run(Searcher(config), model, model.initial_inference(planes)) for model in (inference, plain))
    np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_allclose(found.root_value, expected.root_value, rtol=1e-4, atol=1e-4)


# --- Nothing is allocated per simulation -----------------------------------------------------------------------------


def watched(searcher: Searcher, watch: Callable[[Callable[[], None]], None]) -> None:
    """Have `watch` call the loop over the simulations of the searches to come."""
    simulate = searcher._simulate
    searcher._simulate = lambda parts: watch(lambda: simulate(parts))  # type: ignore[method-assign]


def test_python_and_numpy_allocate_nothing_per_simulation() -> None:
    batch = 20_000  # so that one array of it, freed at once, would show in the peak
    model, searcher = Constant(batch), Searcher(SearchConfig(num_simulations=5))
    run(searcher, model, model.output)
    peaks: list[int] = []

    def watch(simulate: Callable[[], None]) -> None:
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        simulate()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()

    watched(searcher, watch)
    run(searcher, model, model.output)
    assert peaks[0] < batch


class Storages(TorchDispatchMode):
    """Notes every operation of torch whose result lies in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def storages(values: Any) -> set[int]:
            flat = torch.utils._pytree.tree_leaves(values)
            return {value.untyped_storage().data_ptr() for value in flat if isinstance(value, Tensor)}

        known = storages((args, kwargs))
        result = function(*args, **(kwargs or {}))
        if not storages(result) <= known:
            self.new.append(str(function))
        return result


def test_torch_allocates_nothing_per_simulation_outside_of_the_network() -> None:
    model, searcher, storages = Constant(64), Searcher(SearchConfig(num_simulations=5)), Storages()
    run(searcher, model, model.output)

    def watch(simulate: Callable[[], None]) -> None:
        with storages:
            simulate()

    watched(searcher, watch)
    run(searcher, model, model.output)
    assert storages.new == []
    with storages:
        run(Searcher(SearchConfig(num_simulations=1)), model, model.output)
    assert storages.new, "the watch is blind"


# --- On a GPU --------------------------------------------------------------------------------------------------------


def test_a_capturable_model_is_recorded_once_and_launched_ever_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recorder that "launches" by calling again, on the CPU."""
    inference, planes = make(VECTORS)
    config = SearchConfig(num_simulations=1)  # what is recorded here writes into slot 1, whatever the simulation
    expected = run(Searcher(config), inference, inference.initial_inference(planes))
    launched: list[str] = []

    def record(function: Callable[[], None], device: torch.device) -> tuple[Callable[[], None], None]:
        launched.append("recorded")
        return (lambda: launched.append("launched") or function()), None

    monkeypatch.setattr(leaf_evaluator_module, "record", record)
    monkeypatch.setattr(InferenceNetwork, "is_capturable", True)
    searcher = Searcher(config)
    for _ in range(3):
        found = run(searcher, inference, inference.initial_inference(planes))
        np.testing.assert_array_equal(found.qvalues, expected.qvalues)
    assert launched == ["recorded"] + 3 * ["launched"]


def test_what_cannot_be_recorded_is_searched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inference, planes = make(VECTORS)
    config = SearchConfig(num_simulations=10)
    expected = run(Searcher(config), inference, inference.initial_inference(planes))
    monkeypatch.setattr(leaf_evaluator_module, "record", lambda function, device: None)
    monkeypatch.setattr(InferenceNetwork, "is_capturable", True)
    found = run(Searcher(config), inference, inference.initial_inference(planes))
    np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("shape", [IMAGES, VECTORS])
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
@pytest.mark.parametrize("batch", [4, 200])
def test_a_gpu_finds_what_the_cpu_finds(shape: tuple[int, ...], policy: str, batch: int) -> None:
    inference, _ = make(shape)
    planes = torch.rand(batch, *make(shape)[1].shape[1:])
    config = SearchConfig(policy=policy, num_simulations=20)
    expected = run(Searcher(config), inference, inference.initial_inference(planes))
    on_gpu = InferenceNetwork(make(shape)[0].network.cuda())
    searcher = Searcher(config)
    for _ in range(3):
        found = run(searcher, on_gpu, on_gpu.initial_inference(planes.cuda()))
        # Near ties may fall otherwise in other arithmetic, at the root or below it.
        same = (found.visit_counts == expected.visit_counts).all(axis=1)
        assert same.mean() > 0.9
        close = np.isclose(found.root_value, expected.root_value, rtol=1e-2, atol=1e-2)
        assert close[same].mean() > 0.95
        np.testing.assert_allclose(found.root_value, expected.root_value, rtol=0.2, atol=0.2)
    (((part,)),) = searcher._parts.values()
    assert isinstance(part, DevicePart)
    assert part._replay != part._simulate, "no graph"


class Uncaptured:
    """The same functions without the word that they can be captured."""

    def __init__(self, inference: InferenceNetwork) -> None:
        self.initial_inference, self.recurrent_inference = inference.initial_inference, inference.recurrent_inference


@needs_gpu
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_graphs_and_layouts_change_nothing_on_a_gpu(policy: str) -> None:
    inference, planes = make(IMAGES)
    inference = InferenceNetwork(inference.network.cuda())
    root = inference.initial_inference(torch.rand(200, *planes.shape[1:], device="cuda"))
    config = SearchConfig(policy=policy, num_simulations=20)
    expected = run(Searcher(config, Layout(whole)), Uncaptured(inference), root)
    in_halves, on_device = Layout(halves), Layout(rounded, DevicePart)
    for layout in (Layout(whole), in_halves, on_device):
        for model in (inference, Uncaptured(inference)):
            found = run(Searcher(config, layout), model, root)
            assert (found.visit_counts == expected.visit_counts).all(axis=1).mean() > 0.95


@needs_gpu
@pytest.mark.parametrize("part", [HostPart, DevicePart])
def test_a_gpu_allocates_nothing_per_simulation(part: Any) -> None:
    inference, planes = make(IMAGES)
    inference = InferenceNetwork(inference.network.cuda())
    searcher = Searcher(SearchConfig(num_simulations=20), Layout(whole, part))
    root = inference.initial_inference(planes.cuda())
    run(searcher, inference, root)
    counts: list[int] = []

    def watch(simulate: Callable[[], None]) -> None:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        simulate()
        counts.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)

    watched(searcher, watch)
    run(searcher, inference, root)
    assert counts == [0]
