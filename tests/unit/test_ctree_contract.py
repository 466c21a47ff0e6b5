"""The contract of BatchedTree: small searches computed by hand, and every misuse answered by a Python exception."""

import copy
import gc
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from rllib_efficientzero._ctree import BatchedTree

B, A, N = 2, 3, 4
NAN, INF = float("nan"), float("inf")


def f32(*values):
    return np.array(values, np.float32)


def make(num_roots=B, num_actions=A, num_simulations=N, **settings):
    return BatchedTree(num_roots, num_actions, num_simulations, **{"discount": 0.99, "tie_break": "first", **settings})


def zeros(*shape):
    return np.zeros(shape, np.float32)


def ready(**settings):
    tree = make(**settings)
    gumbel = settings.get("policy") == "gumbel"
    tree.reset(zeros(B, A), value=zeros(B) if gumbel else None)
    return tree


def selected(**settings):
    tree = ready(**settings)
    tree.select()
    return tree


def with_value(array, value, index=-1):
    array.flat[index] = value
    return array


# ------------------------------------------------------------------------------------------------- computed by hand


def chain(value_prefixes, *, values=None, horizon=5, discount=1.0):
    """A search with one action: its nodes form a chain, one deeper per simulation."""
    count = len(value_prefixes)
    tree = make(1, 1, count, horizon=horizon, discount=discount)
    tree.reset(zeros(1, 1))
    for depth, prefix in enumerate(value_prefixes, start=1):
        slot, action, leaf_depth = tree.select()
        assert (slot[0], action[0], leaf_depth[0]) == (depth - 1, 0, depth)
        tree.expand_and_backup(f32(prefix), f32(values[depth - 1] if values else 0), zeros(1, 1))
    return tree


def test_edge_rewards_start_anew_behind_depths_5_and_10():
    prefixes = [1, 3, 6, 10, 15, 2, 5, 9, 14, 20, 7, 8]
    # Children of the nodes at depths 5 and 10 hold the first value prefix of a new window.
    rewards = [1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 1]
    table = chain(prefixes).node_table(0)
    np.testing.assert_array_equal(table["reward"], [0, *rewards])
    np.testing.assert_array_equal(table["depth"], range(13))
    np.testing.assert_array_equal(table["parent"], range(-1, 12))


@pytest.mark.parametrize(
    ("horizon", "rewards"),
    [(1, [1, 3, 6, 10, 15]), (2, [1, 2, 6, 4, 15]), (3, [1, 2, 3, 10, 5]), (100, [1, 2, 3, 4, 5])],
)
def test_edge_rewards_of_other_horizons(horizon, rewards):
    table = chain([1, 3, 6, 10, 15], horizon=horizon).node_table(0)
    np.testing.assert_array_equal(table["reward"][1:], rewards)


def test_backup_discounts_every_edge():
    tree = chain([1, 3], values=[10, 20], discount=0.5)
    # First return 1 + 10/2 = 6; second, from below: 2 + 20/2 = 12, then 1 + 12/2 = 7. The root itself: (0 + 6 + 7) / 3.
    table = tree.node_table(0)
    np.testing.assert_allclose(table["value"], [13 / 3, (10 + 12) / 2, 20], rtol=1e-6)
    np.testing.assert_array_equal(table["visits"], [3, 2, 1])
    np.testing.assert_allclose(tree.qvalues(), [[1 + 0.5 * 11]])
    np.testing.assert_allclose(tree.root_values(), [13 / 3], rtol=1e-6)


def test_root_value_with_and_without_value():
    """Given, the network's value is the first of N + 1 returns; not given, the divisor is N + 1 all the same."""
    for value, expected in [(None, (2 + 4) / 3), (f32(9), (9 + 2 + 4) / 3)]:
        tree = make(1, 1, 2, discount=1.0)
        tree.reset(zeros(1, 1), value=value)
        for _ in range(2):
            tree.select()
            tree.expand_and_backup(f32(1), f32(1), zeros(1, 1))
        # Returns: 1 + 1 = 2; then one edge deeper, whose reward is 1 - 1 = 0: 0 + 1 = 1, and 1 + 1 = 2.
        assert tree.root_values()[0] == pytest.approx(expected - 2 / 3)
    tree = make(1, 1, 0)
    tree.reset(zeros(1, 1), value=f32(9))
    assert tree.root_values()[0] == 9
    tree.reset(zeros(1, 1))
    assert tree.root_values()[0] == 0


