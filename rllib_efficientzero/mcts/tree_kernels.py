"""Triton kernels of the search tree on a GPU: one program per root, whose lanes are the actions of a node.

The rules are those of `ctree/puct.hpp` and `ctree/gumbel.hpp`; results differ from theirs by rounding only. The C++
tree keeps sums over a node's actions up to date, whereas these kernels sum anew, since they read the whole row anyway.

No kernel reads what it has written, so that nothing depends on the order in which lanes see each other's stores.

Layouts, with B roots, S = N + 1 slots for nodes (0 is the root, s the leaf of simulation s) and A actions:

- edges `[B, S, A]`: `row` (the prior, 0 where an action is forbidden, for "puct"; logits less the largest, -inf where
  forbidden, for "gumbel"), `child` (slot, 0 where there is none), `edge_visits`, `edge_q`
- nodes `[B, S]`: `visits`, `value_sum`, `raw_value`, `value_prefix`, and of the edge into the node `reward`, `node_q`,
  `parent`, `action`, `depth`
- roots `[B]`: `simulation` (the current one, from 1), `is_valid` (no input was NaN or infinite), and `random` ("puct")
  or `considered` ("gumbel")
- `index` `[4, B]`: rows of the leaves' parents in the pools of states, for latents and for LSTM states, of the leaves,
  and actions; see `NodeStates`
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))
TINY = tl.constexpr(1.17549435e-38)  # the least normal float32
LARGEST_VALUE = tl.constexpr(1e30)  # as in ctree/config.hpp
LOW_LOGIT = tl.constexpr(-1e9)  # mctx's: below every real score, above that of an illegal action
TIE_TOLERANCE = tl.constexpr(1e-6)  # the original's


# --- Roots -----------------------------------------------------------------------------------------------------------


@triton.jit
def begin(
    row, child, edge_visits, edge_q, visits, value_sum, raw_value, simulation, is_valid, given,
    S: tl.constexpr, A: tl.constexpr, LANES: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    """Resets the trees to their roots; `given` `[B, A + 1]` has each root's row followed by its value."""
    root, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    for first in range(0, S * A, EDGES):
        edges = first + tl.arange(0, EDGES)
        at, is_edge = root * (S * A) + edges, edges < S * A
        tl.store(child + at, edges * 0, mask=is_edge)
        tl.store(edge_visits + at, edges * 0, mask=is_edge)
        tl.store(edge_q + at, (edges * 0).to(tl.float32), mask=is_edge)
    is_action = lanes < A
    row_of_root = tl.load(given + root * (A + 1) + lanes, mask=is_action, other=0.0)
    tl.store(row + root * (S * A) + lanes, row_of_root, mask=is_action)
    value = tl.load(given + root * (A + 1) + A)
    tl.store(visits + root * S, 1)
    tl.store(value_sum + root * S, value.to(tl.float64))
    tl.store(raw_value + root * S, value)
    tl.store(simulation + root, 1)
    tl.store(is_valid + root, 1)


# --- Descent ---------------------------------------------------------------------------------------------------------


