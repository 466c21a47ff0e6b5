"""Makes the C++ search tree for a search's configuration."""

from __future__ import annotations

from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.extension import BatchedTree


def host_tree(
    config: SearchConfig,
    num_roots: int,
    num_actions: int,
    *,
    num_simulations: int | None = None,
    max_considered_actions: int | None = None,
    first_root: int = 0,
    num_threads: int = 1,
) -> BatchedTree:
    """A `BatchedTree` for searches with `config`.

    Args:
        config: of the search.
        num_roots: B.
        num_actions: A.
        num_simulations: None: as configured.
        max_considered_actions: None: as configured.
        first_root: see `BatchedTree`.
        num_threads: see there.

    Raises:
        ValueError: a value of the configuration is out of its range.
    """
    return BatchedTree(
        num_roots,
        num_actions,
        config.num_simulations if num_simulations is None else num_simulations,
        first_root=first_root,
        discount=config.discount,
        policy=config.policy,
        pb_c_init=config.pb_c_init,
        pb_c_base=config.pb_c_base,
        value_delta_max=config.value_delta_max,
        horizon=config.value_prefix_horizon,
        first_visit=config.first_visit,
        tie_break=config.tie_break,
        max_considered_actions=max_considered_actions or config.max_considered_actions,
        c_visit=config.gumbel_c_visit,
        c_scale=config.gumbel_c_scale,
        min_q_range=config.gumbel_min_q_range,
        num_threads=num_threads,
    )
