"""The compiled network computes what the network computes, with the weights that the network has at that time."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graph_helpers import FakeRecorder
from torch import Tensor, nn

from rllib_efficientzero.models import (
    EfficientZeroNetwork,
    InferenceNetwork,
    ModelConfig,
    NetworkOutput,
    build_network,
    compilation,
)
from rllib_efficientzero.models import cuda_graphs as cuda_graphs_module
from rllib_efficientzero.models import inference as inference_module
from rllib_efficientzero.models.cuda_graphs import GraphedFunction
from rllib_efficientzero.models.folding import NORMALISATIONS, FoldedCopy
from rllib_efficientzero.models.inference import GPU_GRAPHED
from rllib_efficientzero.models.observations import Stacks

SIZES = {"channels": 8, "reduced_channels": 4, "latent_size": 16, "lstm_hidden": 12, "support_size": 5}
HIDDEN = {"mlp_hidden": (16, 12), "head_hidden": (8,)}
NUM_ACTIONS = 3
NETWORKS = {
    "vector": ((2, 4), {}),
    "no hidden layers": ((2, 4), {"mlp_hidden": (), "head_hidden": ()}),
    "image, 4 halvings": ((2, 96, 80, 3), {}),
    "image, 3 halvings": ((4, 48, 48, 1), {"num_blocks": 2}),
    "image, no halving": ((1, 6, 7, 2), {"action_encoding": "one_hot"}),
}


def make(kind: str = "image, no halving", seed: int = 0) -> EfficientZeroNetwork:
    """With weights and statistics that leave nothing at its default. In train mode, which must not matter."""
    shape, sizes = NETWORKS[kind]
    torch.manual_seed(seed)
    network = build_network(shape, NUM_ACTIONS, ModelConfig(**(SIZES | HIDDEN | sizes)))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, NORMALISATIONS):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.train()


def planes_for(kind: str, batch: int, seed: int = 1) -> Tensor:
    shape, _ = NETWORKS[kind]
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 2:
        return torch.rand(batch, shape[0] * shape[1], generator=generator)
    stack, height, width, channels = shape
    return torch.rand(batch, stack * channels, height, width, generator=generator)


@torch.no_grad()
def plain(network: EfficientZeroNetwork, planes: Tensor) -> tuple[NetworkOutput, NetworkOutput, Tensor]:
    """Root, a step from it with an LSTM state, and value, by the network itself in eval mode."""
    return both(copy.deepcopy(network).eval(), planes)


def both(network: Any, planes: Tensor) -> tuple[NetworkOutput, NetworkOutput, Tensor]:
    root = network.initial_inference(planes)
    state = torch.linspace(-1, 1, root.reward_hidden.numel()).view(root.reward_hidden.shape).to(root.latent.dtype)
    return root, network.recurrent_inference(root.latent, state, torch.arange(len(planes)) % 3), network.value(planes)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip((*found[0], *found[1], found[2]), (*expected[0], *expected[1], expected[2]), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_equal(found: Any, expected: Any) -> None:
    assert_close(found, expected, tolerance=0.0)


# --- It computes what the network computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("compiled", [True, False])
def test_outputs_are_those_of_the_network(kind: str, compiled: bool) -> None:
    network = make(kind)
    inference = InferenceNetwork(network if compiled else network.eval(), compiled=compiled)
    for batch in (3, 1, 8):  # the graph made for the first serves them all
        planes = planes_for(kind, batch)
        found = both(inference, planes)
        assert_close(found, plain(network, planes))
        assert not any(tensor.requires_grad for tensor in (*found[0], found[2]))


@pytest.mark.parametrize("kind", ["vector", "image, no halving"])
def test_many_observations_are_encoded_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, planes = make(kind), planes_for(kind, 11)
    expected = plain(network, planes)
    monkeypatch.setattr(inference_module, "CPU_CHUNK", 4)
    inference = InferenceNetwork(network)
    sizes: list[int] = []
    call = inference._call
    monkeypatch.setattr(inference, "_call", lambda name, *inputs: sizes.append(len(inputs[0])) or call(name, *inputs))
    assert_close(both(inference, planes), expected)
    assert sizes == [4, 4, 3, 11, 4, 4, 3]


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_normalisation_remains(kind: str) -> None:
    folded = FoldedCopy(make(kind), torch.float32)
    assert not [name for name, module in folded.module.named_modules() if isinstance(module, NORMALISATIONS)]
    assert not folded.module.training


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_normalisations_of_other_kinds_are_taken_as_they_are(settings: dict[str, bool]) -> None:
    network, planes = make(), planes_for("image, no halving", 8)
    network.dynamics.norm = nn.BatchNorm2d(SIZES["channels"], **settings)
    network.value_prefix.norm = nn.BatchNorm1d(SIZES["lstm_hidden"], **settings)
    both(network, planes_for("image, no halving", 8, seed=2))  # statistics, where there are any
    assert_close(both(InferenceNetwork(network), planes), plain(network, planes))


def test_the_network_itself_is_left_alone() -> None:
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    both(InferenceNetwork(network), planes_for("image, no halving", 2))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["vector", "image, 3 halvings"])
def test_results_do_not_depend_on_what_was_computed_before(kind: str) -> None:
    """Bitwise: a run that was resumed starts with fresh graphs and must go on like the one that was not."""
    network, planes = make(kind), planes_for(kind, 4)
    inference = InferenceNetwork(network)
    first = both(inference, planes)
    for batch in (1, 9, 4, 4, 4):
        both(inference, planes_for(kind, batch, seed=batch))
    assert_equal(both(inference, planes), first)

    later = make(kind, seed=5)  # other weights first, then these
    inference = InferenceNetwork(later)
    both(inference, planes_for(kind, 2))
    later.load_state_dict(network.state_dict())
    assert_equal(both(inference, planes), first)


# --- Never with stale weights ----------------------------------------------------------------------------------------


def _train(network: EfficientZeroNetwork, optimizer: torch.optim.Optimizer) -> None:
    root = network.train().initial_inference(planes_for("image, no halving", 4))
    step = network.recurrent_inference(root.latent, root.reward_hidden, torch.zeros(4, dtype=torch.int64))
    sum(part.square().mean() for part in (*root, *step)).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _replace_a_parameter(network: EfficientZeroNetwork) -> None:
    linear = network.prediction.value[1][0]
    linear.weight = nn.Parameter(torch.randn_like(linear.weight))


def _change_a_statistic(network: EfficientZeroNetwork) -> None:
    network.prediction.trunk[0].norm2.running_mean += 1.0


@torch.no_grad()
def _change_a_weight(network: EfficientZeroNetwork) -> None:
    network.representation.stages[0].weight.mul_(1.5)


def _point_to_other_memory(network: EfficientZeroNetwork) -> None:
    weight = network.prediction.value[1][0].weight
    weight.data = 2.0 * weight.data


CHANGES: dict[str, Callable[[EfficientZeroNetwork], object]] = {
    "load_state_dict": lambda network: network.load_state_dict(make(seed=1).state_dict()),
    "load_state_dict in inference mode": torch.inference_mode()(
        lambda network: network.load_state_dict(make(seed=1).state_dict())
    ),
    "load_state_dict that assigns": lambda network: network.load_state_dict(make(seed=1).state_dict(), assign=True),
    "SGD": lambda network: _train(network, torch.optim.SGD(network.parameters(), lr=0.01)),
    "Adam": lambda network: _train(network, torch.optim.Adam(network.parameters(), lr=0.01)),
    "fused Adam": lambda network: _train(network, torch.optim.Adam(network.parameters(), lr=0.01, fused=True)),
    "Adam one by one": lambda network: _train(network, torch.optim.Adam(network.parameters(), lr=0.01, foreach=False)),
    "a parameter is another": _replace_a_parameter,
    "a weight": _change_a_weight,
    "a statistic": _change_a_statistic,
    "other memory": _point_to_other_memory,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_is_noticed(change: str) -> None:
    network, planes = make(), planes_for("image, no halving", 4)
    inference = InferenceNetwork(network)
    before = both(inference, planes)
    CHANGES[change](network)
    expected = plain(network, planes)
    assert not torch.allclose(before[2], expected[2])
    assert_close((before[0], before[1], inference.value(planes)), (before[0], before[1], expected[2]))
    assert_close(both(inference, planes), expected)


def test_weights_stay_the_same_between_a_root_and_its_steps() -> None:
    network, planes = make(), planes_for("image, no halving", 4)
    inference = InferenceNetwork(network)
    root, expected, _ = both(inference, planes)
    _change_a_weight(network)
    _replace_a_parameter(network)
    found = inference.recurrent_inference(
        root.latent, torch.linspace(-1, 1, 4 * 24).view(4, 24), torch.arange(4) % NUM_ACTIONS
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_nothing_is_copied_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    network, planes = make(), planes_for("image, no halving", 2)
    inference = InferenceNetwork(network)
    both(inference, planes)
    monkeypatch.setattr(inference, "refresh", lambda: pytest.fail("refreshed"))
    both(inference, planes)


def test_writes_that_torch_does_not_count_need_a_refresh() -> None:
    network, planes = make(), planes_for("image, no halving", 2)
    inference = InferenceNetwork(network)
    both(inference, planes)
    network.representation.stages[0].weight.data.mul_(1.5)
    inference.refresh()
    assert_close(both(inference, planes), plain(network, planes))


def test_weights_arrive_in_place() -> None:
    """Whatever was recorded with the copy's tensors has to stay valid."""
    network = make()
    folded = FoldedCopy(network, torch.float32)

    def places() -> dict[str, int]:
        tensors = (*folded.module.named_parameters(), *folded.module.named_buffers())
        return {name: tensor.data_ptr() for name, tensor in tensors}

    before = places()
    network.load_state_dict(make(seed=1).state_dict())
    folded.update()
    assert places() == before


