"""A replay of random episodes whose frames tell their value, and a network that reads it there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from brute_force import Episode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor, nn

from rllib_efficientzero.models import NetworkOutput
from rllib_efficientzero.models.observations import Stacks, window_planes
from rllib_efficientzero.replay import PrioritizedReplay, Windows

NUM_ACTIONS = 3
GAMMA = 0.9
FRAME_STACK, UNROLL_STEPS, TD_STEPS = 2, 5, 5


class ReadingNetwork(nn.Module):
    """Frames are (value, id). The value head says `value`; every leaf of a search says 2 * value + 1, discounted back
    to the root, and rewards are 0, so that a search's root value is known whatever it visits."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.bias = nn.Parameter(torch.zeros(()))
        self.encoded: list[int] = []

    def input_of(self, stacks: Stacks) -> Tensor:
        return window_planes(stacks, torch.float32)

    def initial_inference(self, planes: Tensor) -> NetworkOutput:
        newest = planes[:, -2:]
        self.encoded.append(len(planes))
        leaf_value = (2.0 * newest[:, :1] + 1.0) / GAMMA
        return self._output(torch.cat((leaf_value, newest[:, 1:]), dim=1), newest[:, 0] + self.bias)

    def value(self, planes: Tensor) -> Tensor:
        return self.initial_inference(planes).value

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        return self._output(torch.cat((latent[:, :1] / GAMMA, latent[:, 1:]), dim=1), latent[:, 0])

    def _output(self, latent: Tensor, value: Tensor) -> NetworkOutput:
        zeros = torch.zeros(len(latent))
        return NetworkOutput(latent, zeros[:, None], value, zeros, favourite_logits(latent[:, 1]))


def favourite_logits(ids: Tensor) -> Tensor:
    """Nearly all probability on action id % A."""
    return 30.0 * nn.functional.one_hot(ids.long() % NUM_ACTIONS, NUM_ACTIONS).float()


def searched_value(network_value: Any, num_simulations: int) -> Any:
    """Mean of the network's value and of `num_simulations` leaves."""
    return (network_value + num_simulations * (2.0 * network_value + 1.0)) / (num_simulations + 1)


@dataclasses.dataclass
class Stored:
    """A replay and what went into it."""

    replay: PrioritizedReplay
    episodes: list[Episode]
    visit_policies: list[np.ndarray]
    masks: list[np.ndarray]
    origin: list[tuple[int, int]]  # position id -> (episode, time)

    def locate(self, windows: Windows) -> list[tuple[int, int]]:
        return [self.origin[position] for position in windows.position_ids]


def store(
    rng: np.random.Generator, ends: list[tuple[int, str]], *, masks: bool = False, chunk: int = 3, seed: int = 0
) -> Stored:
    """Episodes of the given (length, "terminated" | "truncated" | "ongoing"), added in turns in chunks of few steps."""
    replay = PrioritizedReplay(10_000, frame_stack=FRAME_STACK, unroll_steps=UNROLL_STEPS, td_steps=TD_STEPS, seed=seed)
    stored = Stored(replay, [], [], [], [])
    raw: list[dict[str, Any]] = []
    for number, (length, end) in enumerate(ends):
        episode = Episode(
            rng.normal(size=length).astype(np.float32),
            rng.normal(scale=3.0, size=length + 1).astype(np.float32),
            terminated=end == "terminated",
        )
        stored.episodes.append(episode)
        stored.visit_policies.append(rng.dirichlet(np.ones(NUM_ACTIONS), size=length).astype(np.float32))
        legal = rng.random((length + 1, NUM_ACTIONS)) < 0.5
        legal[np.arange(length + 1), rng.integers(NUM_ACTIONS, size=length + 1)] = True
        stored.masks.append(legal.astype(np.uint8))
        raw.append({"actions": rng.integers(NUM_ACTIONS, size=length), "end": end, "id": f"e{number}"})
    for start in range(0, max(length for length, _ in ends), chunk):
        for number, part in enumerate(raw):
            length = len(stored.episodes[number])
            if start < length:
                stop = min(start + chunk, length)
                replay.add([_chunk(stored, number, part, start, stop, masks)])
                stored.origin += [(number, t) for t in range(start, stop)]
    return stored


def _chunk(stored: Stored, number: int, part: dict[str, Any], start: int, stop: int, masks: bool) -> SingleAgentEpisode:
    episode, steps = stored.episodes[number], slice(start, stop)
    ids = 100 * number + np.arange(len(episode) + 1)
    frames = np.stack([episode.values, ids], axis=1).astype(np.float32)[start : stop + 1]
    legal = stored.masks[number][start : stop + 1]
    is_last = stop == len(episode)
    return SingleAgentEpisode(
        id_=part["id"],
        observations=[
            {"observations": frame, "action_mask": mask} if masks else frame
            for frame, mask in zip(frames, legal, strict=True)
        ],
        actions=list(part["actions"][steps]),
        rewards=list(episode.rewards[steps]),
        extra_model_outputs={
            "root_value": list(np.zeros(stop - start, dtype=np.float32)),
            "visit_policy": list(stored.visit_policies[number][steps]),
        },
        terminated=is_last and part["end"] == "terminated",
        truncated=is_last and part["end"] == "truncated",
        t_started=start,
        len_lookback_buffer=0,
    )
