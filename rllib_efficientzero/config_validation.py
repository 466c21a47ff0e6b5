"""Finds mistakes in a configuration and describes each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rllib_efficientzero.models import ModelConfig
from rllib_efficientzero.models.catalog import networks_class
from rllib_efficientzero.models.precision import PRECISIONS

CHOICES: dict[str, tuple[Any, ...]] = {
    "search": ("puct", "gumbel"),
    "value_target": ("network", "root", "mixed"),
    "first_visit": ("uniform", "prior"),
    "action_representation": ("auto", "enumerated", "sampled"),
    "on_bad_env_step": ("raise", "drop_episode"),
    "mixed_precision": PRECISIONS,
    # The learner supports no other clipping.
    "grad_clip_by": ("global_norm",),
}
SWITCHES = (
    *("use_consistency", "use_value_prefix", "use_off_policy_correction", "use_augmentation"),
    *("compiled_inference", "compiled_learner", "sample_asynchronously", "sync_batch_norm", "wait_for_resources"),
)
SMALLEST = {
    "num_simulations": 1,
    "unroll_steps": 1,
    "td_steps": 1,
    "lstm_horizon": 1,
    "frame_stack": 1,
    "total_env_steps": 1,
    "search_batch_size": 1,
    "num_search_threads": 1,
    "max_considered_actions": 1,
    "num_sampled_actions": 1,
    "num_sampled_leaf_actions": 1,
    "target_network_update_freq": 1,
    "self_play_update_freq": 1,
    "max_consecutive_non_finite_updates": 1,
    "lr_decay_updates": 1,
    "lr_warmup_updates": 0,
    "total_updates": 0,
    "mixed_start_updates": 0,
    "mixed_recent_steps": 0,
    "num_steps_sampled_before_learning_starts": 1,
    "num_reanalyze_actors": 0,
    "reanalyze_prefetch": 0,
    "max_sample_staleness": 0,
}
"""Keys whose values are whole numbers, and the smallest value of each."""
RANGES = {
    "gamma": (0.0, 1.0),
    "reanalyze_ratio": (0.0, 1.0),
    "root_noise_fraction": (0.0, 1.0),
    "dirichlet_alpha": (1e-6, math.inf),
    "gumbel_min_q_range": (1e-8, math.inf),
    "widened_action_share": (0.0, 1.0),
    "widened_action_scale": (1.0, math.inf),
    "entropy_loss_coeff": (0.0, math.inf),
    "off_policy_tau": (1e-6, math.inf),
    "replay_ratio": (0.0, math.inf),
    "consistency_loss_coeff": (0.0, math.inf),
    "value_loss_coeff": (0.0, math.inf),
    "policy_loss_coeff": (0.0, math.inf),
    "value_prefix_loss_coeff": (0.0, math.inf),
    # No schedule of RLlib's, which count environment steps: lr_warmup_updates and lr_decay_* define the schedule.
    "lr": (0.0, math.inf),
    "lr_decay_rate": (0.0, 1.0),
    "grad_clip": (1e-12, math.inf),
    "num_gpus_per_reanalyze_actor": (0.0, math.inf),
    "num_cpus_per_reanalyze_actor": (1e-3, math.inf),
    "reanalyze_timeout_s": (1e-3, math.inf),
}
"""Keys whose values are finite numbers, with the smallest and the largest value."""
MAY_BE_NONE = ("total_updates", "grad_clip", "search_batch_size", "reanalyze_prefetch", "max_sample_staleness")
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "train_batch_size": (32, "`train_batch_size_per_learner` is how many windows an update learns from"),
    "num_epochs": (1, "`replay_ratio` says how often a step is learned from"),
    "minibatch_size": (None, "`train_batch_size_per_learner` is how many windows an update learns from"),
    "batch_mode": ("truncate_episodes", "the replay puts episodes together whatever pieces they come in"),
    "observation_filter": ("NoFilter", "a wrapper of the environment can do it"),
    "clip_rewards": (None, "`clip_rewards` of the `env_config` is what clips those of Atari"),
    "output": (None, "checkpoints hold the replay"),
    "torch_compile_learner": (False, "`compiled_learner` does it on a GPU"),
    "num_aggregator_actors_per_learner": (0, "`num_reanalyze_actors` is for processes that make batches"),
    "use_env_runner_state_server": (False, "the connectors of EnvRunners have no states"),
    "_torch_lr_scheduler_classes": (
        None,
        "`lr_warmup_updates`, `lr_decay_rate` and `lr_decay_updates` are the schedule",
    ),
    "_torch_grad_scaler_class": (None, "`mixed_precision` is bfloat16, whose gradients need no scaling"),
}
"""RLlib's settings that have no effect here -> the default, and what to use instead."""
PLACEMENTS = ("driver", "actor")
"""Processes that can hold the replay."""
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "weight_decay", "nesterov", "dampening"),
    "adam": ("betas", "eps", "weight_decay", "amsgrad"),
}
"""Optimizers and their options, named as torch's."""


