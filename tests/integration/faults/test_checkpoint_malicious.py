"""A policy is loaded from files that somebody else may have written: nothing of them is run, nor believed."""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from policy_helpers import write_tiny_policy
from typer.testing import CliRunner

from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.checkpoint.manifest import MANIFEST, read_manifest, seal_json, verify, write_manifest
from rllib_efficientzero.cli.main import app
from rllib_efficientzero.policy import load_policy

LIMIT = 1 << 20
"""Bytes that a refusal may allocate."""
NUM_CANARIES = 30
RLLIB_FILES = (
    "rllib_checkpoint.json",
    "algorithm_state.pkl",
    "class_and_ctor_args.pkl",
    "env_runner/state.pkl",
    "env_runner/class_and_ctor_args.pkl",
    "env_runner/env_to_module_connector/state.pkl",
    "learner_group/state.pkl",
    "learner_group/learner/state.pkl",
    "learner_group/learner/rl_module/default_policy/module_state.pkl",
    "learner_group/learner/rl_module/default_policy/class_and_ctor_args.pkl",
    "replay/replay.json",
    "replay/state-0123456789abcdef.npz",
    "replay/segment-00000000-0123456789abcdef.npz",
)


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """The layout of a checkpoint with a good policy, and canaries in all other files."""
    directory = tmp_path / "checkpoint_000000"
    write_tiny_policy(directory / "policy")
    canary = pickle.dumps(Canary(tmp_path / "executed"))
    for name in RLLIB_FILES:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canary)
    write_manifest(directory, {})
    return directory


@pytest.fixture(autouse=True)
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every door to pickle is locked."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was unpickled")

    # A class, since torch may derive its own from it.
    locked = type("Locked", (pickle.Unpickler,), {"__init__": refuse})
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", locked)


def canaries(path: pathlib.Path) -> Iterator[bytes]:
    """The same canary in every form in which something would unpickle it."""
    pickled = pickle.dumps(Canary(path))
    yield pickled
    # As `torch.save` writes it, and as `numpy.load` would take it with `allow_pickle=True`.
    archive = io.BytesIO()
    torch.save(Canary(path), archive)
    yield archive.getvalue()
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled
    yield array
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as arrays:
        arrays.writestr("episodes.npy", array)
    yield archive.getvalue()


def test_canaries_are_never_run(
    checkpoint: pathlib.Path, tmp_path: pathlib.Path, measured: Callable[[str], None]
) -> None:
    load_policy(checkpoint)
    verify(checkpoint)
    placed = refused = 0
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path, canary in itertools.product(files, canaries(tmp_path / "executed")):
        content = path.read_bytes()
        path.write_bytes(canary)
        placed += 1
        if path.parent.name == "policy":
            with pytest.raises(CheckpointError, match=path.name):
                load_policy(checkpoint)
            refused += 1
        else:
            load_policy(checkpoint)
        if canary != content:
            with pytest.raises(CheckpointError, match=path.name):
                verify(checkpoint)
        path.write_bytes(content)
    assert placed >= NUM_CANARIES
    assert refused == 2 * len(list(canaries(tmp_path)))
    assert not (tmp_path / "executed").exists()
    measured(f"{placed} canaries placed, 0 run")
    # The canary works where pickle is used.
    pickle._Unpickler(io.BytesIO(next(canaries(tmp_path / "executed")))).load()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "arguments",
    [("evaluate", "--env", "CartPole-v1", "--episodes", "1", "--num-simulations", "0"), ("export", "exported")],
    ids=lambda arguments: arguments[0],
)
def test_commands_run_no_canary(
    checkpoint: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """All files of the checkpoint but its policy are canaries."""
    write_tiny_policy(checkpoint / "policy", num_actions=2)
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    done = CliRunner().invoke(app, [command, str(checkpoint), *rest])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "executed").exists()


def describe(checkpoint: pathlib.Path, **changes: Any) -> None:
    """Forges `policy.json`, its own hash included."""
    path = checkpoint / "policy" / "policy.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_bytes(seal_json(content | changes))


def assert_refused_cheaply(checkpoint: pathlib.Path, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=match):
            load_policy(checkpoint)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LIMIT


