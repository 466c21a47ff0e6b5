"""What runs cost, from what they logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rllib_efficientzero import metrics as names
from rllib_efficientzero.analysis.runs import TIME, Run

REPLAY = "replay_buffer"


@dataclass(frozen=True)
class Cost:
    """Of one run; None where it was not logged."""

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
    """of the machine that the run was on, with whatever else was there"""
    hostname: str


def cost_of(run: Run) -> Cost:
    """The cost of a finished run."""
    result, config = run.last_result, run.config
    seconds = float(result[TIME])
    cpus, gpus = _reserved(config)
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


def _reserved(config: Any) -> tuple[float, float]:
    """CPUs and GPUs that a run's processes ask Ray for: the main one, EnvRunners, Learners, reanalyze actors."""
    cpus = float(config.get("num_cpus_for_main_process") or 0)
    gpus = 0.0
    groups = [
        (config.get("num_env_runners"), "env_runner"),
        (config.get("evaluation_num_env_runners"), "env_runner"),
        # Without Learners of their own, the main process learns, on the GPU that one of them would have.
        (config.get("num_learners") or 1, "learner"),
        (config.get("num_reanalyze_actors"), "reanalyze_actor"),
    ]
    for count, kind in groups:
        is_main = kind == "learner" and not config.get("num_learners")
        asked = 0.0 if is_main else config.get(f"num_cpus_per_{kind}") or 0.0
        cpus += (count or 0) * (asked if isinstance(asked, int | float) else 1.0)
        gpus += (count or 0) * float(config.get(f"num_gpus_per_{kind}") or 0.0)
    return cpus, gpus
