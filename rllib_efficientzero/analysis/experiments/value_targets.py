"""Tables 4 and 5: how far value targets lie from what the final policy really earns.

Each stage of training is a checkpoint. Its policy plays as self-play did then (that is the trajectory in the replay),
and the emulator is saved at some positions. The targets are those that reanalysis would make at the end of training:
rewards of that trajectory, then the final network; the horizon is the full one without the correction, and shortened by
the trajectory's age with it. The truth is what the final policy earns when it plays greedily from the saved states.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_efficientzero.analysis import reference
from rllib_efficientzero.analysis.document import Block, Table, Text
from rllib_efficientzero.analysis.measurement import Log, Measured, Measurement
from rllib_efficientzero.analysis.play import MAX_BATCH, Player, discounted_returns, training_environment
from rllib_efficientzero.models import observation_planes
from rllib_efficientzero.policy import Policy, load_policy
from rllib_efficientzero.targets.returns import bootstrap_times, dynamic_horizon, n_step_targets

VARIANT = "efficientzero"
UNROLL_STEPS = 5
CORRECTIONS = ("without", "with")
GAP = 40
"""Environment steps, on average, between two positions of the same episode."""


@dataclass(frozen=True)
class Position:
    """A sampled position of a trajectory with what its targets are made of; times are relative to it."""

    states: Sequence[bytes]
    """of the environment, at the times 0 .. K as far as the episode goes on there"""
    frames: np.ndarray
    """`[K + n + 1, S, ...]` stacked frames of the times 0 .. K + n; after the end the last ones"""
    rewards: np.ndarray
    """`[K + n]`, after the end 0"""
    steps_left: int
    """to the end of the episode, or to the end of what was played"""
    terminated: bool
    """at that end"""


def measure(
    checkpoints: Mapping[str, pathlib.Path], parameters: Mapping[str, Any], *, device: str, log: Log
) -> Measured:
    """Errors of both targets by stage.

    Args:
        checkpoints: variant -> final checkpoint; those of the stages lie beside it.
        parameters: `stages`, `samples` per stage, `rollout_steps` after which the truth is cut, `bootstrap` ("network"
            or "root", the value head's or a search's); `td_steps` (5), `off_policy_tau` (0.3), `seed` (0).
        device: of the networks.
        log: is told how far it is.
    """
    final = load_policy(checkpoints[VARIANT], device=device)
    total = int(final.description["num_interactions"])
    make = functools.partial(training_environment, final)
    td_steps, tau = int(parameters.get("td_steps", 5)), float(parameters.get("off_policy_tau", 0.3))
    found = []
    for stage, checkpoint in stage_checkpoints(checkpoints[VARIANT], parameters["stages"]):
        behaviour = load_policy(checkpoint, device=device)
        rng = np.random.default_rng([int(parameters.get("seed", 0)), stage])
        positions = sample_positions(behaviour, make, parameters["samples"], UNROLL_STEPS + td_steps, rng)
        age = max(0, total - int(behaviour.description["num_interactions"]))
        horizons = {"without": td_steps, "with": int(dynamic_horizon(np.array([age]), td_steps, tau * total)[0])}
        truth = true_values(final, make, positions, parameters["rollout_steps"])
        distances = {
            name: np.abs(targets(final, positions, horizon, parameters["bootstrap"], rng) - truth)
            for name, horizon in horizons.items()
        }
        errors = {name: errors_by_step(distance) for name, distance in distances.items()}
        found.append(
            {
                "stage": stage,
                "played_by": checkpoint.name,
                "num_interactions": behaviour.description["num_interactions"],
                "horizons": horizons,
                "positions": len(positions),
                "mean_true_value": float(np.nanmean(truth)),
                "errors": errors,
                "difference": paired_difference(distances["with"], distances["without"]),
            }
        )
        log(f"stage {stage}: all, without {errors['without']['all']:.3f}, with {errors['with']['all']:.3f}")
    return Measured({"stages": found, "total": total})


def stage_checkpoints(final: pathlib.Path, stages: int) -> list[tuple[int, pathlib.Path]]:
    """(steps at the end of the stage, the run's checkpoint nearest to it) for `stages` equal parts of training.

    A checkpoint stands for one stage at most, and for none that it is more than half a stage away from.
    """
    steps = {
        path.parent.parent: int(load_description(path.parent.parent)["num_interactions"])
        for path in final.parent.glob("checkpoint_*/policy/policy.json")
    } or {final: int(load_description(final)["num_interactions"])}
    total = max(steps.values())
    found: list[tuple[int, pathlib.Path]] = []
    for number in range(1, stages + 1):
        end = total * number / stages
        nearest = min(steps, key=lambda path: abs(steps[path] - end))
        if abs(steps[nearest] - end) <= total / stages / 2 and nearest not in [path for _, path in found]:
            found.append((round(end), nearest))
    return found


def load_description(checkpoint: pathlib.Path) -> Mapping[str, Any]:
    """`policy.json` of a checkpoint."""
    from rllib_efficientzero.checkpoint.policy_files import read_description

    return read_description(checkpoint).content


def sample_positions(
    behaviour: Policy, make: Callable[[], gym.Env], count: int, reach: int, rng: np.random.Generator
) -> list[Position]:
    """`count` positions of games played with exploration, each with `reach` steps after it.

    Args:
        behaviour: who plays, with root noise, sampling from the search's policy.
        make: makes the environment.
        count: positions.
        reach: K + n.
        rng: of the play and of the choice of positions.
    """
    players = [Player(make, behaviour.description["frame_stack"]) for _ in range(min(count, MAX_BATCH))]
    found: list[Position] = []
    try:
        for index, player in enumerate(players):
            player.reset(seed=int(rng.integers(2**31)) + index)
        recordings: list[_Recording | None] = [None] * len(players)
        while len(found) < count:
            for index, player in enumerate(players):
                if player.is_over:
                    player.reset()
                if recordings[index] is None and rng.random() < 1 / GAP:
                    recordings[index] = _Recording(reach)
            actions = behaviour.act(
                np.stack([player.stacked for player in players]), rng=rng, explore=True, temperature=1.0
            ).action
            for index, (player, action) in enumerate(zip(players, actions, strict=True)):
                recording = recordings[index]
                if recording is None:
                    player.step(int(action))
                elif recording.step(player, int(action)):
                    found.append(recording.position())
                    recordings[index] = None
    finally:
        for player in players:
            player.close()
    return found[:count]


class _Recording:
    """A position in the making."""

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._states: list[bytes] = []
        self._frames: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._terminated = False

    def step(self, player: Player, action: int) -> bool:
        """Steps the player; returns whether the position is complete."""
        if len(self._states) <= UNROLL_STEPS:
            self._states.append(player.save())
        self._frames.append(player.stacked)
        reward, self._terminated = player.step(action)
        self._rewards.append(reward)
        if player.is_over or len(self._rewards) == self._reach:
            self._frames.append(player.stacked)
            return True
        return False

    def position(self) -> Position:
        missing = self._reach - len(self._rewards)
        return Position(
            states=self._states,
            frames=np.stack(self._frames + self._frames[-1:] * missing),
            rewards=np.array(self._rewards + [0.0] * missing, np.float32),
            # Where the recording ends, not the game: the targets reach no further anyway.
            steps_left=len(self._rewards),
            terminated=self._terminated,
        )


def targets(
    final: Policy, positions: Sequence[Position], horizon: int, bootstrap: str, rng: np.random.Generator
) -> np.ndarray:
    """`[M, K+1]` n-step targets with a horizon, continued by the final network.

    Raises:
        ValueError: `bootstrap` is neither "network" nor "root".
    """
    if bootstrap not in ("network", "root"):
        raise ValueError(f"bootstrap must be 'network' or 'root', not {bootstrap!r}")
    steps_left = np.array([position.steps_left for position in positions])
    horizons = np.full(len(positions), horizon)
    times = bootstrap_times(horizons, steps_left, UNROLL_STEPS)
    values = np.stack(
        [_values(final, position.frames[at], bootstrap, rng) for position, at in zip(positions, times, strict=True)]
    )
    return n_step_targets(
        np.stack([position.rewards for position in positions]),
        values,
        horizons,
        steps_left,
        np.array([position.terminated for position in positions]),
        final.search_config.discount,
    )


def _values(final: Policy, frames: np.ndarray, bootstrap: str, rng: np.random.Generator) -> np.ndarray:
    if bootstrap == "root":
        return final.act(frames, rng=rng, explore=True).root_value
    with torch.inference_mode():
        return final.network.value(observation_planes(torch.as_tensor(frames, device=final.device))).cpu().numpy()


def true_values(
    final: Policy, make: Callable[[], gym.Env], positions: Sequence[Position], max_steps: int
) -> np.ndarray:
    """`[M, K+1]` discounted returns of greedy play from each saved state; 0 at a terminal one, NaN beyond the end."""
    states = [state for position in positions for state in position.states]
    returns = discounted_returns(final, make, states, gamma=final.search_config.discount, max_steps=max_steps)
    truth = np.full((len(positions), UNROLL_STEPS + 1), np.nan)
    first = 0
    for row, position in enumerate(positions):
        truth[row, : len(position.states)] = returns[first : first + len(position.states)]
        if position.terminated and position.steps_left <= UNROLL_STEPS:
            truth[row, position.steps_left] = 0.0
        first += len(position.states)
    return truth


def errors_by_step(distance: np.ndarray) -> dict[str, float]:
    """Mean absolute errors: `current` state, `next` K on average, and `all`; and the standard error of the last.

    Args:
        distance: `[M, K+1]` of targets from the truth; NaN for states beyond the end of their episode, which do not
            count.
    """
    return {
        "current": float(np.nanmean(distance[:, 0])),
        "next": float(np.nanmean(distance[:, 1:])),
        "all": float(np.nanmean(distance)),
        "standard_error": _standard_error(np.nanmean(distance, axis=1)),
    }


def paired_difference(with_correction: np.ndarray, without: np.ndarray) -> dict[str, float]:
    """`mean` over positions of what the correction changes of their error, and its `standard_error`.

    Both targets are of the same positions, so that what these differ in among themselves drops out.

    Args:
        with_correction: `[M, K+1]` distances, see `errors_by_step`.
        without: likewise.
    """
    changes = np.nanmean(with_correction - without, axis=1)
    return {"mean": float(changes.mean()), "standard_error": _standard_error(changes)}


def _standard_error(of_positions: np.ndarray) -> float:
    return float(of_positions.std() / np.sqrt(len(of_positions)))


def present(measurement: Measurement, note: str) -> list[Block]:
    """Table 5, by stage, and Table 4, its first stage in detail; the published ones beside them."""
    values = measurement.measured.values
    stages = values["stages"]
    published = reference.published_value_errors()
    rows = [
        [
            f"{stage['stage']:,}",
            *(_with_error(stage["errors"][name]["all"], stage["errors"][name]) for name in CORRECTIONS),
            _with_error(stage["difference"]["mean"], stage["difference"]),
            f"{stage['horizons']['with']} / {stage['horizons']['without']}",
            f"{stage['mean_true_value']:.3f}",
            str(stage["positions"]),
        ]
        for stage in stages
    ]
    caption = (
        "Mean absolute error over the position and the five after it, plus or minus its standard error over positions; "
        f"clipped rewards. The difference is paired: of both targets of the same position. {note}"
    )
    columns = ["stage (steps)", "without correction", "with correction", "with - without", "horizon with / without"]
    columns += ["mean true value", "positions"]
    detail = [
        [f"{name} correction", *(f"{stages[0]['errors'][name][key]:.3f}" for key in ("current", "next", "all"))]
        for name in CORRECTIONS
    ]
    theirs = [[f"{stage:,}", f"{without:.3f}", f"{with_:.3f}"] for stage, (without, with_) in published.items()]
    blocks: list[Block] = [
        Table("Table 5: error of value targets by stage", columns, rows, caption),
        Table(
            "Table 4: error in the first stage", ["", "current state", "next 5 states (average)", "all states"], detail
        ),
        Table("Table 5 as published (UpNDown)", ["stage (steps)", "without", "with"], theirs, "Ye et al. 2021."),
    ]
    expected = int(measurement.about["parameters"]["stages"])
    if len(stages) < expected:
        blocks.insert(0, Text(f"Only {len(stages)} of {expected} stages have a checkpoint.", warning=True))
    return blocks


def _with_error(mean: float, errors: Mapping[str, float]) -> str:
    return f"{mean:.3f} ± {errors['standard_error']:.3f}"
