"""Figure 9: value prefix against per-step reward, learned from one fixed replay without any reinforcement learning.

Both models are the whole network, from the same initial weights, trained with all losses: policy and value learn what
the searches of self-play found. They differ only in the horizon, which is 1 for per-step rewards. Both are tested on
the sum of the next 1 to K rewards, for which predicted per-step rewards are added up.
"""

from __future__ import annotations

import copy
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllib_efficientzero.analysis import fixed_replay, plots
from rllib_efficientzero.analysis.document import Block, Figure, Table
from rllib_efficientzero.analysis.measurement import Log, Measured, Measurement
from rllib_efficientzero.losses import losses, total_loss
from rllib_efficientzero.models import ModelConfig, build_network, observation_planes
from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.normalization import fresh_statistics
from rllib_efficientzero.models.observations import unrolled_stacks
from rllib_efficientzero.models.scalar_transform import categorical_to_scalar
from rllib_efficientzero.models.unroll import Unrolled, unroll
from rllib_efficientzero.policy import Policy, load_policy
from rllib_efficientzero.replay.windows import Windows, WindowShape
from rllib_efficientzero.targets.returns import step_masks, value_prefix_targets

VARIANT = "efficientzero"
UNROLL_STEPS = 5
HORIZONS = {"value prefix": UNROLL_STEPS, "per-step reward": 1}
COEFFICIENTS = {"policy": 1.0, "value": 0.25, "value_prefix": 1.0, "consistency": 2.0}
HELD_OUT = 0.1
NUM_STATISTICS_BATCHES = 4
SPLITS = {"train": "on what is learned from", "held_out": "held out"}


class Model(nn.Module):
    """A network with its consistency heads, and the horizon of its value prefixes."""

    def __init__(self, policy: Policy, horizon: int) -> None:
        super().__init__()
        shape = tuple(policy.observation_space.shape or ())
        sizes = ModelConfig.from_dict(policy.description["model"])
        self.network = build_network(shape, int(policy.action_space.n), sizes)
        with torch.no_grad():
            latent = copy.deepcopy(self.network).eval().represent(observation_planes(torch.zeros(1, *shape)))
        self.heads = ConsistencyHeads(math.prod(latent.shape[1:]), sizes)
        self.horizon, self.frame_stack = horizon, shape[0]

    def forward(self, windows: Windows) -> Unrolled:
        """Unrolls along the windows' actions."""
        device = next(self.parameters()).device
        frames = torch.as_tensor(np.array(windows.frames), device=device)
        planes = observation_planes(frames)
        width = planes.shape[1] // frames.shape[1]
        return unroll(
            self.network,
            planes[:, : self.frame_stack * width],
            torch.as_tensor(windows.actions, device=device),
            consistency=self.heads if self.training else None,
            target_planes=unrolled_stacks(planes[:, width:], self.frame_stack, UNROLL_STEPS),
            value_prefix_horizon=self.horizon,
        )


def measure(
    checkpoints: Mapping[str, pathlib.Path], parameters: Mapping[str, Any], *, device: str, log: Log
) -> Measured:
    """Trains both models on the replay of a checkpoint.

    Args:
        checkpoints: variant -> checkpoint; its networks' sizes and its replay are used, not its weights.
        parameters: `updates`, `evaluate_every`, `batch_size`, `test_positions`; `seed` (0), `lr` (0.001).
        device: to learn on.
        log: called with messages on the progress.
    """
    policy = load_policy(checkpoints[VARIANT])
    seed = int(parameters.get("seed", 0))
    train, held_out = fixed_replay.load(checkpoints[VARIANT], held_out=HELD_OUT, unroll_steps=UNROLL_STEPS, seed=seed)
    shape = WindowShape(policy.description["frame_stack"], UNROLL_STEPS, td_steps=0)
    tests = _tests({"train": train, "held_out": held_out}, parameters["test_positions"], shape)
    found: dict[str, Any] = {}
    for label, horizon in HORIZONS.items():
        torch.manual_seed(seed)
        model = Model(policy, horizon).to(device)
        found[label] = _learn(model, train, tests, shape, parameters, np.random.default_rng(seed), log, label)
    counts = {name: len(windows) for name, windows in tests.items()}
    return Measured({"curves": found, **fixed_replay.count(train=train, held_out=held_out), "tests": counts})


def _tests(splits: Mapping[str, fixed_replay.FixedReplay], count: int, shape: WindowShape) -> dict[str, Windows]:
    """Returns the windows to test on: positions of each split, and only those before a reward."""
    rng, found = np.random.default_rng(0), {}
    for name, split in splits.items():
        found[name] = split.spread(count, shape, rng)
        rewarded = split.rewarded(UNROLL_STEPS)
        if len(rewarded):
            found[f"{name}, before a reward"] = rewarded.spread(count, shape, rng)
    return found


