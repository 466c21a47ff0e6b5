"""BatchedTree(policy="gumbel") against `mctx.gumbel_muzero_policy`, the reference implementation of its authors.

The "network" is a set of tables, looked up by a hash of the path to a leaf. mctx knows rewards, our tree knows value
prefixes: the rewards are summed along each path. A mask is data to mctx, so each shape, which takes seconds, is
compiled only once.
"""

import numpy as np
import pytest
from rllib_efficientzero._ctree import BatchedTree

jax = pytest.importorskip("jax")
mctx = pytest.importorskip("mctx")
jnp = jax.numpy

TABLE = 997
DISCOUNT = 0.97
SHAPES = [
    # roots, actions, simulations, considered
    (4, 3, 16, 16),
    (5, 4, 50, 4),
    (4, 18, 50, 16),
    (2, 7, 100, 5),
    (2, 125, 33, 16),
]
LONG_SHAPES = [
    (1, 1, 5, 16),
    (3, 2, 16, 2),
    (8, 6, 16, 4),
    (4, 18, 50, 8),
    (3, 18, 200, 16),
    (2, 64, 40, 1),
    (2, 400, 8, 9),
]


class Tables:
    def __init__(self, num_actions, seed):
        rng = np.random.default_rng(seed)
        self.logits = (2 * rng.normal(size=(TABLE, num_actions))).astype(np.float32)
        self.value = rng.normal(size=TABLE).astype(np.float32)
        self.reward = (0.3 * rng.normal(size=TABLE)).astype(np.float32)


def next_index(index, action):
    return (index * 131 + action * 17 + 7) % TABLE


def compile_mctx(num_simulations, considered):
    def search(tables, index, invalid, gumbel_scale):
        logits, value, reward = tables

        def recurrent(_params, _rng, action, embedding):
            leaf = next_index(embedding, action)
            discount = jnp.full(action.shape, DISCOUNT, jnp.float32)
            output = {"reward": reward[leaf], "discount": discount, "prior_logits": logits[leaf], "value": value[leaf]}
            return mctx.RecurrentFnOutput(**output), leaf

        return mctx.gumbel_muzero_policy(
            None,
            jax.random.PRNGKey(0),
            mctx.RootFnOutput(prior_logits=logits[index], value=value[index], embedding=index),
            recurrent,
            num_simulations,
            invalid_actions=invalid,
            max_num_considered_actions=considered,
            gumbel_scale=gumbel_scale,
        )

    return jax.jit(search)


def run_tree(tables, index, legal, gumbel, num_simulations, considered, horizon):
    num_roots, num_actions = legal.shape
    tree = BatchedTree(num_roots, num_actions, num_simulations, discount=DISCOUNT, policy="gumbel", horizon=horizon,
                       max_considered_actions=considered)  # fmt: skip
    tree.reset(tables.logits[index], value=tables.value[index], legal_actions=legal, gumbel=gumbel)
    indices = np.zeros((num_simulations + 1, num_roots), np.int64)
    prefixes = np.zeros((num_simulations + 1, num_roots), np.float32)
    depths = np.zeros((num_simulations + 1, num_roots), np.int64)
    indices[0], everyone = index, np.arange(num_roots)
    for slot in range(1, num_simulations + 1):
        parent, action, depth = tree.select()
        indices[slot] = leaf = next_index(indices[parent, everyone], action)
        depths[slot] = depth
        # The sum of rewards since the LSTM last started anew, which it does behind depths that horizon divides.
        restarted = (depths[parent, everyone] % horizon == 0) & (parent > 0)
        prefixes[slot] = tables.reward[leaf] + np.where(restarted, 0, prefixes[parent, everyone])
        tree.expand_and_backup(prefixes[slot], tables.value[leaf], tables.logits[leaf])
    return tree


def check_equal(tree, expected, legal):
    summary, nodes = expected.search_tree.summary(), expected.search_tree
    np.testing.assert_array_equal(tree.visit_counts(), np.asarray(summary.visit_counts))
    np.testing.assert_array_equal(tree.selected_actions(), np.asarray(expected.action))
    np.testing.assert_allclose(tree.root_values(), summary.value, rtol=1e-5, atol=1e-5)
    visited = tree.visit_counts() > 0
    np.testing.assert_allclose(tree.qvalues()[visited], np.asarray(summary.qvalues)[visited], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree.improved_policy(), expected.action_weights, atol=2e-5)
    assert not tree.improved_policy()[~legal].any()
    for i in range(tree.num_roots):  # the same nodes in the same order, not only the same root
        table = tree.node_table(i)
        np.testing.assert_array_equal(table["parent"], nodes.parents[i])
        np.testing.assert_array_equal(table["action"], nodes.action_from_parent[i])
        np.testing.assert_array_equal(table["visits"], nodes.node_visits[i])
        np.testing.assert_allclose(table["value"], nodes.node_values[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_roots", "num_actions", "num_simulations", "considered"),
    [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.long) for shape in LONG_SHAPES)],
)
def test_gumbel_search_equals_mctx(num_roots, num_actions, num_simulations, considered):
    search = compile_mctx(num_simulations, considered)
    for seed in range(6):
        rng, tables = np.random.default_rng(seed), Tables(num_actions, seed)
        index = rng.integers(TABLE, size=num_roots)
        legal = np.ones((num_roots, num_actions), bool)
        if seed % 2:
            # Another mask for every root, from one legal action to nearly all.
            legal = rng.random(legal.shape) < np.linspace(0, 0.9, num_roots)[:, None]
            legal[np.arange(num_roots), rng.integers(num_actions, size=num_roots)] = True
        arrays = (tables.logits, tables.value, tables.reward)
        expected = search(arrays, index, (~legal).astype(np.float32), 0.0 if seed % 3 == 0 else 1.0)
        gumbel = np.asarray(expected.search_tree.extra_data.root_gumbel)
        for horizon in (1, 5):
            tree = run_tree(tables, index, legal, gumbel, num_simulations, considered, horizon)
            check_equal(tree, expected, legal)
