"""The EnvRunner: RLlib's, with a temperature schedule, seeds of its own, fair evaluation and metrics of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_efficientzero import metrics as names
from rllib_efficientzero.env.atari import is_atari_id, make_atari
from rllib_efficientzero.mcts import SearchResult
from rllib_efficientzero.schedules import piecewise_constant
from rllib_efficientzero.targets.reanalyze import entropy

RNG_STATE = "rng"
STEPS_PER_CHUNK = 16
"""Vector steps between looks at who has finished, when evaluating."""


class EfficientZeroEnvRunner(SingleAgentEnvRunner):
    """Collects episodes whose steps carry `root_value` and `visit_policy`; the search itself is the RLModule's."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._search_totals: dict[str, float] = {}
        self._hidden_steps_reported = 0
        self._env_index_of: dict[str, int] = {}
        super().__init__(config=config, **kwargs)

    # --- Construction ------------------------------------------------------------------------------------------------

    def make_env(self) -> None:
        # RLlib's seeds are seed + worker index, and vector environments add their own index, so that environment 1 of
        # worker 1 would repeat environment 0 of worker 2.
        if self.config.seed is not None:
            self._seed = int(self._seed_sequence("env").generate_state(1)[0]) % 2**31
        self._device = self._acting_device()
        env = self.config.env
        if _is_atari(env) and not _global_registry.contains(ENV_CREATOR, env):
            register_env(env, lambda env_config: make_atari({"game": env, **env_config}))
        super().make_env()

    def _acting_device(self) -> torch.device:
        """RLlib's choice, except that a runner inside the learner's process acts on the learner's GPU."""
        config = self.config
        beside_learner = not self.worker_index and config.num_env_runners == 0 and config.num_learners == 0
        if beside_learner and config.num_gpus_per_learner > 0 and torch.cuda.is_available():
            return torch.device("cuda", config.local_gpu_idx)
        return self._device

    def make_module(self) -> None:
        super().make_module()
        self.module.rng = np.random.default_rng(self._seed_sequence("search"))
        self.module.on_search = self._count_search

    def _seed_sequence(self, purpose: str) -> np.random.SeedSequence:
        """Independent streams per run, runner, evaluation or training, and purpose; fresh entropy without a seed."""
        if self.config.seed is None:
            return np.random.SeedSequence()
        return np.random.SeedSequence([self.config.seed, *self._identity(), *purpose.encode()])

    def _identity(self) -> list[int]:
        return [self.worker_index or 0, int(self.config.in_evaluation)]

    # --- Sampling ----------------------------------------------------------------------------------------------------

    def sample(self, *, num_episodes: int | None = None, **kwargs: Any) -> list[Any]:
        """See RLlib. The temperature follows the number of updates behind the current weights."""
        self.module.temperature = piecewise_constant(self.config.temperature_schedule, int(self.module.num_updates))
        if num_episodes is None:
            episodes = super().sample(**kwargs)
            self._pop_environments(episodes)
        else:
            episodes = self._sample_fairly(num_episodes, explore=kwargs.get("explore"))
        self._log_search()
        return episodes

    def _sample_fairly(self, num_episodes: int, *, explore: bool | None) -> list[Any]:
        """`num_episodes` whole episodes, equally many (but for one) of each environment, begun from its first seed.

        RLlib takes the episodes that end first, in whichever environment. Short ones are counted too often that way,
        and where a bad player loses fast, the score is wrong.
        """
        quota = np.full(self.num_envs, num_episodes // self.num_envs)
        quota[: num_episodes % self.num_envs] += 1
        kept: list[Any] = []
        self._needs_initial_reset = True
        while quota.any():
            episodes = super().sample(num_timesteps=STEPS_PER_CHUNK * self.num_envs, explore=explore)
            for episode, env_index in self._pop_environments(episodes):
                if quota[env_index] > 0:
                    quota[env_index] -= 1
                    kept.append(episode)
        self._needs_initial_reset = True
        self._done_episodes_for_metrics = list(kept)
        return kept

    def _pop_environments(self, episodes: list[Any]) -> list[tuple[Any, int]]:
        """The finished ones of some episodes, with the index of the environment that each was played in."""
        return [(episode, self._env_index_of.pop(episode.id_)) for episode in episodes if episode.is_done]

    def _new_episode(self, env_index: int, episodes: Any = None) -> None:
        super()._new_episode(env_index, episodes)
        in_progress = self._ongoing_episodes if episodes is None else episodes
        self._env_index_of[in_progress[env_index].id_] = env_index

    def _reset_envs(self, *args: Any, **kwargs: Any) -> None:
        self._env_index_of.clear()
        super()._reset_envs(*args, **kwargs)

    def _log_episode_metrics(self, length: int, ret: float, sec: float) -> None:
        super()._log_episode_metrics(length, ret, sec)
        if self.config.in_evaluation:
            self.metrics.log_value(names.EPISODE_RETURNS, ret, reduce="item_series")
            self.metrics.log_value(names.EPISODE_LENGTHS, length, reduce="item_series")

    def pop_hidden_steps(self) -> int:
        """Environment steps taken inside resets since the last call; they count as interactions."""
        if not _is_atari(self.config.env):
            return 0
        hidden_steps = sum(self.env.unwrapped.get_attr("hidden_steps"))
        new, self._hidden_steps_reported = hidden_steps - self._hidden_steps_reported, hidden_steps
        return new

    # --- State -------------------------------------------------------------------------------------------------------

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        rng_state = {"of": self._identity(), "state": self.module.rng.bit_generator.state}
        return super().get_state(*args, **kwargs) | {RNG_STATE: rng_state}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        # RLlib hands the local runner's state to all others, which must not all play alike.
        if RNG_STATE in state and state[RNG_STATE]["of"] == self._identity():
            self.module.rng.bit_generator.state = state[RNG_STATE]["state"]

    # --- Metrics -----------------------------------------------------------------------------------------------------

    def _count_search(self, result: SearchResult) -> None:
        totals = {
            "roots": len(result),
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
