"""Tables 4 and 5: how far value targets are from what the final policy really earns.

Each stage of training has a checkpoint. Its policy plays whole games as self-play did then, in place of the replay's
trajectories, and the emulator's state is saved at positions drawn from all their steps. The targets are those that
reanalysis would make at the end of training: rewards of the trajectory, then the value of the final network. Without
the correction the horizon is the full one; with it, it is shortened by the trajectory's age. The truth is what the
final policy earns when it plays greedily from the saved states.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_efficientzero.analysis import reference
from rllib_efficientzero.analysis.document import Block, Table, Text
from rllib_efficientzero.analysis.measurement import Log, Measured, Measurement
from rllib_efficientzero.analysis.play import discounted_returns, training_environment
from rllib_efficientzero.analysis.positions import Played, Position, sample_positions
from rllib_efficientzero.models import observation_planes
from rllib_efficientzero.policy import Policy, load_policy
from rllib_efficientzero.schedules import piecewise_constant
from rllib_efficientzero.targets.returns import bootstrap_times, dynamic_horizon, n_step_targets

VARIANT = "efficientzero"
UNROLL_STEPS = 5
CORRECTIONS = ("without", "with")


def measure(
    checkpoints: Mapping[str, pathlib.Path], parameters: Mapping[str, Any], *, device: str, log: Log
) -> Measured:
    """Measures the errors of both targets, with and without the correction, by stage.

    Args:
        checkpoints: variant -> final checkpoint; those of the stages are in the same directory.
        parameters: `stages`, `samples` per stage, `rollout_steps` after which the truth is cut, `bootstrap` ("network"
            or "root": the value of the value head or of a search), `max_game_steps` after which sampled games are cut;
            `td_steps` (5), `off_policy_tau` (0.3), `seed` (0).
        device: of the networks.
        log: called with messages on the progress.
    """
    final = load_policy(checkpoints[VARIANT], device=device)
    total = int(final.description["num_interactions"])
    make = functools.partial(training_environment, final)
    td_steps, tau = int(parameters.get("td_steps", 5)), float(parameters.get("off_policy_tau", 0.3))
    found = []
    for stage, checkpoint in stage_checkpoints(checkpoints[VARIANT], parameters["stages"]):
        behaviour = load_policy(checkpoint, device=device)
        rng = np.random.default_rng([int(parameters.get("seed", 0)), stage])
        temperature = _temperature(behaviour, log)
        played = sample_positions(
            behaviour,
            make,
            parameters["samples"],
            unroll_steps=UNROLL_STEPS,
            reach=UNROLL_STEPS + td_steps,
            temperature=temperature,
            max_game_steps=parameters["max_game_steps"],
            rng=rng,
        )
        positions = played.positions
        age = max(0, total - int(behaviour.description["num_interactions"]))
        horizons = {"without": td_steps, "with": int(dynamic_horizon(np.array([age]), td_steps, tau * total)[0])}
        truth = true_values(final, make, positions, parameters["rollout_steps"])
        distances = {
            name: np.abs(targets(final, positions, horizon, parameters["bootstrap"], rng) - truth)
            for name, horizon in horizons.items()
        }
        games = np.array([position.game for position in positions])
        errors = {name: errors_by_step(distance, games) for name, distance in distances.items()}
        found.append(
            {
                "stage": stage,
                "played_by": checkpoint.name,
                "num_interactions": behaviour.description["num_interactions"],
                "temperature": temperature,
                "horizons": horizons,
                **_describe(played),
                "mean_true_value": float(np.nanmean(truth)),
                "errors": errors,
                "difference": paired_difference(distances["with"], distances["without"], games),
            }
        )
        log(f"stage {stage}: all, without {errors['without']['all']:.3f}, with {errors['with']['all']:.3f}")
    return Measured({"stages": found, "total": total})


def _temperature(behaviour: Policy, log: Log) -> float:
    """Returns the temperature that self-play had at the update of these weights."""
    if "temperature_schedule" not in behaviour.description:
        log("the checkpoint is of a version that did not write its temperature schedule: actions are sampled at 1")
        return 1.0
    return piecewise_constant(behaviour.description["temperature_schedule"], int(behaviour.description["num_updates"]))


def _describe(played: Played) -> dict[str, Any]:
    """Returns how many positions were drawn, and from where in the games."""
    starts = [position.start for position in played.positions]
    return {
        "positions": len(starts),
        "games": len({position.game for position in played.positions}),
        "starts": {"median": float(np.median(starts)), "last": max(starts)},
        "mean_game_length": float(np.mean(played.game_lengths)),
    }


def stage_checkpoints(final: pathlib.Path, stages: int) -> list[tuple[int, pathlib.Path]]:
    """Returns (steps at its end, the run's checkpoint nearest to that) for each of `stages` equal parts of training.

    A checkpoint stands for at most one stage, and for none whose end is more than half a stage away. Of equally near
    checkpoints, the earliest is taken: those of updates after the last environment step have played no training data.
    """
    steps = {
        path.parent.parent: int(load_description(path.parent.parent)["num_interactions"])
        for path in sorted(final.parent.glob("checkpoint_*/policy/policy.json"))
    } or {final: int(load_description(final)["num_interactions"])}
    total = max(steps.values())
    found: list[tuple[int, pathlib.Path]] = []
    for number in range(1, stages + 1):
        end = stage_end(total, number, stages)
        nearest = min(steps, key=lambda path: abs(steps[path] - end))
        if abs(steps[nearest] - end) <= total / stages / 2 and nearest not in [path for _, path in found]:
            found.append((end, nearest))
    return found


def stage_end(total: int, number: int, stages: int) -> int:
    """Environment steps at the end of a stage, counted from 1."""
    return round(total * number / stages)


def load_description(checkpoint: pathlib.Path) -> Mapping[str, Any]:
    """`policy.json` of a checkpoint."""
    from rllib_efficientzero.checkpoint.policy_files import read_description

    return read_description(checkpoint).content


def targets(
    final: Policy, positions: Sequence[Position], horizon: int, bootstrap: str, rng: np.random.Generator
) -> np.ndarray:
    """Returns `[M, K+1]` n-step targets with a horizon, bootstrapped from the final network.

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
    """Returns `[M, K+1]` discounted returns of greedy play from each saved state: 0 at the terminal one, NaN beyond."""
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


def errors_by_step(distance: np.ndarray, games: np.ndarray) -> dict[str, Any]:
    """Returns mean absolute errors of the `current` state, the `next` K and `all`, and the standard error of `all`.

    All are means over states, so that a position shortly before an end, which has fewer states, weighs less in `all`.

    Args:
        distance: `[M, K+1]` of targets from the truth; NaN for states beyond the end of their episode, which do not
            count.
        games: `[M]` game of each position, see `clustered_standard_error`.
    """
    return {
        "current": float(np.nanmean(distance[:, 0])),
        "next": float(np.nanmean(distance[:, 1:])),
        "all": float(np.nanmean(distance)),
        "standard_error": clustered_standard_error(distance, games),
    }


def paired_difference(with_correction: np.ndarray, without: np.ndarray, games: np.ndarray) -> dict[str, Any]:
    """Returns the `mean` of what the correction changes of the error `all`, and the `standard_error` of that.

    Both targets are of the same positions, so that differences between positions cancel out of the standard error.

    Args:
        with_correction: `[M, K+1]` distances, see `errors_by_step`.
        without: likewise.
        games: likewise.
    """
    changes = with_correction - without
    return {"mean": float(np.nanmean(changes)), "standard_error": clustered_standard_error(changes, games)}


def clustered_standard_error(values: np.ndarray, games: np.ndarray) -> float | None:
    """Returns the standard error of the mean over all values but NaN, if only games are independent; None for one game.

    States of a position, and positions of a game, are correlated, so that it is computed from the deviations summed
    over each game. With one value per game, it is the usual standard deviation (ddof 1) over the root of their number.

    Args:
        values: `[M, K+1]`.
        games: `[M]` game of each row.
    """
    deviations = np.nansum(values - np.nanmean(values), axis=1)
    of_games = np.array([deviations[games == game].sum() for game in np.unique(games)])
    if len(of_games) < 2:
        return None
    variance = len(of_games) / (len(of_games) - 1) * np.sum(of_games**2)
    return float(np.sqrt(variance) / np.isfinite(values).sum())


def present(measurement: Measurement, note: str) -> list[Block]:
    """Table 5, by stage, and Table 4, the first stage in detail if it is there; the published ones beside them."""
    values = measurement.measured.values
    stages, expected = values["stages"], int(measurement.about["parameters"]["stages"])
    published = reference.published_value_errors()
    rows = [
        [
            f"{stage['stage']:,}",
            *(_with_error(stage["errors"][name]["all"], stage["errors"][name]) for name in CORRECTIONS),
            _with_error(stage["difference"]["mean"], stage["difference"]),
            f"{stage['horizons']['with']} / {stage['horizons']['without']}",
            f"{stage['mean_true_value']:.3f}",
            f"{stage['positions']} of {stage['games']} games",
        ]
        for stage in stages
    ]
    caption = (
        "Mean absolute error over the position and the five after it, plus or minus its standard error over games; "
        f"clipped rewards. The difference is paired: of both targets of the same position. {note}"
    )
    columns = ["stage (steps)", "without correction", "with correction", "with - without", "horizon with / without"]
    columns += ["mean true value", "positions"]
    theirs = [[f"{stage:,}", f"{without:.3f}", f"{with_:.3f}"] for stage, (without, with_) in published.items()]
    blocks: list[Block] = [Table("Table 5: error of value targets by stage", columns, rows, caption)]
    if stages[0]["stage"] == stage_end(values["total"], 1, expected):
        blocks.append(_first_stage(stages[0]["errors"]))
    else:
        blocks.append(Text("There is no Table 4: the first stage has no checkpoint.", warning=True))
    if len(stages) < expected:
        blocks.insert(0, Text(f"Only {len(stages)} of {expected} stages have a checkpoint.", warning=True))
    published_as = ["stage (steps)", "without", "with"]
    return [*blocks, Table("Table 5 as published (UpNDown)", published_as, theirs, "Ye et al. 2021.")]


def _first_stage(errors: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [f"{name} correction", *(f"{errors[name][key]:.3f}" for key in ("current", "next", "all"))]
        for name in CORRECTIONS
    ]
    return Table(
        "Table 4: error in the first stage", ["", "current state", "next 5 states (average)", "all states"], rows
    )


def _with_error(mean: float, errors: Mapping[str, float | None]) -> str:
    error = errors["standard_error"]
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"
