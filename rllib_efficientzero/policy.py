"""Loads a trained policy without Ray and without pickle, to serve, evaluate or export it.

>>> from rllib_efficientzero.policy import load_policy
>>> policy = load_policy("results/pong-ez/.../checkpoint_000010")  # doctest: +SKIP
>>> action = policy.act(stacked_frames).action  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.checkpoint.policy_files import PolicyFiles, read_description, read_weights
from rllib_efficientzero.checkpoint.spaces import space_from_json
from rllib_efficientzero.env.checks import OBSERVATIONS
from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult, prior_alone
from rllib_efficientzero.mcts.host_tree import host_tree
from rllib_efficientzero.models import (
    Actions,
    EfficientZeroNetwork,
    ModelConfig,
    Networks,
    actions_of,
    build_network,
    observation_planes,
)
from rllib_efficientzero.models.catalog import networks_class, path_of
from rllib_efficientzero.models.inference import InferenceNetwork
from rllib_efficientzero.models.precision import PRECISIONS, MixedPrecision

MAX_SIZE = 1 << 20
"""The largest width of a layer, and number of simulations, that is accepted from a policy file."""
MAX_LAYERS = 32
MAX_ACTION_SIZE = 1 << 10
"""The largest size of an action vector that is accepted."""
MAX_SEARCHERS = 4


@dataclasses.dataclass
class Policy:
    """A network, the settings of its search, and its spaces."""

    network: EfficientZeroNetwork
    """in eval mode"""
    search_config: SearchConfig
    observation_space: gym.Space
    """of stacked observations: Box `[S, H, W, C]` or `[S, D]`, or a Dict of these and an action mask"""
    action_space: gym.Space
    """Discrete; or, if actions are sampled, Box(-1, 1, [D]) or MultiDiscrete"""
    mixed_precision: MixedPrecision
    description: dict[str, Any]
    """`policy.json`: environment, versions, number of updates, ..."""

    def __post_init__(self) -> None:
        self._inference = InferenceNetwork(self.network, mixed_precision=self.mixed_precision)
        self._searchers: dict[int, Searcher] = {}
        self._searcher = self._searcher_of(self.search_config.num_simulations)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a single observation: `[H, W, C]` or `[D]`."""
        space = self.observation_space
        stacked = space[OBSERVATIONS] if isinstance(space, gym.spaces.Dict) else space
        return tuple(stacked.shape or ())[1:]

    @property
    def samples_actions(self) -> bool:
        """Whether the search chooses between actions drawn from the policy head's distribution."""
        return self.network.distribution is not None

    def act(
        self,
        frames: np.ndarray,
        *,
        legal_actions: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
        explore: bool = False,
        temperature: float = 0.0,
        num_simulations: int | None = None,
    ) -> SearchResult:
        """Searches from B observations. Not thread-safe: calls share the memory of the search.

        Args:
            frames: `[B, S, H, W, C]` or `[B, S, D]`, stacked raw observations, oldest first.
            legal_actions: `[B, A]` bool; None means that all are legal.
            rng: breaks ties and draws noise; None: one with a fixed seed, so that equal calls give equal results.
            explore: add noise at the roots.
            temperature: of the sampled action; 0 takes the best.
            num_simulations: replaces the number in `search_config`; 0 acts by the policy head alone, without a search.
        """
        planes = observation_planes(torch.as_tensor(frames, device=self.device))
        root = self._inference.initial_inference(planes)
        if num_simulations == 0:
            return prior_alone(self._inference, root, legal_actions)
        wanted = self.search_config.num_simulations if num_simulations is None else num_simulations
        self._searcher = self._searcher_of(wanted)
        return self._searcher.search(
            self._inference,
            root,
            legal_actions=legal_actions,
            rng=np.random.default_rng(0) if rng is None else rng,
            explore=explore,
            temperature=temperature,
        )

    def node_table(self, row: int = 0) -> dict[str, np.ndarray]:
        """The tree of one observation of the last search: `parent`, `action`, `depth`, `visits`, `value`, `reward` and
        `prior` `[N + 1]` of its nodes, the root first."""
        return self._searcher.node_table(row)

    def _searcher_of(self, num_simulations: int) -> Searcher:
        """Returns a searcher for this number of simulations; the `MAX_SEARCHERS` last used ones are kept."""
        searcher = self._searchers.pop(num_simulations, None)
        if searcher is None:
            searcher = Searcher(dataclasses.replace(self.search_config, num_simulations=num_simulations))
            while len(self._searchers) >= MAX_SEARCHERS:
                del self._searchers[next(iter(self._searchers))]
        self._searchers[num_simulations] = searcher
        return searcher


