"""Checks that a checkpoint fits the algorithm that resumes from it, and refuses it at once if not."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rllib_efficientzero.checkpoint.manifest import CheckpointError

DISCRETE = "Discrete"
CONSISTENCY_PREFIX = "consistency."
_COMPARED = (
    ("observation_space", "stacked observations"),
    ("action_space", "actions"),
    ("model", "a network"),
)


def check_description(path: pathlib.Path, found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compares a policy's description with that of the algorithm.

    Args:
        path: of the description, for messages.
        found: its content.
        own: the description that the algorithm would write.

    Raises:
        CheckpointError: they differ in their spaces, networks or number of sampled actions.
    """
    for name, what in _COMPARED:
        if found.get(name) != own[name]:
            raise CheckpointError(
                f"{path} is of another run: it has {what} of {found.get(name)}, and this one has {own[name]}."
            )
    key = "num_sampled_actions"
    saved, wanted = (description["search"].get(key) for description in (found, own))
    # With sampled actions, the replay stores this number of actions, and a policy over them, for every step.
    if own["action_space"]["type"] != DISCRETE and saved != wanted:
        raise CheckpointError(f"{path} is of another run: its {key} is {saved}, and that of this one is {wanted}.")


def check_learner(
    directory: pathlib.Path, *, weights: Sequence[str], optimizer: Mapping[str, Any], config: Any
) -> None:
    """Compares a saved Learner with a config.

    Args:
        directory: the checkpoint, for messages.
        weights: names of the module's weights.
        optimizer: the optimizer's state, in torch's form.
        config: an `EfficientZeroConfig`.

    Raises:
        CheckpointError: the optimizer is of another kind, or only one of the two has the heads of the consistency loss.
    """
    has_heads = any(name.startswith(CONSISTENCY_PREFIX) for name in weights)
    if has_heads != config.use_consistency:
        raise CheckpointError(
            f"{directory} is of another run: it was trained with `use_consistency` {has_heads}, and this one has "
            f"{config.use_consistency}."
        )
    saved, own = _kind(optimizer["param_groups"][0]), config.optimizer["type"]
    own = "adam with amsgrad" if config.optimizer.get("amsgrad") else own
    if saved != own:
        raise CheckpointError(
            f"{directory} is of another run: its optimizer is {saved}, whose state is of no use to {own}."
        )


def _kind(options: Mapping[str, Any]) -> str:
    """The kind of an optimizer, recognised by the options of its parameter group."""
    if "betas" not in options:
        return "sgd"
    return "adam with amsgrad" if options.get("amsgrad") else "adam"
