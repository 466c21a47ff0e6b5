"""Reanalysis: fresh policy and value targets for replayed positions, by search with the target network.

Stateless: the same windows, weights and configuration give the same targets, wherever it runs.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts import Model, SearchConfig, Searcher, SearchResult
from rllib_efficientzero.models import NetworkOutput
from rllib_efficientzero.models.augmentation import draw_augmentation
from rllib_efficientzero.models.observations import Stacks
from rllib_efficientzero.replay.windows import Windows
from rllib_efficientzero.targets.returns import (
    bootstrap_times,
    dynamic_horizon,
    n_step_targets,
    step_masks,
    value_prefix_targets,
)

# Windows may lie in memory that Ray shares between processes. Nothing here writes into them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


CPU_BATCH_SIZE, GPU_BATCH_SIZE = 256, 4096
"""Default batch sizes of reanalysis. A GPU needs all positions of an update at once to be busy; a CPU is busy with few,
and their states need less memory."""


@dataclasses.dataclass(frozen=True)
class ReanalyzeConfig:
    """How targets are made; defaults are the paper's for Atari 100k."""

    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    frame_stack: int = 4
    unroll_steps: int = 5
    td_steps: int = 5
    reanalyze_ratio: float = 0.99
    """Share of each batch whose policy targets come from a fresh search; the rest keep those of self-play."""
    value_target: str = "network"
    """What the n-step return bootstraps from: "network" is the target network's value head, "root" the value of a fresh
    search at that position. "mixed" is EfficientZero V2's: recent positions are treated like "network", older ones that
    are searched take the value of that search instead of an n-step return."""
    mixed_start_updates: int = 30_000
    mixed_recent_steps: int = 5_000
    """"mixed" begins after `mixed_start_updates` updates; positions at most `mixed_recent_steps` steps old keep n-step
    targets."""
    horizon_decay_steps: float = 30_000.0
    """The horizon shrinks by one step per this many steps of age; infinity switches the off-policy correction off."""
    batch_size: int | None = None
    """The most roots per search and observations per encoding call, to bound memory. None: chosen by device."""


@dataclasses.dataclass(frozen=True)
class TargetStatistics:
    """Statistics of the reanalysis of a batch, for the logs."""

    search_seconds: float
    seconds: float
    num_searched: int
    simulations_per_s: float
    horizon: np.ndarray  # [B]
    age: np.ndarray  # [B]
    root_value: float
    network_value: float
    policy_entropy: float
    prior_entropy: float


class TargetNetwork(Model, Protocol):
    """The interface of networks that make targets; `InferenceNetwork` implements it."""

    device: torch.device

    def input_of(self, stacks: Stacks) -> Any:
        """Converts stacks to the input of `initial_inference` and `value`."""

    def value(self, planes: Tensor) -> Tensor: ...


