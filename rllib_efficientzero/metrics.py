"""Names of all metrics that this package adds to RLlib's results, with meaning and unit.

RLlib's own names stay as they are (`env_runners/episode_return_mean`, `num_env_steps_sampled_lifetime`, ...). Keys
below are relative to where they are logged: the result's top level, `env_runners/`, `learners/default_policy/` or
`replay_buffer/`. Durations are seconds.
"""

from __future__ import annotations

# --- Top level -------------------------------------------------------------------------------------------------------
NUM_UPDATES_LIFETIME = "num_updates_lifetime"
"""Gradient steps taken since the run began (restored from checkpoints)."""
NUM_INTERACTIONS_LIFETIME = "num_interactions_lifetime"
"""Environment steps that count against the budget: those sampled, and those hidden in resets (after a life loss)."""
NUM_RAW_ENV_STEPS_LIFETIME = "num_raw_env_steps_lifetime"
"""`num_interactions_lifetime` in steps of the underlying environment: multiplied by Atari's frame skip (to frames), or
by DMControl's action repeat (to the steps that its 100k benchmark counts)."""
EFFECTIVE_REPLAY_RATIO = "replay_ratio"
"""`num_updates_lifetime` over environment steps sampled so far; converges to the configured `replay_ratio`."""
TRAINING_DONE = "training_done"
"""1 once the budget of environment steps is spent and every update that it requires is made, else 0; a stop
criterion."""

TIMERS = "timers"
"""`timers/<name>`: seconds of an iteration, in the order in which data flows. The sum of those below is the iteration's
wall clock time, RLlib's `time_this_iter_s`, except for evaluation and a few per cent."""
SAMPLE_TIMER = "sample"
REPLAY_ADD_TIMER = "replay_add"
REPLAY_SAMPLE_TIMER = "replay_sample"
"""until the next batch is ready: drawing windows, or waiting for other threads or processes to make a batch of them"""
LEARNER_UPDATE_TIMER = "learner_update"
UPDATE_PRIORITIES_TIMER = "update_priorities"
SYNC_WEIGHTS_TIMER = "sync_weights"
ITERATION_TIMERS = (
    SAMPLE_TIMER,
    REPLAY_ADD_TIMER,
    REPLAY_SAMPLE_TIMER,
    LEARNER_UPDATE_TIMER,
    UPDATE_PRIORITIES_TIMER,
    SYNC_WEIGHTS_TIMER,
)

# --- env_runners/ ----------------------------------------------------------------------------------------------------
SEARCH = "search"
"""`env_runners/search/<name>` and `learners/default_policy/reanalyze/<name>`: statistics of the tree search."""
SIMULATIONS_PER_S = "simulations_per_s"
"""Simulations (one leaf of one root each) per second of search, network included."""
ROOT_VALUE = "root_value"
"""Mean of the search's root values."""
NETWORK_VALUE = "network_value"
"""Mean of the value head's estimates of the same roots; compare with `root_value`."""
PRIOR_ENTROPY = "prior_entropy"
"""Mean entropy (nats) of the policy head at the roots."""
POLICY_ENTROPY = "policy_entropy"
"""Mean entropy (nats) of the search's policies; far below the prior's means that the search decides."""
TEMPERATURE = "temperature"
"""Temperature with which self-play samples from the visit counts."""

SAMPLE_STALENESS = "sample_staleness"
"""`sample_staleness/mean` and `/max` over 100 samples, with asynchronous self-play: updates made between the version of
the weights that played a sample and the storing of the sample."""

EPISODE_RETURNS = "episode_returns"
EPISODE_LENGTHS = "episode_lengths"
"""Return and length of every episode of an evaluation; also written to `evaluation.json` in the run's directory."""
NUM_EPISODES_MISSING = "num_episodes_missing"
"""Not a metric: a key in `evaluation.json`, if EnvRunners were lost: requested episodes that have no score."""

NUM_BAD_ENV_STEPS_LIFETIME = "num_bad_env_steps_lifetime"
"""Steps and resets in which an environment returned invalid values (counted with `on_bad_env_step: drop_episode`)."""
NUM_ENV_RESTARTS_LIFETIME = "num_env_restarts_lifetime"
"""Environments made anew because they raised, died or hung (`restart_failed_sub_environments`)."""
NUM_DROPPED_ENV_STEPS_LIFETIME = "num_dropped_env_steps_lifetime"
"""Steps dropped for either of these two reasons; they are not stored in the replay and count against no budget."""
NUM_SATURATED_REWARDS_LIFETIME = "num_saturated_rewards_lifetime"
"""Rewards beyond what the networks' support can express."""

# --- learners/default_policy/ ----------------------------------------------------------------------------------------
POLICY_LOSS = "policy_loss"
VALUE_LOSS = "value_loss"
VALUE_PREFIX_LOSS = "value_prefix_loss"
CONSISTENCY_LOSS = "consistency_loss"
"""Unweighted loss terms: sum over unroll steps, mean over the batch with importance weights."""
GRADIENT_NORM = "gradient_norm"
"""Global norm of the gradient before clipping."""
LEARNING_RATE = "learning_rate"
NUM_NON_FINITE_UPDATES_LIFETIME = "num_non_finite_updates_lifetime"
"""Updates skipped because a loss or a gradient was not finite."""
SATURATED_TARGETS = "saturated_targets"
"""Share of the value and value prefix targets beyond what the networks' support can express; they are clamped to it."""
VALUE_ERROR = "value_error"
"""`value_error/k`: mean absolute error of the value at unroll step k, in reward units."""
VALUE_PREFIX_ERROR = "value_prefix_error"
"""`value_prefix_error/k`: the same for the value prefix, k from 1."""
TARGET_STALENESS = "target_staleness"
"""Updates since the target network was last copied from the online network."""
PRIORITIES = "priorities"
"""Not a metric: `[B, 2]` pairs (position id, new priority) of the batch, with every update."""

REANALYZE = "reanalyze"
SEARCH_SECONDS = "search_seconds"
TARGETS_SECONDS = "seconds"
"""Seconds per update spent in search, and in building all targets."""
TD_STEPS = "td_steps"
"""`td_steps/mean` and `td_steps/share_l`: the dynamic horizon and the share of samples per horizon l."""
SAMPLE_AGE = "sample_age"
"""Mean age of the sampled positions, in environment steps."""

# --- reanalyze/ (with reanalyze actors) ------------------------------------------------------------------------------
RESTARTS = "restarts"
"""Restarts of reanalyze actors that ended, since this process began; a resumed run starts new actors, and from 0."""
NUM_ACTORS_IN_SERVICE = "num_actors_in_service"
NUM_INLINE_BATCHES_LIFETIME = "num_inline_batches_lifetime"
"""Batches that the Learners reanalyzed themselves, because an actor was lost (restored from checkpoints)."""
BATCH_LAG = "batch_lag"
"""Updates between the drawing of the last batch's windows and the update that learned from it."""

# --- replay_buffer/ --------------------------------------------------------------------------------------------------
NUM_POSITIONS = "num_positions"
NUM_EPISODES = "num_episodes"
NUM_BYTES = "num_bytes"
BYTES_PER_STEP = "bytes_per_step"
MEAN_PRIORITY = "mean_priority"
MAX_PRIORITY = "max_priority"
BETA = "beta"
"""Exponent of the importance weights of the last sample."""