def forge_weights(checkpoint: pathlib.Path, content: bytes, sparse_size: int = 0) -> None:
    """Writes weights, and a description that goes with them."""
    import hashlib

    path = checkpoint / "policy" / "policy.safetensors"
    path.write_bytes(content)
    if sparse_size:
        os.truncate(path, sparse_size)
    size = path.stat().st_size
    describe(checkpoint, weights={"size": size, "sha256": hashlib.sha256(content).hexdigest()})


def test_a_header_of_10_gigabytes(checkpoint: pathlib.Path) -> None:
    size = (checkpoint / "policy" / "policy.safetensors").stat().st_size
    forge_weights(checkpoint, struct.pack("<Q", 10 * 2**30).ljust(size, b"x"))
    assert_refused_cheaply(checkpoint, "states a header of 10737418240 bytes")
    # The file itself may be as large as it says: it takes no room on the disk.
    forge_weights(checkpoint, struct.pack("<Q", 10 * 2**30), sparse_size=11 * 2**30)
    assert_refused_cheaply(checkpoint, "does not fit")


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[]",
        b"{" * 5000,
        b'{"a": ' * 5000,
        b"\xff\xfe",
        b'{"x": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}',
        b'{"x": 1}',
    ],
    ids=lambda header: repr(header[:30]),
)
def test_other_headers(checkpoint: pathlib.Path, header: bytes) -> None:
    size = (checkpoint / "policy" / "policy.safetensors").stat().st_size
    forge_weights(checkpoint, (struct.pack("<Q", len(header)) + header).ljust(size, b"\0"))
    assert_refused_cheaply(checkpoint, r"policy\.safetensors")


def test_overlapping_tensors(checkpoint: pathlib.Path) -> None:
    """Names, shapes and dtypes are right, and all tensors lie in the same bytes."""
    path = checkpoint / "policy" / "policy.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for entry in header.values():
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"] = [0, size]
    forged = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(forged) == length
    forge_weights(checkpoint, content[:8] + forged + content[8 + length :])
    assert_refused_cheaply(checkpoint, r"policy\.safetensors is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", {"latent_size": 10**9}),
        ("model", {"latent_size": 1 << 20, "mlp_hidden": [1 << 20] * 8}),
        ("model", {"num_blocks": 10**9}),
        ("model", {"mlp_hidden": [8] * 10**5}),
        ("model", {"no_such_size": 1}),
        ("model", None),
        ("model", {"action_encoding": "__import__('os')"}),
        ("search", {"num_simulations": 10**12}),
        ("search", {"policy": "../../etc/passwd"}),
        ("search", {"no_such_setting": 1}),
        ("search", {"num_simulations": 100_000}),
        ("search", {"first_visit": "last"}),
        ("search", {"discount": 2.0}),
        ("search", {"discount": "much"}),
        ("search", {"value_prefix_horizon": 0}),
        ("search", {"max_considered_actions": 2.5}),
        ("search", {"widened_action_share": "half"}),
        ("observation_space", {"type": "Box", "shape": [10**9, 10**9]}),
        ("observation_space", {"type": "Box", "shape": [2, 10**8], "dtype": "float32", "low": 0, "high": 1}),
        ("observation_space", {"type": "Box", "shape": [1, 1, 1], "dtype": "float32", "low": 0, "high": 1}),
        ("action_space", {"type": "Discrete", "n": 10**15, "start": 0}),
        ("action_space", {"type": "Discrete", "n": 10**6, "start": 0}),
        ("weights", {"size": 10**15, "sha256": "0" * 64}),
        ("weights", {"size": "../..", "sha256": "../.."}),
        ("weights", "../../../etc/passwd"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_descriptions_are_not_believed(checkpoint: pathlib.Path, name: str, value: Any) -> None:
    describe(checkpoint, **{name: value})
    assert_refused_cheaply(checkpoint, "policy")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "./a", "a//b", "..", "a\\..\\b", "policy/../../x", "a\0b"]
)
def test_a_manifest_cannot_name_files_elsewhere(checkpoint: pathlib.Path, name: str) -> None:
    manifest = read_manifest(checkpoint)
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (checkpoint / MANIFEST).write_bytes(seal_json(manifest))
    with pytest.raises(CheckpointError, match="names a file outside of its directory"):
        verify(checkpoint)


def test_links_are_not_followed(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = checkpoint / "policy" / "policy.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    for load in (load_policy, verify):
        with pytest.raises(CheckpointError, match=r"policy\.safetensors is missing"):
            load(checkpoint)
