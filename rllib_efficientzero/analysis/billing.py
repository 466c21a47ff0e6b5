"""Computes what runs cost, from their logged results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rllib_efficientzero import metrics as names
from rllib_efficientzero.analysis.runs import TIME, Run

REPLAY = "replay_buffer"
AUTO = "auto"


@dataclass(frozen=True)
class Cost:
    """The cost of one run; None where it was not logged."""

    hours: float
    """wall clock, evaluations and resumes included"""
    cpu_hours: float
    """CPUs reserved times wall clock: what a scheduler would charge, not what was busy"""
    gpu_hours: float
    env_steps_per_s: float
    """environment interactions over the whole run's wall clock"""
    updates_per_s: float
    replay_megabytes: float | None
    machine_ram_percent: float | None
    """of the machine that the run was on, all its processes included"""
    hostname: str


def cost_of(run: Run) -> Cost:
    """The cost of a finished run."""
    result, config = run.last_result, run.config
    seconds = float(result[TIME])
    cpus, gpus = reserved(config)
    replay = result.get(REPLAY, {}).get(names.NUM_BYTES)
    ram = result.get("perf", {}).get("ram_util_percent")
    return Cost(
        hours=seconds / 3600,
        cpu_hours=cpus * seconds / 3600,
        gpu_hours=gpus * seconds / 3600,
        env_steps_per_s=result[names.NUM_INTERACTIONS_LIFETIME] / seconds,
        updates_per_s=result[names.NUM_UPDATES_LIFETIME] / seconds,
        replay_megabytes=None if replay is None else replay / 1e6,
        machine_ram_percent=None if ram is None else float(ram),
        hostname=str(result.get("hostname", "")),
    )


def reserved(config: Mapping[str, Any]) -> tuple[float, float]:
    """Returns CPUs and GPUs of all bundles that Ray reserves for a trial; see `EfficientZero.default_resource_request`.

    Args:
        config: as RLlib resolved it, from `result.json`, which keeps only plain values and names.
    """
    evaluation = {**config, **(config.get("evaluation_config") or {})}
    num_learners = int(config.get("num_learners") or 0)
    learner_cpus, learner_gpus = _learner(config)
    main = float(config.get("num_cpus_for_main_process") or 0)
    # Without remote Learners, the main process learns, with the CPUs and GPUs that one of them would have.
    bundles = [(1, main, 0.0)] if num_learners else [(1, max(main, learner_cpus), learner_gpus)]
    bundles += [
        (num_learners, learner_cpus, learner_gpus),
        (max(num_learners, 1), float(config.get("num_aggregator_actors_per_learner") or 0), 0.0),
        (int(config.get("num_env_runners") or 0), *_asked(config, "env_runner")),
        (int(config.get("evaluation_num_env_runners") or 0), *_asked(evaluation, "env_runner")),
        (int(config.get("num_reanalyze_actors") or 0), *_asked(config, "reanalyze_actor")),
        (int((config.get("replay_buffer_config") or {}).get("placement") == "actor"), 1.0, 0.0),
    ]
    return sum(count * cpus for count, cpus, _ in bundles), sum(count * gpus for count, _, gpus in bundles)


def _learner(config: Mapping[str, Any]) -> tuple[float, float]:
    """CPUs and GPUs of one Learner; "auto" means one CPU if it has no GPU, else none."""
    cpus, gpus = config.get("num_cpus_per_learner", AUTO), float(config.get("num_gpus_per_learner") or 0)
    return (float(gpus == 0) if cpus == AUTO else float(cpus)), gpus


def _asked(config: Mapping[str, Any], kind: str) -> tuple[float, float]:
    return float(config.get(f"num_cpus_per_{kind}") or 0), float(config.get(f"num_gpus_per_{kind}") or 0)
