"""Every attribute of what makes a run is saved, or known not to be state. A new one has to be put into a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from checkpoint_helpers import tiny_config, train

from rllib_efficientzero import run_state
from rllib_efficientzero.env import runner_state

# What RLlib saves itself: `state[...]` of `Algorithm.get_state`, and their parts.
SAVED_BY_RLLIB = {
    "EfficientZero": {"learner_group", "metrics"},
    "EfficientZeroLearner": {"_module", "_named_optimizers", "_weights_seq_no", "metrics"},
    "EfficientZeroEnvRunner": {"_env_to_module", "_module_to_env"},
    "EfficientZeroRLModule": {"_parameters", "_buffers", "_modules"},
}
# What `run_state`, `env.runner_state` and `replay.buffer` save.
SAVED_BY_US = {
    "EfficientZero": {
        *run_state.COUNTERS,
        *run_state.PROGRESS,
        "local_replay_buffer",
        "env_runner_group",
        "eval_env_runner_group",
    },
    "EfficientZeroLearner": {*run_state.LEARNER_COUNTERS},
    "EfficientZeroEnvRunner": {
        *runner_state.PLAYING,
        "num_env_steps_sampled_lifetime",
        "env",
        "module",
        "_cached_to_module",
        "_ongoing_episodes_for_metrics",
    },
    "EfficientZeroRLModule": {"rng"},
    "PrioritizedReplay": {
        "_rng",
        "_codec",
        "_actions",
        "_has_action_mask",
        "_episodes",
        "_ongoing",
        "_num_episodes_added",
        "_beta",
        "_first_position",
        "_num_added",
        "_priorities",
    },
    "StoredEpisode": {"t_started", "terminated", "truncated", "frames", "_rows"},
}
# What follows from the config, or from what is saved, or does not matter to the future of a run.
DERIVED = {
    "EfficientZero": {
        # the config and the process
        "config", "evaluation_config", "env_creator", "callbacks", "spaces", "reward_estimators", "_env_id", "_storage",
        "_logdir", "_stdout_context", "_stdout_fp", "_stdout_stream", "_stderr_context", "_stderr_fp", "_stderr_stream",
        "_stderr_logging_handler", "_stdout_file", "_stderr_file", "_trial_info", "_local_ip", "_last_checkpoint",
        # clocks, and what Tune counts since a restore
        "_start_time", "_time_since_restore", "_timesteps_since_restore", "_iterations_since_restore", "_last_result",
        "_restored", "_timers", "_counters", "_monitor",
        # empty between iterations, or parts of RLlib that this algorithm does not use
        "_seconds", "_episode_history", "_episodes_to_be_collected", "remote_requests_in_flight", "offline_data",
        "evaluation_dataset", "env_to_module_connector", "module_to_env_connector", "_aggregator_actor_manager",
        "_subject",
        # where batches and samples come from: stateless where runs are exact (inline, synchronous)
        "batches", "self_play",
    },
    "EfficientZeroLearner": {
        "config", "_module_spec", "_module_obj", "_node", "_device", "_is_built", "_learner_index", "_placement_group",
        "_learner_connector", "_optimizer_parameters", "_params", "_module_optimizers", "_optimizer_name_to_module",
        "_optimizer_lr_schedules", "iterator", "_torch_compile_forward_train", "_torch_compile_cfg",
        "_torch_compile_complete_update", "_grad_scalers", "_lr_schedulers", "_lr_scheduler_classes",
        "_possibly_compiled_update",
        # read again from the module's own counter, and saved anew by every update
        "_updates_made",
        # logged at the end of the iteration, and handed over with every update
        "_observed", "_batch_sizes", "_num_env_steps_trained", "_priorities",
        # recorded anew in every process: the same numbers by other means
        "_gradient_steps",
        # what its statistics are fitted with before weights leave, which saving is
        "_last_batch",
        # explain a failure or warn once
        "_divergence_watch", "_has_warned_of_saturation",
    },
    "EfficientZeroEnvRunner": {
        "config", "worker_index", "num_workers", "tune_trial_id", "spaces", "_callbacks", "_device", "num_envs",
        "episodes_to_numpy", "_env_runner_state_server", "_time_after_sampling",
        # metrics: collected after every sample
        "metrics", "_done_episodes_for_metrics",
        # weights are saved with the counter of updates that they were made by
        "_weights_seq_no",
    },
    "EfficientZeroRLModule": {
        "training", "catalog", "config", "observation_space", "action_space", "inference_only", "learner_only",
        "model_config", "action_dist_cls", "num_actions", "search_config", "use_augmentation", "mixed_precision",
        "on_search", "compiled_inference", "_catalog_ctor_error", "_is_setup", "_is_stateful",
        # rebuilt when weights change; buffers that every search fills anew; set by every sample
        "_inference_networks", "searcher", "temperature",
        "_unroll",  # a function, or what it was compiled to
        "target_network",  # None in EnvRunners, in the Learner one of `_modules`
    },
    "PrioritizedReplay": {
        "capacity", "priority_exponent", "_frame_source", "_window_shape", "_num_bytes", "_episode_of_slot",
        "_time_of_slot", "_segment_files",
    },
    "StoredEpisode": {"codec", "actions", "num_live", "_frame_bytes", "column_names", "row_dtype"},
}  # fmt: skip
# Of torch's modules, and RLlib's time series for Prometheus.
IGNORED_PREFIXES = ("_metrics_",)
IGNORED_SUFFIXES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
IGNORED = {"_non_persistent_buffers_set", "_is_full_backward_hook"}


@pytest.fixture(scope="module")
def algo(shared_ray: None) -> Iterator[Any]:
    algorithm: Any = tiny_config().evaluation(evaluation_interval=2, evaluation_duration=2).build_algo()
    yield train(algorithm, 8)
    algorithm.stop()


def owners(algo: Any) -> list[Any]:
    learner, runner = algo.learner_group._learner, algo.env_runner
    return [
        algo,
        learner,
        learner.module["default_policy"],
        runner,
        runner.module,
        algo.local_replay_buffer,
        next(iter(algo.local_replay_buffer._episodes.values())),
    ]


def test_every_attribute_is_accounted_for(algo: Any) -> None:
    for owner in owners(algo):
        name = type(owner).__name__
        known = SAVED_BY_RLLIB.get(name, set()) | SAVED_BY_US.get(name, set()) | DERIVED[name] | IGNORED
        new = {
            attribute
            for attribute in set(vars(owner)) - known
            if not attribute.startswith(IGNORED_PREFIXES) and not attribute.endswith(IGNORED_SUFFIXES)
        }
        assert not new, (
            f"{name} has new attributes {sorted(new)}: save them (`run_state`, `env.runner_state`, `replay`), or list "
            "them here as derived if a run without them goes on just the same"
        )


def test_no_list_is_out_of_date(algo: Any) -> None:
    """Names that nothing has any more hide the next mistake."""
    found: dict[str, set[str]] = {}
    for owner in owners(algo):
        found.setdefault(type(owner).__name__, set()).update(vars(owner))
    optional = {"_last_checkpoint", "env_to_module_connector", "module_to_env_connector"}
    for name, attributes in found.items():
        ours = SAVED_BY_US.get(name, set()) | DERIVED[name]
        assert ours - attributes - optional == set(), name


def test_counters_that_are_listed_are_captured(algo: Any) -> None:
    state = run_state.capture(algo)
    assert set(state["counters"]) == {"num_updates", "num_interactions"}
    assert state["counters"]["num_updates"] == algo.num_updates > 0
    assert state["progress"]["_iteration"] == algo.iteration == 8
    assert len(state["env_runners"]) == len(state["evaluation_env_runners"]) == 1
    assert state["env_runners"][0].environments is not None
    assert state["acting_weights"] is not None, "the tiny config acts with older weights here"