@triton.jit
def puct_select(
    row, child, edge_visits, edge_q, node_q, simulation, random, exploration, index, depth_of_leaf, parent_of_leaf,
    S: tl.constexpr, A: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr, HORIZON: tl.constexpr,
    VALUE_DELTA_MAX: tl.constexpr, UNIFORM_FIRST_VISIT: tl.constexpr, RANDOM_TIES: tl.constexpr,
):  # fmt: skip
    """Find a leaf for each root; `exploration` `[S]` is the factor of the prior by the visits of all children."""
    root, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    low, scale = _bounds(node_q + root * S, tl.load(simulation + root), VALUE_DELTA_MAX, SLOTS)
    random_state = tl.load(random + root)
    node, action, depth, next_node = root * 0, root * 0, root * 0, root * 0 + 1
    mean_q = (root * 0).to(tl.float64)
    while next_node > 0:
        at, is_action = (root * S + node) * A + lanes, lanes < A
        prior = tl.load(row + at, mask=is_action, other=0.0)
        children = tl.load(child + at, mask=is_action, other=0)
        visits = tl.load(edge_visits + at, mask=is_action, other=0)
        q = tl.load(edge_q + at, mask=is_action, other=0.0)
        is_visited, total = children > 0, tl.sum(visits)

        # Unvisited actions take the mean over the visited Q values and this mean of the parent; the root has none.
        weight = tl.sum(is_visited.to(tl.int32)) + (node > 0).to(tl.int32)
        mean_q = (mean_q + tl.sum(q.to(tl.float64))) / tl.maximum(weight, 1)
        factor = tl.load(exploration + total)
        if UNIFORM_FIRST_VISIT:  # Without visits the factor sqrt(0) leaves all actions with equal scores.
            factor = tl.where(total > 0, factor, 0.0)
        known_q = tl.where(is_visited, q, mean_q.to(tl.float32))
        stretched_q = tl.minimum(tl.maximum((known_q - low) * scale, 0.0), 1.0)
        score = tl.where(prior > 0, factor * (prior / (1 + visits)) + stretched_q, -INFINITY)

        is_tied = score >= tl.max(score) - TIE_TOLERANCE
        num_tied = tl.sum(is_tied.to(tl.int32))
        order, nth = lanes, num_tied * 0
        if RANDOM_TIES:
            # Visited actions in the order of their first visit, then the others.
            order = tl.where(is_visited, children, S + lanes)
            draws = num_tied > 1
            if UNIFORM_FIRST_VISIT:
                draws = draws | (total == 0)
            if draws:
                random_state, nth = _random_below(random_state, num_tied)
        order = tl.where(is_tied, order, S + LANES)
        chosen = tl.min(order)
        while nth > 0:
            chosen = tl.min(tl.where(order > chosen, order, S + LANES))
            nth -= 1
        is_chosen = order == chosen
        action = tl.sum(tl.where(is_chosen, lanes, 0)).to(tl.int64)
        next_node = tl.sum(tl.where(is_chosen, children, 0)).to(tl.int64)
        depth += 1
        if next_node > 0:
            node = next_node
    tl.store(random + root, random_state)
    _describe_leaf(root, node, action, depth, simulation, index, depth_of_leaf, parent_of_leaf, HORIZON)


@triton.jit
def gumbel_select(
    row, child, edge_visits, edge_q, raw_value, simulation, gumbel, considered, schedule, index, depth_of_leaf,
    parent_of_leaf,
    S: tl.constexpr, A: tl.constexpr, LANES: tl.constexpr, HORIZON: tl.constexpr,
    C_VISIT: tl.constexpr, C_SCALE: tl.constexpr, MIN_Q_RANGE: tl.constexpr,
):  # fmt: skip
    """Find a leaf for each root.

    `gumbel` `[B, A]` is the root's noise, `considered` `[B]` the number of actions that sequential halving starts with,
    and `schedule[considered, simulation - 1]` the visits that the action selected at the root has had before.
    """
    root, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    slot = tl.load(simulation + root)
    due = tl.load(schedule + tl.load(considered + root) * (S - 1) + slot - 1)
    node, action, depth, next_node = root * 0, root * 0, root * 0, root * 0 + 1
    while next_node > 0:
        at, is_action = (root * S + node) * A + lanes, lanes < A
        logits = tl.load(row + at, mask=is_action, other=-INFINITY)
        children = tl.load(child + at, mask=is_action, other=0)
        visits = tl.load(edge_visits + at, mask=is_action, other=0)
        q = tl.load(edge_q + at, mask=is_action, other=0.0)
        raw = tl.load(raw_value + root * S + node)
        scaled = _scaled_q(logits, children > 0, visits, q, raw, A, C_VISIT, C_SCALE, MIN_Q_RANGE)
        if node == 0:
            noise = tl.load(gumbel + root * A + lanes, mask=is_action, other=0.0)
            # Actions that are not visited yet differ by noise and prior alone.
            score = tl.maximum(noise + logits + tl.where(due > 0, scaled, 0.0), LOW_LOGIT)
            is_open = (visits == due) & (noise > -INFINITY)
        else:
            improved = logits + scaled
            weights = tl.exp(improved - tl.max(improved))
            total = tl.sum(visits) + 1
            score = weights * total - visits * tl.sum(weights)
            is_open = logits > -INFINITY
        score = tl.where(is_open & is_action, score, -INFINITY)
        is_chosen = lanes == tl.min(tl.where(score == tl.max(score), lanes, LANES))
        action = tl.sum(tl.where(is_chosen, lanes, 0)).to(tl.int64)
        next_node = tl.sum(tl.where(is_chosen, children, 0)).to(tl.int64)
        depth += 1
        if next_node > 0:
            node = next_node
    _describe_leaf(root, node, action, depth, simulation, index, depth_of_leaf, parent_of_leaf, HORIZON)


