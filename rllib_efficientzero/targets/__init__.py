"""Training targets from replayed windows: pure functions of data and, for reanalysis, of the target network. No Ray."""

from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig, Reanalyzer, TargetStatistics
from rllib_efficientzero.targets.returns import (
    bootstrap_times,
    dynamic_horizon,
    n_step_targets,
    step_masks,
    value_prefix_targets,
)

__all__ = [
    "ReanalyzeConfig",
    "Reanalyzer",
    "TargetStatistics",
    "bootstrap_times",
    "dynamic_horizon",
    "n_step_targets",
    "step_masks",
    "value_prefix_targets",
]
