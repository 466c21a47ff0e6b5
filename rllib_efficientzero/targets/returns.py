"""The arithmetic of value and value prefix targets, in numpy.

Times are relative to the sampled position: unroll step k stands at time k. An episode has `steps_left` actions from the
sampled position on, so that its last observation stands at time `steps_left`. If the episode was terminated there, that
observation is an absorbing state of value zero; if it was truncated, or goes on beyond what was stored, values are
bootstrapped from it.
"""

from __future__ import annotations

import numpy as np


def dynamic_horizon(age: np.ndarray, td_steps: int, decay_steps: float) -> np.ndarray:
    """Off-policy correction: the older a position, the fewer rewards of the old policy are trusted.

    l = clip(td_steps - floor(age / decay_steps), 1, td_steps); EfficientZero, section 4.3, with
    decay_steps = tau * total steps, tau = 0.3.

    Args:
        age: `[B]` environment steps collected since the position was.

    Returns:
        `[B]` int64.
    """
    return np.clip(td_steps - np.floor(age / decay_steps).astype(np.int64), 1, td_steps)


def bootstrap_times(horizon: np.ndarray, steps_left: np.ndarray, unroll_steps: int) -> np.ndarray:
    """`[B]`, `[B]` -> `[B, K+1]` time of the observation that each n-step return bootstraps from: k + l, at most the
    end of the episode."""
    return np.minimum(np.arange(unroll_steps + 1) + horizon[:, None], steps_left[:, None])


def n_step_targets(
    rewards: np.ndarray,
    bootstrap_value: np.ndarray,
    horizon: np.ndarray,
    steps_left: np.ndarray,
    terminated: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """Value targets z_k = sum_{j<l} gamma^j u_{k+j} + gamma^l v_{k+l} (EfficientZero, section 4.3).

    Args:
        rewards: `[B, K + td_steps]`, reward of the action at each time; whatever lies beyond the end is not used.
        bootstrap_value: `[B, K+1]` values at `bootstrap_times`.
        horizon: `[B]` l.
        steps_left: `[B]`.
        terminated: `[B]` whether the episode terminated at its end.
        gamma: discount per step.

    Returns:
        `[B, K+1]` float32. At and beyond a terminal state 0; beyond any other end the value of the last observation
        (never trained on: masked).
    """
    num_targets, num_rewards = bootstrap_value.shape[1], rewards.shape[1]
    end = bootstrap_times(horizon, steps_left, num_targets - 1)
    start = np.minimum(np.arange(num_targets), end)
    # [B, K+1, K+n]: how many steps after the start of each return every reward lies.
    delay = np.arange(num_rewards) - start[..., None]
    is_counted = (delay >= 0) & (np.arange(num_rewards) < end[..., None])
    powers = gamma ** np.arange(num_rewards + 1)  # a table: there are few powers, each used thousands of times
    discounted = powers[np.maximum(delay, 0)] * rewards[:, None]
    returns = np.where(is_counted, discounted, 0.0).sum(axis=-1)
    is_terminal = terminated[:, None] & (end == steps_left[:, None])
    return (returns + np.where(is_terminal, 0.0, powers[end - start] * bootstrap_value)).astype(np.float32)


def value_prefix_targets(rewards: np.ndarray, steps_left: np.ndarray, unroll_steps: int, horizon: int) -> np.ndarray:
    """Undiscounted running sums of rewards, restarted every `horizon` steps (EfficientZero, section 4.2).

    Args:
        rewards: `[B, >= K]`.
        steps_left: `[B]`; rewards beyond the end are zero.
        horizon: 5 in the paper; 1 gives single rewards (no value prefix).

    Returns:
        `[B, K]` float32; entry k belongs to the step from time k to k + 1.
    """
    inside = np.where(np.arange(unroll_steps) < steps_left[:, None], rewards[:, :unroll_steps], 0.0)
    targets = np.empty_like(inside)
    for start in range(0, unroll_steps, horizon):
        window = slice(start, start + horizon)
        targets[:, window] = np.cumsum(inside[:, window], axis=1)
    return targets.astype(np.float32)


def step_masks(steps_left: np.ndarray, unroll_steps: int) -> np.ndarray:
    """`[B]` -> `[B, K]` float32: 1 where the action at time k exists, which gates every loss of unroll step k + 1."""
    return (np.arange(unroll_steps) < steps_left[:, None]).astype(np.float32)
