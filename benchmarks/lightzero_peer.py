"""Measures LightZero's EfficientZero on Pong as `lightzero_settings.py` measures ours; run it with LightZero's python.

    python -I benchmarks/lightzero_peer.py [--steps N] [--iterations N] [--batch-size N]

It imports nothing from this package. LightZero's classes do all the work, with its settings for Pong
(`zoo/atari/config/atari_efficientzero_config.py`: 4 grey frames of 64x64, 64 channels, latents of 8x8, LSTM of 512,
8 environments, 50 simulations in its C++ tree, batches of 256, no policy reanalyzed) but on a CPU, with one thread and
the environments in the same process. Measured in CPU time of the process, each after an untimed warm-up:

- self-play: `MuZeroCollector.collect` with search, for `--steps` steps; resets are not timed, as their share in whole
  episodes is small;
- an iteration of the learner on a replay of random steps: `EfficientZeroGameBuffer.sample` (`targets_s`: windows,
  values by the target network) and `policy.learn_mode.forward` (`train_s`: forward, backward, optimiser).

The last line of the output is one JSON object. LightZero 0.2.0 needs Python 3.11 and its own virtual environment:

    python3.11 -m venv lightzero && . lightzero/bin/activate
    pip install torch==2.13.0                # the CPU build, where your index has it: pip's choice may bring CUDA
    pip install --no-deps LightZero==0.2.0 DI-engine==0.5.3    # DI-engine's setuptools<=66.1.1 contradicts torch 2.13
    pip install torch==2.13.0 "numpy<2" gym==0.25.1 "gymnasium[atari]==0.28.0" opencv-python-headless easydict \
        "DI-treetensor>=0.4.0" "DI-toolkit>=0.1.0" trueskill "tensorboardX>=2.2" "wandb<=0.19.0" matplotlib pyyaml \
        enum-tools cloudpickle hickle tabulate click requests responses URLObject pynng redis "mpire>=2.3.5" einops \
        yapf==0.29.0 "flask<=2.0.3" "werkzeug<=2.0.3" pympler minigrid moviepy line_profiler xxhash openai pytest
    pip install --no-deps --target roms ale-py==0.12.1         # its ale-py 0.8.1 has no games, a newer one has
    ale-import-roms roms/ale_py/roms
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
import tempfile
import time
from functools import partial
from typing import Any

import torch
from ding.config import compile_config
from ding.envs import create_env_manager, get_vec_env_setting
from ding.policy import create_policy
from ding.utils import set_pkg_seed
from lzero.entry.utils import random_collect
from lzero.mcts import EfficientZeroGameBuffer
from lzero.policy.random_policy import LightZeroRandomPolicy
from lzero.worker import MuZeroCollector
from zoo.atari.config.atari_efficientzero_config import create_config, main_config

SEED = 0
STEPS_TO_WARM_UP, RANDOM_STEPS = 2, 64
"""Steps of each environment: to warm up, and the fewest random ones that fill the replay."""


class RandomPolicy(LightZeroRandomPolicy):
    """LightZero's random policy, which in 0.2.0 lacks an argument that its collector passes."""

    def _forward_collect(self, *args: Any, timestep: Any = None, **kwargs: Any) -> Any:
        return super()._forward_collect(*args, **kwargs)


def compiled_config(batch_size: int) -> Any:
    """LightZero's settings for Pong, on a CPU and in one process."""
    config, create = copy.deepcopy(main_config), copy.deepcopy(create_config)
    config.policy.cuda = False
    config.policy.device = "cpu"
    config.policy.batch_size = batch_size
    config.policy.random_collect_episode_num = config.policy.n_episode  # one per environment
    create.env_manager.type = "base"
    config.env.manager.auto_reset = False  # `environments` resets before the clock starts
    return compile_config(config, seed=SEED, env=None, auto=True, create_cfg=create, save_cfg=False)


def environments(config: Any, steps_each: int) -> Any:
    """A manager of environments whose episodes end after `steps_each` steps: the collector collects whole episodes."""
    limited = copy.deepcopy(config.env)
    limited.collect_max_episode_steps = steps_each
    make, settings, _ = get_vec_env_setting(limited)
    manager = create_env_manager(copy.deepcopy(limited.manager), [partial(make, cfg=one) for one in settings])
    manager.seed(SEED)
    return manager


def self_play(collector: Any, config: Any, steps_each: int) -> float:
    """Environment steps per CPU second."""
    collector.reset_env(environments(config, steps_each))
    before = collector.envstep
    start = time.process_time()
    collector.collect(policy_kwargs={"temperature": config.policy.fixed_temperature_value, "epsilon": 0.0})
    seconds = time.process_time() - start
    return (collector.envstep - before) / seconds


def random_replay(collector: Any, policy: Any, config: Any) -> Any:
    """A replay with more random steps than a batch has, since none is drawn twice."""
    replay = EfficientZeroGameBuffer(config.policy)
    manager = environments(config, max(RANDOM_STEPS, 2 * config.policy.batch_size // config.policy.collector_env_num))
    collector.reset_env(manager)
    quick = copy.deepcopy(config.policy)
    quick.num_simulations = 1  # LightZero searches even when it acts at random, and only the steps are needed here
    random_collect(quick, policy, RandomPolicy, collector, manager, replay)
    return replay


def learn(policy: Any, replay: Any, batch_size: int, iterations: int) -> dict[str, float]:
    """CPU seconds per iteration of the learner, in total and by part."""
    targets = train = 0.0
    for iteration in range(iterations + 1):
        start = time.process_time()
        batch = replay.sample(batch_size, policy)
        sampled = time.process_time()
        policy.learn_mode.forward(batch)
        if iteration > 0:  # the first warms up
            targets += sampled - start
            train += time.process_time() - sampled
    return {
        "seconds_per_iteration": (targets + train) / iterations,
        "train_s": train / iterations,
        "targets_s": targets / iterations,
    }


def measure(steps: int, iterations: int, batch_size: int) -> dict[str, Any]:
    """Measures all figures and returns them with the versions and settings that they hold for."""
    config = compiled_config(batch_size)
    set_pkg_seed(SEED, use_cuda=False)
    policy = create_policy(config.policy, enable_field=["learn", "collect"])
    collector = MuZeroCollector(
        env=environments(config, STEPS_TO_WARM_UP),
        policy=policy.collect_mode,
        exp_name=config.exp_name,
        policy_config=config.policy,
    )
    self_play(collector, config, STEPS_TO_WARM_UP)
    env_steps_per_s = self_play(collector, config, -(-steps // config.policy.collector_env_num))
    replay = random_replay(collector, policy, config)
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "ale-py", "DI-engine")}
    return {
        "version": importlib.metadata.version("LightZero"),
        "env_steps_per_s": env_steps_per_s,
        **learn(policy, replay, batch_size, iterations),
        "steps": steps,
        "iterations": iterations,
        "batch_size": batch_size,
        "simulations": config.policy.num_simulations,
        "parameters": sum(p.numel() for p in policy.learn_mode.get_attribute("learn_model").parameters()),
        "threads": torch.get_num_threads(),
        **packages,
    }


def main() -> None:
    """Measures and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="steps of all environments to time (default: 160)")
    parser.add_argument("--iterations", type=int, default=4, help="iterations to time (default: 4)")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256; smaller to see whether it runs")
    args = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the collector writes its logs below the current directory
        figures = measure(args.steps, args.iterations, args.batch_size)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
