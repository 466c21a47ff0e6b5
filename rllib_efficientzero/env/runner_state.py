"""The state of an EnvRunner: its generators, its environments, and the episodes that are being played.

RLlib saves the connectors and counters of one EnvRunner, and gives them to all others. The rest is saved here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from rllib_efficientzero.env import env_state

logger = logging.getLogger(__name__)

PLAYING = (
    "_ongoing_episodes",
    "_env_index_of",
    "_needs_initial_reset",
    "_shared_data",
    "_seed",
    "_generation",
    "_hidden_steps",
    "_counts_reported",
    "_vectors_lost",
    "_search_totals",
)
"""Attributes of an EnvRunner that describe its running environments; saved and restored only together with them."""


@dataclasses.dataclass(frozen=True)
class RunnerState:
    """The state of one EnvRunner, as `capture` takes it."""

    identity: tuple[int, ...]
    search_rng: dict[str, Any]
    num_env_steps_sampled: int
    global_generators: dict[str, Any] | None
    """Generators of the EnvRunner's process; None if it is the algorithm's process, which saves them itself."""
    environments: bytes | None
    """None if the environments cannot be saved, or need not be (evaluation begins anew every time)."""
    playing: bytes | None
    """Pickled attributes `PLAYING`, the observations to act on next, and metrics of chunks already delivered."""
    settings: dict[str, str] | None = None
    """Settings of the environments, see `env_state.settings_of`; None in states of versions that did not keep them."""


@dataclasses.dataclass(frozen=True)
class DeliveredChunk:
    """The numbers of a delivered chunk that its episode's metrics need later; observations are not kept."""

    length: int
    episode_return: float
    seconds: float

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:
        return self.episode_return

    def get_duration_s(self) -> float:
        return self.seconds


def capture(runner: Any) -> RunnerState:
    """The state of an EnvRunner; called in its process."""
    environments = None
    if runner.env is not None and not runner.config.in_evaluation:
        environments = env_state.capture(runner.env)
    return RunnerState(
        identity=tuple(runner._identity()),
        search_rng=runner.module.rng.bit_generator.state,
        num_env_steps_sampled=runner.num_env_steps_sampled_lifetime,
        global_generators=capture_generators() if runner.worker_index else None,
        environments=environments,
        playing=None if environments is None else _capture_playing(runner),
        settings=env_state.settings_of(runner.config),
    )


def restore(runner: Any, *, states: Sequence[RunnerState], generation: int) -> None:
    """Puts an EnvRunner into the one of `states` that is its own; called in its process.

    If there is none, or if its environments could not be saved or are now made with other settings, its environments
    begin anew, seeded by `generation`.
    """
    own = next((state for state in states if state.identity == tuple(runner._identity())), None)
    if own is None:
        begin_anew(runner, generation=generation)
        return
    runner.module.rng.bit_generator.state = own.search_rng
    runner.num_env_steps_sampled_lifetime = own.num_env_steps_sampled
    if own.global_generators is not None:
        restore_generators(own.global_generators)
    if own.environments is None or own.playing is None:
        begin_anew(runner, generation=generation)
        return
    if changes := _changed_settings(own.settings, env_state.settings_of(runner.config)):
        logger.warning(
            "EnvRunner %s begins new episodes, its environments being made otherwise than those of the checkpoint: %s",
            runner.worker_index or 0,
            "; ".join(changes),
        )
        begin_anew(runner, generation=generation)
        return
    try:
        env_state.restore(runner.env, own.environments)
    except ValueError as error:
        logger.warning("EnvRunner %s begins new episodes: %s", runner.worker_index or 0, error)
        begin_anew(runner, generation=generation)
        return
    _restore_playing(runner, own.playing)


def begin_anew(runner: Any, *, generation: int) -> int:
    """Lets an EnvRunner's environments begin new episodes at its next sample.

    The delivered part of the episodes in progress stays in the replay, without an end.

    Returns:
        Episodes cut short.
    """
    if runner.env is None or runner.config.in_evaluation:
        return 0
    cut_short = sum(episode is not None and episode.t > 0 for episode in runner._ongoing_episodes)
    runner.begin_generation(generation)
    runner._needs_initial_reset = True
    return cut_short


def begin_anew_if_not_saved(runner: Any, *, states: Sequence[RunnerState], generation: int) -> int:
    """Calls `begin_anew` if `capture` got no state of the environments, so that this run goes on as a resumed one."""
    own = next((state for state in states if state.identity == tuple(runner._identity())), None)
    if own is not None and own.environments is not None:
        return 0
    return begin_anew(runner, generation=generation)


def _changed_settings(saved: dict[str, str] | None, own: dict[str, str]) -> list[str]:
    if saved is None:
        return []
    names = [*own, *(name for name in saved if name not in own)]
    return [
        f"{name} was {saved.get(name, 'not given'):.80} and is {own.get(name, 'not given'):.80}"
        for name in names
        if saved.get(name) != own.get(name)
    ]


def _capture_playing(runner: Any) -> bytes:
    attributes = {name: getattr(runner, name) for name in PLAYING}
    observed = convert_to_numpy(runner._cached_to_module)
    delivered = {
        episode_id: [DeliveredChunk(len(chunk), chunk.get_return(), chunk.get_duration_s()) for chunk in chunks]
        for episode_id, chunks in runner._ongoing_episodes_for_metrics.items()
    }
    return cloudpickle.dumps((attributes, observed, delivered))


def _restore_playing(runner: Any, playing: bytes) -> None:
    attributes, observed, delivered = cloudpickle.loads(playing)
    vars(runner).update(attributes)
    runner._cached_to_module = convert_to_torch_tensor(observed, device=runner._device)
    runner._ongoing_episodes_for_metrics = collections.defaultdict(list, delivered)


# --- A process's own generators --------------------------------------------------------------------------------------


def capture_generators() -> dict[str, Any]:
    """State of the process's global generators: Python's, numpy's and torch's."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - it is the one that libraries share
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Restores a state from `capture_generators`, except for GPUs that this machine does not have."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, device)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restores this process's global generators after the block."""
    state = capture_generators()
    try:
        yield
    finally:
        restore_generators(state)
