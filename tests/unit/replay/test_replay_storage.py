import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay_helpers import interleaved_chunks, random_episode

from rllib_efficientzero.checkpoint.manifest import seal_json
from rllib_efficientzero.replay import PrioritizedReplay, ReplayLoadError, Windows, segments, storage

DATA = Path(__file__).parents[2] / "data"


def make_replay(capacity: int = 500, seed: int = 0) -> PrioritizedReplay:
    return PrioritizedReplay(capacity, frame_stack=4, unroll_steps=5, td_steps=5, seed=seed)


def filled_replay(
    seed: int = 0, *, capacity: int = 500, masks: bool = False, num_episodes: int = 9
) -> PrioritizedReplay:
    rng = np.random.default_rng(seed)
    ends = ["terminated", "truncated", "ongoing"]
    episodes = [
        random_episode(rng, int(rng.integers(1, 120)), id_=f"e{i}", end=ends[i % 3], masks=masks, shape=(16, 16))
        for i in range(num_episodes)
    ]
    replay = make_replay(capacity, seed)
    replay.add(interleaved_chunks(rng, episodes)[0])
    windows = replay.sample(32, beta=0.4)
    replay.update_priorities(windows.position_ids, rng.exponential(size=32))
    return replay


def assert_equal_windows(a: Windows, b: Windows) -> None:
    for field in fields(Windows):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y


def go_on(replay: PrioritizedReplay) -> list[Windows]:
    """A few batches with priority updates and new episodes in between."""
    rng = np.random.default_rng(99)
    batches = []
    for i in range(5):
        batches.append(replay.sample(48, beta=0.5))
        replay.update_priorities(batches[-1].position_ids, rng.exponential(size=48))
        replay.add([random_episode(rng, 40, id_=f"new{i}", shape=(16, 16), masks=batches[-1].action_mask is not None)])
    return batches


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("capacity", [100, 5000])
def test_a_loaded_replay_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool, capacity: int
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_POSITIONS", 64)
    replay = filled_replay(capacity=capacity, masks=masks)
    replay.save(tmp_path / "replay")
    loaded = make_replay(capacity, seed=12345)
    loaded.load(tmp_path / "replay")
    assert loaded.get_metrics().keys() == replay.get_metrics().keys()
    assert loaded.num_added == replay.num_added
    for a, b in zip(go_on(replay), go_on(loaded), strict=True):
        assert_equal_windows(a, b)
    replay.save(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a" / "replay.json").read_bytes() == (tmp_path / "b" / "replay.json").read_bytes()


def test_an_empty_replay(tmp_path: Path) -> None:
    make_replay(seed=3).save(tmp_path)
    loaded = filled_replay()
    loaded.load(tmp_path)
    assert len(loaded) == loaded.num_added == 0
    fresh = make_replay(seed=3)
    for replay in (loaded, fresh):
        replay.add([random_episode(np.random.default_rng(0), 20)])
    assert_equal_windows(loaded.sample(8, beta=1.0), fresh.sample(8, beta=1.0))


def test_ongoing_episodes_stay_unfinished_or_go_on(tmp_path: Path) -> None:
    episode = random_episode(np.random.default_rng(0), 20, end="terminated")
    replay = make_replay()
    replay.add([episode.part(0, 10)])
    replay.save(tmp_path)
    loaded = make_replay()
    loaded.load(tmp_path)
    windows = loaded.sample(10, beta=1.0)
    assert not windows.terminated.any()
    assert windows.steps_left.max() == 10
    loaded.add([episode.part(10, 20)])
    windows = loaded.sample(20, beta=1.0)
    assert windows.terminated.all()
    assert windows.steps_left.max() == 20


def test_a_smaller_buffer_keeps_the_newest(tmp_path: Path) -> None:
    replay = filled_replay()
    replay.save(tmp_path)
    for capacity in (50, 2000):
        loaded = make_replay(capacity)
        loaded.load(tmp_path)
        assert len(loaded) == min(capacity, len(replay))
        ids = loaded.sample(len(loaded), beta=1.0).position_ids
        assert sorted(ids) == list(range(replay.num_added - len(loaded), replay.num_added))
        np.testing.assert_array_equal(
            loaded._priorities.get(ids % capacity), replay._priorities.get(ids % replay.capacity)
        )


def test_full_segments_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_POSITIONS", 64)
    replay = filled_replay(capacity=5000)
    replay.save(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("segment-*")}
    replay.add([random_episode(np.random.default_rng(5), 100, id_="z", shape=(16, 16))])
    replay.save(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("segment-*")}
    kept = sorted(before)[:-1]
    assert [before[name] for name in kept] == [after[name] for name in kept]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"replay.json", *json.loads((tmp_path / "replay.json").read_text())["files"]}