def two_actions(steps, *, prior=0.75, **settings):
    """Actions taken at the root of a tree with two actions and a given prior; steps: value of each child in turn."""
    tree = make(1, 2, len(steps) + 1, discount=1.0, first_visit="prior", horizon=1, **settings)
    tree.reset(np.log(f32(prior, 1 - prior))[None])
    path = []
    for value in steps:
        slot, action, _ = tree.select()
        path.append((int(slot[0]), int(action[0])))
        tree.expand_and_backup(zeros(1), f32(value), zeros(1, 2))
    slot, action, _ = tree.select()
    return [*path, (int(slot[0]), int(action[0]))], tree


def test_puct_score_of_two_actions():
    """P = 3/4, 1/4. After one visit of action 0 with Q = q: both actions have the same Q, since an unvisited one takes
    the mean of the visited. U = c * 3/4 / 2 against c * 1/4: action 0 once more, at node 1."""
    path, _ = two_actions([0.5])
    assert path == [(0, 0), (1, 0)]
    # With P = 0.6, 0.4: U = 0.3 c against 0.4 c: action 1 is opened.
    path, _ = two_actions([0.5], prior=0.6)
    assert path == [(0, 0), (0, 1)]


def test_min_max_stretches_small_differences_by_the_delta_floor_only():
    """P = 0.6, 0.4; Q = 0.5 and 0.5 + d after one visit each: the third visit weighs 0.1 c sqrt(2) in U against
    d / max(d, floor) in Q, where c = 1.25 + log(1 + 3 / 19652)."""
    gap_in_u = 0.1 * (1.25 + np.log((2 + 19652 + 1) / 19652)) * np.sqrt(2)
    for difference, floor, other_wins in [
        (0.001, 0.01, False),  # 0.1 < 0.177
        (0.002, 0.01, True),  # 0.2 > 0.177
        (0.001, 0.0001, True),  # stretched to the whole interval
        (0.1, 1.0, False),
        (0.2, 1.0, True),
    ]:
        assert (difference / max(difference, floor) > gap_in_u) == other_wins
        path, _ = two_actions([0.5, 0.5 + difference], prior=0.6, value_delta_max=floor)
        assert path[2][0] == (2 if other_wins else 1), (difference, floor)


def test_equal_values_are_not_stretched():
    """With one value only there is no spread: the raw value, clipped to [0, 1], is the same for all actions."""
    for value in (-3.0, 0.0, 0.4, 7.0):
        path, _ = two_actions([value], prior=0.6)
        assert path == [(0, 0), (0, 1)]


def test_min_max_follows_the_current_values():
    """The bounds are those of the present Q values, not of all there ever were.

    Children with Q = 10 and 0; then -8 arrives below the first, whose Q falls to (10 - 8) / 2 = 1. Of the values then,
    1, 0, -8, the first child's stretched lead is 1/9; had the bound 10 been kept, it would be 1/18. U prefers the
    second by c sqrt(3) (0.4462 / 2 - 0.5538 / 3) = 0.083, between the two."""
    gap_in_u = (1.25 + np.log((3 + 19652 + 1) / 19652)) * np.sqrt(3) * ((1 - 0.5538) / 2 - 0.5538 / 3)
    assert 1 / 18 < gap_in_u < 1 / 9
    path, _ = two_actions([10, 0, -8], prior=0.5538)
    assert path[:3] == [(0, 0), (0, 1), (1, 0)]
    assert path[3][0] in (1, 3)  # under the first child, not at slot 2