@triton.jit
def _bounds(node_q, slot, VALUE_DELTA_MAX: tl.constexpr, SLOTS: tl.constexpr):
    """The lowest Q value of a tree, and the factor that scales all to [0, 1]; (0, 1) if all are equal."""
    slots = tl.arange(0, SLOTS)
    is_edge = (slots > 0) & (slots < slot)
    q = tl.load(node_q + slots, mask=is_edge, other=0.0)
    low, high = tl.min(tl.where(is_edge, q, INFINITY)), tl.max(tl.where(is_edge, q, -INFINITY))
    spread = tl.where(high > low, high - low, 0.0)
    scale = 1.0 / tl.maximum(tl.maximum(spread, VALUE_DELTA_MAX), 1e-30)
    return tl.where(spread > 0, low, 0.0), tl.where(spread > 0, scale, 1.0)


@triton.jit
def _scaled_q(
    logits, is_visited, visits, q, raw_value,
    A: tl.constexpr, C_VISIT: tl.constexpr, C_SCALE: tl.constexpr, MIN_Q_RANGE: tl.constexpr,
):  # fmt: skip
    """Gumbel MuZero, section 3.4 and appendix D: unvisited actions take the mixed value, then all are rescaled."""
    weights = tl.where(is_visited, tl.maximum(tl.exp(logits), TINY), 0.0).to(tl.float64)
    weight, total = tl.sum(weights), tl.sum(visits)
    visited_q = tl.sum(weights * q.to(tl.float64)) / tl.where(weight > 0, weight, 1.0)
    mixed = ((raw_value.to(tl.float64) + total * visited_q) / (total + 1)).to(tl.float32)
    # Actions that are illegal count as unvisited.
    has_unvisited = tl.sum(is_visited.to(tl.int32)) < A
    low = tl.minimum(tl.min(tl.where(is_visited, q, INFINITY)), tl.where(has_unvisited, mixed, INFINITY))
    high = tl.maximum(tl.max(tl.where(is_visited, q, -INFINITY)), tl.where(has_unvisited, mixed, -INFINITY))
    factor = (C_VISIT + tl.max(visits)) * C_SCALE / tl.maximum(high - low, MIN_Q_RANGE)
    return (tl.where(is_visited, q, mixed) - low) * factor