def _learn(
    model: Model,
    train: fixed_replay.FixedReplay,
    tests: Mapping[str, Windows],
    shape: WindowShape,
    parameters: Mapping[str, Any],
    rng: np.random.Generator,
    log: Log,
    label: str,
) -> dict[str, list[float]]:
    """Trains a model; returns `updates`, the updates at which it was tested, and for each test the errors there."""
    optimizer = torch.optim.Adam(model.parameters(), lr=float(parameters.get("lr", 1e-3)))
    size, updates, every = parameters["batch_size"], parameters["updates"], parameters["evaluate_every"]
    curve: dict[str, list[float]] = {"updates": [], **{name: [] for name in tests}}
    for update in range(updates + 1):
        if update % every == 0 or update == updates:
            statistics = [train.sample(size, shape, np.random.default_rng(i)) for i in range(NUM_STATISTICS_BATCHES)]
            curve["updates"].append(update)
            for name, windows in tests.items():
                curve[name].append(prefix_error(model, windows, statistics, size))
            log(f"{label}: update {update} of {updates}, held-out error {curve['held_out'][-1]:.4f}")
        if update < updates:
            model.train()
            windows = train.sample(size, shape, rng)
            loss = _loss(model, windows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    return curve


def _loss(model: Model, windows: Windows) -> Tensor:
    device = next(model.parameters()).device
    arrays = {
        "target_policy": windows.visit_policy,
        "target_value": windows.root_value,
        "target_value_prefix": value_prefix_targets(windows.rewards, windows.steps_left, UNROLL_STEPS, model.horizon),
        "mask": step_masks(windows.steps_left, UNROLL_STEPS),
        "weights": windows.weights,
    }
    batch = {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}
    return total_loss(losses(model(windows), batch), COEFFICIENTS, batch["weights"], UNROLL_STEPS)


@torch.no_grad()
def prefix_error(model: Model, windows: Windows, statistics: list[Windows], chunk: int) -> float:
    """Returns the mean squared error of the sums of the next 1 .. K rewards, over positions and sums.

    Squared, since predictions are expectations: if rewards are rare, always predicting 0 has the least absolute error.

    Args:
        model: is left in eval mode.
        windows: positions to predict from.
        statistics: batches from which the statistics of normalisation are computed anew.
        chunk: positions per forward pass.
    """
    model.train()
    with fresh_statistics(model):
        for batch in statistics:
            model(batch)
    model.eval()
    true = np.cumsum(windows.rewards[:, :UNROLL_STEPS], axis=1)
    predicted = [
        categorical_to_scalar(model(part).value_prefix_logits).cpu().numpy()
        for part in windows.split(math.ceil(len(windows) / chunk))
    ]
    return float(np.square(reward_sums(np.concatenate(predicted), model.horizon) - true).mean())


def reward_sums(value_prefix: np.ndarray, horizon: int) -> np.ndarray:
    """`[B, K]` value prefixes that start again every `horizon` steps -> `[B, K]` sums from the first step on."""
    blocks = range(0, value_prefix.shape[1], horizon)
    sums, before = np.empty_like(value_prefix), np.zeros_like(value_prefix[:, :1])
    for start in blocks:
        sums[:, start : start + horizon] = before + value_prefix[:, start : start + horizon]
        before = sums[:, start : start + horizon][:, -1:]
    return sums


def present(measurement: Measurement, note: str) -> list[Block]:
    """Returns the figure, and a table of the errors after training."""
    curves = measurement.measured.values["curves"]
    tests = [name for name in next(iter(curves.values())) if name != "updates"]
    blocks: list[Block] = []
    for title, ending in (("all positions", ""), ("positions before a reward", ", before a reward")):
        series = {
            f"{label}, {SPLITS[split]}": [(curve["updates"], curve[split + ending])]
            for label, curve in curves.items()
            for split in SPLITS
            if split + ending in curve
        }
        if series:
            png = plots.curves({title: series}, x_label="updates", y_label="squared error of reward sums", note=note)
            blocks.append(Figure(f"Figure 9, {title}", png))
    rows = [[_readable(name), *(f"{curve[name][-1]:.4f}" for curve in curves.values())] for name in tests]
    caption = (
        f"Mean squared error of the sums of the next 1 to {UNROLL_STEPS} rewards. One seed. "
        f"{fixed_replay.described(measurement.measured.values)}"
    )
    blocks.append(Table("Errors after training", ["positions", *curves], rows, caption))
    return blocks


def _readable(test: str) -> str:
    split, comma, rest = test.partition(",")
    return SPLITS[split] + comma + rest
