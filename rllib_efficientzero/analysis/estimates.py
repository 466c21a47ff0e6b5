"""Estimates how long runs would take on this machine, from a few timed network calls."""

from __future__ import annotations

import json
from typing import Any

from rllib_efficientzero.analysis.experiments import Plan, train_spec

DEFAULT_SHAPE = (48, 48, 3)
"""Shape of observations, if the environment has no protocol that says it: that of the small grid worlds."""


class Estimates:
    """Estimates of runs; times each kind of network, and computes each kind of run, only once."""

    def __init__(self) -> None:
        self._speeds: dict[str, tuple[float, float]] = {}
        self._seconds: dict[str, float] = {}

    def seconds(self, plan: Plan) -> float:
        """Returns the seconds that a run would train, without the time of the emulator and of evaluations."""
        spec = train_spec(plan)
        # Runs that differ only in seed and game take equally long.
        kind = json.dumps([plan.suite, spec["config"] | {"seed": 0}], sort_keys=True)
        if kind not in self._seconds:
            self._seconds[kind] = self._compute(spec)
        return self._seconds[kind]

    def _compute(self, spec: dict[str, Any]) -> float:
        # Imported here because it imports ray, which most of this package does without.
        from rllib_efficientzero.efficientzero_config import EfficientZeroConfig

        environment: dict[str, Any] = spec["config"].get("environment", {})
        config = EfficientZeroConfig().environment(spec["env"], **environment)
        config.update_from_dict({key: value for key, value in spec["config"].items() if key != "environment"})
        protocol = config.env_protocol()
        image = DEFAULT_SHAPE if protocol is None else tuple(protocol.describe()["observation_shape"])
        key = json.dumps([config.network_sizes(), config.frame_stack, image], sort_keys=True)
        if key not in self._speeds:
            self._speeds[key] = config.seconds_per_call(image)
        return config.run_seconds(*self._speeds[key])