@triton.jit
def _random_below(state, count):
    """The stream's next state, and a random number below `count`, as `random_below` in `ctree/random.hpp`."""
    counter = state.to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15
    x = (counter ^ (counter >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    below = ((x >> 32) * count.to(tl.uint64)) >> 32
    return counter.to(tl.int64, bitcast=True), below.to(tl.int32)


@triton.jit
def _describe_leaf(
    root, node, action, depth, simulation, index, depth_of_leaf, parent_of_leaf, HORIZON: tl.constexpr
):  # fmt: skip
    """Writes the leaf's entries of `index`. The LSTM is reset every `HORIZON` steps, below the node that ends a prefix
    (EfficientZero, appendix A.1)."""
    roots, slot = tl.num_programs(0).to(tl.int64), tl.load(simulation + root).to(tl.int64)
    begins = (depth - 1) % HORIZON == 0
    tl.store(index + root, node * roots + root)
    tl.store(index + roots + root, tl.where(begins, 0, node) * roots + root)
    tl.store(index + 2 * roots + root, slot * roots + root)
    tl.store(index + 3 * roots + root, action)
    tl.store(depth_of_leaf + root, depth.to(tl.int32))
    tl.store(parent_of_leaf + root, node.to(tl.int32))


# --- Backup ----------------------------------------------------------------------------------------------------------


@triton.jit
def expand_and_backup(
    row, child, edge_visits, edge_q, visits, value_sum, raw_value, value_prefix, reward, node_q, parent, action, depth,
    simulation, is_valid, index, depth_of_leaf, parent_of_leaf, new_value_prefix, new_value, new_logits,
    S: tl.constexpr, A: tl.constexpr, LANES: tl.constexpr, HORIZON: tl.constexpr, DISCOUNT: tl.constexpr,
    PRIORS: tl.constexpr,
):  # fmt: skip
    """Expands the selected leaves, and backs their values up. If an input is not finite, all of the leaf's inputs count
    as 0 and `is_valid` is cleared. `PRIORS`: rows hold priors, else logits."""
    root, roots, lanes = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.arange(0, LANES)
    slot = tl.load(simulation + root).to(tl.int64)
    leaf, is_action = root * S + slot, lanes < A
    logits = tl.load(new_logits + root * A + lanes, mask=is_action, other=-INFINITY).to(tl.float32)
    value, prefix = tl.load(new_value + root).to(tl.float32), tl.load(new_value_prefix + root).to(tl.float32)
    highest = tl.max(tl.where(logits == logits, logits, INFINITY))
    valid = (tl.abs(highest) < INFINITY) & (tl.abs(value) <= LARGEST_VALUE) & (tl.abs(prefix) <= LARGEST_VALUE)
    logits = tl.where(valid, logits - highest, tl.where(is_action, 0.0, -INFINITY))
    value, prefix = tl.where(valid, value, 0.0), tl.where(valid, prefix, 0.0)
    if not valid:
        tl.store(is_valid + root, 0)
    if PRIORS:
        weights = tl.where(logits > -INFINITY, tl.maximum(tl.exp(logits), TINY), 0.0)
        tl.store(row + leaf * A + lanes, weights / tl.sum(weights), mask=is_action)
    else:
        tl.store(row + leaf * A + lanes, logits, mask=is_action)

    leaf_depth = tl.load(depth_of_leaf + root)
    above = tl.load(parent_of_leaf + root).to(tl.int64)
    taken = tl.load(index + 3 * roots + root)
    # The LSTM is reset every `HORIZON` steps, and with it the sum of rewards that it predicts.
    begins = (leaf_depth - 1) % HORIZON == 0
    prefix_above = tl.load(value_prefix + root * S + above)
    edge_reward = prefix - tl.where(begins & (leaf_depth > 1), 0.0, prefix_above)
    tl.store(child + (root * S + above) * A + taken, slot.to(tl.int32))
    tl.store(raw_value + leaf, value)
    tl.store(value_prefix + leaf, prefix)
    tl.store(reward + leaf, edge_reward)
    tl.store(parent + leaf, above.to(tl.int32))
    tl.store(action + leaf, taken.to(tl.int32))
    tl.store(depth + leaf, leaf_depth)
    tl.store(simulation + root, (slot + 1).to(tl.int32))

    node, node_sum, node_visits, returned = slot, value.to(tl.float64), slot * 0 + 1, value.to(tl.float64)
    tl.store(value_sum + leaf, node_sum)
    tl.store(visits + leaf, node_visits.to(tl.int32))
    while node > 0:
        edge, over = (root * S + above) * A + taken, root * S + above
        q = (edge_reward.to(tl.float64) + DISCOUNT * (node_sum / node_visits)).to(tl.float32)
        tl.store(edge_visits + edge, node_visits.to(tl.int32))
        tl.store(edge_q + edge, q)
        tl.store(node_q + root * S + node, q)
        returned = edge_reward.to(tl.float64) + DISCOUNT * returned
        node_sum = tl.load(value_sum + over) + returned
        node_visits = tl.load(visits + over).to(tl.int64) + 1
        tl.store(value_sum + over, node_sum)
        tl.store(visits + over, node_visits.to(tl.int32))
        node = above
        edge_reward = tl.load(reward + over)
        above = tl.load(parent + over).to(tl.int64)
        taken = tl.load(action + over).to(tl.int64)