@pytest.mark.parametrize("first_visit", ["uniform", "prior"])
@pytest.mark.parametrize(("prior", "leaf"), [(0.9, (1, 1)), (0.95, (2, 0))])
def test_an_unvisited_action_takes_the_mean_q_of_its_node(first_visit, prior, leaf):
    """The root has one child X with value 1, X has one child Y with value 0.2, so Q(X) = 0.6 and Q(Y) = 0.2.

    The root's mean is 0.6, that of X is (0.6 + 0.2) / 2 = 0.4: stretched to [0.2, 0.6], an unvisited action of X has
    0.5 and Y has 0. U of Y leads by c (prior / 2 - (1 - prior)): 0.44 for a prior of 0.9 and 0.53 for 0.95."""
    tree = make(1, 2, 3, discount=1.0, first_visit=first_visit, horizon=1)
    tree.reset(zeros(1, 2), legal_actions=np.array([[1, 0]], np.uint8))
    leaves = []
    for value in (1, 0.2, 0):
        leaves.append(tuple(int(x[0]) for x in tree.select()[:2]))
        tree.expand_and_backup(zeros(1), f32(value), np.log(f32(prior, 1 - prior))[None])
    assert leaves == [(0, 0), (1, 0), leaf]


def test_first_visit_uniform_ignores_the_prior_and_prior_obeys_it():
    logits = f32(0, 5, 1)[None]
    for first_visit, expected in [("uniform", 0), ("prior", 1)]:
        tree = make(1, 3, 1, first_visit=first_visit)
        tree.reset(logits)
        assert tree.select()[1][0] == expected