def test_full_segments_are_linked_from_the_previous_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a process that loaded it, and though their oldest episodes are evicted meanwhile."""
    monkeypatch.setattr(segments, "SEGMENT_POSITIONS", 64)
    replay = filled_replay(capacity=400)
    replay.save(tmp_path / "0")
    replay.add([random_episode(np.random.default_rng(5), 100, id_="z", shape=(16, 16))])
    loaded = make_replay(400)
    loaded.load(tmp_path / "0")
    loaded.add([random_episode(np.random.default_rng(5), 100, id_="z", shape=(16, 16))])
    episodes_before = set(replay._episodes)
    for name, buffer in (("1", replay), ("1b", loaded)):
        buffer.save(tmp_path / name, previous=tmp_path / "0")
    assert (tmp_path / "1" / "replay.json").read_bytes() == (tmp_path / "1b" / "replay.json").read_bytes()

    def segment_files(name: str) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in (tmp_path / name).glob("segment-*")}

    shared = segment_files("0").items() & segment_files("1").items()
    assert len(shared) >= 3
    assert set(replay._episodes) == episodes_before
    # Of what the shared files hold, some has been evicted since they were written.
    replay.add([random_episode(np.random.default_rng(6), 150, id_="y", shape=(16, 16))])
    assert set(replay._episodes) < episodes_before | {max(replay._episodes)}
    replay.save(tmp_path / "2", previous=tmp_path / "1")
    again = make_replay(400)
    again.load(tmp_path / "2")
    for a, b in zip(go_on(replay), go_on(again), strict=True):
        assert_equal_windows(a, b)


def test_a_previous_save_that_is_gone_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_POSITIONS", 64)
    replay = filled_replay()
    replay.save(tmp_path / "0")
    truncated = max((tmp_path / "0").glob("segment-*"))
    truncated.write_bytes(truncated.read_bytes()[:-1])
    for i, previous in enumerate([tmp_path / "0", tmp_path / "nowhere", None]):
        replay.save(tmp_path / f"again{i}", previous)
        loaded = make_replay()
        loaded.load(tmp_path / f"again{i}")
        assert loaded.num_added == replay.num_added


def test_a_crash_while_saving_leaves_the_old_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = filled_replay()
    replay.save(tmp_path)
    expected = replay.num_added
    replay.add([random_episode(np.random.default_rng(5), 100, id_="z", shape=(16, 16))])
    original = storage.write_file
    for crash_at in range(4):
        calls = 0

        def write(path: Path, content: bytes, crash_at: int = crash_at) -> Any:
            nonlocal calls
            if calls == crash_at:
                path.with_name(path.name + ".tmp").write_bytes(content[: len(content) // 2])
                raise OSError("No space left on device")
            calls += 1
            return original(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_file", write)
            try:
                replay.save(tmp_path)
            except OSError:
                loaded = make_replay()
                loaded.load(tmp_path)
                assert loaded.num_added == expected
    replay.save(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    loaded = make_replay()
    loaded.load(tmp_path)
    assert loaded.num_added == replay.num_added


def test_damage_is_named_and_changes_nothing(tmp_path: Path) -> None:
    filled_replay().save(tmp_path)
    target = filled_replay(seed=1)
    expected = target.get_metrics()
    rng = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        damages = [None, b"", content[:-1], content[: len(content) // 2]]
        for _ in range(200):
            flipped = bytearray(content)
            flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(7))
            # Other white space between the values of the manifest is no damage.
            if path.suffix == ".npz" or bytes(flipped).split() != content.split():
                damages.append(bytes(flipped))
        for damage in damages:
            path.unlink(missing_ok=True)
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(ReplayLoadError, match=path.name.replace(".", r"\.")):
                target.load(tmp_path)
            assert target.get_metrics() == expected
        path.write_bytes(content)
    target.load(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    filled_replay().save(tmp_path)
    manifest = json.loads((tmp_path / "replay.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"size": 1, "sha256": ""}
    del manifest["sha256"]
    (tmp_path / "replay.json").write_bytes(seal_json(manifest))
    with pytest.raises(ReplayLoadError, match="list of files"):
        make_replay().load(tmp_path)


def test_other_versions_and_missing_directories(tmp_path: Path) -> None:
    with pytest.raises(ReplayLoadError, match="no saved replay"):
        make_replay().load(tmp_path / "nowhere")
    filled_replay().save(tmp_path)
    manifest = json.loads((tmp_path / "replay.json").read_text())
    del manifest["sha256"]
    (tmp_path / "replay.json").write_bytes(seal_json({**manifest, "format_version": 99}))
    with pytest.raises(ReplayLoadError, match=r"version 99, and this .* reads replays of format version 1 and 2"):
        make_replay().load(tmp_path)


def test_a_save_of_the_first_format_still_loads() -> None:
    """Written by the last commit before format 2; the expected draw is what its buffer drew next."""
    loaded = make_replay(60)
    loaded.load(DATA / "replay-format-1")
    windows = loaded.sample(16, beta=0.5)
    assert windows.position_ids.tolist() == [58, 35, 36, 38, 41, 69, 87, 74, 85, 66, 57, 72, 40, 79, 53, 67]
    assert float(windows.frames.sum()) == 111149.0


def test_nothing_is_pickled(tmp_path: Path) -> None:
    filled_replay(masks=True).save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}
    for path in tmp_path.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(not array.dtype.hasobject for array in arrays.values())
