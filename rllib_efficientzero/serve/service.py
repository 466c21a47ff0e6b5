"""A policy that answers queries by batched searches, and can be exchanged while it does. No HTTP and no Ray here."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.checkpoint.policy_files import POLICY_FILES, newest_policy
from rllib_efficientzero.checkpoint.spaces import space_to_json
from rllib_efficientzero.env.checks import OBSERVATIONS
from rllib_efficientzero.models.decoder import Decoder
from rllib_efficientzero.playing.imagination import imagine, load_decoder
from rllib_efficientzero.playing.search_tree import SearchTree
from rllib_efficientzero.policy import Policy, load_policy

logger = logging.getLogger(__name__)

MAX_IMAGINED = 8
"""Most steps of the principal line that are decoded into frames."""


@dataclasses.dataclass(frozen=True)
class Query:
    """One observation to act upon."""

    frames: np.ndarray
    """`[S, ...]`, oldest first"""
    legal_actions: np.ndarray | None = None
    """`[A]` bool"""
    num_simulations: int | None = None
    """None: the policy's own; 0: no search"""
    with_tree: bool = False
    """Also the root's children and the principal line."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of a search, in plain numbers; or, in `problem`, why there is none."""

    action: int = 0
    """The number of the chosen action."""
    value: float = 0.0
    network_value: float = 0.0
    visit_policy: list[float] = dataclasses.field(default_factory=list)
    visits: list[int] = dataclasses.field(default_factory=list)
    prior: list[float] = dataclasses.field(default_factory=list)
    qvalues: list[float] = dataclasses.field(default_factory=list)
    num_simulations: int = 0
    model: str = ""
    """The beginning of the weights' hash: changes when the checkpoint is exchanged."""
    tree: dict[str, Any] | None = None
    problem: str | None = None
    candidates: list[list[float]] | None = None
    """`[A, D]` the actions that the numbers stand for, if the policy samples its actions."""
    imagined: np.ndarray | None = None
    """u8 `[1 + k, H, W, C]`: the observation and the first k steps of the principal line, decoded."""


@dataclasses.dataclass(frozen=True)
class PolicyFacts:
    """What must be known to make queries; all but `metadata` is the same for every checkpoint of a run."""

    frame_shape: tuple[int, ...]
    frame_dtype: str
    frame_stack: int
    num_actions: int | None
    """None if the policy samples its actions"""
    num_simulations: int
    metadata: dict[str, Any]
    """JSON-able; no paths"""