def test_illegal_actions_get_no_prior_and_noise_is_shared_among_the_legal():
    tree = make(1, 4, 0)
    logits = np.log(f32(0.1, 0.2, 0.3, 0.4))[None]
    legal = np.array([[True, False, True, False]])
    tree.reset(logits, legal_actions=legal)
    np.testing.assert_allclose(tree.improved_policy(), [[0.25, 0, 0.75, 0]], rtol=1e-6)
    tree.reset(logits, legal_actions=legal, noise=f32(1, 5, 3, 7)[None], noise_fraction=0.25)
    np.testing.assert_allclose(tree.improved_policy(), [[0.25, 0, 0.75, 0]], rtol=1e-6)
    tree.reset(logits, legal_actions=legal, noise=f32(1, 5, 1, 7)[None], noise_fraction=0.5)
    np.testing.assert_allclose(tree.improved_policy(), [[0.375, 0, 0.625, 0]], rtol=1e-6)
    tree.reset(logits, legal_actions=legal.astype(np.uint8), noise=f32(1, 5, 1, 7)[None], noise_fraction=1.0)
    np.testing.assert_allclose(tree.improved_policy(), [[0.5, 0, 0.5, 0]], rtol=1e-6)


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_only_one_legal_action(policy):
    tree = make(policy=policy, num_simulations=10)
    legal = np.array([[0, 1, 0], [0, 0, 2]], np.uint8)  # any value but 0 means legal
    tree.reset(zeros(B, A), value=zeros(B), legal_actions=legal)
    for _ in range(10):
        tree.select()
        tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    np.testing.assert_array_equal(tree.visit_counts(), [[0, 10, 0], [0, 0, 10]])
    np.testing.assert_allclose(tree.improved_policy(), [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(tree.selected_actions(), [1, 2])


def test_a_logit_of_minus_infinity_is_never_visited():
    tree = make(1, 3, 30, tie_break="random")
    tree.reset(f32(0, -INF, 0)[None])
    for _ in range(30):
        tree.select()
        tree.expand_and_backup(zeros(1), zeros(1), f32(0, -INF, -INF)[None])
    table = tree.node_table(0)
    assert tree.visit_counts()[0, 1] == 0
    assert not table["action"][table["depth"] > 1].any()


def test_properties_and_node_table():
    tree = ready(num_simulations=N)
    assert (tree.num_roots, tree.num_actions, tree.num_simulations, tree.simulation) == (B, A, N, 0)
    assert tree.nbytes > 0
    for done in range(1, N + 1):
        tree.select()
        tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
        assert tree.simulation == done
        table = tree.node_table(1)
        assert {name: len(column) for name, column in table.items()} == dict.fromkeys(table, done + 1)
    assert list(table) == ["parent", "action", "depth", "visits", "value", "reward", "prior"]
    assert (table["parent"][0], table["action"][0], table["depth"][0]) == (-1, -1, 0)
    assert table["visits"][0] == N + 1
    np.testing.assert_allclose(table["prior"][1:], 1 / 3, rtol=1e-6)


def test_results_have_the_promised_types():
    tree = selected()
    for array in tree.node_table(0).values():
        assert array.dtype in (np.int32, np.float32)
    for array, dtype, shape in [
        (tree.visit_counts(), np.int32, (B, A)),
        (tree.root_values(), np.float32, (B,)),
        (tree.qvalues(), np.float32, (B, A)),
        (tree.improved_policy(), np.float32, (B, A)),
        (tree.selected_actions(), np.int32, (B,)),
        *((array, np.int32, (B,)) for array in ready().select()),
    ]:
        assert (array.dtype, array.shape) == (dtype, shape)


def test_select_returns_the_same_arrays_which_outlive_the_tree():
    tree = ready()
    first = tree.select()
    tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    assert all(a is b for a, b in zip(first, tree.select(), strict=True))
    expected = [array.tolist() for array in first]
    del tree
    gc.collect()
    assert [array.tolist() for array in first] == expected


def test_writing_into_the_arrays_of_select_does_not_reach_the_tree():
    tree = ready()
    for array in tree.select():
        array[:] = 1_000_000
    tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    np.testing.assert_array_equal(tree.visit_counts(), [[1, 0, 0]] * B)


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_a_simulation_allocates_nothing(policy):
    tree = make(400, 18, 60, policy=policy)
    tree.reset(zeros(400, 18), value=zeros(400))
    values, logits = np.linspace(-1, 1, 400, dtype=np.float32), zeros(400, 18)
    tracemalloc.start()
    try:
        for _ in range(60):
            tree.select()
            tree.expand_and_backup(values, values, logits)
        assert tracemalloc.get_traced_memory()[1] < 1000  # a few numbers of Python, no array
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_256_roots_of_18_actions_and_50_simulations_take_less_than_8_megabytes(policy):
    assert make(256, 18, 50, policy=policy).nbytes < 8e6


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_select_changes_no_result(policy):
    tree = make(policy=policy, num_simulations=20)
    tree.reset(f32(0, 1, 2, 2, 0, 1).reshape(B, A), value=zeros(B))
    rng = np.random.default_rng(0)

    def results():
        tables = [column for i in range(B) for column in tree.node_table(i).values()]
        return [tree.visit_counts(), tree.root_values(), tree.qvalues(), tree.improved_policy(),
                tree.selected_actions(), *tables]  # fmt: skip

    for _ in range(20):
        before = results()
        tree.select()
        for old, new in zip(before, results(), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-6)  # priors are computed in another way later
        draws = rng.normal(size=(5, B)).astype(np.float32)
        tree.expand_and_backup(draws[0], draws[1], np.ascontiguousarray(draws[2:].T))


def test_scalar_like_numpy_arguments_are_accepted():
    tree = BatchedTree(np.int64(2), np.int32(3), np.uint8(4), discount=np.float32(0.5), seed=np.uint64(2**64 - 1))
    tree.reset(zeros(2, 3), noise_fraction=np.float64(0.1), seed=np.int32(5))


# ----------------------------------------------------------------------------------------------------------- misuse

CONSTRUCTIONS = [
    (lambda: BatchedTree(), TypeError),
    (lambda: BatchedTree(2, 3), TypeError),
    (lambda: BatchedTree(2, 3, 4), TypeError),  # no discount
    (lambda: BatchedTree(2, 3, 4, 0.99), TypeError),  # discount by position
    (lambda: make(0), ValueError),
    (lambda: make(-1), ValueError),
    (lambda: make(2**20 + 1), ValueError),
    (lambda: make(2**63), ValueError),
    (lambda: make(2.5), TypeError),
    (lambda: make("2"), TypeError),
    (lambda: make(None), TypeError),
    (lambda: make(num_actions=0), ValueError),
    (lambda: make(num_actions=-5), ValueError),
    (lambda: make(num_actions=65536), ValueError),
    (lambda: make(num_simulations=-1), ValueError),
    (lambda: make(num_simulations=65535), ValueError),
    (lambda: make(2**20, 65535, 65534), MemoryError),
    (lambda: make(discount=1.01), ValueError),
    (lambda: make(discount=-0.1), ValueError),
    (lambda: make(discount=NAN), ValueError),
    (lambda: make(discount="high"), TypeError),
    (lambda: make(policy="alpha"), ValueError),
    (lambda: make(policy=None), ValueError),
    (lambda: make(policy=b"puct"), ValueError),
    (lambda: make(first_visit="random"), ValueError),
    (lambda: make(tie_break="last"), ValueError),
    (lambda: make(tie_break=True), ValueError),
    (lambda: make(pb_c_init=-1.0), ValueError),
    (lambda: make(pb_c_init=INF), ValueError),
    (lambda: make(pb_c_base=0.0), ValueError),
    (lambda: make(value_delta_max=-0.01), ValueError),
    (lambda: make(value_delta_max=NAN), ValueError),
    (lambda: make(horizon=0), ValueError),
    (lambda: make(horizon=-5), ValueError),
    (lambda: make(num_threads=0), ValueError),
    (lambda: make(num_threads=-2), ValueError),
    (lambda: make(num_threads=100_000), ValueError),
    (lambda: make(first_root=-1), ValueError),
    (lambda: make(first_root=2**31), ValueError),
    (lambda: make(first_root=0.5), TypeError),
    (lambda: make(seed=-1), ValueError),
    (lambda: make(seed=2**64), ValueError),
    (lambda: make(seed=1.5), TypeError),
    (lambda: make(seed="x"), TypeError),
    (lambda: make(max_considered_actions=0), ValueError),
    (lambda: make(c_visit=-1.0), ValueError),
    (lambda: make(c_scale=NAN), ValueError),
    (lambda: make(min_q_range=0.0), ValueError),
    (lambda: make(depth=3), TypeError),
]

RESETS = [
    (lambda t: t.reset(), TypeError),
    (lambda t: t.reset(None), TypeError),
    (lambda t: t.reset([[0.0] * A] * B), TypeError),
    (lambda t: t.reset(zeros(B, A).astype(np.float64)), TypeError),
    (lambda t: t.reset(zeros(B, A).astype(np.float16)), TypeError),
    (lambda t: t.reset(zeros(B, A).astype(object)), TypeError),
    (lambda t: t.reset(zeros(B, A).astype(">f4")), TypeError),
    (lambda t: t.reset(zeros(A, B)), ValueError),
    (lambda t: t.reset(zeros(B, A + 1)), ValueError),
    (lambda t: t.reset(zeros(B - 1, A)), ValueError),
    (lambda t: t.reset(zeros(B * A)), ValueError),
    (lambda t: t.reset(zeros(1, B, A)), ValueError),
    (lambda t: t.reset(zeros(0, A)), ValueError),
    (lambda t: t.reset(zeros(A, B).T), ValueError),
    (lambda t: t.reset(zeros(B, 2 * A)[:, ::2]), ValueError),
    (lambda t: t.reset(zeros(B, A)[:, ::-1]), ValueError),
    (lambda t: t.reset(np.zeros(B * A * 4 + 1, np.uint8)[1:].view(np.float32).reshape(B, A)), ValueError),  # unaligned
    (lambda t: t.reset(with_value(zeros(B, A), NAN)), ValueError),
    (lambda t: t.reset(with_value(zeros(B, A), INF)), ValueError),
    (lambda t: t.reset(zeros(B, A) - np.float32(INF)), ValueError),
    (lambda t: t.reset(zeros(B, A), zeros(B)), TypeError),  # value by position
    (lambda t: t.reset(zeros(B, A), value=0.0), TypeError),
    (lambda t: t.reset(zeros(B, A), value=zeros(B + 1)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=zeros(B, 1)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=np.zeros(B)), TypeError),
    (lambda t: t.reset(zeros(B, A), value=with_value(zeros(B), NAN)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=with_value(zeros(B), -INF)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=with_value(zeros(B), 1e38)), ValueError),
    (lambda t: t.reset(zeros(B, A), legal_actions=np.zeros((B, A), bool)), ValueError),
    (lambda t: t.reset(zeros(B, A), legal_actions=np.ones((B, A))), TypeError),
    (lambda t: t.reset(zeros(B, A), legal_actions=np.ones((B, A), np.int8)), TypeError),
    (lambda t: t.reset(zeros(B, A), legal_actions=np.ones((A, B), bool)), ValueError),
    (lambda t: t.reset(zeros(B, A), legal_actions=np.ones((A, B), bool).T), ValueError),
    (lambda t: t.reset(with_value(zeros(B, A), -INF, 0), legal_actions=np.eye(A, dtype=bool)[:B]), ValueError),
    (lambda t: t.reset(zeros(B, A), noise=zeros(B, A)), ValueError),
    (lambda t: t.reset(zeros(B, A), noise=with_value(zeros(B, A) + 1, -1)), ValueError),
    (lambda t: t.reset(zeros(B, A), noise=with_value(zeros(B, A) + 1, NAN)), ValueError),
    (lambda t: t.reset(zeros(B, A), noise=zeros(B, A + 1)), ValueError),
    (lambda t: t.reset(zeros(B, A), noise=np.ones((B, A))), TypeError),
    (lambda t: t.reset(zeros(B, A), noise_fraction=1.5), ValueError),
    (lambda t: t.reset(zeros(B, A), noise_fraction=NAN), ValueError),
    (lambda t: t.reset(zeros(B, A), noise_fraction=None), TypeError),
    (lambda t: t.reset(zeros(B, A), gumbel=zeros(B, A)), ValueError),  # belongs to the other policy
    (lambda t: t.reset(zeros(B, A), seed=-1), ValueError),
    (lambda t: t.reset(zeros(B, A), seed=0.5), TypeError),
    (lambda t: t.reset(zeros(B, A), temperature=1.0), TypeError),
]

GUMBEL_RESETS = [
    (lambda t: t.reset(zeros(B, A)), ValueError),  # no value
    (lambda t: t.reset(zeros(B, A), value=zeros(B), noise=zeros(B, A) + 1), ValueError),
    (lambda t: t.reset(zeros(B, A), value=zeros(B), gumbel=with_value(zeros(B, A), NAN)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=zeros(B), gumbel=zeros(A, B)), ValueError),
    (lambda t: t.reset(zeros(B, A), value=zeros(B), gumbel=np.zeros((B, A))), TypeError),
]

EXPANSIONS = [
    (lambda t: t.expand_and_backup(), TypeError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B)), TypeError),
    (lambda t: t.expand_and_backup(None, zeros(B), zeros(B, A)), TypeError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), None), TypeError),
    (lambda t: t.expand_and_backup(0.0, 0.0, zeros(B, A)), TypeError),
    (lambda t: t.expand_and_backup(zeros(B, 1), zeros(B), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B + 1), zeros(B), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B - 1), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), zeros(B, A - 1)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), zeros(B * A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), zeros(A, B).T), ValueError),
    (lambda t: t.expand_and_backup(zeros(2 * B)[::2], zeros(B), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(np.zeros(B), zeros(B), zeros(B, A)), TypeError),
    (lambda t: t.expand_and_backup(zeros(B), np.zeros(B, np.int32), zeros(B, A)), TypeError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), np.zeros((B, A))), TypeError),
    (lambda t: t.expand_and_backup(with_value(zeros(B), NAN), zeros(B), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(with_value(zeros(B), INF), zeros(B), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), with_value(zeros(B), NAN), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), with_value(zeros(B), -1e31), zeros(B, A)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), with_value(zeros(B, A), NAN)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), with_value(zeros(B, A), INF)), ValueError),
    (lambda t: t.expand_and_backup(zeros(B), zeros(B), zeros(B, A) - np.float32(INF)), ValueError),
]

