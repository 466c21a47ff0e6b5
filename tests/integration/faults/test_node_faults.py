"""Several Ray nodes on this host: the driver and its Learner on the head, self-play and reanalysis on two others."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from rllib_efficientzero import EfficientZero
from tests.integration.scale_helpers import tiny_config, train_until

FALL_BACK_S = 60.0
"""Within which the run goes on: Ray takes some time to find a node dead."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that runs nothing but the driver, and two nodes with room for all other processes each."""
    ray.shutdown()
    # A place of its own, or whoever calls `ray.init()` on this host meanwhile would join this cluster.
    directory = tempfile.mkdtemp(prefix="ray")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "gcs_server_port": 0}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=3)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


def node_of(handle: object) -> str:
    return ray.get_runtime_context().get_node_id()


def nodes_of_actors(algo: EfficientZero) -> list[str]:
    return [result.get() for result in algo.batches._manager.foreach_actor(node_of)]


def nodes_of_runners(algo: EfficientZero) -> list[str]:
    return algo.env_runner_group.foreach_env_runner(node_of, local_env_runner=False)


@pytest.mark.long
def test_a_node_that_dies_in_mid_run_is_done_without(cluster: Cluster, measured: Callable[[str], None]) -> None:
    """The one with the reanalyze actor, and at least one EnvRunner on either."""
    config = tiny_config().env_runners(num_env_runners=2, num_envs_per_env_runner=2, sample_timeout_s=60)
    config.resources(placement_strategy="SPREAD").reanalyze(num_actors=2, timeout_s=10)
    algo = config.build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 10)
    head = cluster.head_node.node_id
    assert head not in nodes_of_runners(algo) + nodes_of_actors(algo)
    victim = nodes_of_actors(algo)[0]
    (node,) = [node for node in cluster.worker_nodes if node.node_id == victim]
    before = algo.num_updates
    cluster.remove_node(node, allow_graceful=False)

    started = time.monotonic()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= before + 20, timeout_s=FALL_BACK_S)
    went_on_after = time.monotonic() - started

    def all_are_back(result: dict) -> bool:
        is_whole = result["fault_tolerance"]["num_healthy_workers"] == 2
        return is_whole and result["reanalyze"]["num_actors_in_service"] == 2

    # The other node has three CPUs for four processes: one more is needed.
    cluster.add_node(num_cpus=3)
    result = train_until(algo, all_are_back, timeout_s=180)
    whole_after = time.monotonic() - started
    assert victim not in nodes_of_runners(algo) + nodes_of_actors(algo)
    assert result["num_interactions_lifetime"] == algo.local_replay_buffer.num_added
    assert result["num_updates_lifetime"] <= 0.25 * result["num_interactions_lifetime"]
    assert went_on_after < FALL_BACK_S
    measured(f"20 more updates {went_on_after:.0f} s after the node died, all are back after {whole_after:.0f} s")
    algo.stop()