class PolicyService:
    """A policy and the checkpoint it came from.

    Args:
        checkpoint: a checkpoint or a policy's directory; or a trial's, whose newest whole checkpoint is taken.
        device: where the network goes.
        networks: dotted path of the class of custom networks; see `load_policy`.
        decoder: a file of `rllib train-decoder`, to see what the policy imagines.

    Raises:
        CheckpointError: there is no policy, or the decoder is not this policy's.
    """

    def __init__(
        self,
        checkpoint: str | pathlib.Path,
        *,
        device: str = "cpu",
        networks: str | None = None,
        decoder: pathlib.Path | None = None,
    ) -> None:
        self._device, self._networks = device, networks
        self._searching = threading.Lock()
        # Held for a whole exchange: `load_newer` must not replace what `load` has just taken from another trial.
        self._exchanging = threading.RLock()
        self.loaded_from = newest_policy(pathlib.Path(checkpoint).absolute(), below=POLICY_FILES)
        self._policy = load_policy(self.loaded_from, device=device, networks=networks)
        self._decoder = None if decoder is None else load_decoder(decoder, self._policy)

    @property
    def policy(self) -> Policy:
        """The policy in service."""
        return self._policy

    def load(self, checkpoint: str | pathlib.Path) -> None:
        """Exchanges the policy. A search that is running ends with the old policy, later ones use the new policy.

        Raises:
            CheckpointError: there is none, or it was trained on other observations or actions; the old one stays.
        """
        with self._exchanging:
            path = newest_policy(pathlib.Path(checkpoint).absolute(), below=POLICY_FILES)
            new = load_policy(path, device=self._device, networks=self._networks)
            old = self._policy
            if (new.observation_space, new.action_space) != (old.observation_space, old.action_space):
                raise CheckpointError(
                    f"{path} was trained on other observations or actions than the policy in service."
                )
            # A decoder fits the old policy's latents only; dropped first, so that no search has it with the new policy.
            self._decoder = None
            self._policy, self.loaded_from = new, path

    def trial(self) -> pathlib.Path:
        """Returns the directory of the checkpoint in service, where `load_newer` looks for newer ones.

        Raises:
            CheckpointError: the policy in service is not from a trial's checkpoint, so that there will be none newer.
        """
        if not self.loaded_from.match("checkpoint_*"):
            raise CheckpointError(f"{self.loaded_from} is no checkpoint of a trial, so that no newer one will appear.")
        return self.loaded_from.parent

    def load_newer(self) -> bool:
        """Exchanges the policy if its trial has a newer complete checkpoint, and returns whether it did.

        Raises:
            CheckpointError: see `trial`.
        """
        with self._exchanging:
            trial = self.trial()
            if max((path.name for path in trial.glob("checkpoint_*")), default="") <= self.loaded_from.name:
                return False
            try:
                newest = newest_policy(trial, below=POLICY_FILES)
                if newest.name <= self.loaded_from.name:
                    return False
                self.load(newest)
            except CheckpointError as error:
                logger.warning("The policy in service stays: %s", error)
                return False
            logger.info("Now in service: %s", self.loaded_from.name)
            return True

    def facts(self) -> PolicyFacts:
        """Returns the facts about the policy in service."""
        policy = self._policy
        space, actions = policy.observation_space, policy.action_space
        box = space[OBSERVATIONS] if isinstance(space, gym.spaces.Dict) else space
        assert isinstance(box, gym.spaces.Box)
        described = policy.description
        protocol = described.get("protocol")
        metadata = {
            "env": protocol.get("env") if isinstance(protocol, dict) else None,
            "observation_space": space_to_json(space),
            "action_space": space_to_json(policy.action_space),
            "frame_stack": box.shape[0],
            "num_simulations": policy.search_config.num_simulations,
            "num_updates": described.get("num_updates"),
            "num_interactions": described.get("num_interactions"),
            "versions": described.get("versions"),
            "model": _model_id(policy),
        }
        return PolicyFacts(
            frame_shape=tuple(box.shape[1:]),
            frame_dtype=str(box.dtype),
            frame_stack=box.shape[0],
            num_actions=int(actions.n) if isinstance(actions, gym.spaces.Discrete) else None,
            num_simulations=policy.search_config.num_simulations,
            metadata=metadata,
        )

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        """Returns answers in the order of the queries.

        Queries share a search if they have equally many simulations, and either all or none have legal actions. One
        that cannot be answered gets an answer with `problem`; the others are answered all the same.
        """
        groups: dict[tuple[int | None, bool], list[int]] = {}
        for index, query in enumerate(queries):
            groups.setdefault((query.num_simulations, query.legal_actions is not None), []).append(index)
        answers: dict[int, Answer] = {}
        with self._searching:
            policy, decoder = self._policy, self._decoder
            for indices in groups.values():
                found = _search_together(policy, decoder, [queries[index] for index in indices])
                answers.update(zip(indices, found, strict=True))
        return [answers[index] for index in range(len(queries))]


def _search_together(policy: Policy, decoder: Decoder | None, queries: list[Query]) -> list[Answer]:
    """Answers queries by one search; if that fails, by one search each, so that only the queries at fault fail."""
    legal = None
    if queries[0].legal_actions is not None:
        legal = np.stack([query.legal_actions for query in queries if query.legal_actions is not None])
    try:
        frames = np.stack([query.frames for query in queries])
        result = policy.act(frames, legal_actions=legal, num_simulations=queries[0].num_simulations)
    except ValueError as error:
        if len(queries) > 1:
            return [answer for query in queries for answer in _search_together(policy, decoder, [query])]
        logger.info("A query could not be answered: %s", error)
        return [Answer(problem="the network has no finite answer to this observation")]
    wanted = queries[0].num_simulations
    simulations = policy.search_config.num_simulations if wanted is None else wanted
    candidates = None if result.candidates is None else result.candidates.astype(policy.action_space.dtype)
    answers = []
    for row, query in enumerate(queries):
        action = int(result.index[row])
        numbers = (result.root_value[row], *result.policy[row], *result.qvalues[row], *result.prior[row])
        if not np.isfinite(numbers).all():
            answers.append(Answer(problem="the network has no finite answer to this observation"))
            continue
        tree = SearchTree.of_last_search(policy, row, action) if query.with_tree and simulations else None
        answers.append(
            Answer(
                action=action,
                value=float(result.root_value[row]),
                network_value=float(result.network_value[row]),
                visit_policy=result.policy[row].tolist(),
                visits=result.visit_counts[row].tolist(),
                prior=result.prior[row].tolist(),
                qvalues=result.qvalues[row].tolist(),
                num_simulations=simulations,
                model=_model_id(policy),
                tree=None if tree is None else tree.as_json(),
                candidates=None if candidates is None else candidates[row].tolist(),
                imagined=None if decoder is None or tree is None else _imagined(policy, decoder, query.frames, tree),
            )
        )
    return answers


def _imagined(policy: Policy, decoder: Decoder, stack: np.ndarray, tree: SearchTree) -> np.ndarray:
    return imagine(policy, decoder, stack, [node.action for node in tree.principal_line()[:MAX_IMAGINED]])


def _model_id(policy: Policy) -> str:
    weights: Mapping[str, Any] = policy.description["weights"]
    return str(weights["sha256"])[:12]
