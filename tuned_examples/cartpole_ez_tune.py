"""The search of `cartpole-ez-tune.yaml` in Python, for whoever wants the results as objects.

python tuned_examples/cartpole_ez_tune.py [--num-samples N] [--total-env-steps N] [--storage-path DIR]
"""

from __future__ import annotations

import argparse
import os

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from rllib_efficientzero import EfficientZero, EfficientZeroConfig

METRIC = "env_runners/episode_return_mean"


def make_config(total_env_steps: int = 4000) -> EfficientZeroConfig:
    """The settings, with search spaces in the place of three of them."""
    return (
        EfficientZeroConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=25)
        .rl_module(
            model_config={
                "latent_size": 128,
                "mlp_hidden": [128],
                "lstm_hidden": 64,
                "support_size": 20,
                "projector_hidden": 128,
                "projector_out": 128,
                "predictor_hidden": 64,
            }
        )
        .training(
            gamma=0.997,
            num_simulations=tune.choice([8, 16, 32]),
            frame_stack=1,
            total_env_steps=total_env_steps,
            total_updates=None,
            replay_ratio=0.3,
            num_steps_sampled_before_learning_starts=500,
            train_batch_size_per_learner=128,
            reanalyze_ratio=0.5,
            td_steps=tune.randint(3, 15),
            optimizer={"type": "adam", "weight_decay": 2.0e-5},
            lr=tune.loguniform(3.0e-4, 1.0e-2),
            lr_warmup_updates=100,
            lr_decay_updates=600,
            temperature_schedule=[[0, 1.0], [500, 0.5], [1000, 0.25]],
            target_network_update_freq=25,
            self_play_update_freq=50,
        )
    )


def make_tuner(
    num_samples: int = 8, total_env_steps: int = 4000, storage_path: str | None = None, grace_period: int = 10
) -> tune.Tuner:
    """A search whose worse trials ASHA ends early."""
    # Before the first episode has ended there is no return; Tune would end the search.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    return tune.Tuner(
        EfficientZero,
        param_space=make_config(total_env_steps),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=num_samples,
            max_concurrent_trials=2,
            scheduler=ASHAScheduler(grace_period=grace_period, max_t=80, reduction_factor=2),
        ),
        run_config=tune.RunConfig(
            name="cartpole-ez-tune-python",
            storage_path=storage_path,
            stop={"training_done": 1},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )


def main() -> None:
    """Runs it and prints the best trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--total-env-steps", type=int, default=4000)
    parser.add_argument("--storage-path")
    args = parser.parse_args()
    best = make_tuner(args.num_samples, args.total_env_steps, args.storage_path).fit().get_best_result()
    searched = {key: best.config[key] for key in ("lr", "num_simulations", "td_steps")}
    print(f"best: return {best.metrics['env_runners']['episode_return_mean']:.1f} with {searched}, {best.path}")


if __name__ == "__main__":
    main()
