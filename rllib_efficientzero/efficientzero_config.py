"""Every parameter of EfficientZero, with its meaning, unit and source."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_efficientzero.config_schema import resolve_config
from rllib_efficientzero.config_validation import problems
from rllib_efficientzero.known_keys import schema_of
from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.run_description import RunDescription
from rllib_efficientzero.scale_out_config import ScaleOutConfig
from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig

SET_BY_VALIDATE = ("simple_optimizer",)
"""Attributes that RLlib's `validate` adds to a config; they are in validated configs and nowhere else."""
REPLAY_DEFAULTS = dict[str, Any](capacity=1_000_000, alpha=0.6, beta=(0.4, 1.0), placement="driver", gpu_cache_gb=None)


class EfficientZeroConfig(RunDescription, ScaleOutConfig):
    """Configuration of `EfficientZero`; the defaults are the paper's for Atari 100k (Table 6).

    Example:
        >>> config = (
        ...     EfficientZeroConfig()
        ...     .environment("ale_py:ALE/Pong-v5")
        ...     .training(num_simulations=50, replay_ratio=1.0)
        ...     .evaluation(evaluation_interval=500, evaluation_duration=32)
        ... )
        >>> algo = config.build_algo()  # doctest: +SKIP
    """

    def __init__(self, algo_class: type | None = None) -> None:
        self.exploration_config: dict[str, Any] = {}  # must exist, and be empty, on the new API stack
        if algo_class is None:
            from rllib_efficientzero.efficientzero import EfficientZero

            algo_class = EfficientZero
        super().__init__(algo_class=algo_class)

        self._set_other_defaults_of_rllib()
        # --- Search ---
        self.search = "puct"
        self.num_simulations = 50
        self.dirichlet_alpha = 0.3
        self.root_noise_fraction = 0.25
        self.first_visit = "uniform"
        self.max_considered_actions = 16
        self.gumbel_min_q_range = 0.01
        # --- Sampled actions ---
        self.action_representation = "auto"
        self.num_sampled_actions = 16
        self.num_sampled_leaf_actions = 2
        self.widened_action_share = 0.5
        self.widened_action_scale = 3.0
        self.entropy_loss_coeff = 0.005
        self.search_batch_size: int | None = None
        self.num_search_threads = 1
        self.temperature_schedule: list[tuple[int, float]] = [(0, 1.0), (50_000, 0.5), (75_000, 0.25)]
        # --- Data ---
        self.on_bad_env_step: str | None = "raise"
        self.replay_buffer_config: dict[str, Any] = dict(REPLAY_DEFAULTS)
        self.frame_stack = 4
        self.total_env_steps = 100_000
        self.total_updates: int | None = 120_000
        self.replay_ratio = 1.0
        self.num_steps_sampled_before_learning_starts = 2_000
        # --- Targets ---
        self.unroll_steps = 5
        self.td_steps = 5
        self.reanalyze_ratio = 0.99
        self.value_target = "network"
        self.mixed_start_updates = 30_000
        self.mixed_recent_steps = 5_000
        self.use_off_policy_correction = True
        self.off_policy_tau = 0.3
        self.use_value_prefix = True
        self.lstm_horizon = 5
        # --- Losses and optimisation ---
        self.use_consistency = True
        self.use_augmentation = True
        self.consistency_loss_coeff = 2.0
        self.value_loss_coeff = 0.25
        self.policy_loss_coeff = 1.0
        self.value_prefix_loss_coeff = 1.0
        self.lr_warmup_updates = 1_000
        self.lr_decay_rate = 0.1
        self.lr_decay_updates = 100_000
        self.target_network_update_freq = 200
        self.self_play_update_freq = 100
        self.mixed_precision: bool | str = True
        self.compiled_inference = True
        self.compiled_learner = True
        self.max_consecutive_non_finite_updates = 10

    def _set_other_defaults_of_rllib(self) -> None:
        from rllib_efficientzero.env.env_runner import EfficientZeroEnvRunner

        self.gamma = 0.997**4
        self.lr = 0.2
        self.grad_clip = 5.0
        self.grad_clip_by = "global_norm"
        self.train_batch_size_per_learner = 256
        self.optimizer: dict[str, Any] = {"type": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
        self.env_runner_cls = EfficientZeroEnvRunner
        # The main process trains on a GPU where there is one; say 0 to train without.
        self.num_gpus_per_learner = int(torch.cuda.is_available())
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 4
        self.rollout_fragment_length = 5
        # Searching is slow and evaluation episodes are long; the defaults would throw results away with a warning.
        self.sample_timeout_s = 1800.0
        self.evaluation_sample_timeout_s = 24 * 3600.0
        # Self-play goes on with the others while an EnvRunner starts again; RLlib would wait 30 s in each step.
        # What one failed of is told before it ends, so that no pause is needed to save its log.
        self.env_runner_health_probe_timeout_s = 1.0
        self.env_runner_restore_timeout_s = 180.0
        self.delay_between_env_runner_restarts_s = 1.0
        self.evaluation_duration = 32
        self.evaluation_config = {"explore": False}
        # The environment's own bounds are the border's affair (`env.spaces`).
        self.normalize_actions = False
        # The train batch is made of windows by one piece of our own; the default pieces would flatten the unroll.
        self.add_default_connectors_to_learner_pipeline = False

    # `training` keeps RLlib's signature style: one keyword per parameter, NotProvided meaning "leave as it is".
    def training(
        self,
        *,
        num_simulations: int | None = NotProvided,
        search: str | None = NotProvided,
        dirichlet_alpha: float | None = NotProvided,
        root_noise_fraction: float | None = NotProvided,
        first_visit: str | None = NotProvided,
        max_considered_actions: int | None = NotProvided,
        gumbel_min_q_range: float | None = NotProvided,
        action_representation: str | None = NotProvided,
        num_sampled_actions: int | None = NotProvided,
        num_sampled_leaf_actions: int | None = NotProvided,
        widened_action_share: float | None = NotProvided,
        widened_action_scale: float | None = NotProvided,
        entropy_loss_coeff: float | None = NotProvided,
        search_batch_size: int | None = NotProvided,
        num_search_threads: int | None = NotProvided,
        temperature_schedule: list[tuple[int, float]] | None = NotProvided,
        frame_stack: int | None = NotProvided,
        total_env_steps: int | None = NotProvided,
        total_updates: int | None = NotProvided,
        replay_ratio: float | None = NotProvided,
        num_steps_sampled_before_learning_starts: int | None = NotProvided,
        replay_buffer_config: dict[str, Any] | None = NotProvided,
        optimizer: dict[str, Any] | None = NotProvided,
        unroll_steps: int | None = NotProvided,
        td_steps: int | None = NotProvided,
        reanalyze_ratio: float | None = NotProvided,
        value_target: str | None = NotProvided,
        mixed_start_updates: int | None = NotProvided,
        mixed_recent_steps: int | None = NotProvided,
        use_off_policy_correction: bool | None = NotProvided,
        off_policy_tau: float | None = NotProvided,
        use_value_prefix: bool | None = NotProvided,
        lstm_horizon: int | None = NotProvided,
        use_consistency: bool | None = NotProvided,
        use_augmentation: bool | None = NotProvided,
        consistency_loss_coeff: float | None = NotProvided,
        value_loss_coeff: float | None = NotProvided,
        policy_loss_coeff: float | None = NotProvided,
        value_prefix_loss_coeff: float | None = NotProvided,
        lr_warmup_updates: int | None = NotProvided,
        lr_decay_rate: float | None = NotProvided,
        lr_decay_updates: int | None = NotProvided,
        target_network_update_freq: int | None = NotProvided,
        self_play_update_freq: int | None = NotProvided,
        mixed_precision: bool | str | None = NotProvided,
        compiled_inference: bool | None = NotProvided,
        compiled_learner: bool | None = NotProvided,
        max_consecutive_non_finite_updates: int | None = NotProvided,
        **kwargs: Any,
    ) -> EfficientZeroConfig:
        """Sets the parameters of training; keywords not listed here are RLlib's (`lr`, `gamma`, `grad_clip`, ...).

        Args:
            num_simulations: simulations per search (paper: 50; EfficientZero V2 with "gumbel": 16).
            search: "puct" (the paper) or "gumbel" (EfficientZero V2).
            dirichlet_alpha: concentration of the root noise of "puct" (Table 6: 0.3).
            root_noise_fraction: its share of the root's prior (0.25).
            first_visit: "uniform": the first action below an unvisited node is random, as in the paper's code;
                "prior": it is the most likely one.
            max_considered_actions: actions with which sequential halving begins in "gumbel", if they are enumerated.
            gumbel_min_q_range: "gumbel" stretches the Q values of a node to one range, whatever theirs is, unless it is
                less than this (EfficientZero V2: 0.01). Raise it to the size of the noise in Q values, where policy
                targets (`policy_entropy`) are much narrower than the policy ever becomes (`prior_entropy`).
            action_representation: how actions are searched: "enumerated", each a number of its own; "sampled", drawn
                from the policy (Box of any dimension, MultiDiscrete factor by factor, EfficientZero V2); "auto":
                enumerated if there are at most 1,024 of them.
            num_sampled_actions: sampled actions at the root (EfficientZero V2: 16).
            num_sampled_leaf_actions: and at every other node (2).
            widened_action_share: share of the root's that are drawn from a wider policy (0.5).
            widened_action_scale: how much wider: factor of a standard deviation, temperature of a choice (3).
            entropy_loss_coeff: weight of the negative entropy of the policy, where actions are sampled (EfficientZero
                V2: 0.005 with images, 0.05 with states).
            search_batch_size: roots searched, and observations encoded, in one batch when reanalyzing; bounds memory.
                None: 256 on a CPU, 2048 on a GPU.
            num_search_threads: threads of the tree, for batches of at least 256 roots; does not change results.
            temperature_schedule: [update, temperature] pairs of self-play's action sampling.
            frame_stack: observations stacked for the networks (Table 6: 4).
            total_env_steps: budget of environment interactions, never exceeded (100k). Steps hidden in resets count; an
                action repeated in Atari or DMControl is one.
            total_updates: updates at the end of the run, at least what the replay ratio owes; the others are made after
                the last environment step (Table 6: 120k, of which 20k without collecting). None: what the ratio owes.
            replay_ratio: updates per environment step (1.0), kept exactly, whatever the machine's speed.
            num_steps_sampled_before_learning_starts: random steps before the first update (Table 6: 2000).
            replay_buffer_config: `capacity` in steps (1M), `alpha` priority exponent (0.6), `beta` exponent of the
                importance weights as a constant or [first, last] over the run ([0.4, 1.0]), `placement` in the
                "driver" or in an "actor" of its own, `gpu_cache_gb` (10^9 bytes) for decoded frames on the GPU of a
                Learner in this process (None: an eighth of it).
            optimizer: `type` "sgd" or "adam", and options of torch's class of that name; replaces the default as a
                whole (Table 6: SGD, momentum 0.9, weight decay 1e-4). Momentum begins at zero: SGD's `dampening` counts
                in the first step too, where torch leaves it out.
            unroll_steps: K, steps the model is unrolled in training (Table 6: 5).
            td_steps: largest number of rewards in a value target (Table 6: 5).
            reanalyze_ratio: share of policy targets searched afresh (Table 6: 0.99).
            value_target: what continues an n-step return: "network" (the paper's code), "root" (the paper's text) or
                "mixed" (EfficientZero V2).
            mixed_start_updates: "mixed": updates before search values are used.
            mixed_recent_steps: "mixed": positions younger than this keep n-step targets.
            use_off_policy_correction: shorten the n-step return of old samples (section 4.3).
            off_policy_tau: it shrinks by one step per tau * total_env_steps of age (0.3).
            use_value_prefix: predict sums of rewards by an LSTM (section 4.2); else single rewards.
            lstm_horizon: steps after which the sum starts anew (Table 6: 5).
            use_consistency: self-supervised consistency of imagined and real latents (section 4.1).
            use_augmentation: random shifts and intensities of the learner's images; the original ties it to
                use_consistency, here they are separate.
            consistency_loss_coeff: weight of the consistency loss (Table 6: 2).
            value_loss_coeff: weight of the value loss (0.25).
            policy_loss_coeff: weight of the policy loss (1).
            value_prefix_loss_coeff: weight of the value prefix loss (1).
            lr_warmup_updates: updates over which the learning rate rises from 0 to `lr` (1,000).
            lr_decay_rate: factor by which the learning rate steps down after that (0.1),
            lr_decay_updates: every so many updates (100k).
            target_network_update_freq: updates between copies to the target network (Table 6: 200).
            self_play_update_freq: updates between copies to the EnvRunners (Table 6: 100).
            mixed_precision: bfloat16 where the device is a GPU that has it; "cpu": on CPUs with instructions for it too
                (AVX512_BF16, AMX; others go on as before), where the paper's network is twice as fast by it, and small
                ones are slower.
            compiled_inference: act and reanalyze with folded normalisations, on a CPU as graphs without Python, on a
                GPU as CUDA graphs and by `torch.compile`; else with the networks as they are. Equal up to rounding.
            compiled_learner: learn, on a GPU and if there is one Learner, by both too; else kernel by kernel.
            max_consecutive_non_finite_updates: updates skipped in a row for NaN or infinity that end the run.
        """
        given: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "kwargs", "__class__")
        }
        super().training(**kwargs)
        buffer_config = given.pop("replay_buffer_config")
        if buffer_config is not NotProvided:
            self.replay_buffer_config = {**self.replay_buffer_config, **(buffer_config or {})}
        for key, value in given.items():
            if value is not NotProvided:
                setattr(self, key, value)
        return self

    def fault_tolerance(self, *, on_bad_env_step: str | None = NotProvided, **kwargs: Any) -> EfficientZeroConfig:
        """Sets what happens when something breaks; keywords not listed here are RLlib's.

        Args:
            on_bad_env_step: when an environment returns a reward or an observation that cannot be learned from (NaN,
                infinite, of another shape than its space, ...): "raise" ends the run with a sentence, "drop_episode"
                throws away what was not yet stored of the episode, counts it, and goes on.
        """
        super().fault_tolerance(**kwargs)
        if on_bad_env_step is not NotProvided:
            self.on_bad_env_step = on_bad_env_step
        return self

    # --- What the parts are built from -----------------------------------------------------------------------------

    def search_config(self) -> SearchConfig:
        """The parameters of the tree search."""
        return SearchConfig(
            policy=self.search,
            num_simulations=self.num_simulations,
            discount=self.gamma,
            value_prefix_horizon=self.lstm_horizon if self.use_value_prefix else 1,
            first_visit=self.first_visit,
            dirichlet_alpha=self.dirichlet_alpha,
            root_noise_fraction=self.root_noise_fraction,
            max_considered_actions=self.max_considered_actions,
            gumbel_min_q_range=self.gumbel_min_q_range,
            num_sampled_actions=self.num_sampled_actions,
            num_sampled_leaf_actions=self.num_sampled_leaf_actions,
            widened_action_share=self.widened_action_share,
            widened_action_scale=self.widened_action_scale,
            num_threads=self.num_search_threads,
        )

    def reanalyze_config(self) -> ReanalyzeConfig:
        """How train batches are made of windows."""
        decay_steps = self.off_policy_tau * self.total_env_steps if self.use_off_policy_correction else float("inf")
        return ReanalyzeConfig(
            search=self.search_config(),
            frame_stack=self.frame_stack,
            unroll_steps=self.unroll_steps,
            td_steps=self.td_steps,
            reanalyze_ratio=self.reanalyze_ratio,
            value_target=self.value_target,
            mixed_start_updates=self.mixed_start_updates,
            mixed_recent_steps=self.mixed_recent_steps,
            horizon_decay_steps=decay_steps,
            batch_size=self.search_batch_size,
        )

    def loss_coefficients(self, *, sampled_actions: bool = False) -> dict[str, float]:
        """Weight of each loss, by the names of `losses.losses`; policies of sampled actions have one more."""
        coefficients = {
            "policy": self.policy_loss_coeff,
            "value": self.value_loss_coeff,
            "value_prefix": self.value_prefix_loss_coeff,
        }
        coefficients |= {"entropy": self.entropy_loss_coeff} if sampled_actions else {}
        return coefficients | ({"consistency": self.consistency_loss_coeff} if self.use_consistency else {})

    # --- RLlib's hooks ---------------------------------------------------------------------------------------------

    def update_from_dict(self, config_dict: dict[str, Any]) -> EfficientZeroConfig:
        """As RLlib's, for flat keys or nested groups (`env_runners: {...}`), but a key that means nothing is an error.

        Raises:
            ConfigError: a key is unknown (the message names the nearest) or a value has the wrong type.
        """
        current = self.to_dict()
        # RLlib and Tune hand over whole configs too, with names of their own (`__trial_info__`, `_model_config`, ...).
        changed = {key: value for key, value in config_dict.items() if key not in current or current[key] != value}
        internal = {key: changed.pop(key) for key in list(changed) if key.startswith("_") or key in SET_BY_VALIDATE}
        super().update_from_dict(resolve_config(changed, schema_of(self)).config | internal)
        return self

    def get_default_learner_class(self) -> type:
        from rllib_efficientzero.efficientzero_learner import EfficientZeroLearner

        return EfficientZeroLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_efficientzero.efficientzero_rl_module import EfficientZeroRLModule

        return RLModuleSpec(module_class=EfficientZeroRLModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        # Under one key, apart from the sizes: everything a module needs to act when it is served alone.
        return super()._model_config_auto_includes | {
            "efficientzero": {
                "search": dataclasses.asdict(self.search_config()),
                "use_consistency": self.use_consistency,
                "use_augmentation": self.use_augmentation,
                "mixed_precision": self.mixed_precision,
                "compiled_inference": self.compiled_inference,
            }
        }

    def build_env_to_module_connector(self, env: Any = None, spaces: Any = None, device: Any = None) -> ConnectorV2:
        from rllib_efficientzero.connectors.stack_frames import StackFrames

        pipeline = super().build_env_to_module_connector(env=env, spaces=spaces, device=device)
        pipeline.prepend(
            StackFrames(pipeline.input_observation_space, pipeline.input_action_space, frame_stack=self.frame_stack)
        )
        return pipeline

    def build_learner_connector(
        self, input_observation_space: Any, input_action_space: Any, device: Any = None
    ) -> ConnectorV2:
        from rllib_efficientzero.connectors.reanalyze import Reanalyze

        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        pipeline.append(Reanalyze(config=self.reanalyze_config()))
        return pipeline

    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        evaluation = super().get_evaluation_config_object()
        protocol = None if evaluation is None else evaluation.env_protocol()
        if evaluation is not None and protocol is not None:
            # Atari's scores are of full lives and raw rewards; evaluation_config's env_config has the last word.
            given: Any = self.evaluation_config
            given = given.get("env_config", {}) if isinstance(given, dict) else {}
            evaluation.env_config = {**evaluation.env_config, **protocol.evaluation_settings, **given}
        return evaluation

    def validate(self) -> None:
        super().validate()
        for problem in problems(self):
            self._value_error(problem)
        # Frames are stacked from what an episode remembers of its earlier chunks.
        self.episode_lookback_horizon: int = max(self.episode_lookback_horizon, self.frame_stack)