BEFORE_RESET = [
    lambda t: t.select(),
    lambda t: t.expand_and_backup(zeros(B), zeros(B), zeros(B, A)),
    lambda t: t.visit_counts(),
    lambda t: t.root_values(),
    lambda t: t.qvalues(),
    lambda t: t.improved_policy(),
    lambda t: t.selected_actions(),
    lambda t: t.node_table(0),
]

OTHER = [
    (lambda t: t.node_table(-1), ValueError),
    (lambda t: t.node_table(B), ValueError),
    (lambda t: t.node_table(2**40), ValueError),
    (lambda t: t.node_table(2**70), ValueError),
    (lambda t: t.node_table(0.5), TypeError),
    (lambda t: setattr(t, "num_roots", 100), AttributeError),
    (lambda t: setattr(t, "simulation", 0), AttributeError),
    (lambda t: setattr(t, "anything", 0), AttributeError),
    (lambda t: t.select(1), TypeError),
    (lambda t: pickle.dumps(t), TypeError),
    (lambda t: copy.copy(t), TypeError),
    (lambda t: copy.deepcopy(t), TypeError),
    (lambda t: BatchedTree.__new__(BatchedTree), TypeError),
    (lambda t: t.select()[0].resize(10_000), ValueError),
    (lambda t: t.select()[0].resize(10_000, refcheck=False), ValueError),
]


