"""A search tree for people to look at: its nodes, its principal line, and its value prefixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rllib_efficientzero.policy import Policy


@dataclasses.dataclass
class Node:
    """A node, and its edge: the action that leads to it from its parent."""

    slot: int
    """0: the root; s: the node that simulation s added."""
    parent: int
    action: int
    depth: int
    visits: int
    value: float
    """Mean of the returns backed up through the node; after its first visit, its network value."""
    reward: float
    """Reward of the edge: the difference of value prefixes."""
    prior: float
    children: list[Node] = dataclasses.field(default_factory=list)

    def qvalue(self, discount: float) -> float:
        """Returns the Q-value of the edge."""
        return self.reward + discount * self.value


class SearchTree:
    """The tree of one search, from `Policy.node_table`.

    Args:
        table: columns by name; see `BatchedTree.node_table`.
        discount: per edge.
        horizon: value prefixes start again from 0 at every multiple of this depth.
        action: the chosen one, with which the principal line begins; None: it begins with the most visited one.
        sampled: whether every node has sampled actions of its own.
    """

    def __init__(
        self,
        table: Mapping[str, np.ndarray],
        *,
        discount: float,
        horizon: int,
        action: int | None = None,
        sampled: bool = False,
    ) -> None:
        self.discount, self.horizon, self.action, self.sampled = discount, horizon, action, sampled
        columns = ("parent", "action", "depth", "visits", "value", "reward", "prior")
        rows = zip(*(table[name].tolist() for name in columns), strict=True)
        self.nodes = [Node(slot, *row) for slot, row in enumerate(rows)]
        for node in self.nodes[1:]:
            self.nodes[node.parent].children.append(node)
        for node in self.nodes:
            node.children.sort(key=lambda child: (-child.visits, child.action))

    @property
    def root(self) -> Node:
        return self.nodes[0]

    @classmethod
    def of_last_search(cls, policy: Policy, row: int, action: int) -> SearchTree:
        """Makes the tree of one row of the policy's last search, which chose `action` there."""
        config = policy.search_config
        return cls(
            policy.node_table(row),
            discount=config.discount,
            horizon=config.value_prefix_horizon,
            action=action,
            sampled=policy.samples_actions,
        )

    def name_of(self, node: Node, root_names: Sequence[str]) -> str:
        """Returns the name of the action that led to a node, given the names of the root's actions."""
        return name_in_tree(node.action, node.depth, root_names, sampled=self.sampled)

    def principal_line(self) -> list[Node]:
        """Returns the nodes below the root along the chosen action (see `action`), then the most visited children."""
        line: list[Node] = []
        children = [child for child in self.root.children if self.action in (None, child.action)]
        while children:
            line.append(children[0])
            children = children[0].children
        return line

    def value_prefixes(self, line: list[Node]) -> list[float]:
        """Returns for each node of a line the sum of rewards since the last multiple of the horizon, as predicted."""
        prefixes: list[float] = []
        total = 0.0
        for node in line:
            if (node.depth - 1) % self.horizon == 0:
                total = 0.0
            total += node.reward
            prefixes.append(total)
        return prefixes

    def as_json(self) -> dict[str, Any]:
        """Returns the root's children and the principal line, as JSON-able data."""
        line = self.principal_line()
        return {
            "children": [_described(child, self.discount) for child in self.root.children],
            "principal_line": [
                {**_described(node, self.discount), "value_prefix": prefix}
                for node, prefix in zip(line, self.value_prefixes(line), strict=True)
            ],
        }


def name_in_tree(action: int, depth: int, root_names: Sequence[str], *, sampled: bool) -> str:
    """Returns the name of the action that led to a node of this depth; actions sampled below the root are numbered."""
    return f"sample {action}" if sampled and depth > 1 else root_names[action]


def _described(node: Node, discount: float) -> dict[str, Any]:
    return {
        "action": node.action,
        "depth": node.depth,
        "visits": node.visits,
        "prior": node.prior,
        "value": node.value,
        "reward": node.reward,
        "qvalue": node.qvalue(discount),
    }
