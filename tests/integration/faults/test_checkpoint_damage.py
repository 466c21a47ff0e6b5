"""A damaged checkpoint is refused in one sentence that names the file, and nothing of it is taken over."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import assert_equal, fingerprint, tiny_config, train

from rllib_efficientzero import EfficientZero
from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.checkpoint.manifest import MANIFEST, find_newest, read_sealed_json, seal_json, verify
from rllib_efficientzero.policy import load_policy

TRUNCATIONS = 200
FLIPS = 1_000


@pytest.fixture(scope="module")
def algo(shared_ray: None) -> Iterator[Any]:
    algorithm = train(tiny_config().build_algo(), 10)
    yield algorithm
    algorithm.stop()


@pytest.fixture
def saved(algo: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(algo.save_to_path(tmp_path / "checkpoint_000000"))


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def assert_refused(path: pathlib.Path, directory: pathlib.Path, *facts: str) -> None:
    """`verify` names the file; the message is one sentence without line breaks."""
    with pytest.raises(CheckpointError) as caught:
        verify(directory)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for fact in facts:
        assert fact in message


def test_every_file_is_needed_and_named(saved: pathlib.Path) -> None:
    for path in files_of(saved):
        content = path.read_bytes()
        path.unlink()
        assert_refused(path, saved, "missing")
        path.write_bytes(content)
    verify(saved)


def test_truncated_anywhere(saved: pathlib.Path, measured: Callable[[str], None]) -> None:
    rng = np.random.default_rng(0)
    files = files_of(saved)
    for i in range(TRUNCATIONS):
        path = files[i % len(files)]
        content = path.read_bytes()
        length = int(rng.integers(len(content)))
        path.write_bytes(content[:length])
        if path.name == MANIFEST:
            assert_refused(path, saved, "damaged")
        else:
            assert_refused(path, saved, f"{length} bytes instead of {len(content)}", "sha256")
        path.write_bytes(content)
    verify(saved)
    measured(f"{TRUNCATIONS} of {TRUNCATIONS} truncations refused, in {len(files)} files")


def test_flipped_bits_anywhere(saved: pathlib.Path, measured: Callable[[str], None]) -> None:
    rng = np.random.default_rng(1)
    files = files_of(saved)
    hashes = {name: entry["sha256"] for name, entry in json.loads((saved / MANIFEST).read_text())["files"].items()}
    harmless = 0
    for i in range(FLIPS):
        path = files[i % len(files)]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        if path.name != MANIFEST:
            assert_refused(path, saved, f"instead of {hashes[path.relative_to(saved).as_posix()]}")
        elif not _same_json(content, flipped):
            assert_refused(path, saved)
        else:
            harmless += 1
        path.write_bytes(content)
    verify(saved)
    measured(f"{FLIPS - harmless} of {FLIPS} flipped bits refused, in {len(files)} files; others were white space")


def _same_json(content: bytes, flipped: bytes) -> bool:
    """Whether the flip only made other white space of it."""
    try:
        return bool(json.loads(flipped) == json.loads(content))
    except ValueError:
        return False


def test_a_damaged_checkpoint_changes_nothing(algo: Any, saved: pathlib.Path) -> None:
    train(algo, 2)
    before = fingerprint(algo)
    for path in files_of(saved):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for load in (algo.restore_from_path, EfficientZero.from_checkpoint):
            with pytest.raises(CheckpointError) as caught:
                load(saved)
            assert str(path) in str(caught.value)
            assert caught.value.__cause__ is None or caught.value.__cause__.__cause__ is None
        assert_equal(fingerprint(algo), before)
        path.write_bytes(content)
    algo.restore_from_path(saved)


def test_what_cannot_be_unpickled_changes_nothing(algo: Any, saved: pathlib.Path) -> None:
    """As a file of another version of Ray might be: its hash is right."""
    before = fingerprint(algo)
    path = next(saved.rglob("module_state.pkl"))
    path.write_bytes(b"cno_such_module\nNothing\n.")
    _reseal(saved)
    with pytest.raises(CheckpointError, match=r"module_state\.pkl cannot be unpickled .*written with .*ray 2"):
        algo.restore_from_path(saved)
    assert_equal(fingerprint(algo), before)


def test_other_spaces_and_networks(saved: pathlib.Path) -> None:
    cartpole: Any = tiny_config("CartPole-v1").build_algo()
    before = fingerprint(cartpole)
    with pytest.raises(CheckpointError, match=r"policy\.json is of another run: it has stacked observations"):
        cartpole.restore_from_path(saved)
    assert_equal(fingerprint(cartpole), before)
    cartpole.stop()
    config = tiny_config()
    config.rl_module(model_config={**config.model_config, "lstm_hidden": 16})
    wider: Any = config.build_algo()
    with pytest.raises(CheckpointError, match="it has a network of"):
        wider.restore_from_path(saved)
    wider.stop()


def test_other_versions(algo: Any, saved: pathlib.Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["versions"]["rllib_efficientzero"] = "9.8"
    (saved / MANIFEST).write_bytes(seal_json({**manifest, "format_version": 99}))
    with pytest.raises(CheckpointError, match=r"format version 99.*needs rllib_efficientzero 9\.8"):
        algo.restore_from_path(saved)
    (saved / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"incomplete, or older than rllib_efficientzero 0\.1\.0"):
        algo.restore_from_path(saved)
    # The policy says of itself what it is.
    described = json.loads((saved / "policy" / "policy.json").read_text())
    del described["sha256"]
    described["versions"]["rllib_efficientzero"] = "9.8"
    (saved / "policy" / "policy.json").write_bytes(seal_json({**described, "format_version": 7}))
    with pytest.raises(CheckpointError, match=r"format version 7.*needs rllib_efficientzero 9\.8"):
        load_policy(saved)


def test_the_newest_complete_one_is_found(saved: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    trial = saved.parent
    for name in ("checkpoint_000001", "checkpoint_000002", "checkpoint_000010"):
        shutil.copytree(saved, trial / name)
    (trial / "checkpoint_000010" / MANIFEST).unlink()
    damaged = trial / "checkpoint_000002" / "algorithm_state.pkl"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert find_newest(trial) == trial / "checkpoint_000001"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert str(trial / "checkpoint_000010" / MANIFEST) in warnings[0]
    assert str(damaged) in warnings[1]
    assert find_newest(trial / "nowhere") is None


def test_nothing_else_is_replaced_by_a_checkpoint(algo: Any, saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    (work / "figures").mkdir(parents=True)
    (work / "thesis.tex").write_text("all of it")
    (work / MANIFEST).write_text("{}")  # of a web page, say
    for path in (work, work / "thesis.tex"):
        with pytest.raises(CheckpointError, match=f"^{path} (holds something that is no checkpoint|is a file)"):
            algo.save_to_path(path)
    assert sorted(path.name for path in work.iterdir()) == ["figures", MANIFEST, "thesis.tex"]
    assert (work / "thesis.tex").read_text() == "all of it"
    for path in (saved, work / "figures", work / "new"):
        verify(pathlib.Path(algo.save_to_path(path)))


def test_manifests_as_large_as_they_get(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "replay.json"
    content = {"ongoing": {f"{number:032x}": number for number in range(100_000)}}
    path.write_bytes(seal_json(content))
    assert read_sealed_json(path) == content
    with pytest.raises(CheckpointError, match=f"not one this package writes: it has {path.stat().st_size} bytes"):
        read_sealed_json(path, max_bytes=1 << 20)


def _reseal(directory: pathlib.Path) -> None:
    """Makes the manifest true again, as whoever may write a checkpoint can."""
    from rllib_efficientzero.checkpoint.manifest import write_manifest

    write_manifest(directory, {}, counters={})


def test_a_committed_checkpoint_of_format_1_goes_on(algo: Any) -> None:
    """Written by 0.1.0 (tests/data): what this version reads, it has to go on reading."""
    directory = pathlib.Path(__file__).parents[2] / "data" / "checkpoint-format-1"
    policy = load_policy(directory)
    assert policy.description["num_updates"] == 20
    assert policy.act(np.zeros((3, 2, 4), np.float32)).action.shape == (3,)
    restored: Any = EfficientZero.from_checkpoint(directory)
    assert (restored.num_updates, restored.num_interactions, restored.iteration) == (20, 104, 12)
    assert len(restored.local_replay_buffer) == 104
    restored.train()
    assert (restored.num_updates, restored.num_interactions) == (22, 114)
    restored.stop()