def finish(tree, policy="puct"):
    """The tree is still good for a whole search."""
    tree.reset(zeros(B, A), value=zeros(B))
    for _ in range(N):
        tree.select()
        tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    np.testing.assert_array_equal(tree.visit_counts().sum(axis=1), N)


@pytest.mark.parametrize(("misuse", "error"), CONSTRUCTIONS)
def test_construction_refuses(misuse, error):
    with pytest.raises(error):
        misuse()


@pytest.mark.parametrize(("misuse", "error"), RESETS)
@pytest.mark.parametrize("fresh", [True, False])
def test_reset_refuses(misuse, error, fresh):
    tree = make() if fresh else ready()
    with pytest.raises(error):
        misuse(tree)
    finish(tree)


@pytest.mark.parametrize(("misuse", "error"), GUMBEL_RESETS)
def test_reset_refuses_for_gumbel(misuse, error):
    tree = make(policy="gumbel")
    with pytest.raises(error):
        misuse(tree)
    finish(tree)


@pytest.mark.parametrize(("misuse", "error"), EXPANSIONS)
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_expand_and_backup_refuses_and_may_be_repeated(misuse, error, policy):
    tree = selected(policy=policy)
    with pytest.raises(error):
        misuse(tree)
    assert tree.simulation == 0
    tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    assert tree.simulation == 1
    finish(tree)


