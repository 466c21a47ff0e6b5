"""The EnvRunner: RLlib's, with a temperature schedule, seeds of its own and metrics of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_efficientzero import metrics as names
from rllib_efficientzero.env.atari import is_atari_id, make_atari
from rllib_efficientzero.mcts import SearchResult
from rllib_efficientzero.schedules import piecewise_constant
from rllib_efficientzero.targets.reanalyze import entropy

RNG_STATE = "rng"


class EfficientZeroEnvRunner(SingleAgentEnvRunner):
    """Collects episodes whose steps carry `root_value` and `visit_policy`; the search itself is the RLModule's."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._search_totals: dict[str, float] = {}
        self._hidden_steps_reported = 0
        super().__init__(config=config, **kwargs)

    def make_env(self) -> None:
        # RLlib's seeds are seed + worker index, and vector environments add their own index, so that environment 1 of
        # worker 1 would repeat environment 0 of worker 2.
        if self.config.seed is not None:
            self._seed = int(self._seed_sequence("env").generate_state(1)[0]) % 2**31
        env = self.config.env
        if _is_atari(env) and not _global_registry.contains(ENV_CREATOR, env):
            register_env(env, lambda env_config: make_atari({"game": env, **env_config}))
        super().make_env()

    def make_module(self) -> None:
        super().make_module()
        self.module.rng = np.random.default_rng(self._seed_sequence("search"))
        self.module.on_search = self._count_search

    def sample(self, **kwargs: Any) -> list[Any]:
        """See RLlib; the temperature follows the number of updates behind the current weights."""
        self.module.temperature = piecewise_constant(self.config.temperature_schedule, int(self.module.num_updates))
        episodes = super().sample(**kwargs)
        self._log_search()
        return episodes

    def pop_hidden_steps(self) -> int:
        """Environment steps taken inside resets since the last call; they count as interactions."""
        if not _is_atari(self.config.env):
            return 0
        hidden_steps = sum(self.env.get_attr("hidden_steps"))
        new, self._hidden_steps_reported = hidden_steps - self._hidden_steps_reported, hidden_steps
        return new

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return super().get_state(*args, **kwargs) | {RNG_STATE: self.module.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if RNG_STATE in state:
            self.module.rng.bit_generator.state = state[RNG_STATE]

    def _seed_sequence(self, purpose: str) -> np.random.SeedSequence:
        """Independent streams per run, runner, evaluation or training, and purpose; fresh entropy without a seed."""
        if self.config.seed is None:
            return np.random.SeedSequence()
        key = [self.config.seed, self.worker_index or 0, int(self.config.in_evaluation), *purpose.encode()]
        return np.random.SeedSequence(key)

    def _count_search(self, result: SearchResult) -> None:
        roots = len(result)
        totals = {
            "roots": roots,
            "seconds": result.seconds,
            names.ROOT_VALUE: float(result.root_value.sum()),
            names.NETWORK_VALUE: float(result.network_value.sum()),
            names.POLICY_ENTROPY: float(entropy(result.policy).sum()),
            names.PRIOR_ENTROPY: float(entropy(result.prior).sum()),
        }
        for key, value in totals.items():
            self._search_totals[key] = self._search_totals.get(key, 0.0) + value

    def _log_search(self) -> None:
        if not self._search_totals:
            return
        totals, self._search_totals = self._search_totals, {}
        roots, seconds = totals.pop("roots"), totals.pop("seconds")
        values = {key: value / roots for key, value in totals.items()}
        values[names.SIMULATIONS_PER_S] = roots * self.config.num_simulations / seconds
        values[names.TEMPERATURE] = self.module.temperature
        for key, value in values.items():
            self.metrics.log_value((names.SEARCH, key), value, reduce="mean", window=100)


def _is_atari(env: Any) -> bool:
    return isinstance(env, str) and is_atari_id(env)
