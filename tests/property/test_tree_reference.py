"""Random trees, decision by decision, against the reference in double precision.

Two searches that differ by one rounding can drift apart for good, so comparing only their ends would either be flaky or
need inputs without near-ties. Instead both descend in every simulation. Where they agree, the decision is right. Where
they do not, the reference judges the tree's path by its own scores: each decision must be within rounding of the best,
it is counted as a near-tie, and the reference goes on along the tree's path. So no tree is left out, visit counts must
be equal at the end, and the near-ties are bounded.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from rllib_efficientzero._ctree import BatchedTree

from tests.reference_tree import Decision, ReferenceTree, softmax

FLOAT = np.finfo(np.float32).eps
MAX_NEAR_TIES = 1e-3  # of all simulations


@dataclass
class Tally:
    trees: int = 0
    simulations: int = 0
    near_ties: int = 0


@dataclass
class Case:
    """Shapes, settings and inputs of one batch, all drawn from `seed`."""

    seed: int
    policy: str

    def __post_init__(self):
        rng = self.rng = np.random.default_rng([self.seed, len(self.policy)])
        self.num_simulations = int(
            rng.choice([0, 1, 2, 7, 16, 30, 50, 120, 400], p=[0.03, 0.05, 0.05, *[0.2] * 4, 0.05, 0.02])
        )
        most_roots = 64 if self.num_simulations <= 16 else max(1, 900 // self.num_simulations)
        self.num_roots = int(rng.integers(1, most_roots + 1))
        self.num_actions = int(
            rng.choice([1, 2, 3, 4, 6, 18, 19, 64, 125, 1000], p=[0.04, 0.1, 0.1, *[0.15] * 4, 0.07, 0.06, 0.03])
        )
        self.settings = {
            "discount": float(rng.choice([0.0, 0.9, 0.988, 0.997, 1.0])),
            "policy": self.policy,
            "horizon": int(rng.integers(1, 6)),
            "first_visit": str(rng.choice(["uniform", "prior"])),
            "pb_c_init": float(rng.choice([0.3, 1.25, 4.0])),
            "pb_c_base": float(rng.choice([10.0, 19652.0])),
            "value_delta_max": float(rng.choice([0.0, 0.01, 1.0])),
            "max_considered_actions": int(rng.choice([1, 2, 5, 8, 16])),
            "min_q_range": float(rng.choice([1e-8, 0.01, 1.0])),
        }
        self.roots = self.draw_roots()

    def draw_roots(self):
        rng, shape = self.rng, (self.num_roots, self.num_actions)
        logits = self.logits()
        roots = {"value": self.floats(shape[0])}
        if rng.random() < 0.5:
            legal = rng.random(shape) < rng.choice([0.2, 0.8])
            # The most likely action stays legal, so that one with a finite logit is.
            legal[np.arange(shape[0]), logits.argmax(axis=1)] = True
            logits[~legal & (rng.random(shape) < 0.1)] = np.nan  # what illegal actions hold must not matter
            roots["legal_actions"] = legal
        if self.policy == "gumbel":
            roots["gumbel"] = rng.gumbel(size=shape).astype(np.float32) if rng.random() < 0.8 else None
        else:
            if rng.random() < 0.5:
                roots["value"] = None
            if rng.random() < 0.5:
                # Strictly positive: a Dirichlet draw can round to 0 in float32 for all legal actions.
                roots["noise"] = rng.dirichlet([0.3] * shape[1], shape[0]).astype(np.float32) + np.float32(1e-6)
                roots["noise_fraction"] = float(rng.choice([0.25, 1.0]))
        return {"policy_logits": logits, **roots}

    def floats(self, count):
        return (0.5 * self.rng.normal(size=count)).astype(np.float32)

    def logits(self):
        shape = (self.num_roots, self.num_actions)
        logits = (self.rng.choice([0.3, 1.0, 3.0]) * self.rng.normal(size=shape)).astype(np.float32)
        if self.rng.random() < 0.1:
            logits[self.rng.random(shape) < 0.3] = -np.inf
            logits[:, 0] = np.maximum(logits[:, 0], -1.0)
        return logits

    def network(self):
        return self.floats(self.num_roots), self.floats(self.num_roots), self.logits()

    def tree(self, **settings):
        shape = (self.num_roots, self.num_actions, self.num_simulations)
        return BatchedTree(*shape, **{"tie_break": "first", **self.settings, **settings})

    def references(self):
        rows = {"legal_actions": "legal", "noise": "noise", "gumbel": "gumbel", "value": "value"}
        for root in range(self.num_roots):
            given = {name: self.roots[key][root] for key, name in rows.items() if self.roots.get(key) is not None}
            given["noise_fraction"] = self.roots.get("noise_fraction", 0.25)
            logits = self.roots["policy_logits"][root]
            yield ReferenceTree(logits, self.num_simulations, **self.settings, **given)


def path_to(reference, slot, action):
    """The actions from the root to `action` of node `slot`."""
    path = [action]
    while slot > 0:
        path.append(reference.nodes[slot].action)
        slot = reference.nodes[slot].parent
    return path[::-1]


def largest_q(reference):
    return max([1.0, *(abs(reference.edge_q(node)) for node in reference.nodes[1:])])


def assert_near_tie(reference, decisions):
    """Every decision of a path is within float32 rounding of the best (and within the tie's width for pUCT)."""
    rounding = 8 * FLOAT * largest_q(reference)
    for decision in decisions:
        best = decision.scores.max()
        width = 1e-6 if reference.policy == "puct" else 0.0
        allowance = width + 8 * FLOAT * (1 + abs(best)) + decision.stretch * rounding
        assert best - decision.scores[decision.action] <= allowance, (decision, best, allowance)


def follow(reference, slot, action, tally):
    """The reference's leaf, or after a near-tie the tree's."""
    leaf = reference.descend()[-1]
    tally.simulations += 1
    if (leaf.slot, leaf.action) != (slot, action):
        decisions = reference.descend(forced=path_to(reference, slot, action))
        assert_near_tie(reference, decisions)
        tally.near_ties += 1
        leaf = decisions[-1]
    return leaf


def assert_equal_results(case, tree, references):
    visits, values, qvalues, policy = tree.visit_counts(), tree.root_values(), tree.qvalues(), tree.improved_policy()
    for i, reference in enumerate(references):
        root, scale = reference.nodes[0], largest_q(reference)
        np.testing.assert_array_equal(visits[i], reference.child_visits(root))
        assert values[i] == pytest.approx(root.value_sum / root.visits, rel=1e-5, abs=1e-5 * scale)
        expected_q = reference.qvalues(root)
        expected_policy = visits[i] / max(visits[i].sum(), 1) if case.num_simulations else root.prior
        tolerance = 1e-5
        if case.policy == "gumbel":
            expected_q, scaled, stretch = reference.completed_q(root)
            expected_policy = softmax(root.logits + scaled)
            tolerance = 1e-5 + 8 * FLOAT * stretch * scale
        np.testing.assert_allclose(qvalues[i], expected_q, rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(policy[i], expected_policy, atol=tolerance)
        assert policy[i].sum() == pytest.approx(1, abs=1e-6 * max(1, case.num_actions / 100))
        illegal = ~np.asarray(root.allowed)
        assert not visits[i][illegal].any()
        assert not policy[i][illegal].any()
        assert_best_action(reference, int(tree.selected_actions()[i]))


def assert_best_action(reference, action):
    visits = reference.child_visits(reference.nodes[0])
    if reference.policy == "gumbel":
        scores, stretch = reference.root_scores(visits.max())
        assert_near_tie(reference, [Decision(0, action, scores, stretch)])
    elif visits.any():
        assert action == visits.argmax()
    else:
        assert action == np.where(reference.nodes[0].allowed, reference.nodes[0].prior, -1).argmax()


def compare(case, tally, **settings):
    tree = case.tree(**settings)
    tree.reset(**case.roots)
    references = list(case.references())
    for _ in range(case.num_simulations):
        slots, actions, depths = tree.select()
        prefix, value, logits = case.network()
        for i, reference in enumerate(references):
            leaf = follow(reference, slots[i], actions[i], tally)
            assert depths[i] == reference.nodes[leaf.slot].depth + 1
            reference.expand_and_backup(leaf, float(prefix[i]), float(value[i]), logits[i])
        tree.expand_and_backup(prefix, value, logits)
    assert_equal_results(case, tree, references)
    tally.trees += case.num_roots


def compare_many(policy, num_trees, first_seed):
    tally = Tally()
    for seed in itertools.count(first_seed):
        compare(Case(seed, policy), tally)
        if tally.trees >= num_trees:
            break
    assert tally.near_ties <= MAX_NEAR_TIES * tally.simulations, tally
    return tally


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
@pytest.mark.parametrize("part", range(2))
def test_random_trees_match_the_reference(policy, part, record_property):
    record_property("tally", str(compare_many(policy, 550, 100_000 * part)))


@pytest.mark.long
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_random_trees_match_the_reference(policy, part, record_property):
    record_property("tally", str(compare_many(policy, 500, 1_000_000 + 100_000 * part)))
