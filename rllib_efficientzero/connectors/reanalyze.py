"""Learner connector: replayed windows -> train batch with fresh targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_efficientzero import metrics as names
from rllib_efficientzero.targets import ReanalyzeConfig, Reanalyzer, TargetStatistics


class Reanalyze(ConnectorV2):
    """Searches replayed positions again with the target network (`targets.Reanalyzer`).

    Stateless: equal windows (which carry their seed) and weights give equal targets, in a Learner or a ReanalyzeActor.
    """

    def __init__(self, *args: Any, config: ReanalyzeConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reanalyzer = Reanalyzer(config)

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Any],
        metrics: MetricsLogger | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """`episodes` is a list of exactly one `Windows`; see `EfficientZero.training_step`."""
        (windows,) = episodes
        # With several Learners, modules are wrapped for gradient synchronisation, which a search must not trigger.
        module = rl_module[DEFAULT_MODULE_ID].unwrapped()
        train_batch, statistics = self.reanalyzer.train_batch(
            module.target_inference_network, windows, num_updates=int(module.num_updates)
        )
        if metrics is not None:
            log_statistics(metrics, statistics, self.reanalyzer.config.td_steps)
        return {DEFAULT_MODULE_ID: train_batch}


def log_statistics(metrics: MetricsLogger, statistics: TargetStatistics, td_steps: int) -> None:
    """Logs the statistics of a reanalysis under `<module>/reanalyze/`; the names are explained in `metrics.py`."""
    shares = np.bincount(statistics.horizon, minlength=td_steps + 1)[1:] / len(statistics.horizon)
    values: dict[Any, float] = {
        names.SEARCH_SECONDS: statistics.search_seconds,
        names.TARGETS_SECONDS: statistics.seconds,
        names.SAMPLE_AGE: float(statistics.age.mean()),
        (names.TD_STEPS, "mean"): float(statistics.horizon.mean()),
        **{(names.TD_STEPS, f"share_{steps}"): float(share) for steps, share in enumerate(shares, start=1)},
    }
    if statistics.num_searched:
        values |= {
            names.SIMULATIONS_PER_S: statistics.simulations_per_s,
            names.ROOT_VALUE: statistics.root_value,
            names.NETWORK_VALUE: statistics.network_value,
            names.POLICY_ENTROPY: statistics.policy_entropy,
            names.PRIOR_ENTROPY: statistics.prior_entropy,
        }
    for key, value in values.items():
        path = key if isinstance(key, tuple) else (key,)
        metrics.log_value((DEFAULT_MODULE_ID, names.REANALYZE, *path), value, reduce="mean", window=100)
