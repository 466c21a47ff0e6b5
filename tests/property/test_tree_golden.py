"""Whole trees as they were: tests/golden/trees.json, to be replayed by every later version.

Unlike the reference they also fix the random numbers, so that a search with a seed can be repeated years later. After a
change that is meant to change searches: `python -m tests.property.test_tree_golden` writes them anew.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from rllib_efficientzero._ctree import BatchedTree

GOLDEN = Path(__file__).parents[1] / "golden" / "trees.json"
CASES = {
    "puct": {"policy": "puct", "seed": 1},
    "puct, first ties, first visit by prior": {"policy": "puct", "tie_break": "first", "first_visit": "prior"},
    "puct, horizon 2, wide delta floor": {"policy": "puct", "seed": 2, "horizon": 2, "value_delta_max": 1.0},
    "gumbel": {"policy": "gumbel"},
    "gumbel, 3 considered": {"policy": "gumbel", "max_considered_actions": 3, "horizon": 1},
}


def numbers(start, *shape):
    """Numbers in [-1, 1) that no library can change."""
    count = np.arange(start, start + np.prod(shape))
    return ((count * 7919 % 1009) / 504.5 - 1).astype(np.float32).reshape(shape)


def search(settings):
    roots, actions, simulations = 3, 6, 40
    tree = BatchedTree(roots, actions, simulations, discount=0.988, **settings)
    explore = {"gumbel": numbers(5, roots, actions)}
    if settings["policy"] == "puct":
        explore = {"noise": 1 + numbers(5, roots, actions)}
    legal = np.ones((roots, actions), bool)
    legal[1, 2:5] = False
    tree.reset(2 * numbers(0, roots, actions), value=numbers(3, roots), legal_actions=legal, **explore)
    for i in range(simulations):
        tree.select()
        tree.expand_and_backup(numbers(31 * i, roots), numbers(37 * i, roots), 2 * numbers(41 * i, roots, actions))
    tables = [{name: column.tolist() for name, column in tree.node_table(i).items()} for i in range(roots)]
    return {"nodes": tables, "policy": tree.improved_policy().tolist(), "actions": tree.selected_actions().tolist()}


@pytest.mark.parametrize("name", CASES)
def test_trees_are_as_they_were(name):
    expected, found = json.loads(GOLDEN.read_text())[name], search(CASES[name])
    assert found["actions"] == expected["actions"]
    np.testing.assert_allclose(found["policy"], expected["policy"], atol=1e-5)
    for table, expected_table in zip(found["nodes"], expected["nodes"], strict=True):
        for column, values in expected_table.items():
            np.testing.assert_allclose(table[column], values, rtol=1e-5, atol=1e-5, err_msg=column)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: search(settings) for name, settings in CASES.items()}) + "\n")