def problems(config: Any) -> Iterator[str]:
    """Yields a sentence for every mistake in an `EfficientZeroConfig`."""
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            yield f"`{key}` must be one of {', '.join(map(repr, allowed))}, not {getattr(config, key)!r}."
    for key in SWITCHES:
        if not isinstance(getattr(config, key), bool):
            yield f"`{key}` must be True or False, not {getattr(config, key)!r}."
    for key, smallest in SMALLEST.items():
        value = getattr(config, key)
        if not (_is_whole(value) and value >= smallest) and not (value is None and key in MAY_BE_NONE):
            yield f"`{key}` must be a whole number of at least {smallest}, not {value!r}."
    for key, (low, high) in RANGES.items():
        value = getattr(config, key)
        if not _is_number(value, low, high) and not (value is None and key in MAY_BE_NONE):
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            yield f"`{key}` must be a number {bounds}, not {value!r}."
    yield from _optimizer_problems(config.optimizer)
    yield from _replay_problems(config.replay_buffer_config)
    if not _is_schedule(config.temperature_schedule):
        yield (
            "`temperature_schedule` must be [update, temperature] pairs ascending from update 0, "
            f"not {config.temperature_schedule!r}."
        )
    try:
        networks_class(ModelConfig.from_dict(config.network_sizes()).networks)
    except ValueError as error:
        yield f"{error}."
    yield from _combination_problems(config)


def _optimizer_problems(optimizer: Any) -> Iterator[str]:
    kind = optimizer.get("type") if isinstance(optimizer, dict) else None
    if kind not in OPTIMIZERS:
        yield f"`optimizer` must be a dict with a `type`, one of {sorted(OPTIMIZERS)}, not {optimizer!r}."
    elif unknown := sorted(set(optimizer) - {"type", *OPTIMIZERS[kind]}):
        yield f"unknown options {unknown} of `optimizer` {kind!r}; known: {sorted(OPTIMIZERS[kind])}."


def _replay_problems(settings: dict[str, Any]) -> Iterator[str]:
    known = ("capacity", "alpha", "beta", "placement", "gpu_cache_gb")
    if unknown := sorted(set(settings) - set(known)):
        yield f"unknown `replay_buffer_config` keys {unknown}; known: {sorted(known)}."
    if not _is_whole(settings["capacity"]) or settings["capacity"] < 1:
        yield f"`replay_buffer_config` needs a capacity of at least 1 step, not {settings['capacity']!r}."
    if not _is_number(settings["alpha"], 0.0, math.inf):
        yield f"`replay_buffer_config` needs a priority exponent alpha of at least 0, not {settings['alpha']!r}."
    if settings["placement"] not in PLACEMENTS:
        yield f"`replay_buffer_config` needs a placement, one of {PLACEMENTS}, not {settings['placement']!r}."
    gigabytes = settings.get("gpu_cache_gb")
    if gigabytes is not None and not _is_number(gigabytes, 0.0, math.inf):
        yield f"`replay_buffer_config` needs a gpu_cache_gb of at least 0, or none, not {gigabytes!r}."
    beta = settings["beta"]
    ends = beta if isinstance(beta, list | tuple) else (beta, beta)
    if len(ends) != 2 or not all(_is_number(end, 0.0, math.inf) for end in ends):
        yield f"`replay_buffer_config` needs a beta of at least 0, or its [first, last], not {beta!r}."


def _combination_problems(config: Any) -> Iterator[str]:
    learners = max(1, config.num_learners)
    first, batch = config.num_steps_sampled_before_learning_starts, config.train_batch_size_per_learner
    if _is_whole(first) and first < batch * learners:
        yield (
            "`num_steps_sampled_before_learning_starts` must be at least the train batch size "
            f"({batch} x {learners} learners), because a batch holds different positions."
        )
    if not config.in_evaluation:  # evaluation has other EnvRunners
        yield from _unused_settings(config)
        yield from _budget_problems(config)
        yield from _scale_problems(config)
    if config.is_multi_agent:
        yield "EfficientZero plays single-agent environments only; two players are out of scope."