# --- Copies and precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compile_anew_and_go_their_own_way(duplicate: Callable[[Any], Any]) -> None:
    network, planes = make(), planes_for("image, no halving", 2)
    inference = InferenceNetwork(network)
    expected = both(inference, planes)
    holder = duplicate({"network": network, "inference": inference})
    assert holder["inference"].network is holder["network"]
    assert_equal(both(holder["inference"], planes), expected)
    _change_a_weight(holder["network"])
    assert_equal(both(inference, planes), expected)
    assert_close(both(holder["inference"], planes), plain(holder["network"], planes))


@pytest.mark.parametrize("kind", ["vector", "image, 3 halvings"])
def test_in_low_precision_states_are_small_and_estimates_are_floats(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_module, "low_precision", lambda device, enabled: torch.bfloat16 if enabled else None)
    network, planes = make(kind), planes_for(kind, 4)
    found = both(InferenceNetwork(network, mixed_precision=True), planes)
    for output in found[:2]:
        assert output.latent.dtype == output.reward_hidden.dtype == torch.bfloat16
        assert {output.value.dtype, output.value_prefix.dtype, output.policy_logits.dtype} == {torch.float32}
    for output, expected in zip(found[:2], plain(network, planes)[:2], strict=True):
        torch.testing.assert_close(output.value, expected.value, rtol=0.1, atol=0.1)
        torch.testing.assert_close(output.policy_logits, expected.policy_logits, rtol=0.1, atol=0.1)
    assert both(InferenceNetwork(network), planes)[0].latent.dtype == torch.float32


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


