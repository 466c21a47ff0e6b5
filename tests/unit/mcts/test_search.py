"""The batched search over models whose true values are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from search_models import TabularModel, corridor, optimal_q, random_process
from torch import Tensor

from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult, prior_alone, search
from rllib_efficientzero.mcts.parts import Layout, halves
from rllib_efficientzero.models import ModelConfig, NetworkOutput, build_network

POLICIES = ("puct", "gumbel")
STATES = torch.arange(12.0)[:, None]


def run(model: Any, planes: Tensor, *, seed: int = 0, explore: bool = False, **settings: Any) -> SearchResult:
    legal_actions, temperature = settings.pop("legal_actions", None), settings.pop("temperature", 0.0)
    return search(
        model,
        planes,
        SearchConfig(**settings),
        legal_actions=legal_actions,
        rng=np.random.default_rng(seed),
        explore=explore,
        temperature=temperature,
    )


def assert_same(first: SearchResult, second: SearchResult, rows: Any = slice(None)) -> None:
    """Equal in everything but the time; `second` holds the given rows of `first`."""
    for field in dataclasses.fields(SearchResult):
        expected, found = getattr(first, field.name), getattr(second, field.name)
        if expected is None:
            assert found is None
        elif field.name != "seconds":
            np.testing.assert_array_equal(expected[rows], found, err_msg=field.name)


# --- It finds what is best -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_delayed_reward_is_found_and_valued(policy: str) -> None:
    model = corridor()
    q = optimal_q(model, discount=0.9)[:2]
    result = run(model, torch.tensor([[0.0], [1.0]]), policy=policy, num_simulations=400, discount=0.9)
    np.testing.assert_allclose(q, [[0.81, 0.9, 0.2], [0.9, 1.0, 0.2]])
    assert result.action.tolist() == [1, 1]
    assert result.policy.argmax(axis=1).tolist() == [1, 1]
    np.testing.assert_allclose(result.qvalues[:, 1], [0.9, 1.0], atol=0.05)
    # The mean over all simulations, those included that tried something else, comes near from below.
    assert np.all(result.root_value <= [0.9, 1.0])
    if policy == "puct":  # "gumbel" spends as many visits on the runner-up
        np.testing.assert_allclose(result.root_value, [0.9, 1.0], atol=0.2)


@pytest.mark.parametrize("policy", POLICIES)
def test_true_values_at_the_leaves_give_the_best_actions_of_random_processes(policy: str) -> None:
    for seed in range(5):
        model = random_process(seed)
        q = optimal_q(model, discount=0.8)
        model.value, model.logits = q.max(axis=1), np.zeros_like(q)
        knows_nothing = run(model, STATES, policy=policy, num_simulations=100, discount=0.8)
        best_two = np.sort(q, axis=1)[:, -2:]
        clear = best_two[:, 1] - best_two[:, 0] > 1.0
        assert clear.sum() >= 2
        np.testing.assert_array_equal(knows_nothing.action[clear], q.argmax(axis=1)[clear])
        np.testing.assert_allclose(knows_nothing.network_value, q.max(axis=1), rtol=1e-5)
        if policy == "puct":
            model.logits = 3.0 * q
            knows_well = run(model, STATES, policy=policy, num_simulations=100, discount=0.8)
            np.testing.assert_allclose(knows_well.root_value, q.max(axis=1), rtol=0.1)


def test_one_simulation_by_hand() -> None:
    model = TabularModel(np.array([[1], [1]]), np.array([[2.0], [0.0]]), np.array([3.0, 5.0]), np.zeros((2, 1)))
    result = run(model, torch.zeros(1, 1), num_simulations=1, discount=0.5)
    assert result.visit_counts.tolist() == [[1]]
    assert result.qvalues.tolist() == [[2.0 + 0.5 * 5.0]]
    # The network's own value counts as the first visit.
    assert result.root_value.tolist() == [(3.0 + 4.5) / 2]
    assert (result.network_value.tolist(), result.prior.tolist(), result.action.tolist()) == ([3.0], [[1.0]], [0])


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_result_holds(policy: str) -> None:
    model = random_process(0)
    result = run(model, STATES, policy=policy, num_simulations=30, explore=True)
    assert len(result) == 12
    assert result.action.dtype == np.int64
    assert result.visit_counts.shape == result.policy.shape == result.qvalues.shape == result.prior.shape == (12, 4)
    assert np.all(result.visit_counts.sum(axis=1) == 30)
    np.testing.assert_allclose(result.policy.sum(axis=1), 1.0, rtol=1e-5)
    expected = np.exp(model.logits) / np.exp(model.logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result.prior, expected, rtol=1e-5)
    if policy == "puct":
        np.testing.assert_allclose(result.policy, result.visit_counts / 30, rtol=1e-6)
        assert np.array_equal(result.action, result.visit_counts.argmax(axis=1))


# --- Value prefix ----------------------------------------------------------------------------------------------------


class DepthModel:
    """Latent `[B, 1]`: the depth. Records the LSTM state that each step was given; hands on depth + 1, never zero."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.seen: list[tuple[int, float]] = []

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        return self._output(torch.zeros(len(planes), 1), torch.zeros(len(planes), 2))

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        assert torch.all(reward_hidden[:, 0] == reward_hidden[:, 1])
        self.seen += [(int(d), float(h)) for d, h in zip(latent[:, 0], reward_hidden[:, 0], strict=True)]
        return self._output(latent + 1, (latent + 1).expand(-1, 2))

    def _output(self, latent: Tensor, reward_hidden: Tensor) -> NetworkOutput:
        zeros = torch.zeros(len(latent))
        return NetworkOutput(latent, reward_hidden, zeros, zeros, torch.zeros(len(latent), self.num_actions))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_actions", [1, 2])