@pytest.mark.parametrize("call", BEFORE_RESET)
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_nothing_works_before_reset(call, policy):
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        call(make(policy=policy))


@pytest.mark.parametrize("call", BEFORE_RESET)
def test_nothing_works_after_a_first_reset_that_failed(call):
    tree = make()
    with pytest.raises(ValueError, match="root 1"):
        tree.reset(with_value(zeros(B, A), NAN))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        call(tree)


@pytest.mark.parametrize(("misuse", "error"), OTHER)
def test_other_misuse_is_refused(misuse, error):
    tree = ready()
    with pytest.raises(error):
        misuse(tree)
    finish(tree)


def test_calls_out_of_order_are_refused():
    tree = ready(num_simulations=1)
    with pytest.raises(RuntimeError, match=r"call select\(\) first"):
        tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    tree.select()
    with pytest.raises(RuntimeError, match=r"select\(\) was already called"):
        tree.select()
    tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    with pytest.raises(RuntimeError, match=r"call select\(\) first"):
        tree.expand_and_backup(zeros(B), zeros(B), zeros(B, A))
    with pytest.raises(RuntimeError, match="all 1 simulations are done"):
        tree.select()
    tree.reset(zeros(B, A))
    tree.select()
    tree.reset(zeros(B, A))  # abandons the simulation
    tree.select()