class Reanalyzer:
    """Makes train batches from windows. Holds no state but the search's buffers."""

    def __init__(self, config: ReanalyzeConfig) -> None:
        if config.value_target not in _VALUE_TARGETS:
            raise ValueError(f"unknown value_target {config.value_target!r}; known ones are {sorted(_VALUE_TARGETS)}")
        self.config = config
        self.searcher = Searcher(config.search)

    def train_batch(
        self, network: TargetNetwork, windows: Windows, *, num_updates: int = 0
    ) -> tuple[dict[str, Tensor], TargetStatistics]:
        """Makes the train batch of B windows, with fresh targets.

        Args:
            network: the target network.
            windows: B windows of the replay.
            num_updates: updates made so far; "mixed" targets depend on it.

        Returns:
            The train batch (see `_assemble`), on the network's device, and what to log.
        """
        started = time.perf_counter()
        config = self.config
        rng = np.random.default_rng(windows.seed)
        age = windows.num_added - windows.position_ids
        horizon = dynamic_horizon(age, config.td_steps, config.horizon_decay_steps)
        times = bootstrap_times(horizon, windows.steps_left, config.unroll_steps)

        fresh_policy = _choose_rows(len(windows), config.reanalyze_ratio, rng)
        unrolled = np.arange(config.unroll_steps + 1)
        # Policies are searched only where an action follows; the last observation of an episode has no policy target.
        wants_policy = fresh_policy[:, None] & (unrolled < windows.steps_left[:, None])
        make_value = _VALUE_TARGETS[config.value_target]
        from_search = make_value.from_search(wants_policy, age, num_updates, config)
        wants_value = np.zeros((len(windows), config.unroll_steps + 1 + config.td_steps), dtype=bool)
        rows, columns = np.nonzero(~from_search)
        wants_value[rows, times[rows, columns]] = True
        # Terminal states have value zero, so they are not evaluated.
        ends_inside = windows.terminated & (windows.steps_left < wants_value.shape[1])
        wants_value[ends_inside, windows.steps_left[ends_inside]] = False
        wants_root = make_value.searched(wants_policy, wants_value)

        # Raw frames are copied to the device once, unless they are there; both reanalysis and the Learner read them.
        frames = torch.as_tensor(windows.frames).to(network.device, non_blocking=True)
        evaluated = _Evaluated.encode(network, frames, wants_value, wants_root, config)
        searched = evaluated.search(self.searcher, network, windows, rng)

        policy = {"target_policy": _replaced(windows.visit_policy, searched.policy, wants_policy)}
        if windows.sampled_actions is not None and searched.candidates is not None:
            policy["target_actions"] = _replaced(windows.sampled_actions, searched.candidates, wants_policy)

        n_step = n_step_targets(
            windows.rewards,
            make_value.bootstrap(evaluated, searched)[np.arange(len(windows))[:, None], times],
            horizon,
            windows.steps_left,
            windows.terminated,
            config.search.discount,
        )
        value = np.where(from_search, searched.root_value[:, : config.unroll_steps + 1], n_step)
        batch = _assemble(windows, frames, policy, value, config)
        return batch, searched.statistics(time.perf_counter() - started, horizon, age)


@dataclasses.dataclass
class _Searched:
    """Search results scattered to `[B, T]` times, T = K + 1 + td_steps; zero where nothing was searched."""

    policy: np.ndarray  # [B, T, A]
    root_value: np.ndarray  # [B, T]
    candidates: np.ndarray | None  # [B, T, A, D], where actions are sampled
    results: list[SearchResult]

    def statistics(self, seconds: float, horizon: np.ndarray, age: np.ndarray) -> TargetStatistics:
        def mean(values: list[np.ndarray]) -> float:
            return float(np.concatenate(values).mean()) if values else 0.0

        search_seconds = sum(result.seconds for result in self.results)
        simulations = sum(int(result.visit_counts.sum()) for result in self.results)
        return TargetStatistics(
            search_seconds=search_seconds,
            seconds=seconds,
            num_searched=sum(len(result) for result in self.results),
            simulations_per_s=simulations / search_seconds if search_seconds else 0.0,
            horizon=horizon,
            age=age,
            root_value=mean([result.root_value for result in self.results]),
            network_value=mean([result.network_value for result in self.results]),
            policy_entropy=mean([entropy(result.policy) for result in self.results]),
            prior_entropy=mean([entropy(result.prior) for result in self.results]),
        )


@dataclasses.dataclass
class _Roots:
    """Evaluated observations to search from, at most `batch_size` of them."""

    rows: np.ndarray  # [M]
    times: np.ndarray  # [M]
    output: NetworkOutput