@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_the_lstm_starts_anew_at_multiples_of_the_horizon_only(policy: str, num_actions: int, horizon: int) -> None:
    model = DepthModel(num_actions)
    simulations = 12 if num_actions == 1 else 300
    run(model, torch.zeros(3, 1), policy=policy, num_simulations=simulations, value_prefix_horizon=horizon)
    depths = {depth for depth, _ in model.seen}
    assert depths >= set(range(12 if num_actions == 1 else 6))
    for depth, hidden in model.seen:
        # Depth 5 with horizon 5 is the leaf that ended a prefix: its children begin a new one.
        assert hidden == (0.0 if depth % horizon == 0 else float(depth))


def rewards_of_nodes(searcher: Searcher, root: int) -> dict[str, np.ndarray]:
    ((part,),) = searcher._parts.values()
    return part.tree.node_table(root)


@pytest.mark.parametrize("horizon", [1, 5, 100])
def test_edge_rewards_reproduce_a_known_reward_sequence(horizon: int) -> None:
    rewards = np.array([3.0, -1, 0, 2, 5, 7, 0, -4, 1, 1, 6, 2, 9])
    steps = len(rewards)
    states = np.arange(steps + 1)
    model = TabularModel(
        np.minimum(states + 1, steps)[:, None], np.append(rewards, 0.0)[:, None], np.zeros(steps + 1), np.zeros((14, 1))
    )
    searcher = Searcher(SearchConfig(num_simulations=steps, value_prefix_horizon=horizon, discount=0.5))
    root = model.initial_inference(torch.zeros(1, 1))
    result = searcher.search(model, root, rng=np.random.default_rng(0), explore=False)
    table = rewards_of_nodes(searcher, 0)
    np.testing.assert_array_equal(table["reward"][1:], rewards)
    # One simulation per depth: the root's value is the mean of the truncated returns, the network's zero among them.
    returns = np.concatenate([[0.0], np.cumsum(rewards * 0.5 ** np.arange(steps))])
    assert result.root_value[0] == pytest.approx(returns.mean(), rel=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_and_without_value_prefix_searches_are_the_same(policy: str) -> None:
    for seed in range(3):
        model = random_process(seed)
        settings = {"policy": policy, "num_simulations": 80, "discount": 0.9, "explore": True}
        without = run(model, STATES, value_prefix_horizon=1, **settings)
        for horizon in (2, 5):
            assert_same(without, run(model, STATES, value_prefix_horizon=horizon, **settings))


# --- Legal actions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_illegal_actions_are_never_taken(policy: str, explore: bool, temperature: float) -> None:
    rng = np.random.default_rng(0)
    model = random_process(0)
    for seed in range(10):
        legal = rng.random((12, 4)) < 0.5
        legal[np.arange(12), rng.integers(4, size=12)] = True
        result = run(
            model,
            STATES,
            policy=policy,
            explore=explore,
            temperature=temperature,
            legal_actions=legal,
            num_simulations=20,
            seed=seed,
        )
        assert np.all(result.visit_counts[~legal] == 0)
        assert np.all(result.policy[~legal] == 0)
        assert np.all(result.prior[~legal] == 0)
        np.testing.assert_allclose(result.prior.sum(axis=1), 1.0, rtol=1e-5)
        assert np.all(legal[np.arange(12), result.action])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_single_legal_action_gets_everything(policy: str) -> None:
    legal = np.zeros((12, 4), dtype=bool)
    legal[np.arange(12), np.arange(12) % 4] = True
    result = run(random_process(1), STATES, policy=policy, explore=True, legal_actions=legal, num_simulations=9)
    assert np.array_equal(result.action, np.arange(12) % 4)
    np.testing.assert_array_equal(result.visit_counts, 9 * legal)
    np.testing.assert_allclose(result.policy, legal)


def test_masks_of_other_types_and_layouts_are_read_as_booleans() -> None:
    model = random_process(1)
    legal = np.arange(48).reshape(12, 4) % 3 != 0
    expected = run(model, STATES, legal_actions=legal)
    assert_same(expected, run(model, STATES, legal_actions=legal.astype(np.float32)))
    assert_same(expected, run(model, STATES, legal_actions=np.asfortranarray(legal)))


# --- Determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("explore", [False, True])
def test_the_same_seed_gives_the_same_result(policy: str, explore: bool) -> None:
    model = random_process(2)
    settings = {"policy": policy, "explore": explore, "temperature": 1.0}
    assert_same(run(model, STATES, seed=5, **settings), run(model, STATES, seed=5, **settings))
    if explore:
        other = run(model, STATES, seed=6, **settings)
        assert not np.array_equal(other.visit_counts, run(model, STATES, seed=5, **settings).visit_counts)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_ties_and_noise_the_seed_does_not_matter(policy: str) -> None:
    model = random_process(2)
    settings = {"policy": policy, "tie_break": "first", "first_visit": "prior"}
    assert_same(run(model, STATES, seed=0, **settings), run(model, STATES, seed=1, **settings))


@pytest.mark.parametrize("policy", POLICIES)
def test_without_ties_a_root_does_not_depend_on_the_batch_around_it(policy: str) -> None:
    model = random_process(3)
    settings = {"policy": policy, "tie_break": "first"}
    batch = run(model, STATES, **settings)
    for rows in ([7], [11, 0, 4], list(reversed(range(12)))):
        assert_same(batch, run(model, STATES[rows], **settings), rows=rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_random_ties_a_root_depends_on_its_index_only(policy: str) -> None:
    model = random_process(3)
    batch = run(model, STATES, policy=policy, tie_break="random")
    for size in (1, 5):
        assert_same(batch, run(model, STATES[:size], policy=policy, tie_break="random"), rows=slice(size))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [1, 5, 12])
@pytest.mark.parametrize(
    "split",
    [
        lambda batch: [slice(0, 6), slice(6, 12)],  # the second may be only roots that stand in
        lambda batch: [slice(0, 3), slice(3, 4), slice(4, 16)],
        lambda batch: [slice(0, batch + 7)],
    ],
)
def test_results_do_not_depend_on_how_a_batch_is_cut(policy: str, batch: int, split: Any) -> None:
    model, config = random_process(3), SearchConfig(policy=policy, num_simulations=25)
    states = STATES[:batch]
    legal = np.random.default_rng(1).random((batch, 4)) < 0.6
    legal[:, 2] = True

    def of(searcher: Searcher) -> SearchResult:
        return searcher.search(
            model,
            model.initial_inference(states),
            legal_actions=legal,
            rng=np.random.default_rng(7),
            explore=True,
            temperature=1.0,
        )

    in_parts = Searcher(config, Layout(split))
    of(in_parts)
    assert_same(of(Searcher(config)), of(in_parts))


@pytest.mark.parametrize("batch", [1, 4, 32, 33, 64, 100, 256, 1000, 1536])
def test_batches_on_a_gpu_are_rounded_up_to_few_sizes(batch: int) -> None:
    parts = halves(batch)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert batch <= parts[-1].stop < max(batch + 1, batch + 64)
    assert len(parts) == (2 if batch > 64 else 1)
    assert len({part.stop - part.start for part in parts}) == 1


# --- Memory, gradients, errors --------------------------------------------------------------------------------------


def test_memory_is_taken_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    module = __import__("sys").modules["rllib_efficientzero.mcts.host_tree"]
    real = module.BatchedTree
    monkeypatch.setattr(module, "BatchedTree", lambda *args, **kwargs: made.append(args) or real(*args, **kwargs))
    model, searcher = random_process(0), Searcher(SearchConfig(num_simulations=10, tie_break="first"))

    def of(states: Tensor, explore: bool = False) -> SearchResult:
        root = model.initial_inference(states)
        return searcher.search(model, root, rng=np.random.default_rng(0), explore=explore)

    first = of(STATES)
    of(STATES.flip(0), explore=True)
    of(STATES[:3])
    assert_same(first, of(STATES))  # nothing of the searches in between is left
    assert [args[0] for args in made] == [12, 3]
    for size in range(4, 9):
        of(STATES[:size])
    assert len(searcher._parts) == Searcher.MAX_BATCHES
    of(STATES[:8])
    assert len(made) == 2 + 5
    of(STATES)  # the least recently used went first
    assert len(made) == 2 + 5 + 1


def test_threads_are_for_large_batches_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules["rllib_efficientzero.mcts.host_tree"]
    real, threads = module.BatchedTree, []

    def make(*args: Any, **kwargs: Any) -> Any:
        threads.append((args[0], kwargs["num_threads"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "BatchedTree", make)
    model, many = random_process(0), STATES[torch.arange(256) % 12]
    one = run(model, many, num_simulations=10, explore=True)
    assert_same(one, run(model, many, num_simulations=10, explore=True, num_threads=3))
    run(model, many[:255], num_simulations=10, num_threads=3)
    assert threads == [(256, 1), (256, 3), (255, 1)]


def test_results_do_not_change_with_the_next_search() -> None:
    model, searcher = random_process(0), Searcher(SearchConfig(num_simulations=10))
    root = model.initial_inference(STATES)
    first = searcher.search(model, root, rng=np.random.default_rng(0), explore=True)
    arrays = {name: value for name, value in vars(first).items() if isinstance(value, np.ndarray)}
    copy = dataclasses.replace(first, **{name: value.copy() for name, value in arrays.items()})
    searcher.search(model, model.initial_inference(STATES.flip(0)), rng=np.random.default_rng(1), explore=True)
    assert_same(copy, first)


def test_a_search_tracks_no_gradients_and_changes_no_network() -> None:
    torch.manual_seed(0)
    network = build_network(
        (1, 4), 3, ModelConfig(latent_size=8, mlp_hidden=(8,), lstm_hidden=8, support_size=3)
    ).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grad_modes = []
    network.dynamics.register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
    searcher = Searcher(SearchConfig(num_simulations=5))
    root = network.initial_inference(torch.rand(2, 4))  # with gradients: searching must not drag them along
    assert root.value.requires_grad
    searcher.search(network, root, rng=np.random.default_rng(0), explore=True)
    assert grad_modes == [False] * 5
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("where", ["root", "leaf"])
@pytest.mark.parametrize("part", ["policy_logits", "value"])
def test_outputs_that_are_not_finite_are_an_error(policy: str, where: str, part: str) -> None:
    model = random_process(0)
    searcher = Searcher(SearchConfig(policy=policy, num_simulations=5, tie_break="first"))
    good = model.initial_inference(STATES)

    def spoil(output: NetworkOutput) -> NetworkOutput:
        spoilt = getattr(output, part).clone()
        spoilt.view(-1)[3] = torch.nan
        return output._replace(**{part: spoilt})

    class Spoilt(TabularModel):
        def recurrent_inference(self, *args: Any) -> NetworkOutput:
            return spoil(super().recurrent_inference(*args))

    bad_model = Spoilt(**vars(model)) if where == "leaf" else model
    rng = np.random.default_rng(0)
    expected = searcher.search(model, good, rng=np.random.default_rng(1), explore=False)
    with pytest.raises(ValueError, match=r"finite|NaN|nan"):
        searcher.search(bad_model, spoil(good) if where == "root" else good, rng=rng, explore=True)
    assert_same(expected, searcher.search(model, good, rng=np.random.default_rng(1), explore=False))


def test_a_root_without_legal_actions_is_an_error() -> None:
    legal = np.ones((12, 4), dtype=bool)
    legal[5] = False
    with pytest.raises(ValueError, match="legal"):
        run(random_process(0), STATES, legal_actions=legal)


def test_an_unknown_search_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown search policy 'muzero'.*gumbel.*puct"):
        Searcher(SearchConfig(policy="muzero"))


def test_root_noise_is_the_only_thing_explore_adds_to_puct() -> None:
    model = random_process(4)
    plain = run(model, STATES, tie_break="first")
    assert_same(plain, run(model, STATES, tie_break="first", explore=True, root_noise_fraction=0.0))
    noisy = run(model, STATES, tie_break="first", explore=True, root_noise_fraction=1.0, dirichlet_alpha=0.1)
    assert not np.array_equal(plain.visit_counts, noisy.visit_counts)
    np.testing.assert_array_equal(plain.prior, noisy.prior)


def test_acting_without_a_search_checks_what_a_search_would() -> None:
    network = build_network((1, 4), 2, ModelConfig(lstm_hidden=8)).eval()
    with torch.no_grad():
        root, broken = (network.initial_inference(torch.full((2, 4), value)) for value in (0.5, float("nan")))
    legal_actions = np.array([[True, False], [True, True]])
    assert prior_alone(network, root, legal_actions).prior[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="root 1 allow no action"):
        prior_alone(network, root, legal_actions & [[True, True], [False, False]])
    with pytest.raises(ValueError, match=r"finite|NaN"):
        prior_alone(network, broken)
