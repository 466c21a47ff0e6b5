"""Runs experiments: trains their runs by `rllib train file`, plays the final weights, and makes the measurements.

Below a directory of runs:

    <budget>/experiments-<n>.yaml                 the runs of a training command, as `rllib train file` takes them
    <budget>/<task>_<variant>_seed-<n>/           one run: `label.json`, and Tune's directory of its trial
    <budget>/measurement_<experiment>/            what was measured with trained networks

Runs are named by task, variant and seed, not by experiment, so that experiments share them. Finished runs are not run
again, interrupted ones are resumed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from rllib_efficientzero import metrics as names
from rllib_efficientzero.analysis import measurement as measurements
from rllib_efficientzero.analysis.experiments import Experiment, Plan, train_spec
from rllib_efficientzero.analysis.measurement import Log
from rllib_efficientzero.analysis.play import MAX_BATCH
from rllib_efficientzero.analysis.runs import (
    SCORES_FILE,
    STANDARD,
    STICKY,
    UnusableRunError,
    progress,
    trial_directories,
    write_label,
)
from rllib_efficientzero.checkpoint.files import write_file
from rllib_efficientzero.checkpoint.manifest import versions
from rllib_efficientzero.playing.environment import make_environment
from rllib_efficientzero.playing.episodes import play_episodes
from rllib_efficientzero.policy import Policy, load_policy

FIRST_CHECKPOINT = "checkpoint_000000"
"""Tune's name of a run's first checkpoint, which is deleted if `num_to_keep` limits them."""
STICKY_PROBABILITY = 0.25
"""Of repeating the last action (Machado et al. 2018)."""


class RunningError(RuntimeError):
    """An experiment cannot be run; the message says why."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where and how experiments run."""

    root: pathlib.Path
    budget: str
    jobs: int = 1
    """training commands at a time; more than one is for a cluster that they share, or a machine with many cores"""
    device: str = "cpu"
    """for playing and measuring with trained networks"""
    ray_address: str | None = None
    """cluster that all runs share; None: each command starts its own Ray"""
    log: Log = lambda text: None

    @property
    def directory(self) -> pathlib.Path:
        return self.root / self.budget


def run(experiments: Sequence[Experiment], setup: Setup, given: Mapping[str, pathlib.Path] | None = None) -> list[str]:
    """Trains, plays and measures what is missing.

    Args:
        experiments: to run.
        setup: where and how.
        given: variant -> checkpoint to measure with, in place of a run trained for it.

    Returns:
        One sentence for each part that failed; the other parts were done all the same.
    """
    given = given or {}
    plans = needed_plans(experiments, setup.budget, given)
    failures = train(plans, setup)
    for plan in plans:
        if plan.episodes is not None and final_checkpoint(plan, setup) is not None:
            failures += _attempt(f"scores of {plan.name}", functools.partial(score, plan, setup))
    for experiment in experiments:
        if experiment.measure is not None:
            failures += _attempt(f"measurement {experiment.name}", functools.partial(measure, experiment, setup, given))
    return failures


def needed_plans(experiments: Sequence[Experiment], budget: str, given: Mapping[str, pathlib.Path]) -> list[Plan]:
    """Returns the runs that experiments need, each once, without those replaced by a given checkpoint."""
    return shared_plans(
        plan
        for experiment in experiments
        for plan in experiment.plans(budget)
        if experiment.measure is None or plan.label.variant not in given
    )


def shared_plans(plans: Iterable[Plan]) -> list[Plan]:
    """Returns each run once, with the episodes and checkpoints that its most demanding experiment needs."""
    found: dict[str, Plan] = {}
    for plan in plans:
        other = found.get(plan.name, plan)
        episodes = [count for count in (plan.episodes, other.episodes) if count is not None]
        found[plan.name] = dataclasses.replace(
            plan,
            episodes=max(episodes, default=None),
            keep_all_checkpoints=plan.keep_all_checkpoints or other.keep_all_checkpoints,
        )
    return list(found.values())