def test_shapes_that_come_often_get_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder()
    monkeypatch.setattr(cuda_graphs_module, "record", recorder)
    graphed = GraphedFunction(lambda x, y: (x + y, x * y))
    results = []
    for number in range(6):
        x, y = torch.full((2, 3), float(number)), torch.ones(2, 3)
        results.append((x, y, *graphed(x, y)))
        graphed(torch.zeros(1, 10 + number), torch.zeros(1, 10 + number))  # never the same again
    for x, y, total, product in results:  # later calls did not write over earlier results
        assert torch.equal(total, x + y)
        assert torch.equal(product, x * y)
    assert (recorder.recorded, recorder.launched) == (1, 6 - cuda_graphs_module.MIN_CALLS + 1)


@pytest.mark.parametrize("method", ["initial_inference", "value"])
def test_stacks_are_evaluated_by_graphs_for_few_numbers_of_them(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    recorder = FakeRecorder()
    monkeypatch.setattr(cuda_graphs_module, "record", recorder)
    network = make().eval()
    shape, _ = NETWORKS["image, no halving"]
    frames = torch.randint(0, 256, (4, 3, *shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, graphed = InferenceNetwork(network), InferenceNetwork(network)
    for number, count in enumerate((3, 120, 128, 5, 129, 1, 130)):
        rows, times = torch.arange(count) % 4, torch.arange(count) % 3
        stacks = Stacks(frames, rows, times, shape[0])
        monkeypatch.setattr(InferenceNetwork, "is_capturable", False)
        expected = getattr(plain, method)(plain.input_of(stacks))
        monkeypatch.setattr(InferenceNetwork, "is_capturable", True)
        assert graphed.input_of(stacks) is stacks
        for one, other in zip(tuple_of(getattr(graphed, method)(stacks)), tuple_of(expected), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other)
        if number == 3:
            # A graph sees weights that changed before it is launched.
            with torch.no_grad():
                last_of(network.prediction.value).bias.add_(0.5)
    assert recorder.recorded == 1


def tuple_of(output: NetworkOutput | Tensor) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def test_what_a_recording_changed_is_undone_before_the_graph_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs_module, "record", FakeRecorder())
    count = torch.zeros(())

    @contextlib.contextmanager
    def kept() -> Iterator[None]:
        before = count.clone()
        yield
        count.copy_(before)

    graphed = GraphedFunction(lambda x: (x + count.add_(1),), around=kept, copies=False)
    results = [graphed(torch.zeros(2))[0] for _ in range(6)]
    assert count == 6
    # Without copies every launch writes over the last one's results.
    assert [result[0].item() for result in results] == [1.0, 2.0, *4 * [6.0]]


def test_what_cannot_be_recorded_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs_module, "record", FakeRecorder(works=False))
    graphed = GraphedFunction(lambda x: (x + 1,))
    assert [graphed(torch.tensor(float(number)))[0].item() for number in range(9)] == [n + 1.0 for n in range(9)]


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder()
    monkeypatch.setattr(cuda_graphs_module, "record", recorder)
    graphed = GraphedFunction(lambda x: (x + 1,))
    for size in range(1, 20):
        for _ in range(5):
            assert graphed(torch.zeros(size))[0].sum() == size
    assert recorder.recorded == cuda_graphs_module.MAX_GRAPHS


def last_of(head: nn.Module) -> nn.Linear:
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fused_kernels_on_a_gpu_compute_what_the_network_computes_and_follow_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "MIN_PARAMETERS", 0)
    kind = "image, 4 halvings"
    network = make(kind).cuda().eval()
    inference = InferenceNetwork(network, fused=True)
    for batch in (4, 16, GPU_GRAPHED + 1, GPU_GRAPHED + 7):
        planes = planes_for(kind, batch).cuda()
        with torch.no_grad():
            root = network.initial_inference(planes)
            action = torch.zeros(batch, dtype=torch.int64, device="cuda")
            following = network.recurrent_inference(root.latent, root.reward_hidden, action)
        for expected, found in (
            (root, inference.initial_inference(planes)),
            (following, inference.recurrent_inference(root.latent, root.reward_hidden, action)),
        ):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)  # TF32
        with torch.no_grad():
            last_of(network.prediction.value).bias.add_(0.1)
    assert inference._functions["recurrent_inference"].is_compiled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", NETWORKS)
def test_graphs_on_a_gpu_compute_what_the_network_computes_and_follow_its_weights(kind: str) -> None:
    network = make(kind).cuda().eval()
    inference = InferenceNetwork(network)
    planes = planes_for(kind, 16).cuda()
    for _ in range(cuda_graphs_module.MIN_CALLS + 2):
        with torch.no_grad():
            expected = network.initial_inference(planes)
        for one, other in zip(inference.initial_inference(planes), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)  # TF32
        torch.testing.assert_close(inference.value(planes), expected.value, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            last_of(network.prediction.value).bias.add_(0.1)
    # Many at a time are launched kernel by kernel.
    planes = planes_for(kind, GPU_GRAPHED + 1).cuda()
    with torch.no_grad():
        torch.testing.assert_close(inference.value(planes), network.value(planes), rtol=1e-3, atol=1e-3)
