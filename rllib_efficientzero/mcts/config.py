"""Parameters of the search."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Parameters of the search; the defaults are the paper's for Atari (Table 6 and its code)."""

    policy: str = "puct"
    """"puct" (EfficientZero) or "gumbel" (EfficientZero V2: sequential halving, good with few simulations)."""
    num_simulations: int = 50
    discount: float = 0.997**4
    value_prefix_horizon: int = 5
    """The LSTM's state, and with it the value prefix, starts anew at every multiple of this depth; 1 turns value
    prefixes into rewards."""
    pb_c_init: float = 1.25
    pb_c_base: float = 19652.0
    value_delta_max: float = 0.01
    """Floor of the range by which Q values are normalised in "puct"."""
    first_visit: str = "uniform"
    """"uniform": below an unvisited node the first action is random, as in the paper's code; "prior": the likeliest."""
    tie_break: str = "random"
    dirichlet_alpha: float = 0.3
    root_noise_fraction: float = 0.25
    max_considered_actions: int = 16
    """Actions that sequential halving starts with in "gumbel"."""
    gumbel_c_visit: float = 50.0
    gumbel_c_scale: float = 0.1
    gumbel_min_q_range: float = 0.01
    """Floor of the range by which "gumbel" normalises Q values, as `value_delta_max` is in "puct"."""
    num_sampled_actions: int = 16
    """A where actions are sampled: the number sampled at a root; sequential halving starts with all of them."""
    num_sampled_leaf_actions: int = 2
    """Number of actions sampled at every other node."""
    widened_action_share: float = 0.5
    """Share of a root's sampled actions that come from a wider policy."""
    widened_action_scale: float = 3.0
    """How much wider: the factor of its standard deviation, or its temperature if actions are discrete choices."""
    num_threads: int = 1
    """Threads of the tree on the host, for batches of at least 256 roots; does not change results."""