@dataclasses.dataclass
class _Evaluated:
    """The evaluated observations of the windows. Each is encoded once, for its value, as a search's root, or both."""

    roots: list[_Roots]
    value: np.ndarray  # [B, T]

    @classmethod
    @torch.inference_mode()
    def encode(
        cls,
        network: TargetNetwork,
        frames: Tensor,
        wants_value: np.ndarray,
        wants_root: np.ndarray,
        config: ReanalyzeConfig,
    ) -> _Evaluated:
        def input_of(places: np.ndarray) -> Any:
            rows, times = _to(places, frames.device).unbind()
            return network.input_of(Stacks(frames, rows, times, config.frame_stack))

        size = config.batch_size or (CPU_BATCH_SIZE if frames.device.type == "cpu" else GPU_BATCH_SIZE)
        roots, values = [], []
        for places, num_roots in _in_chunks(wants_root, wants_value & ~wants_root, size):
            rows, times = places
            if num_roots:
                output = network.initial_inference(input_of(places))
                found = output.value
                of_roots = NetworkOutput(*(tensor[:num_roots] for tensor in output))
                roots.append(_Roots(rows[:num_roots], times[:num_roots], of_roots))
            else:
                found = network.value(input_of(places))
            values.append((rows, times, found))
        value = np.zeros(wants_value.shape, dtype=np.float32)
        for rows, times, found in values:
            value[rows, times] = found.cpu().numpy()
        return cls(roots, value)

    def search(
        self,
        searcher: Searcher,
        network: TargetNetwork,
        windows: Windows,
        rng: np.random.Generator,
    ) -> _Searched:
        def zeros(*shape: int) -> np.ndarray:
            return np.zeros((*self.value.shape, *shape), dtype=np.float32)

        sampled = windows.sampled_actions
        candidates = None if sampled is None else zeros(*sampled.shape[2:])
        searched = _Searched(zeros(windows.visit_policy.shape[-1]), zeros(), candidates, [])
        all_finite = np.isfinite(self.value).all()
        for roots in self.roots:
            rows, times, output = roots.rows, roots.times, roots.output
            if not all_finite and not (is_finite := np.isfinite(self.value[rows, times])).all():
                # No search can start from a NaN observation. Its targets are NaN, so that the learner skips the update.
                bad = rows[~is_finite], times[~is_finite]
                searched.policy[bad] = searched.root_value[bad] = np.nan
                rows, times = rows[is_finite], times[is_finite]
                if len(rows) == 0:
                    continue
                output = NetworkOutput(*(part[_to(is_finite, part.device)] for part in output))
            legal = None if windows.action_mask is None else windows.action_mask[rows, times].astype(bool)
            result = searcher.search(network, output, legal_actions=legal, rng=rng, explore=True)
            searched.policy[rows, times] = result.policy
            searched.root_value[rows, times] = result.root_value
            if searched.candidates is not None and result.candidates is not None:
                searched.candidates[rows, times] = result.candidates
            searched.results.append(result)
        return searched


@dataclasses.dataclass(frozen=True)
class _ValueTarget:
    """A way to make value targets.

    `from_search` says which targets are the search's value at the position itself, `bootstrap` gives the values from
    which the n-step returns of the others bootstrap, and `searched` says which positions must be searched.
    """

    from_search: Callable[[np.ndarray, np.ndarray, int, ReanalyzeConfig], np.ndarray]  # -> [B, K+1]
    bootstrap: Callable[[_Evaluated, _Searched], np.ndarray]  # -> [B, T]
    searched: Callable[[np.ndarray, np.ndarray], np.ndarray]  # ([B, K+1] policy, [B, T] value) -> [B, T]


def _no_positions(wants_policy: np.ndarray, age: np.ndarray, num_updates: int, config: ReanalyzeConfig) -> np.ndarray:
    return np.zeros_like(wants_policy)


def _old_positions(wants_policy: np.ndarray, age: np.ndarray, num_updates: int, config: ReanalyzeConfig) -> np.ndarray:
    """Searched positions that are old enough for the search's value (EfficientZero V2, section 4.3)."""
    if num_updates < config.mixed_start_updates:
        return np.zeros_like(wants_policy)
    return wants_policy & (age > config.mixed_recent_steps)[:, None]


def _policy_positions(wants_policy: np.ndarray, wants_value: np.ndarray) -> np.ndarray:
    wanted = np.zeros_like(wants_value)
    wanted[:, : wants_policy.shape[1]] = wants_policy
    return wanted


