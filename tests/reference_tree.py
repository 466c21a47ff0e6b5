"""One search tree, plain and slow, in double precision: what the tree of `ctree/` is tested against.

Written from the papers, EfficientZero (arXiv:2111.00210) and Gumbel MuZero (Danihelka et al. 2022). Everything is
recomputed from the nodes at every step; nothing is cached, nothing is incremental.
"""

from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """Sequential halving: how often the action opened by each simulation was visited before. Length [N]."""
    phases, level, sequence = max(1, int(np.ceil(np.log2(num_considered)))), 0, []
    while len(sequence) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * num_considered))):
            sequence += [level] * num_considered
            level += 1
        num_considered = max(min(num_considered, 2), num_considered // 2)
    return sequence[:num_simulations]


@dataclass
class Node:
    logits: np.ndarray  # [A], -inf where the action is not allowed
    prior: np.ndarray  # [A]
    allowed: np.ndarray  # [A]
    raw_value: float
    depth: int = 0
    value_prefix: float = 0.0
    reward: float = 0.0  # of the edge into this node, as are parent and action
    parent: int = -1
    action: int = -1
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, int] = field(default_factory=dict)  # action -> slot


def make_node(logits, raw_value, **fields):
    return Node(logits, softmax(logits), np.isfinite(logits), raw_value, **fields)


# stretch: by how much an error of a Q value grows on its way into a score. scores: [A].
Decision = namedtuple("Decision", "slot action scores stretch")

DEFAULTS = {"policy": "puct", "pb_c_init": 1.25, "pb_c_base": 19652.0, "value_delta_max": 0.01, "horizon": 5}
DEFAULTS |= {"first_visit": "uniform", "max_considered_actions": 16, "c_visit": 50, "c_scale": 0.1, "min_q_range": 1e-8}


class ReferenceTree:
    def __init__(self, logits, num_simulations, *, value=0.0, legal=None, noise=None, noise_fraction=0.25, gumbel=None,
                 **settings):  # fmt: skip
        self.set, self.policy = SimpleNamespace(**(DEFAULTS | settings)), settings.get("policy", "puct")
        legal = np.ones(len(logits), bool) if legal is None else legal.astype(bool)
        root = make_node(np.where(legal, logits.astype(float), -np.inf), value, visits=1, value_sum=value)
        if noise is not None:
            noise = np.where(legal, noise.astype(float), 0.0)
            root.prior = (1 - noise_fraction) * root.prior + noise_fraction * noise / noise.sum()
        # A logit of -inf forbids an action of pUCT unless noise has raised its prior; mctx may still consider it.
        root.allowed = legal if self.policy == "gumbel" else legal & (np.isfinite(logits) | (root.prior > 0))
        self.gumbel = np.zeros(len(logits)) if gumbel is None else gumbel.astype(float)
        self.schedule = considered_visits(min(self.set.max_considered_actions, int(legal.sum())), num_simulations)
        self.nodes = [root]

    def child_visits(self, node):
        visits = np.zeros(len(node.logits), int)
        for action, slot in node.children.items():
            visits[action] = self.nodes[slot].visits
        return visits

    def edge_q(self, node):
        return node.reward + self.set.discount * node.value_sum / node.visits

    def qvalues(self, node, unvisited=0.0):
        qvalues = np.full(len(node.logits), unvisited)
        for action, slot in node.children.items():
            qvalues[action] = self.edge_q(self.nodes[slot])
        return qvalues

    def descend(self, forced=()):
        """Walks to a leaf, by the rules or along the `forced` actions, and returns all decisions on the way."""
        slot, mean_q, decisions = 0, 0.0, []
        while True:
            node = self.nodes[slot]
            if self.policy == "puct":
                mean_q = self.mean_q(node, mean_q)
                scores, stretch = self.puct_scores(node, mean_q)
            else:
                scores, stretch = self.gumbel_scores(node)
            scores = np.where(node.allowed, scores, -np.inf)
            tied = scores >= scores.max() - (1e-6 if self.policy == "puct" else 0.0)
            action = forced[len(decisions)] if forced else int(tied.argmax())
            decisions.append(Decision(slot, action, scores, stretch))
            if action not in node.children:
                return decisions
            slot = node.children[action]

    def mean_q(self, node, parent_mean_q):
        total, visited = self.qvalues(node).sum(), len(node.children)
        return total / max(visited, 1) if node.parent < 0 else (parent_mean_q + total) / (visited + 1)

    def puct_scores(self, node, mean_q):
        visits, total = self.child_visits(node), node.visits - 1
        factor = self.set.pb_c_init + np.log((total + self.set.pb_c_base + 1) / self.set.pb_c_base)
        root_of_total = np.sqrt(total if self.set.first_visit == "uniform" else max(total, 1))
        everywhere = [self.edge_q(other) for other in self.nodes[1:]] or [0.0]
        low, spread = min(everywhere), max(everywhere) - min(everywhere)
        low, stretch = (low, 1 / max(spread, self.set.value_delta_max)) if spread > 0 else (0.0, 1.0)
        normalised = np.clip((self.qvalues(node, mean_q) - low) * stretch, 0, 1)
        return node.prior * factor * root_of_total / (1 + visits) + normalised, stretch

    def completed_q(self, node):
        visits = self.child_visits(node)
        prior = np.where(visits > 0, np.maximum(node.prior, np.finfo(np.float32).tiny), 0.0)
        visited_q = (prior * self.qvalues(node)).sum() / prior.sum() if node.children else 0.0
        mixed = (node.raw_value + visits.sum() * visited_q) / (visits.sum() + 1)
        qvalues = self.qvalues(node, mixed)
        stretch = (self.set.c_visit + visits.max()) * self.set.c_scale / max(np.ptp(qvalues), self.set.min_q_range)
        return qvalues, (qvalues - qvalues.min()) * stretch, stretch

    def root_scores(self, considered):
        root, (_, scaled, stretch) = self.nodes[0], self.completed_q(self.nodes[0])
        scores = np.maximum(-1e9, self.gumbel + root.logits - root.logits.max() + scaled)
        return np.where(root.allowed & (self.child_visits(root) == considered), scores, -np.inf), stretch

    def gumbel_scores(self, node):
        if node.parent < 0:
            return self.root_scores(self.schedule[len(self.nodes) - 1])
        _, scaled, stretch = self.completed_q(node)
        return softmax(node.logits + scaled) - self.child_visits(node) / node.visits, stretch

    def expand_and_backup(self, leaf, value_prefix, value, logits):
        parent = self.nodes[leaf.slot]
        restarted = parent.depth > 0 and parent.depth % self.set.horizon == 0
        reward = value_prefix - (0.0 if restarted else parent.value_prefix)
        parent.children[leaf.action] = len(self.nodes)
        edge = {"parent": leaf.slot, "action": leaf.action, "reward": reward, "value_prefix": value_prefix}
        node = make_node(logits.astype(float), value, depth=parent.depth + 1, **edge)
        self.nodes.append(node)
        while node is not None:
            node.visits, node.value_sum = node.visits + 1, node.value_sum + value
            value = node.reward + self.set.discount * value
            node = self.nodes[node.parent] if node.parent >= 0 else None