def test_a_tree_without_simulations_has_results_but_no_select():
    for policy in ("puct", "gumbel"):
        tree = make(policy=policy, num_simulations=0)
        tree.reset(np.log(f32(0.2, 0.5, 0.3, 0.3, 0.2, 0.5)).reshape(B, A), value=f32(1, 2))
        np.testing.assert_allclose(tree.improved_policy(), [[0.2, 0.5, 0.3], [0.3, 0.2, 0.5]], rtol=1e-6)
        np.testing.assert_array_equal(tree.selected_actions(), [1, 2])
        np.testing.assert_array_equal(tree.root_values(), [1, 2])
        np.testing.assert_array_equal(tree.visit_counts(), 0)
        with pytest.raises(RuntimeError, match="all 0 simulations are done"):
            tree.select()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.reset(zeros(3, 3)), r"policy_logits .* float32 and shape \(2, 3\); its shape is \(3, 3\)"),
        (lambda t: t.reset(np.zeros((2, 3))), r"its dtype is float64"),
        (lambda t: t.reset([[1]]), "not list"),
        (lambda t: t.reset(zeros(A, B).T), "np.ascontiguousarray"),
        (lambda t: t.reset(with_value(zeros(B, A), NAN)), "policy_logits of root 1 hold NaN"),
        (lambda t: t.reset(zeros(B, A), legal_actions=np.eye(A, dtype=bool)[[0, 0]] & f32(1, 0)[:, None].astype(bool)),
         "legal_actions of root 1 allow no action"),
        (lambda t: t.reset(zeros(B, A), value=f32(0, NAN)), "value of root 1 is nan"),
        (lambda t: make(policy="puctt"), "'puctt'; it must be 'puct' or 'gumbel'"),
        (lambda t: make(horizon=0), "horizon is 0; it must be between 1"),
    ],
)  # fmt: skip
def test_messages_say_what_was_found_and_what_is_expected(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(ready())


def test_huge_values_do_no_harm():
    """At the limit of what is accepted nothing overflows to NaN, and the search goes its way."""
    for policy in ("puct", "gumbel"):
        tree = make(policy=policy, num_simulations=60, discount=1.0, horizon=3)
        big = np.float32(1e30)
        tree.reset(with_value(zeros(B, A), 3e38), value=f32(big, -big))
        rng = np.random.default_rng(0)
        for _ in range(60):
            tree.select()
            signs = rng.choice([-1, 1], (2, B)).astype(np.float32) * big
            tree.expand_and_backup(signs[0], signs[1], (rng.normal(size=(B, A)) * 1e37).astype(np.float32))
        assert np.isfinite(tree.root_values()).all()
        assert np.isfinite(tree.qvalues()).all()
        np.testing.assert_array_equal(tree.visit_counts().sum(axis=1), 60)
        np.testing.assert_allclose(tree.improved_policy().sum(axis=1), 1, rtol=1e-5)


def test_two_threads_in_one_tree_are_refused_not_crashed():
    tree = make(2000, 50, 20)
    logits, values, errors = zeros(2000, 50), zeros(2000), []

    def hammer():
        for _ in range(100):
            try:
                tree.reset(logits)
                tree.select()
                tree.expand_and_backup(values, values, logits)
                tree.node_table(0)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("thread" in error or "select()" in error or "reset()" in error for error in errors)
    tree.reset(logits)


def test_threads_with_a_tree_each_run_side_by_side():
    results = [None] * 4

    def search(index):
        tree = make(64, 6, 20, seed=3)
        tree.reset(zeros(64, 6))
        rng = np.random.default_rng(0)
        for _ in range(20):
            tree.select()
            tree.expand_and_backup(zeros(64), rng.normal(size=64).astype(np.float32), zeros(64, 6))
        results[index] = tree.visit_counts()

    threads = [threading.Thread(target=search, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, results[0])
