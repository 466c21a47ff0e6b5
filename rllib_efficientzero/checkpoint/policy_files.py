"""A policy on disk: `policy.json` says how to build the network, `policy.safetensors` has its weights. No pickle.

The files are not trusted: sizes, names and shapes are checked before memory is allocated for weights, then the hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rllib_efficientzero.checkpoint.files import FileEntry, write_file
from rllib_efficientzero.checkpoint.manifest import (
    MANIFEST,
    RLLIB_MARK,
    CheckpointError,
    check_size,
    find_newest,
    read_sealed_json,
    seal_json,
    versions,
)

logger = logging.getLogger(__name__)

POLICY_DIR = "policy"
POLICY_FILES = f"{POLICY_DIR}/"
"""Prefix of a policy's files in a checkpoint: only these are verified, as the other files may have gigabytes."""
DESCRIPTION = "policy.json"
WEIGHTS = "policy.safetensors"
FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 18
MAX_WEIGHTS_BYTES = 1 << 30
"""The paper's network has 33 MB."""
_HEADER_SIZE = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class PolicyFiles:
    """A policy's description, of which only its hash and format were checked, and the place of its weights."""

    path: pathlib.Path
    """of `policy.json`"""
    content: dict[str, Any]

    @property
    def weights_path(self) -> pathlib.Path:
        return self.path.with_name(WEIGHTS)


def write_policy(directory: pathlib.Path, weights: Mapping[str, Tensor], **description: Any) -> dict[str, FileEntry]:
    """Writes a policy into `directory` (made if needed).

    Args:
        directory: where to write.
        weights: the network's state.
        description: JSON-able; everything needed to build the network and to act with it.

    Returns:
        File name -> manifest entry.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    entry = write_file(directory / WEIGHTS, safetensors.torch.save(tensors))
    content = {"format_version": FORMAT_VERSION, "versions": versions(), **description, "weights": entry}
    return {WEIGHTS: entry, DESCRIPTION: write_file(directory / DESCRIPTION, seal_json(content))}


def newest_policy(
    path: pathlib.Path, *, below: str = "", warn: Callable[[str], object] = logger.warning
) -> pathlib.Path:
    """Returns `path` itself if there is a policy in it, else the newest complete checkpoint in it.

    Args:
        path: a checkpoint, a policy's directory or a trial's.
        below: the files of a checkpoint that must be complete; see `verify`.
        warn: called for every checkpoint that is passed over.

    Raises:
        CheckpointError: there is none.
    """
    if (path / DESCRIPTION).is_file() or (path / POLICY_DIR / DESCRIPTION).is_file():
        return path
    if _is_of_another_algorithm(path):
        raise CheckpointError(
            f"{path} is of another algorithm: only policies of EfficientZero can be played, served and exported."
        )
    newest = find_newest(path, below=below, warn=warn) if path.is_dir() else None
    if newest is None:
        raise CheckpointError(f"There is no policy and no whole checkpoint in {path}.")
    return newest


def _is_of_another_algorithm(path: pathlib.Path) -> bool:
    """Whether `path` is, or directly contains, RLlib checkpoints of which none is ours: ours have a manifest."""
    found = [directory for directory in (path, *path.glob("checkpoint_*")) if (directory / RLLIB_MARK).is_file()]
    return bool(found) and not any(
        (directory / name).exists() for directory in found for name in (MANIFEST, POLICY_DIR)
    )


def read_description(path: pathlib.Path) -> PolicyFiles:
    """Reads the description of the policy in a checkpoint, or in a policy's own directory.

    Raises:
        CheckpointError: there is none, or it is damaged, or of another format version.
    """
    below = path / POLICY_DIR / DESCRIPTION
    file = below if below.exists() else path / DESCRIPTION
    if not file.is_file():
        raise CheckpointError(f"There is no policy in {path}: neither {below} nor {path / DESCRIPTION} exists.")
    content = read_sealed_json(file, MAX_DESCRIPTION_BYTES)
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        needed = content.get("versions", {}).get("rllib_efficientzero", "another version")
        raise CheckpointError(
            f"{file} has format version {found!r}, and this version of rllib_efficientzero reads {FORMAT_VERSION}: the "
            f"policy needs rllib_efficientzero {needed}."
        )
    return PolicyFiles(file, content)


def read_weights(files: PolicyFiles, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads the weights of a policy into new tensors.

    Args:
        files: of the policy.
        expected: tensors with the right names, shapes and dtypes; on torch's "meta" device they take no memory.

    Raises:
        CheckpointError: the file is missing or damaged, or does not hold exactly those tensors.
    """
    path, entry = files.weights_path, files.content.get("weights")
    if not (isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)):
        raise CheckpointError(f"{files.path} is damaged: it does not say what its weights are.")
    size = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if size > MAX_WEIGHTS_BYTES:
        raise CheckpointError(f"{files.path} describes a network of {size} bytes, more than {MAX_WEIGHTS_BYTES}.")
    if not size < entry["size"] <= size + MAX_HEADER_BYTES + _HEADER_SIZE.size:
        raise CheckpointError(
            f"{path} does not fit {files.path}: {entry['size']} bytes are said to hold a network of {size} bytes."
        )
    check_size(path, FileEntry(size=entry["size"], sha256=entry["sha256"]))
    _check_header(path, entry["size"], expected)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 is {found} instead of {entry['sha256']}.")
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def _check_header(path: pathlib.Path, size: int, expected: Mapping[str, Tensor]) -> None:
    """Checks that the file holds exactly the expected tensors, reading only its header."""
    with path.open("rb") as file:
        (length,) = _HEADER_SIZE.unpack(file.read(_HEADER_SIZE.size).ljust(_HEADER_SIZE.size, b"\0"))
        if length > min(MAX_HEADER_BYTES, size - _HEADER_SIZE.size):
            raise CheckpointError(f"{path} is damaged: it states a header of {length} bytes.")
        try:
            header = json.loads(file.read(length))
            found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: its header cannot be read ({error}).") from error
    wanted = {name: (_DTYPE_NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in expected.items()}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{path} does not fit its network: {name!r} is {found.get(name)}, and {wanted.get(name)} is needed."
            )


_DTYPE_NAMES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8"}
