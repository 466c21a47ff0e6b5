"""What a root's result depends on: its inputs, the seed and its index. Not its neighbours, threads, time or luck."""

import multiprocessing
import pathlib
import resource

import numpy as np
import pytest
from rllib_efficientzero._ctree import BatchedTree

POLICIES = ["puct", "gumbel"]


def network(seed, num_roots, num_actions, simulation):
    """The same outputs for a root whatever batch it is in: drawn root by root."""
    rows = [np.random.default_rng([seed, root, simulation]) for root in range(num_roots)]
    prefix, value = (np.array([rng.normal() for rng in rows], np.float32) for _ in range(2))
    return prefix, value, np.array([rng.normal(size=num_actions) for rng in rows], np.float32)


def search(policy, num_roots=16, num_actions=5, num_simulations=25, order=None, inputs_seed=0, **settings):
    """All results of a search whose row i holds the inputs of root order[i]."""
    order = np.arange(num_roots) if order is None else np.asarray(order)
    tree = BatchedTree(len(order), num_actions, num_simulations, discount=0.99, policy=policy, **settings)
    _, value, logits = network(inputs_seed, num_roots, num_actions, 0)
    legal = np.random.default_rng(inputs_seed).random((num_roots, num_actions)) < 0.7
    legal[:, 0] = True
    noise = np.random.default_rng([inputs_seed, 1]).gumbel(size=logits.shape).astype(np.float32)
    explore = {"gumbel": noise[order]} if policy == "gumbel" else {"noise": np.exp(noise)[order]}
    tree.reset(logits[order], value=value[order], legal_actions=legal[order], **explore)
    leaves = []
    for simulation in range(num_simulations):
        leaves.append(np.stack(tree.select()))
        tree.expand_and_backup(*(x[order] for x in network(inputs_seed, num_roots, num_actions, simulation + 1)))
    tables = [tree.node_table(i) for i in range(len(order))]
    return {
        "leaves": np.stack(leaves, axis=-1).transpose(1, 0, 2),
        "visits": tree.visit_counts(),
        "values": tree.root_values(),
        "qvalues": tree.qvalues(),
        "policy": tree.improved_policy(),
        "actions": tree.selected_actions(),
        **{name: np.stack([table[name] for table in tables]) for name in tables[0]},
    }


def assert_same(first, second, rows=slice(None)):
    for name in first:
        np.testing.assert_array_equal(first[name][rows], second[name], err_msg=name)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("inputs_seed", range(3))
def test_a_root_alone_equals_the_root_in_a_batch(policy, inputs_seed):
    batch = search(policy, tie_break="first", inputs_seed=inputs_seed)
    for root in range(16):
        alone = search(policy, order=[root], tie_break="first", inputs_seed=inputs_seed)
        assert_same(batch, alone, rows=[root])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("inputs_seed", range(3))
def test_permuting_the_roots_permutes_the_results(policy, inputs_seed):
    order = np.random.default_rng(inputs_seed).permutation(16)
    batch = search(policy, tie_break="first", inputs_seed=inputs_seed)
    assert_same(batch, search(policy, order=order, tie_break="first", inputs_seed=inputs_seed), rows=order)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_random_ties_a_root_depends_on_its_index_only(policy):
    """The roots behind a root may change, also in number: its random numbers stay the same."""
    batch = search(policy, seed=7)
    for size in (1, 3, 15):
        assert_same(batch, search(policy, order=range(size), seed=7), rows=slice(size))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_may_be_cut_anywhere_if_the_parts_know_their_first_root(policy):
    batch = search(policy, num_roots=70, seed=7)
    for first, last in [(0, 1), (1, 34), (34, 70)]:
        part = search(policy, num_roots=70, order=range(first, last), seed=7, first_root=first)
        assert_same(batch, part, rows=slice(first, last))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_threads", [2, 3, 8, 64])
@pytest.mark.parametrize("num_roots", [1, 2, 7, 33])
def test_the_number_of_threads_changes_nothing(policy, num_threads, num_roots):
    one = search(policy, num_roots=num_roots, seed=3)
    assert_same(one, search(policy, num_roots=num_roots, seed=3, num_threads=num_threads))


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_tree(policy):
    assert_same(search(policy, seed=11), search(policy, seed=11))


def test_another_seed_gives_another_tree():
    assert (search("puct", seed=11)["leaves"] != search("puct", seed=12)["leaves"]).any()


def test_roots_with_equal_inputs_get_different_random_numbers():
    leaves = search("puct", num_roots=1, order=[0] * 16, seed=1)["leaves"]
    assert len(np.unique(leaves.reshape(16, -1), axis=0)) > 8


def first_actions(tree, count, **reset):
    logits = np.zeros((tree.num_roots, tree.num_actions), np.float32)
    actions = []
    for _ in range(count):
        tree.reset(logits, **reset)
        actions.append(tree.select()[1].copy())
    return np.stack(actions)


def test_reset_goes_on_with_the_random_numbers_unless_it_gets_a_seed():
    tree = BatchedTree(4, 50, 1, discount=1.0, seed=5)
    first, second = first_actions(tree, 5), first_actions(tree, 5)
    assert (first != second).any()
    np.testing.assert_array_equal(first_actions(tree, 3, seed=9), first_actions(tree, 3, seed=9))
    np.testing.assert_array_equal(first_actions(tree, 1, seed=5)[0], first[0])


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


