"""`rllib train file` on a tiny endless run, as processes."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from checkpoint_helpers import TINY_NETWORK, TINY_TRAINING

TIMEOUT_S = 400.0
"""Of a command; generous, for machines that do other things too."""


def experiment(directory: pathlib.Path, **config: Any) -> pathlib.Path:
    """An experiment file for a run that does not end by itself."""
    settings = {
        **TINY_TRAINING,
        "env": "tiny_pixels.TinyPixels",
        "seed": 0,
        "num_envs_per_env_runner": 2,
        "rollout_fragment_length": 5,
        "num_gpus_per_learner": 0,
        "model_config": TINY_NETWORK,
        **config,
    }
    env = settings.pop("env")
    # JSON is YAML.
    file = directory / "tiny.yaml"
    file.write_text(json.dumps({"tiny": {"run": "EfficientZero", "env": env, "config": settings}}))
    return file


class Command:
    """`rllib train file` in a process group of its own, as a shell starts it."""

    def __init__(
        self, directory: pathlib.Path, file: pathlib.Path, *arguments: str, cluster: str | None = None
    ) -> None:
        """With a ray of its own, or in the `cluster` at an address."""
        path = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.directory = directory
        ray_options = ["--ray-address", cluster] if cluster else ["--ray-num-cpus", "2"]
        options = ["--storage-path", "results", *ray_options, *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rllib_efficientzero", "train", "file", str(file), *options],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.output = ""

    def wait_for(self, sign: str) -> None:
        """Reads the output until a line has `sign`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if sign in line:
                return
        raise AssertionError(f"{sign!r} never came; the command said: {self.output}")

    def end(self) -> int:
        """Waits for the command to end."""
        try:
            output, _ = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.output += output
        return self.process.returncode

    @property
    def trial(self) -> pathlib.Path:
        # Tune copies result.json there some seconds after it began only.
        (protocol,) = self.directory.glob("results/tiny/*/protocol.json")
        return protocol.parent