def _attempt(what: str, work: Callable[[], None]) -> list[str]:
    """Does one part of the work, and returns its failure as a sentence, so that the other parts are done anyway."""
    try:
        work()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return [f"{what}: {type(error).__name__}: {error}"]
    return []


# --- Training --------------------------------------------------------------------------------------------------------


def train(plans: Sequence[Plan], setup: Setup) -> list[str]:
    """Trains the runs that are not finished, by `setup.jobs` commands at a time; returns a sentence per failure."""
    waiting = [plan for plan in plans if not is_finished(plan, setup)]
    setup.log(f"{len(plans) - len(waiting)} of {len(plans)} runs are finished, {len(waiting)} to be trained")
    if not waiting:
        return []
    for plan in waiting:
        write_label(setup.directory / plan.name, plan.label)
    shares = [waiting[index :: setup.jobs] for index in range(min(setup.jobs, len(waiting)))]
    # In sessions of their own, so that Ctrl-C in a terminal does not reach them: they get one signal, sent below.
    commands = [
        subprocess.Popen(_command(share, index, setup), start_new_session=True) for index, share in enumerate(shares)
    ]
    try:
        for command in commands:
            command.wait()
    except KeyboardInterrupt:
        setup.log("waiting for the runs to save their checkpoints")
        for command in commands:
            command.send_signal(signal.SIGINT)
        for command in commands:
            command.wait()
        raise
    return [f"{plan.name} did not reach its end" for plan in waiting if not is_finished(plan, setup)]


def _command(plans: Sequence[Plan], number: int, setup: Setup) -> list[str]:
    file = setup.directory / f"experiments-{number}.yaml"
    file.write_text(yaml.safe_dump({plan.name: train_spec(plan) for plan in plans}, sort_keys=False))
    command = [sys.executable, "-m", "rllib_efficientzero", "train", "file", str(file), "--resume"]
    command += ["--storage-path", str(setup.directory)]
    return command + (["--ray-address", setup.ray_address] if setup.ray_address else [])


def trial_of(plan: Plan, setup: Setup) -> pathlib.Path | None:
    """Returns the newest trial directory of a plan's run, or None."""
    found = trial_directories(setup.directory / plan.name)
    return found[-1] if found else None


def is_finished(plan: Plan, setup: Setup) -> bool:
    """Whether a plan's run has reached its end."""
    trial = trial_of(plan, setup)
    try:
        return trial is not None and progress(trial)[0]
    except UnusableRunError:
        return False


def final_checkpoint(plan: Plan, setup: Setup) -> pathlib.Path | None:
    """Returns the last checkpoint of a plan's run if it is finished, else None."""
    trial = trial_of(plan, setup)
    if trial is None or not is_finished(plan, setup):
        return None
    return max(trial.glob("checkpoint_*"), default=None)


# --- Playing ---------------------------------------------------------------------------------------------------------


def score(plan: Plan, setup: Setup) -> None:
    """Plays a run's final weights by the protocol, in Atari also with sticky actions, and writes `scores.json`."""
    trial, checkpoint = trial_of(plan, setup), final_checkpoint(plan, setup)
    assert trial is not None  # both are there, see `run`
    assert checkpoint is not None
    assert plan.episodes is not None
    policy = load_policy(checkpoint, device=setup.device)
    updates = int(policy.description["num_updates"])
    if _is_scored(trial, updates, plan.episodes):
        return
    protocols: dict[str, dict[str, Any]] = {STANDARD: {}}
    if plan.suite == "atari":
        protocols[STICKY] = {"repeat_action_probability": STICKY_PROBABILITY}
    played = {name: _played(plan, policy, settings) for name, settings in protocols.items()}
    content = {
        names.NUM_UPDATES_LIFETIME: updates,
        "checkpoint": checkpoint.name,
        "versions": versions(),
        "protocols": played,
    }
    write_file(trial / SCORES_FILE, json.dumps(content, indent=1).encode())
    setup.log(f"{plan.name}: {plan.episodes} episodes played with the final weights")


def _is_scored(trial: pathlib.Path, updates: int, episodes: int) -> bool:
    try:
        scores = json.loads((trial / SCORES_FILE).read_text())
        returns = scores["protocols"][STANDARD]["returns"]
        return bool(scores[names.NUM_UPDATES_LIFETIME] == updates and len(returns) >= episodes)
    except (OSError, ValueError, KeyError):
        return False


