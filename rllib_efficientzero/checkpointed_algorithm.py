"""Saving and restoring an Algorithm: completely, with checks, and writing only what has changed.

A checkpoint directory:

    manifest.json               format, versions, counters; size and sha256 of every other file; written last
    policy/                     policy.json and policy.safetensors, for `policy.load_policy`; no pickle
    replay/                     see `replay.storage`; full segments are hard links to the previous checkpoint's
    algorithm_state.pkl, learner_group/, env_runner/, ...
                                RLlib's pickles, to be loaded only if trusted; `run_state` is in algorithm_state.pkl
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import pyarrow.fs
import ray
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_OPTIMIZER,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint

from rllib_efficientzero import run_files, run_state
from rllib_efficientzero.checkpoint import remote
from rllib_efficientzero.checkpoint.files import staged_directory, staging_path
from rllib_efficientzero.checkpoint.fit import check_description, check_learner
from rllib_efficientzero.checkpoint.manifest import (
    CheckpointError,
    check_replaceable,
    read_manifest,
    recover_replaced,
    verify,
    write_manifest,
)
from rllib_efficientzero.checkpoint.policy_files import POLICY_DIR, read_description, write_policy
from rllib_efficientzero.checkpoint.spaces import space_to_json
from rllib_efficientzero.models import ModelConfig
from rllib_efficientzero.models.catalog import path_of
from rllib_efficientzero.replay import storage

logger = logging.getLogger(__name__)

RUN_STATE = "run_state"
REPLAY_DIR = "replay"
NETWORK_PREFIX = "network."


class CheckpointedAlgorithm(Algorithm):
    """The base class that saves and restores `EfficientZero` exactly.

    Episodes in progress are part of the state if their environments' state can be saved (see `env.env_state`). If not,
    saving cuts them short in the run that goes on as well as in the resumed one, so that both stay equal.
    """

    local_replay_buffer: Any
    num_updates: int
    num_interactions: int
    _last_checkpoint: pathlib.Path | None = None
    """The newest checkpoint written or restored: files that have not changed since then are not written again."""

    @property
    def run_directory(self) -> pathlib.Path:
        """The directory of this run's files on this machine: that of Tune's `result.json`, or without Tune RLlib's log
        directory. If Tune's storage is remote, it is Tune's working directory, and the files are uploaded as well."""
        if self._has_local_storage():
            return pathlib.Path(self._storage.trial_fs_path)
        return pathlib.Path(self.logdir)

    def _run_files_place(self) -> run_files.Place:
        if self._storage is None or self._has_local_storage():
            return run_files.Place(self.run_directory)
        return run_files.Place(self.run_directory, self._storage.storage_filesystem, self._storage.trial_fs_path)

    # --- State in memory ---------------------------------------------------------------------------------------------

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's, with the `run_state` added. The replay is never included, since that would copy it in memory."""
        with_run_state = self._check_component(RUN_STATE, components, not_components)
        # First, because it may store samples that change RLlib's state as well.
        captured = run_state.capture(self) if with_run_state else None
        state = super().get_state(components, not_components=not_components, **kwargs)
        return state if captured is None else state | {RUN_STATE: captured}

    def store_arrived(self) -> None:
        """Stores the samples that have arrived since the last iteration.

        `run_state.capture` calls it after capturing the EnvRunners' states, which are those after these samples.
        """

    def set_state(self, state: dict[str, Any]) -> None:
        """As RLlib's, but takes a state even if the algorithm has newer weights than it."""
        self.learner_group.foreach_learner(_take_any_weights)
        super().set_state(state)
        if RUN_STATE in state:
            run_state.restore(self, state[RUN_STATE])

    # --- Saving ------------------------------------------------------------------------------------------------------

    def save_to_path(
        self, path: str | pathlib.Path | None = None, *, state: Any = None, filesystem: Any = None, **kwargs: Any
    ) -> str:
        """Writes a checkpoint. An earlier checkpoint in `path` stays there until the new one is complete.

        Args:
            path: a directory, made if needed, or the URI of one; None: a new one in the system's temporary directory.
            state: write this state instead, in RLlib's format only.
            filesystem: of `path`, if it is not local.

        Raises:
            CheckpointError: `path` is a directory that holds something other than a checkpoint, or cannot be replaced.
        """
        if state is not None:
            return super().save_to_path(path, state=state, filesystem=filesystem, **kwargs)
        target = pathlib.Path(tempfile.mkdtemp()) if path is None else _local_path(path, filesystem)
        if target is None:
            return self._upload(path, filesystem)
        check_replaceable(target)
        state = self.get_state()
        captured, learned = state[RUN_STATE], _learned_weights(state)
        with staged_directory(target) as staging:
            super().save_to_path(staging, state=state, **kwargs)
            write_policy(staging / POLICY_DIR, learned, **self._describe_policy())
            previous = self._last_checkpoint and self._last_checkpoint / REPLAY_DIR
            self.local_replay_buffer.save(staging / REPLAY_DIR, previous=previous)
            files = storage.read_manifest(staging / REPLAY_DIR)["files"]
            write_manifest(
                staging,
                known={f"{REPLAY_DIR}/{name}": entry for name, entry in files.items()},
                counters={**captured["counters"], "training_iteration": self.iteration},
            )
        self._last_checkpoint = target.resolve()
        run_state.begin_anew_where_needed(self, captured)
        return str(target)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """As Tune's, but writes a local checkpoint in place: Tune writes a temporary directory and copies all of it."""
        storage_context = self._storage
        if checkpoint_dir is not None or not self._has_local_storage():
            return super().save(checkpoint_dir)
        trial = pathlib.Path(storage_context.trial_fs_path)
        for leftover in trial.glob(staging_path(pathlib.Path("checkpoint_*")).name):
            shutil.rmtree(leftover, ignore_errors=True)
        storage_context._update_checkpoint_index({})
        # A run that was killed may have written checkpoints that Tune did not record. The newest needs the last name.
        while any(path.name >= storage_context.checkpoint_dir_name for path in trial.glob("checkpoint_*")):
            storage_context._update_checkpoint_index({})
        self.save_checkpoint(storage_context.checkpoint_fs_path)
        storage_context.persist_artifacts(force=storage_context.sync_config.sync_artifacts_on_checkpoint)
        checkpoint = Checkpoint(storage_context.checkpoint_fs_path, storage_context.storage_filesystem)
        return _TrainingResult(checkpoint=checkpoint, metrics=dict(self._last_result or {}))

    def _has_local_storage(self) -> bool:
        return self._storage is not None and isinstance(self._storage.storage_filesystem, pyarrow.fs.LocalFileSystem)

    def _upload(self, path: Any, filesystem: Any) -> str:
        filesystem, place = _remote_path(path, filesystem)
        remote.check_replaceable(filesystem, place)
        with tempfile.TemporaryDirectory() as directory:
            saved = self.save_to_path(pathlib.Path(directory) / "checkpoint")
            self._last_checkpoint = None
            remote.upload(pathlib.Path(saved), filesystem, place)
        return place

    def _describe_policy(self) -> dict[str, Any]:
        observation_space, action_space = self.spaces[DEFAULT_MODULE_ID]
        evaluation = self.config.get_evaluation_config_object() or self.config
        return {
            "observation_space": space_to_json(observation_space),
            "action_space": space_to_json(action_space),
            "model": _model_sizes(self.config),
            "search": dataclasses.asdict(self.config.search_config()),
            "frame_stack": self.config.frame_stack,
            "mixed_precision": self.config.mixed_precision,
            "num_updates": self.num_updates,
            "num_interactions": self.num_interactions,
            # For playing on as self-play did: the search's own settings do not contain it.
            "temperature_schedule": [list(point) for point in self.config.temperature_schedule],
            "protocol": self.config.describe_protocol(),
            "env_config": _plain(self.config.env_config),
            "evaluation_env_config": _plain(evaluation.env_config),
        }

    # --- Restoring ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> Any:
        """As RLlib's; the checkpoint must be trusted. Its files are checked before any is unpickled."""
        if isinstance(path, Checkpoint):
            return super().from_checkpoint(path, filesystem, **kwargs)
        local = _local_path(path, filesystem)
        if local is not None:
            recover_replaced(local)
            verify(local)
            return super().from_checkpoint(path, filesystem, **kwargs)
        filesystem, place = _remote_path(path, filesystem)
        with tempfile.TemporaryDirectory() as directory:
            remote.download(filesystem, place, pathlib.Path(directory))
            algorithm = cls.from_checkpoint(directory, **kwargs)
            algorithm._last_checkpoint = None
        return algorithm

    def restore_from_path(
        self, path: str | pathlib.Path, *, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """Restores a trusted checkpoint, after checking that it is complete and fits this algorithm.

        The optimizer's options and the environment's settings stay those of the config, not those of the checkpoint.

        Args:
            path: a directory, or the URI of one.
            component: restore this alone, as RLlib does it.
            filesystem: of `path`, if it is not local.

        Raises:
            CheckpointError: it is incomplete, damaged, from another version, or of other spaces, networks,
                numbers of sampled actions, or another kind of optimizer.
        """
        if component is not None:
            super().restore_from_path(path, component=component, filesystem=filesystem, **kwargs)
            return
        local = _local_path(path, filesystem)
        if local is not None:
            self._restore(local)
            return
        filesystem, place = _remote_path(path, filesystem)
        with tempfile.TemporaryDirectory() as directory:
            remote.download(filesystem, place, pathlib.Path(directory))
            self._restore(pathlib.Path(directory))
            self._last_checkpoint = None

    def _restore(self, path: pathlib.Path) -> None:
        recover_replaced(path)
        verify(path)
        description = read_description(path)
        check_description(description.path, description.content, self._describe_policy())
        state = _read_state(path)
        learner = state[COMPONENT_LEARNER_GROUP][COMPONENT_LEARNER]
        (optimizer,) = (saved["state"] for saved in learner[COMPONENT_OPTIMIZER].values())
        weights = list(learner[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])
        check_learner(path, weights=weights, optimizer=optimizer, config=self.config)
        self.set_state(state)
        # Last: by now, batches made ahead from the old replay have been dropped; and if setting the state fails, the
        # replay stays as it was.
        self.local_replay_buffer.load(path / REPLAY_DIR)
        self._last_checkpoint = path
        run_files.forget_later_evaluations(
            self._run_files_place(),
            self.config.describe_protocol(),
            num_interactions=self.num_interactions,
            num_updates=self.num_updates,
            iteration=self.iteration,
        )


def _learned_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights out of an algorithm's state."""
    module = state[COMPONENT_LEARNER_GROUP][COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    return {
        name.removeprefix(NETWORK_PREFIX): torch.as_tensor(value)
        for name, value in module.items()
        if name.startswith(NETWORK_PREFIX)
    }


def _plain(env_config: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's settings that JSON can represent: in most cases, enough to make the environment again."""
    kept = {}
    for key, value in env_config.items():
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            kept[key] = json.loads(json.dumps(value, allow_nan=False))
    return kept


def _model_sizes(config: Any) -> dict[str, Any]:
    """The network's sizes in the form in which JSON returns them."""
    sizes = dataclasses.asdict(ModelConfig.from_dict(config.network_sizes()))
    if (networks := sizes.pop("networks")) is not None:
        sizes["networks"] = path_of(networks)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}


def _take_any_weights(learner: Any) -> None:
    # By this number, a Learner would keep its own weights if they are newer.
    learner._weights_seq_no = 0


def _read_state(directory: pathlib.Path) -> dict[str, Any]:
    """Reads all of RLlib's state files of a checkpoint into one state, so that none is applied before all are read."""
    state: dict[str, Any] = {}
    for file in sorted(directory.glob("*state.pkl")):
        try:
            state |= cloudpickle.loads(file.read_bytes())
        except Exception as error:
            # Unpickling runs arbitrary code, and may raise any error.
            versions = _stated_versions(directory)
            raise CheckpointError(
                f"{file} cannot be unpickled with ray {ray.__version__} ({type(error).__name__}: {error}); the "
                f"checkpoint was written with {versions}."
            ) from error
    for below in sorted(directory.iterdir()):
        if (below / Algorithm.CLASS_AND_CTOR_ARGS_FILE_NAME).exists():
            state[below.name] = _read_state(below)
    return state


def _stated_versions(directory: pathlib.Path) -> str:
    """The versions in the manifest of a checkpoint; `directory` may also be a part of one."""
    for parent in (directory, *directory.parents):
        try:
            versions = read_manifest(parent)["versions"]
        except CheckpointError:
            continue
        return ", ".join(f"{name} {version}" for name, version in versions.items())
    return "unknown versions"


def _local_path(path: Any, filesystem: Any) -> pathlib.Path | None:
    """The path, if it is on this machine; else None."""
    if filesystem is not None and not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return None
    text = str(path)
    if "://" in text:
        found, text = pyarrow.fs.FileSystem.from_uri(text)
        if not isinstance(found, pyarrow.fs.LocalFileSystem):
            return None
    return pathlib.Path(text).expanduser().absolute()


def _remote_path(path: Any, filesystem: Any) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path that is not on this machine, and the path within it."""
    place = str(path)
    if filesystem is None:
        filesystem, place = pyarrow.fs.FileSystem.from_uri(place)
    return filesystem, place.rstrip("/")
