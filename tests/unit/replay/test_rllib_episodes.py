"""The replay against RLlib's own episode class: lookback buffers, finalized or not, dict observations."""

from typing import Any

import numpy as np
import pytest

from rllib_efficientzero.replay import PrioritizedReplay
from rllib_efficientzero.replay.episode import read_chunk

single_agent_episode = pytest.importorskip("ray.rllib.env.single_agent_episode")

NUM_ACTIONS = 3


def run_episode(
    rng: np.random.Generator, cuts: list[int], *, lookback: int, to_numpy: bool, masks: bool, end: str
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Steps an episode as an EnvRunner does; returns the chunks cut after `cuts` steps and what they should hold."""

    def observation() -> Any:
        frame = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        if not masks:
            return frame
        return {"observations": frame, "action_mask": rng.integers(0, 2, size=NUM_ACTIONS).astype(np.int8)}

    def returned(chunk: Any) -> Any:
        return chunk.to_numpy() if to_numpy else chunk

    log: dict[str, list[Any]] = {"observations": [observation()], "actions": [], "rewards": [], "policies": []}
    episode = single_agent_episode.SingleAgentEpisode()
    episode.add_env_reset(log["observations"][0])
    chunks = []
    for t in range(cuts[-1]):
        log["observations"].append(observation())
        log["actions"].append(int(rng.integers(NUM_ACTIONS)))
        log["rewards"].append(float(np.float32(rng.normal())))
        log["policies"].append(rng.dirichlet(np.ones(NUM_ACTIONS)).astype(np.float32))
        last = t + 1 == cuts[-1]
        episode.add_env_step(
            log["observations"][-1],
            log["actions"][-1],
            log["rewards"][-1],
            terminated=last and end == "terminated",
            truncated=last and end == "truncated",
            extra_model_outputs={"root_value": np.float32(t), "visit_policy": log["policies"][-1]},
        )
        if t + 1 in cuts:
            following = None if last else episode.cut(len_lookback_buffer=lookback)
            chunks.append(returned(episode))
            episode = following
    return chunks, log


@pytest.mark.parametrize("to_numpy", [True, False])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("lookback", [0, 1, 4])
@pytest.mark.parametrize("end", ["terminated", "truncated", "ongoing"])
def test_chunks_become_one_episode(to_numpy: bool, masks: bool, lookback: int, end: str) -> None:
    rng = np.random.default_rng(0)
    chunks, log = run_episode(rng, [3, 4, 11, 20], lookback=lookback, to_numpy=to_numpy, masks=masks, end=end)
    replay = PrioritizedReplay(100, frame_stack=2, unroll_steps=0, td_steps=1, seed=0)
    for chunk in chunks:
        replay.add([chunk])
    assert len(replay) == 20
    windows = replay.sample(20, beta=1.0)
    order = np.argsort(windows.position_ids)
    frames = [o["observations"] for o in log["observations"]] if masks else log["observations"]
    np.testing.assert_array_equal(windows.frames[order, 1], frames[:-1])
    np.testing.assert_array_equal(windows.frames[order, 2], frames[1:])
    np.testing.assert_array_equal(windows.frames[order[1:], 0], frames[:-2])
    np.testing.assert_array_equal(windows.rewards[order, 0], np.float32(log["rewards"]))
    np.testing.assert_array_equal(windows.root_value[order, 0], np.arange(20))
    np.testing.assert_array_equal(windows.visit_policy[order, 0], log["policies"])
    np.testing.assert_array_equal(windows.steps_left[order], 20 - np.arange(20))
    assert (windows.terminated == (end == "terminated")).all()
    if masks:
        assert windows.action_mask is not None
        expected = np.array([o["action_mask"] for o in log["observations"][:-1]], np.uint8)
        expected[~expected.any(axis=-1)] = 1
        np.testing.assert_array_equal(windows.action_mask[order, 0], expected)
    (stored,) = replay._episodes.values()
    assert (stored.terminated, stored.truncated) == (end == "terminated", end == "truncated")
    assert stored.column("actions").tolist() == log["actions"]


def test_missing_extra_output_is_a_sentence() -> None:
    episode = single_agent_episode.SingleAgentEpisode()
    episode.add_env_reset(np.zeros(2, np.float32))
    episode.add_env_step(np.ones(2, np.float32), 1, 0.5)
    with pytest.raises(ValueError, match='no extra model output "root_value"'):
        read_chunk(episode)
