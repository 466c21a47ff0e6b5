"""Evaluates any algorithm of RLlib from a trusted checkpoint, which is unpickled here, in a local Ray."""

from __future__ import annotations

import pathlib
import time
from typing import Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.ray_session import RayOptions, ray_session


def evaluate_algorithm(
    checkpoint: pathlib.Path, *, episodes: int, seed: int, env: str | None, env_config: dict[str, Any]
) -> dict[str, Any]:
    """Plays `episodes` with the algorithm's evaluation settings, in this process.

    Raises:
        InputError: the checkpoint cannot be loaded, or its episodes are not those of a single agent.
    """
    from ray.rllib.algorithms.algorithm import Algorithm

    from rllib_efficientzero.checkpoint.manifest import versions

    started = time.perf_counter()
    with ray_session(RayOptions()):
        try:
            trained = Algorithm.from_checkpoint(str(checkpoint.absolute()))
        except Exception as error:
            # Unpickling and building raise whatever they like.
            message = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{checkpoint} cannot be loaded: {message[:500]}") from error
        config = trained.config.copy(copy_frozen=False)
        config.evaluation(
            evaluation_interval=1,
            evaluation_num_env_runners=0,
            evaluation_config={"explore": False, **_environment(env, env_config)},
        )
        config.env_runners(num_env_runners=0, num_envs_per_env_runner=1).debugging(seed=seed)
        trained.stop()
        algorithm = config.build_algo()
        try:
            algorithm.restore_from_path(str(checkpoint.absolute()))
            algorithm.eval_env_runner_group.sync_weights(
                from_worker_or_learner_group=algorithm.learner_group, inference_only=True
            )
            played = algorithm.eval_env_runner.sample(num_episodes=episodes, explore=False)
            name, algorithm_name = str(env or config.env), type(algorithm).__name__
        finally:
            algorithm.stop()
    if any(not hasattr(episode, "get_return") for episode in played):
        raise InputError(f"{algorithm_name}: only algorithms of one agent can be evaluated")
    return {
        "env": name,
        "algorithm": algorithm_name,
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
        "episodes": [
            {
                "seed": None,
                "return": float(episode.get_return()),
                "length": len(episode),
                "terminated": bool(episode.is_terminated),  # numpy's, after some environments
            }
            for episode in played
        ],
    }


def _environment(env: str | None, env_config: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if env is not None:
        settings["env"] = env
    if env_config:
        settings["env_config"] = env_config
    return settings