# The 99.99 % points of chi-square: with a fixed seed the tests either always pass or never.
CHI_SQUARE_LIMIT = {1: 15.1, 2: 18.4, 4: 23.5, 6: 27.9}


@pytest.mark.parametrize("num_actions", [2, 3, 5, 7])
def test_the_first_action_of_a_node_is_uniform_under_first_visit_uniform(num_actions):
    tree = BatchedTree(500, num_actions, 1, discount=1.0, seed=1)
    logits = np.tile(np.arange(num_actions, dtype=np.float32), (500, 1))
    actions = []
    for _ in range(20):
        tree.reset(logits)
        actions.append(tree.select()[1].copy())
    counts = np.bincount(np.concatenate(actions), minlength=num_actions)
    assert chi_square(counts) < CHI_SQUARE_LIMIT[num_actions - 1]


def test_ties_between_open_actions_are_broken_uniformly():
    """Under first_visit="prior" equal priors tie by their scores, here 5 of 8."""
    tree = BatchedTree(500, 8, 1, discount=1.0, seed=2, first_visit="prior")
    logits = np.tile(np.array([0, 1, 1, 0, 1, 1, 0, 1], np.float32), (500, 1))
    actions = []
    for _ in range(20):
        tree.reset(logits)
        actions.append(tree.select()[1].copy())
    counts = np.bincount(np.concatenate(actions), minlength=8)
    assert not counts[[0, 3, 6]].any()
    assert chi_square(counts[[1, 2, 4, 5, 7]]) < CHI_SQUARE_LIMIT[4]


def test_ties_between_visited_actions_are_broken_uniformly():
    """After all three actions were visited once with equal values, all three tie again."""
    tree = BatchedTree(3000, 3, 4, discount=1.0, seed=3)
    zeros, logits = np.zeros(3000, np.float32), np.zeros((3000, 3), np.float32)
    tree.reset(logits)
    for _ in range(3):
        tree.select()
        tree.expand_and_backup(zeros, zeros, logits)
    assert (tree.visit_counts() == 1).all()
    parent_slot, _, depth = tree.select()
    assert (depth == 2).all()
    visited = np.array([tree.node_table(i)["action"][parent_slot[i]] for i in range(3000)])
    assert chi_square(np.bincount(visited, minlength=3)) < CHI_SQUARE_LIMIT[2]


def test_ties_between_visited_and_open_actions_are_broken_uniformly():
    """An action without prior whose Q value equals that of the visited one ties with it, though never visited."""
    tree = BatchedTree(4000, 3, 2, discount=1.0, seed=4)
    zeros = np.zeros(4000, np.float32)
    # exp(-80) leaves two actions with a prior far below the tie's width; all Q values are 0.
    logits = np.tile(np.array([-80, 0, -80], np.float32), (4000, 1))
    legal = np.tile(np.array([1, 0, 1], np.uint8), (4000, 1))
    tree.reset(
        logits, legal_actions=legal, noise=np.tile(np.array([1, 0, 3], np.float32), (4000, 1)), noise_fraction=1.0
    )
    _, first, _ = tree.select()
    first = first.copy()
    tree.expand_and_backup(zeros, zeros, logits)
    # Now U = 1/4 / 2 against 3/4, or 3/4 / 2 against 1/4: no tie, the scores decide.
    parent_slot, action, _ = tree.select()
    np.testing.assert_array_equal(parent_slot[first == 0], 0)
    np.testing.assert_array_equal(action[first == 0], 2)
    np.testing.assert_array_equal(parent_slot[first == 2], 1)
    # With priors 1/3 and 2/3 the visited 2 and the open 0 have the same score exactly.
    noise = np.tile(np.array([1, 0, 2], np.float32), (4000, 1))
    tree.reset(logits, legal_actions=legal, noise=noise, noise_fraction=1.0)
    first = tree.select()[1].copy()
    tree.expand_and_backup(zeros, zeros, logits)
    opened = tree.select()[0][first == 2] == 0
    assert chi_square(np.array([opened.sum(), (~opened).sum()])) < CHI_SQUARE_LIMIT[1]


def search_in_child(queue, tree):
    zeros = np.zeros(tree.num_roots, np.float32)
    tree.select()
    tree.expand_and_backup(zeros, zeros, np.zeros((tree.num_roots, tree.num_actions), np.float32))
    queue.put(tree.visit_counts().sum())
    del tree


def test_a_tree_with_threads_survives_fork():
    """After fork() the threads are gone; the child must neither wait for them nor hang when the tree is destroyed."""
    tree = BatchedTree(8, 3, 4, discount=1.0, num_threads=4)
    tree.reset(np.zeros((8, 3), np.float32))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=search_in_child, args=(queue, tree))
    child.start()
    assert queue.get(timeout=30) == 8
    child.join(timeout=30)
    assert child.exitcode == 0


def search_without_threads(queue):
    """A search by more threads than there is memory for, of which each takes 8 MiB; then one by one."""
    in_use = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (200 << 20),) * 2)
    queue.put([search("puct", seed=3, num_threads=number) for number in (64, 1)])


def test_threads_that_the_system_does_not_have_are_not_missed():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=search_without_threads, args=(queue,))
    child.start()
    assert_same(*queue.get(timeout=60))
    child.join(timeout=60)
    assert child.exitcode == 0