def load_policy(
    path: str | pathlib.Path, *, device: str | torch.device = "cpu", networks: type[Networks] | str | None = None
) -> Policy:
    """Loads the policy of a checkpoint, or of a directory with `policy.json` and `policy.safetensors`.

    The files need not be trusted; no module that they name is imported.

    Args:
        path: of the checkpoint or directory.
        device: where the network goes.
        networks: the class of custom networks, or its dotted path, if the policy was trained with any.

    Raises:
        ValueError: `networks` cannot be imported.
        CheckpointError: `networks` are not those that the policy was trained with; or a file is missing, damaged, of
            another format version, or does not describe a policy.
    """
    files = read_description(pathlib.Path(path))
    given = None if networks is None else networks_class(networks)
    try:
        network = _network_without_memory(files, given)
        search_config = _search_config(files.content["search"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{files.path} does not describe a policy: {error!r}.") from error
    weights = read_weights(files, network.state_dict())
    network.load_state_dict(weights, assign=True)
    # After the weights were checked: spaces of large observations take memory.
    try:
        observation_space = space_from_json(files.content["observation_space"])
        action_space = space_from_json(files.content["action_space"])
        mixed_precision = files.content["mixed_precision"]
        if mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision is {mixed_precision!r}")
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{files.path} does not describe a policy: {error!r}.") from error
    return Policy(
        network=network.to(device).eval().requires_grad_(False),
        search_config=search_config,
        observation_space=observation_space,
        action_space=action_space,
        mixed_precision=mixed_precision,
        description=files.content,
    )


def _check_networks(files: PolicyFiles, networks: type[Networks] | None) -> None:
    needed = files.content["model"].get("networks")
    given = None if networks is None else path_of(networks)
    if given != needed:
        cure = "give none" if needed is None else "give that class, as --networks or load_policy(path, networks=...)"
        raise CheckpointError(
            f"{files.path} is a policy with networks of {needed or 'this package'!s:.200}, and {given} were given: "
            f"{cure}."
        )


def _network_without_memory(files: PolicyFiles, networks: type[Networks] | None) -> EfficientZeroNetwork:
    """The network on torch's meta device: names and shapes without memory, however large the file says they are."""
    described = files.content["observation_space"]
    if described["type"] == "Dict":
        described = described["spaces"][OBSERVATIONS]
    shape = tuple(_limited(size, 1 << 27) for size in described["shape"])
    actions = _actions(files.content["action_space"])
    _check_networks(files, networks)
    config = ModelConfig.from_dict(files.content["model"] | ({"networks": networks} if networks else {}))
    for name, value in dataclasses.asdict(config).items():
        for size in value if isinstance(value, tuple) else (value,):
            if name not in ("action_encoding", "networks"):
                _limited(size, MAX_LAYERS if name == "num_blocks" else MAX_SIZE)
        if isinstance(value, tuple):
            _limited(max(1, len(value)), MAX_LAYERS)
    with torch.device("meta"):
        return build_network(shape, actions, config)


def _actions(described: Any) -> Actions:
    for size in described.get("shape", []):
        _limited(size, MAX_ACTION_SIZE)
    actions = actions_of(space_from_json(described))
    _limited(actions if isinstance(actions, int) else actions.policy_size, MAX_SIZE)
    return actions


def _search_config(values: dict[str, Any]) -> SearchConfig:
    """The search's settings, with one thread whatever the file says, which does not affect results."""
    config = SearchConfig(**{**values, "num_threads": 1})
    for size in (config.num_simulations, config.num_sampled_actions, config.num_sampled_leaf_actions):
        _limited(size, MAX_SIZE)
    for field in dataclasses.fields(config):
        if isinstance(field.default, float) and not isinstance(getattr(config, field.name), int | float):
            raise ValueError(f"{field.name} is no number")
    host_tree(config, 1, 1)  # raises if no search can be made with these settings
    return config


def _limited(size: Any, largest: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= largest:
        raise ValueError(f"{str(size)[:100]} is not a size between 1 and {largest}")
    return size
