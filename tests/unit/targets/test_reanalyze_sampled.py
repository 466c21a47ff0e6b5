"""Fresh targets over fresh sampled actions."""

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.models import NetworkOutput
from rllib_efficientzero.models.action_distributions import SquashedGaussian
from rllib_efficientzero.models.observations import Stacks, window_planes
from rllib_efficientzero.replay.windows import Windows
from rllib_efficientzero.targets import ReanalyzeConfig, Reanalyzer

B, K, N, A, D = 40, 2, 1, 4, 2


class Centred:
    """The policy is narrow around the observation; the value is its sum; nothing is rewarded."""

    distribution = SquashedGaussian(D)
    device = torch.device("cpu")

    def input_of(self, stacks: Stacks) -> Tensor:
        return window_planes(stacks, torch.float32)

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        return self._output(planes, planes.sum(dim=1))

    def value(self, planes: Tensor) -> Tensor:
        return planes.sum(dim=1)

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        return self._output(latent, action.sum(dim=1))

    def _output(self, latent: Tensor, value: Tensor) -> NetworkOutput:
        policy = torch.cat((latent, torch.full_like(latent, -20.0)), dim=1)
        return NetworkOutput(latent, torch.zeros(len(latent), 2), value, torch.zeros_like(value), policy)


def windows(seed: int = 5) -> Windows:
    rng = np.random.default_rng(0)
    steps_left = rng.integers(1, 6, size=B)
    known = np.arange(K + 1) < steps_left[:, None]
    policy = rng.dirichlet(np.ones(A), size=(B, K + 1)) * known[..., None]
    return Windows(
        position_ids=np.arange(B),
        weights=np.ones(B, np.float32),
        num_added=100,
        frames=rng.uniform(-2, 2, size=(B, K + 1 + N, D)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(B, K, D)).astype(np.float32),
        rewards=np.zeros((B, K + N), np.float32),
        visit_policy=policy.astype(np.float32),
        root_value=np.zeros((B, K + 1), np.float32),
        action_mask=None,
        steps_left=steps_left,
        terminated=np.ones(B, bool),
        seed=seed,
        sampled_actions=rng.uniform(-1, 1, size=(B, K + 1, A, D)).astype(np.float32),
    )


def targets(given: Windows, ratio: float) -> dict[str, np.ndarray]:
    search = SearchConfig(policy="gumbel", num_simulations=A, num_sampled_actions=A, value_prefix_horizon=1)
    config = ReanalyzeConfig(search, frame_stack=1, unroll_steps=K, td_steps=N, reanalyze_ratio=ratio)
    batch, _ = Reanalyzer(config).train_batch(Centred(), given)
    return {name: np.array(tensor) for name, tensor in batch.items()}


def test_policies_and_the_actions_that_they_are_about_come_from_the_same_search() -> None:
    given = windows()
    batch = targets(given, 0.5)
    assert given.sampled_actions is not None
    found, stored = batch["target_actions"], given.sampled_actions
    is_fresh = (found != stored).any(axis=(2, 3))
    known = np.arange(K + 1) < given.steps_left[:, None]
    # Half of the rows, at all times that have an action.
    assert is_fresh.any(axis=1).sum() == B // 2
    np.testing.assert_array_equal(is_fresh, is_fresh.any(axis=1)[:, None] & known)
    np.testing.assert_array_equal(batch["target_policy"][~is_fresh], given.visit_policy[~is_fresh])
    # Fresh ones are drawn around the observation of their time (the first of each from the policy itself), and the
    # best is that with the largest sum, which the model says its value is.
    mean = np.tanh(5 * np.tanh(given.frames[:, : K + 1] / 5))
    assert np.abs(np.arctanh(found[is_fresh][:, 0]) - np.arctanh(mean[is_fresh])).max() < 0.5
    best = found.sum(axis=-1).argmax(axis=-1)
    np.testing.assert_array_equal(batch["target_policy"].argmax(axis=-1)[is_fresh], best[is_fresh])
    assert batch["target_policy"][~known].sum() == 0


def test_equal_windows_give_equal_targets_and_other_seeds_other_actions() -> None:
    first, again, other = targets(windows(), 1.0), targets(windows(), 1.0), targets(windows(seed=6), 1.0)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(first["target_actions"], other["target_actions"])
