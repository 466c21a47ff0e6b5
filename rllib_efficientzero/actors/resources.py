"""The resources that a run asks of a Ray cluster, by role of process, and whether the cluster has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.rllib.algorithms.utils import _get_env_runner_bundles, _get_learner_bundles, _get_main_process_bundle
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

Bundle = dict[str, float]

MAIN_PROCESS = "main process"
ENV_RUNNER, EVALUATION_RUNNER, LEARNER = "EnvRunner", "evaluation EnvRunner", "Learner"
REPLAY_ACTOR, REANALYZE_ACTOR = "replay actor", "reanalyze actor"
KEYS_OF_ROLE = {
    MAIN_PROCESS: "num_cpus_for_main_process",
    ENV_RUNNER: "num_env_runners",
    EVALUATION_RUNNER: "evaluation_num_env_runners",
    LEARNER: "num_learners",
    REPLAY_ACTOR: "replay_buffer_config's placement",
    REANALYZE_ACTOR: "num_reanalyze_actors",
}
"""The config key that sets the number of processes of each role."""
ROUNDING = 1e-6


class InsufficientResourcesError(ValueError):
    """The cluster can never run what the config asks for."""


def own_bundles(config: Any) -> list[tuple[str, Bundle]]:
    """(role, resources) of the processes that RLlib knows nothing of, in the order of their bundles."""
    bundles: list[tuple[str, Bundle]] = []
    if config.replay_buffer_config["placement"] == "actor":
        bundles.append((REPLAY_ACTOR, {"CPU": 1.0}))
    reanalyze = {"CPU": config.num_cpus_per_reanalyze_actor, "GPU": config.num_gpus_per_reanalyze_actor}
    return bundles + [(REANALYZE_ACTOR, reanalyze)] * config.num_reanalyze_actors


def append_own_bundles(request: PlacementGroupFactory, config: Any) -> PlacementGroupFactory:
    """RLlib's request for a trial with our processes' bundles at its end: EnvRunners find theirs by their index."""
    bundles = ([{}] if request.head_bundle_is_empty else []) + request.bundles
    own = [bundle for _, bundle in own_bundles(config)]
    return PlacementGroupFactory(bundles + own, strategy=request.strategy)


def scheduling(config: Any, index: int, *, beside_driver: bool = False) -> Any:
    """Scheduling strategy of process `index` of `own_bundles`: in its bundle within a Tune trial, else anywhere.

    Args:
        config: the algorithm's.
        index: of the process.
        beside_driver: outside of a trial, prefer the driver's node.
    """
    group: PlacementGroup | None = ray.util.get_current_placement_group()
    if group is not None:
        bundle_index = group.bundle_count - len(own_bundles(config)) + index
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle_index)
    if beside_driver:
        return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return "DEFAULT"


def roles(config: Any) -> list[tuple[str, Bundle]]:
    """(role, resources) of every process of a run; the first is the one that drives it."""
    bundles = [(MAIN_PROCESS, _get_main_process_bundle(config))]
    bundles += [(ENV_RUNNER, bundle) for bundle in _get_env_runner_bundles(config)]
    evaluation = config.get_evaluation_config_object()
    if evaluation is not None and config.algo_class._should_create_evaluation_env_runners(evaluation):
        bundles += [(EVALUATION_RUNNER, bundle) for bundle in _get_env_runner_bundles(evaluation)]
    return bundles + [(LEARNER, bundle) for bundle in _get_learner_bundles(config)] + own_bundles(config)


def check_cluster(asked: Iterable[tuple[str, Bundle]]) -> None:
    """Raises if the nodes that are alive could not run these processes even if they ran nothing else.

    Raises:
        InsufficientResourcesError: in one sentence, with what is missing.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if problem := missing_resources(list(asked), nodes):
        raise InsufficientResourcesError(problem)


def missing_resources(asked: Sequence[tuple[str, Bundle]], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Says in a sentence which resources the nodes lack for these processes; None if they lack nothing."""
    for role, bundle in asked:
        for resource, amount in bundle.items():
            largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
            if amount > largest + ROUNDING:
                article = "An" if role[0] in "Ee" else "A"
                return (
                    f"{article} {role} asks for {amount:g} {resource} on one node, and no node of the cluster has more "
                    f"than {largest:g}."
                )
    totals: Counter[str] = Counter()
    for _, bundle in asked:
        totals.update(bundle)
    for resource, total in totals.items():
        available = sum(node.get(resource, 0.0) for node in nodes)
        if total > available + ROUNDING:
            users = Counter(role for role, bundle in asked if bundle.get(resource))
            amounts = {role: bundle[resource] for role, bundle in asked if bundle.get(resource)}
            shares = ", ".join(f"{count} {role} x {amounts[role]:g}" for role, count in users.items())
            keys = ", ".join(KEYS_OF_ROLE[role] for role in users)
            return (
                f"The run asks for {total:g} {resource} ({shares}) and the cluster has {available:g}: "
                f"{total - available:g} {resource} are missing; add nodes, or ask for less ({keys})."
            )
    return None