_VALUE_TARGETS = {
    "network": _ValueTarget(_no_positions, lambda evaluated, searched: evaluated.value, _policy_positions),
    "root": _ValueTarget(
        _no_positions,
        lambda evaluated, searched: searched.root_value,
        lambda wants_policy, wants_value: _policy_positions(wants_policy, wants_value) | wants_value,
    ),
    "mixed": _ValueTarget(_old_positions, lambda evaluated, searched: evaluated.value, _policy_positions),
}


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """`[..., A]` probabilities -> `[...]` entropy in nats."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=-1)


def _replaced(stored: np.ndarray, searched: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`stored` `[B, K+1, ...]`, replaced by `searched` `[B, T, ...]` where `wanted` `[B, K+1]` is true."""
    of_actions = wanted.reshape(*wanted.shape, *[1] * (stored.ndim - 2))
    return np.where(of_actions, searched[:, : wanted.shape[1]], stored)


def _assemble(
    windows: Windows, frames: Tensor, policy: dict[str, np.ndarray], value: np.ndarray, config: ReanalyzeConfig
) -> dict[str, Tensor]:
    """Makes the train batch, on the device of `frames`:

    frames `[B, S-1 + K+1, ...]`, actions `[B, K]` int64 or `[B, K, D]`, target_policy `[B, K+1, A]`, target_value
    `[B, K+1]`, target_value_prefix `[B, K]`, mask `[B, K]` (gates unroll step k + 1), weights `[B]`, position_ids
    `[B]`, shift `[B, 2, 2]` int64 and intensity `[B, 2]` (the augmentation: first of the root's stack, then of the
    following frames); if actions are sampled, also target_actions `[B, K+1, A, D]`, the actions of target_policy.
    """
    num_frames = config.frame_stack - 1 + config.unroll_steps + 1
    value_prefix = value_prefix_targets(
        windows.rewards, windows.steps_left, config.unroll_steps, config.search.value_prefix_horizon
    )
    arrays = {
        "actions": windows.actions,
        **policy,
        "target_value": value,
        "target_value_prefix": value_prefix,
        "mask": step_masks(windows.steps_left, config.unroll_steps),
        "weights": windows.weights,
        "position_ids": windows.position_ids,
    }
    generator = torch.Generator().manual_seed(windows.seed)
    shifts, intensities = zip(*(draw_augmentation(len(windows), generator) for _ in range(2)), strict=True)
    arrays |= {"shift": torch.stack(shifts, dim=1).numpy(), "intensity": torch.stack(intensities, dim=1).numpy()}
    return {"frames": frames[:, :num_frames]} | _sent(arrays, frames.device)


def _choose_rows(batch: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """`[B]` bool: floor(share * B) random rows, as many as the authors' code reanalyzes (253 of 256 at 0.99)."""
    chosen = np.zeros(batch, dtype=bool)
    chosen[rng.permutation(batch)[: int(share * batch + 1e-9)]] = True
    return chosen


def _in_chunks(roots: np.ndarray, others: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Two `[B, T]` bool arrays -> chunks of their rows and times `[2, M]`, M at most `size`, roots first, with the
    number of roots in each chunk."""
    places = np.concatenate([np.nonzero(roots), np.nonzero(others)], axis=1)
    num_roots = int(np.count_nonzero(roots))
    for start in range(0, places.shape[1], size):
        yield places[:, start : start + size], min(max(0, num_roots - start), size)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _sent(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors on the device. A GPU gets one copy per dtype, not one per array: with arrays this small,
    starting a copy takes the host longer than anything else."""
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(array.dtype for array in arrays.values()):
        alike = {name: array for name, array in arrays.items() if array.dtype == dtype}
        flat = _to(np.concatenate([array.ravel() for array in alike.values()]), device)
        parts = flat.split([array.size for array in alike.values()])
        tensors |= {name: part.view(array.shape) for (name, array), part in zip(alike.items(), parts, strict=True)}
    return tensors