def _played(plan: Plan, policy: Policy, settings: dict[str, Any]) -> dict[str, Any]:
    episodes = plan.episodes or 0
    envs = [make_environment(policy, env_config=settings) for _ in range(min(episodes, MAX_BATCH))]
    try:
        played = dict(play_episodes(policy, envs, range(episodes)))
    finally:
        for env in envs:
            env.close()
    in_order = [played[index] for index in range(episodes)]
    returns, lengths = [episode.episode_return for episode in in_order], [episode.length for episode in in_order]
    return {"settings": settings, "returns": returns, "lengths": lengths}


# --- Measuring -------------------------------------------------------------------------------------------------------


def measure(experiment: Experiment, setup: Setup, given: Mapping[str, pathlib.Path]) -> None:
    """Measures with the final checkpoints of an experiment's runs, unless that was done with the same weights.

    Raises:
        RunningError: a checkpoint is missing, also an earlier one of a run whose stages are compared.
    """
    assert experiment.measure is not None  # its caller asked
    checkpoints = _checkpoints(experiment, setup, given)
    parameters = experiment.parameters(setup.budget)
    about: dict[str, Any] = {
        "experiment": experiment.name,
        "budget": setup.budget,
        "parameters": parameters,
        "checkpoints": {variant: _describe(path, setup.root) for variant, path in checkpoints.items()},
    }
    directory = measurements.directory_of(setup.root, experiment.name, setup.budget)
    if _is_measured(directory, about):
        setup.log(f"{experiment.name}: measured already")
        return
    started, cpu_started = time.perf_counter(), time.process_time()
    measured = experiment.measure(checkpoints, parameters, device=setup.device, log=setup.log)
    about |= {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "device": setup.device,
        "versions": versions(),
    }
    measurements.write(directory, about, measured)
    setup.log(f"{experiment.name}: measured in {about['seconds']:.0f} s")


def _checkpoints(experiment: Experiment, setup: Setup, given: Mapping[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    for plan in experiment.plans(setup.budget):
        variant = plan.label.variant
        if plan.label.seed > 0 or variant in found:
            continue
        checkpoint = given.get(variant) or final_checkpoint(plan, setup)
        if checkpoint is None:
            raise RunningError(f"there is no checkpoint of {plan.name}")
        if plan.keep_all_checkpoints and variant not in given:
            _check_all_are_kept(plan, checkpoint.parent)
        found[variant] = checkpoint
    return found


def _check_all_are_kept(plan: Plan, trial: pathlib.Path) -> None:
    """Raises RunningError if a run's earlier checkpoints were deleted, as by an experiment that needs only the last."""
    if not (trial / FIRST_CHECKPOINT).exists():
        raise RunningError(
            f"{plan.name} has kept its last checkpoints only, since another experiment trained it, and this one needs "
            f"those of every stage; move {trial.parent} away, and it is trained again with all of them kept"
        )


def _describe(checkpoint: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
    """Identifies a checkpoint's weights; its path is relative to `root` if it is below, so that runs can be moved."""
    from rllib_efficientzero.checkpoint.policy_files import read_description

    content = read_description(checkpoint).content
    kept = {key: content[key] for key in ("num_updates", "num_interactions", "protocol")}
    path = checkpoint.relative_to(root) if checkpoint.is_relative_to(root) else checkpoint
    return {"path": str(path), "sha256": content["weights"]["sha256"], **kept}


def _is_measured(directory: pathlib.Path, about: Mapping[str, Any]) -> bool:
    try:
        found = measurements.read(directory)
    except measurements.DamagedMeasurementError:
        return False
    if found is None:
        return False
    same = all(found.about.get(key) == about[key] for key in ("experiment", "budget", "parameters"))
    weights = {variant: entry["sha256"] for variant, entry in found.about["checkpoints"].items()}
    return same and weights == {variant: entry["sha256"] for variant, entry in about["checkpoints"].items()}
