"""Reanalyze actors and the replay actor: the same run as in one process."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from scale_helpers import tiny_config, train_until

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.actors.reanalyze import ReanalyzeActor, TargetWeights
from rllib_efficientzero.actors.replay_actor import RemoteReplay, ReplayLostError
from rllib_efficientzero.replay import PrioritizedReplay
from tests.integration.faults.tiny_pixels import TinyPixels

pytestmark = pytest.mark.usefixtures("shared_ray")


def fingerprint(algo: EfficientZero) -> str:
    """A hash of all weights, and of the samples that the replay will give."""
    digest = hashlib.sha256()
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID]
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    digest.update(algo.local_replay_buffer.sample(16, beta=1.0).position_ids.tobytes())
    return digest.hexdigest()


def run(config: EfficientZeroConfig) -> tuple[str, dict[str, Any]]:
    algo = config.build_algo()
    result = train_until(algo, lambda result: result["training_done"])
    answer = fingerprint(algo)
    algo.stop()
    return answer, result


def short(**training: Any) -> EfficientZeroConfig:
    return tiny_config(total_env_steps=160, **training)


def test_a_run_with_actors_equals_one_without() -> None:
    """Bit by bit, over several copies of the target network, as long as nothing is made ahead."""
    expected, _ = run(short())
    with_actors, result = run(short().reanalyze(num_actors=2, prefetch=0))
    assert with_actors == expected
    assert result["reanalyze"]["num_inline_batches_lifetime"] == 0
    assert result["learners"][DEFAULT_MODULE_ID]["reanalyze"]["simulations_per_s"] > 0
    with_replay_actor, _ = run(short(replay_buffer_config={"placement": "actor"}).reanalyze(num_actors=1, prefetch=0))
    assert with_replay_actor == expected


def test_batches_made_ahead_come_in_order_and_not_too_late() -> None:
    """The run no longer depends on who is faster, but on how much is made ahead."""
    first, result = run(short().reanalyze(num_actors=2, prefetch=3))
    second, _ = run(short().reanalyze(num_actors=1, prefetch=3))
    assert first == second
    assert result["reanalyze"]["batch_lag"] == 3
    assert run(short())[0] != first


def test_an_actor_makes_the_targets_of_the_learner_of_images_too() -> None:
    config = short().environment(TinyPixels)
    config.rl_module(model_config={"channels": 4, "reduced_channels": 2, "support_size": 20, "lstm_hidden": 8})
    algo = config.build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 6)
    learner = algo.learner_group._learner
    windows = algo.local_replay_buffer.sample(16, beta=1.0)
    expected = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=[windows], shared_data={}, metrics=None
    )[DEFAULT_MODULE_ID]
    module = learner.module[DEFAULT_MODULE_ID]
    state = {name: value.numpy() for name, value in module.target_network.state_dict().items()}
    spec = learner._module_spec.rl_module_specs[DEFAULT_MODULE_ID]
    actor = ray.remote(ReanalyzeActor).remote(algo.config)
    reference = ray.put(windows)
    for version in range(2):
        weights = TargetWeights(version, ray.put((spec, state)))
        _, batch = ray.get(actor.make_batch.remote(reference, weights, algo.num_updates))
        made = batch.policy_batches[DEFAULT_MODULE_ID]
        assert set(made) == set(expected)
        for name, value in expected.items():
            same = np.array_equal(made[name], value.numpy())
            assert same == (version == 0 or name not in ("target_value", "target_policy")), name
        # Other weights are another version: an actor that kept the first would make the same targets again.
        state = {name: value + 0.5 if value.dtype == np.float32 else value for name, value in state.items()}
    algo.stop()


def test_all_parts_of_a_batch_are_made_with_the_same_weights() -> None:
    """With two Learners, while the target network is copied at every update and batches are made ahead."""
    config = short(target_network_update_freq=1).learners(num_learners=2).reanalyze(num_actors=2, prefetch=2)
    algo = config.build_algo()
    versions = []
    request = algo.batches._request

    def recorded(*args: Any) -> Any:
        made = request(*args)
        versions.append((algo.batches._weights.version, made.num_updates, len(made.answers)))
        return made

    algo.batches._request = recorded
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 10)
    algo.stop()
    assert all(version == num_updates and parts == 2 for version, num_updates, parts in versions)
    assert len(versions) >= 12


def settings() -> dict[str, Any]:
    return {"capacity": 100, "frame_stack": 2, "unroll_steps": 3, "td_steps": 2, "seed": 3}


def episode(length: int, seed: int) -> SingleAgentEpisode:
    rng = np.random.default_rng(seed)
    return SingleAgentEpisode(
        observations=list(rng.random((length + 1, 3)).astype(np.float32)),
        actions=list(rng.integers(2, size=length)),
        rewards=list(rng.normal(size=length)),
        extra_model_outputs={
            "root_value": list(np.zeros(length, np.float32)),
            "visit_policy": list(np.full((length, 2), 0.5, np.float32)),
        },
        terminated=True,
        len_lookback_buffer=0,
    )


def test_the_replay_actor_gives_what_a_replay_here_would(tmp_path: pathlib.Path) -> None:
    here, there = PrioritizedReplay(**settings()), RemoteReplay(settings())
    for seed in range(6):
        for replay in (here, there):
            replay.add([episode(30, seed)])
        assert (len(there), there.num_added) == (len(here), here.num_added)
    for _ in range(3):
        expected, sampled = (replay.sample(8, beta=0.5) for replay in (here, there))
        np.testing.assert_array_equal(sampled.position_ids, expected.position_ids)
        np.testing.assert_array_equal(sampled.frames, expected.frames)
        for replay in (here, there):
            replay.update_priorities(expected.position_ids, np.arange(8.0))
    assert there.get_metrics() == here.get_metrics()
    shards = ray.get(there.sample_references(8, beta=0.5, num_shards=2))
    for shard, expected in zip(shards, here.sample(8, beta=0.5).split(2), strict=True):
        assert shard.seed == expected.seed
        np.testing.assert_array_equal(shard.position_ids, expected.position_ids)
    there.save(tmp_path / "replay")
    again = RemoteReplay(settings())
    again.load(tmp_path / "replay")
    assert (len(again), again.num_added) == (len(here), here.num_added)
    np.testing.assert_array_equal(again.sample(8, beta=1.0).position_ids, here.sample(8, beta=1.0).position_ids)
    again.stop()
    there.stop()


def sample_until_lost(replay: RemoteReplay) -> None:
    """A process takes a moment to end."""
    while True:
        replay.sample(4, beta=1.0)


def test_what_is_wrong_in_the_replay_actor_is_said_here() -> None:
    replay = RemoteReplay(settings())
    with pytest.raises(ValueError, match="Cannot sample a batch of 4"):
        replay.sample(4, beta=1.0)
    replay.add([episode(30, 0)])
    replay.update_priorities(np.array([0]), np.array([-1.0]))
    with pytest.raises(ValueError, match="must be finite and not negative"):
        replay.get_metrics()
    assert len(replay.sample(4, beta=1.0)) == 4, "an error that was told is over"
    replay.stop()
    with pytest.raises(ReplayLostError, match="go on from the last checkpoint"):
        sample_until_lost(replay)


def test_a_restored_run_learns_from_no_batch_made_before(tmp_path: pathlib.Path) -> None:
    config = short().reanalyze(num_actors=1, prefetch=2)
    algo = config.build_algo()
    algo.batches._num_inline = 7  # as if the actor had been lost so often
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 3)
    path = algo.save_to_path(tmp_path / "checkpoint")
    target = algo.learner_group._learner.module[DEFAULT_MODULE_ID].target_network.state_dict()
    expected = {name: tensor.clone() for name, tensor in target.items()}
    algo.batches._num_inline += 1
    result = train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    assert result["reanalyze"]["num_inline_batches_lifetime"] == 8
    algo.restore_from_path(path)
    assert algo.metrics.peek(("reanalyze", "num_inline_batches_lifetime")) == 7
    batch = algo._next_batch(num_following=0)
    assert algo.batches.get_metrics()["batch_lag"] == 0
    assert (
        int(batch.training_data.batch.policy_batches[DEFAULT_MODULE_ID]["position_ids"].max()) < algo.num_interactions
    )
    _, published = ray.get(algo.batches._weights.reference)
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.tensor(published[name]), tensor, rtol=0, atol=0)
    algo.stop()
