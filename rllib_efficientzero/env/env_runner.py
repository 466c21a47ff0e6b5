"""The EnvRunner: RLlib's, with a temperature schedule, independent seeds, fair evaluation and metrics of the search."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import ENV_STEP_FAILURE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import ENV_RESET_TIMER, ENV_STEP_TIMER, NUM_EPISODES

from rllib_efficientzero import interruption
from rllib_efficientzero import metrics as names
from rllib_efficientzero.env.evaluating import divided
from rllib_efficientzero.env.guard import DROPPED, BadEnvStepError, EnvFailedError, GuardCounts, GuardPolicy
from rllib_efficientzero.env.making import end_vector_env, make_vector_env
from rllib_efficientzero.env.seeding import without_compiler
from rllib_efficientzero.mcts import SearchResult
from rllib_efficientzero.models import ModelConfig
from rllib_efficientzero.models.scalar_transform import largest_expressible
from rllib_efficientzero.schedules import piecewise_constant
from rllib_efficientzero.targets.reanalyze import entropy

logger = logging.getLogger(__name__)

RNG_STATE = "rng"
STEPS_PER_CHUNK = 16
"""In evaluation, vector steps between checks for finished episodes."""
MAX_VECTORS_LOST = 10
"""How often all environments may fail together in one call of `sample`."""


class EfficientZeroEnvRunner(SingleAgentEnvRunner):
    """Collects episodes whose steps carry `root_value` and `visit_policy`; the search itself is the RLModule's."""

    env: Any

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._search_totals: dict[str, float] = {}
        self._counts_reported = GuardCounts()
        self._hidden_steps = 0
        self._generation = 0
        self._vectors_lost = 0
        self._env_index_of: dict[str, int] = {}
        with without_compiler():
            super().__init__(config=config, **kwargs)

    # --- Construction ------------------------------------------------------------------------------------------------

    def make_env(self) -> None:
        """As RLlib's, with every environment guarded (see `guard`)."""
        self._set_env_seed()
        self._device = self._acting_device()
        if self.env is not None:
            end_vector_env(self.env, failed=self._vectors_lost > 0)
        config = self.config
        context = config.env_config
        if not isinstance(context, EnvContext):
            context = EnvContext(context, self.worker_index, num_workers=self.num_workers)
        vector = make_vector_env(
            config.env,
            context,
            num_envs=config.num_envs_per_env_runner,
            mode=gym.VectorizeMode(config.gym_env_vectorize_mode),
            policy=_guard_policy(config),
            runner=f"EnvRunner {self.worker_index or 0}",
            timeout_s=config.sample_timeout_s,
            representation=config.action_representation,
        )
        self.env = DictInfoToList(vector)
        self.num_envs = self.env.num_envs
        self._counts_reported = GuardCounts()
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    def _set_env_seed(self, evaluation_round: int = 0) -> None:
        # RLlib's seeds are seed + worker index, and vector environments add their own index, so that environment 1 of
        # worker 1 would repeat environment 0 of worker 2.
        if self.config.seed is not None:
            purpose = f"env of round {evaluation_round}" if evaluation_round else "env"
            self._seed = int(self._seed_sequence(purpose).generate_state(1)[0]) % 2**31

    def _acting_device(self) -> torch.device:
        """RLlib's choice, except that a runner inside the learner's process acts on the learner's GPU."""
        config = self.config
        beside_learner = not self.worker_index and config.num_env_runners == 0 and config.num_learners == 0
        if beside_learner and config.num_gpus_per_learner > 0 and torch.cuda.is_available():
            return get_device(config, config.num_gpus_per_learner)
        return self._device

    def make_module(self) -> None:
        super().make_module()
        self.module.eval()  # once: RLlib would switch there and back in every forward pass, which takes milliseconds
        self.module.rng = np.random.default_rng(self._seed_sequence("search"))
        self.module.on_search = self._count_search

    def _seed_sequence(self, purpose: str) -> np.random.SeedSequence:
        """An independent seed for each run, EnvRunner, training or evaluation, and purpose; random without a seed."""
        if self.config.seed is None:
            return np.random.SeedSequence()
        # Generation 0, before any failure, is left out of the seed.
        generation = [self._generation] if self._generation else []
        return np.random.SeedSequence([self.config.seed, *self._identity(), *generation, *purpose.encode()])

    def _identity(self) -> list[int]:
        return [self.worker_index or 0, int(self.config.in_evaluation)]

    def begin_generation(self, generation: int) -> None:
        """Seeds the search and the environments differently from all generations before: otherwise the EnvRunner would
        play the same episodes after a failure as at the start of the run."""
        self._generation = generation
        self._set_env_seed()
        self.module.rng = np.random.default_rng(self._seed_sequence("search"))

    # --- Sampling ----------------------------------------------------------------------------------------------------

    def sample(self, *, num_episodes: int | None = None, evaluation_round: int = 0, **kwargs: Any) -> list[Any]:
        """See RLlib. The temperature follows the number of updates of the current weights.

        Whole episodes begin from the same seeds every time. Only a later `evaluation_round`, which replaces episodes
        that another EnvRunner failed to play, has other seeds: it would repeat this EnvRunner's own episodes.
        """
        self.module.temperature = piecewise_constant(self.config.temperature_schedule, int(self.module.num_updates))
        if num_episodes is None:
            episodes = self._sample_chunks(**kwargs)
            self._pop_environments(episodes)
        else:
            self._set_env_seed(evaluation_round)
            episodes = self._sample_fairly(num_episodes, explore=kwargs.get("explore"))
            self._set_env_seed()
        self._log_search()
        return episodes

    def _sample_fairly(self, num_episodes: int, *, explore: bool | None) -> list[Any]:
        """Plays `num_episodes` whole episodes, divided evenly between the environments, which start from their seeds.

        RLlib takes the episodes that end first, in whichever environment. Short episodes are then counted too often,
        and the score is wrong in games where a bad player loses fast.
        """
        quota = np.array(divided(num_episodes, self.num_envs))
        kept: list[Any] = []
        num_before = self._num_episodes_counted()
        self._needs_initial_reset = True
        while quota.any():
            if not self.worker_index and interruption.requested():
                kept.clear()  # Too few to be fair: the episodes that have ended first are the short ones.
                break
            episodes = self._sample_chunks(num_timesteps=STEPS_PER_CHUNK * self.num_envs, explore=explore)
            for episode, env_index in self._pop_environments(episodes):
                if quota[env_index] > 0:
                    quota[env_index] -= 1
                    kept.append(episode)
        self._needs_initial_reset = True
        self._done_episodes_for_metrics = list(kept)
        # Correct RLlib's count: episodes beyond an environment's share ended, too, but are not scores.
        self._increase_sampled_metrics(0, len(kept) - (self._num_episodes_counted() - num_before))
        return kept

    def _num_episodes_counted(self) -> int:
        """Number of episodes that ended since metrics were last collected."""
        counted = self.metrics.peek(NUM_EPISODES, default=0)
        return 0 if np.isnan(counted) else int(counted)  # RLlib's sum of no values is NaN

    def _sample_chunks(self, **kwargs: Any) -> list[Any]:
        """Samples episodes and chunks as RLlib does, without those that a broken environment cut off."""
        self._vectors_lost = 0
        if self._needs_initial_reset or kwargs.get("force_reset"):
            self._env_index_of.clear()
        episodes = super().sample(**kwargs)
        dropped = [episode for episode in episodes if _was_dropped(episode)]
        for episode in dropped:
            episodes.remove(episode)
            self._done_episodes_for_metrics.remove(episode)
            self._ongoing_episodes_for_metrics.pop(episode.id_, None)
            self._env_index_of.pop(episode.id_, None)
        if self._vectors_lost and "num_timesteps" in kwargs:
            # After such a failure RLlib counts from 0 again. More steps than asked for could exceed the run's budget.
            while sum(map(len, episodes)) >= kwargs["num_timesteps"] + self.num_envs:
                dropped.append(episodes.pop(0))
        self._log_guards(sum(map(len, dropped)))
        return episodes

    def _try_env_step(self, actions: Any) -> Any:
        """As RLlib's, but without its handling of broken environments, which their guards do. An error here concerns
        the whole vector: an environment's process died, or did not answer in time."""
        try:
            with self.metrics.log_time(ENV_STEP_TIMER):
                results = self.env.step(actions)
            self._log_env_steps(metric=self._metrics_num_try_env_step, num_steps=1)
            return results
        except (BadEnvStepError, EnvFailedError):
            raise
        except Exception as error:
            self._replace_vector(error)
            return ENV_STEP_FAILURE

    def _try_env_reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        """As RLlib's, but gives up after `MAX_VECTORS_LOST` failures; see `_try_env_step`."""
        while True:
            try:
                with self.metrics.log_time(ENV_RESET_TIMER):
                    return self.env.reset(seed=seed, options=options)
            except (BadEnvStepError, EnvFailedError):
                raise
            except Exception as error:
                self._replace_vector(error)
                seed = self._seed

    def _replace_vector(self, error: Exception) -> None:
        """Makes all environments anew, or raises."""
        what = (
            f"the environments of EnvRunner {self.worker_index or 0} failed together (one of their processes died, or "
            f"did not answer within sample_timeout_s={self.config.sample_timeout_s}): {type(error).__name__} {error}"
        )
        self._vectors_lost += 1
        if not self.config.restart_failed_sub_environments or self._vectors_lost > MAX_VECTORS_LOST:
            end_vector_env(self.env, failed=True)
            raise EnvFailedError(what) from error
        logger.warning("%s; all of them are made anew", what)
        self.metrics.log_value(names.NUM_ENV_RESTARTS_LIFETIME, self.num_envs, reduce="lifetime_sum")
        self._generation += 1
        self.make_env()

    def _pop_environments(self, episodes: list[Any]) -> list[tuple[Any, int]]:
        """Returns the finished episodes, each with the index of its environment, and forgets that index."""
        return [(episode, self._env_index_of.pop(episode.id_)) for episode in episodes if episode.is_done]

    def _new_episode(self, env_index: int, episodes: Any = None) -> None:
        super()._new_episode(env_index, episodes)
        in_progress = self._ongoing_episodes if episodes is None else episodes
        self._env_index_of[in_progress[env_index].id_] = env_index

    def _log_episode_metrics(self, length: int, ret: float, sec: float) -> None:
        super()._log_episode_metrics(length, ret, sec)
        if self.config.in_evaluation:
            self.metrics.log_value(names.EPISODE_RETURNS, ret, reduce="item_series")
            self.metrics.log_value(names.EPISODE_LENGTHS, length, reduce="item_series")

    def pop_hidden_steps(self) -> int:
        """Returns the environment steps taken inside resets since the last call, which count as interactions."""
        hidden_steps, self._hidden_steps = self._hidden_steps, 0
        return hidden_steps

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

    def _log_guards(self, num_dropped_steps: int) -> None:
        """Logs what the environments' guards have counted since the last sample."""
        vector = self.env.unwrapped
        if gym.VectorizeMode(self.config.gym_env_vectorize_mode) is gym.VectorizeMode.VECTOR_ENTRY_POINT:
            counts = GuardCounts(hidden_steps=getattr(vector, "hidden_steps", 0))
        else:
            counts = sum(vector.get_attr("guard_counts"), start=GuardCounts())
        new, self._counts_reported = counts - self._counts_reported, counts
        self._hidden_steps += new.hidden_steps
        for key, value in (
            (names.NUM_BAD_ENV_STEPS_LIFETIME, new.bad_steps),
            (names.NUM_ENV_RESTARTS_LIFETIME, new.restarts),
            (names.NUM_SATURATED_REWARDS_LIFETIME, new.saturated_rewards),
            (names.NUM_DROPPED_ENV_STEPS_LIFETIME, num_dropped_steps),
        ):
            self.metrics.log_value(key, value, reduce="lifetime_sum")

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


def _guard_policy(config: Any) -> GuardPolicy:
    sizes = ModelConfig.from_dict(config.network_sizes())
    return GuardPolicy(
        drop_bad_episodes=config.on_bad_env_step == "drop_episode",
        restart_failed=config.restart_failed_sub_environments,
        largest_expressible=largest_expressible(sizes.support_size),
    )


def _was_dropped(episode: Any) -> bool:
    return episode.is_done and DROPPED in episode.get_infos(-1)
