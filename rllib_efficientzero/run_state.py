"""The part of a run's state that neither RLlib nor the replay saves.

A checkpoint consists of RLlib's own state (learners with weights, target networks and optimizers, connectors, metrics),
the replay, and what is listed here. `tests/integration/faults/test_checkpoint_run_state.py` fails when an attribute
appears that is neither saved nor known to be derived from saved ones.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID

from rllib_efficientzero import interruption
from rllib_efficientzero.env import runner_state
from rllib_efficientzero.env.runner_state import RunnerState

logger = logging.getLogger(__name__)

COUNTERS = ("num_updates", "num_interactions")
"""Counters of the algorithm, by attribute."""
PROGRESS = ("_iteration", "_time_total", "_timesteps_total", "_episodes_total")
"""Progress counters of Tune's `Trainable`, by attribute; Tune's own records may give them other values."""
LEARNER_COUNTERS = ("_num_non_finite_in_a_row",)
"""Counters of every Learner, by attribute."""
SECONDS_TO_ANSWER, SECONDS_TO_ANSWER_WHEN_STOPPING = 300.0, 10.0
"""How long to wait for EnvRunners. They answer at once unless they are playing (asynchronous self-play), or hang."""


def capture(algorithm: Any) -> dict[str, Any]:
    """Captures an algorithm's state between two training steps, without what RLlib and the replay save."""
    runners = _runner_states(algorithm.env_runner_group)
    # An EnvRunner answers after the sample it was playing, and its state is the one after it. Store these samples, or
    # their steps would be missing.
    algorithm.store_arrived()
    return {
        "counters": {name: getattr(algorithm, name) for name in COUNTERS},
        "progress": {name: getattr(algorithm, name) for name in PROGRESS},
        "generators": runner_state.capture_generators(),
        "learner_counters": _learner_counters(algorithm),
        "acting_weights": _acting_weights(algorithm, runners),
        "env_runners": runners,
        "evaluation_env_runners": _runner_states(algorithm.eval_env_runner_group),
    }


def restore(algorithm: Any, state: dict[str, Any]) -> None:
    """Puts an algorithm into a state from `capture`; call it after RLlib's own state was set."""
    _set_attributes(algorithm, state["counters"] | state["progress"])
    counters = state["learner_counters"]
    algorithm.learner_group.foreach_learner(functools.partial(_set_attributes, values=counters))
    if state["acting_weights"] is not None:
        _foreach_runner(algorithm.env_runner_group, functools.partial(_set_weights, weights=state["acting_weights"]))
    generation = algorithm.num_interactions
    for group, states in (
        (algorithm.env_runner_group, state["env_runners"]),
        (algorithm.eval_env_runner_group, state["evaluation_env_runners"]),
    ):
        _foreach_runner(group, functools.partial(runner_state.restore, states=states, generation=generation))
    # Last, because building modules and environments draws from these generators.
    runner_state.restore_generators(state["generators"])


def begin_anew_where_needed(algorithm: Any, state: dict[str, Any]) -> None:
    """Lets environments whose state could not be saved begin new episodes, as they will in the resumed run.

    Call it once `state` is saved.
    """
    states: list[RunnerState] = state["env_runners"]
    begin = functools.partial(
        runner_state.begin_anew_if_not_saved, states=states, generation=algorithm.num_interactions
    )
    # EnvRunners that did not answer in time begin anew as soon as they can; they are not waited for a second time.
    answered = {_worker_index(state) for state in states}
    group = algorithm.env_runner_group
    hung = [index for index in group.healthy_env_runner_ids() if index not in answered]
    _foreach_runner(group, begin, only=hung, timeout=0.0)
    cut_short = sum(_foreach_runner(group, begin, only=sorted(answered)))
    if cut_short:
        logger.warning(
            "the state of these environments cannot be saved: %d episodes are cut short by the checkpoint, and begin "
            "anew here as in a resumed run",
            cut_short,
        )


def _learner_counters(algorithm: Any) -> dict[str, Any]:
    """The counters of the first Learner; all Learners agree on every update."""
    results = algorithm.learner_group.foreach_learner(
        lambda learner: {name: getattr(learner, name) for name in LEARNER_COUNTERS}
    )
    return next(iter(results)).get()


def _set_attributes(target: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(target, name, value)


def _acting_weights(algorithm: Any, states: list[RunnerState]) -> dict[str, Any] | None:
    """The weights that EnvRunners act with; None if they are the Learners', which RLlib saves, or if none answers.

    They are older than the Learners' except right after every `self_play_update_freq`-th update. The update count
    within the weights tells whether they differ: they change with every update counted, and only then.
    """
    # One EnvRunner's stand for all: in runs that can be repeated exactly, all got the same weights at the same time.
    # It is one that has just answered, since another may hang.
    group, answered = algorithm.env_runner_group, [_worker_index(state) for state in states]
    results = _foreach_runner(group, _weights, only=answered[:1])
    if not results:
        return None
    weights = results[0]
    learned = algorithm.learner_group.get_state(
        components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
    )[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    return None if int(weights["num_updates"]) == int(learned["num_updates"]) else weights


def _weights(runner: Any) -> dict[str, Any]:
    return runner.module.get_state()


def _set_weights(runner: Any, weights: dict[str, Any]) -> None:
    runner.module.set_state(weights)


def _runner_states(group: Any) -> list[RunnerState]:
    return [] if group is None else _foreach_runner(group, runner_state.capture)


def _worker_index(state: RunnerState) -> int:
    return state.identity[0]


def _foreach_runner(
    group: Any, function: Any, *, only: list[int] | None = None, timeout: float | None = None
) -> list[Any]:
    """Calls a function with every EnvRunner of a group and returns the answers.

    Arguments are sent once, however many EnvRunners there are. EnvRunners that are lost, or do not answer in time, are
    left out.

    Args:
        group: the EnvRunnerGroup, or None.
        function: called in the EnvRunners' processes.
        only: worker indices; 0 is the algorithm's own process.
        timeout: seconds; 0 does not wait; None: see `SECONDS_TO_ANSWER`.
    """
    if group is None or only == []:
        return []
    if group.num_remote_env_runners() == 0:
        return [function(group.local_env_runner)]
    if timeout is None:
        timeout = SECONDS_TO_ANSWER_WHEN_STOPPING if interruption.requested() else SECONDS_TO_ANSWER
    return group.foreach_env_runner(
        functools.partial(_call, ray.put(function)),
        local_env_runner=False,
        remote_worker_ids=only,
        timeout_seconds=timeout,
    )


def _call(reference: Any, runner: Any) -> Any:
    return ray.get(reference)(runner)