def _unused_settings(config: Any) -> Iterator[str]:
    for key, (default, instead) in WITHOUT_EFFECT.items():
        value = getattr(config, key)
        if value != default:
            yield f"`{key}` has no effect on EfficientZero and must stay {default!r}, not {value!r}: {instead}."


def _budget_problems(config: Any) -> Iterator[str]:
    """Mistakes with which a run would never learn, never end, or make more updates than configured."""
    first, steps = config.num_steps_sampled_before_learning_starts, config.total_env_steps
    capacity = config.replay_buffer_config["capacity"]
    spare = config.num_envs() - 1  # EnvRunners sample for all environments at once, and never beyond the budget
    least = f"`total_env_steps` less {spare}" if spare else "`total_env_steps`"
    sampled = steps - spare if _is_whole(steps) else steps
    for name, most in ((least, sampled), ("the `capacity` of `replay_buffer_config`", capacity)):
        if _is_whole(first) and _is_whole(most) and first > most:
            yield (
                f"`num_steps_sampled_before_learning_starts` ({first}) must be at most {name} ({most}): learning would "
                "never start."
            )
    if _is_whole(config.total_updates) and _is_whole(steps) and _is_number(config.replay_ratio, 0.0, math.inf):
        owed = config.updates_due(steps)
        if config.total_updates < owed:
            yield (
                f"`total_updates` must be at least the {owed} that `replay_ratio` {config.replay_ratio:g} demands of "
                f"{steps} steps, not {config.total_updates}; None: just these."
            )
    fragment = config.rollout_fragment_length
    if not _is_whole(fragment) or fragment < 1:
        yield f"`rollout_fragment_length` must be a whole number of at least 1, not {fragment!r}."
    for key in ("min_sample_timesteps_per_iteration", "min_train_timesteps_per_iteration"):
        if getattr(config, key):
            yield (
                f"`{key}` must be 0, not {getattr(config, key)!r}: at the end of the budget no iteration would end. "
                "`min_time_s_per_iteration` and `rollout_fragment_length` make iterations longer."
            )


def _scale_problems(config: Any) -> Iterator[str]:
    if config.sample_asynchronously is True and not config.num_env_runners:
        yield "`sample_asynchronously` needs EnvRunners of their own: set `num_env_runners` to at least 1."
    numbers_are_given = _is_number(config.replay_ratio, 0.0, math.inf) and _is_whole(config.rollout_fragment_length)
    if _is_whole(config.max_sample_staleness) and numbers_are_given:
        least = config.self_play_update_freq + config.updates_per_sample()
        if config.max_sample_staleness < least:
            yield (
                f"`max_sample_staleness` must be at least {least}, `self_play_update_freq` and the updates that a "
                f"sample of all EnvRunners owes, not {config.max_sample_staleness}."
            )
    ahead = config.reanalyze_prefetch
    if ahead and config.num_learners and not config.num_reanalyze_actors:
        yield (
            f"`reanalyze_prefetch` {ahead} needs somebody who makes batches ahead: reanalyze actors "
            "(`num_reanalyze_actors`), or a Learner in the algorithm's process (`num_learners` 0)."
        )
    if config.num_learners > 1 and 0 < config.num_gpus_per_learner <= 0.5:
        yield (
            f"`num_gpus_per_learner` must be 0 or more than 0.5 for {config.num_learners} Learners, not "
            f"{config.num_gpus_per_learner:g}: NCCL, which they talk through, refuses two on one GPU."
        )
    if config.sync_batch_norm is True and not (config.num_learners > 1 and config.num_gpus_per_learner > 0):
        yield "`sync_batch_norm` needs at least 2 Learners, and torch has it for GPUs only."


def _is_schedule(points: Any) -> bool:
    if not isinstance(points, Sequence) or not points:
        return False
    if not all(isinstance(point, list | tuple) and len(point) == 2 for point in points):
        return False
    starts = [start for start, _ in points]
    numbers = [number for point in points for number in point]
    return all(_is_number(number, 0.0, math.inf) for number in numbers) and starts[0] == 0 and starts == sorted(starts)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any, low: float, high: float) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and low <= value <= high
