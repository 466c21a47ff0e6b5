"""The losses of EfficientZero as pure functions (equation 1 and appendix A.1 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rllib_efficientzero import metrics as names
from rllib_efficientzero.models.action_distributions import ActionDistribution
from rllib_efficientzero.models.consistency import negative_cosine
from rllib_efficientzero.models.scalar_transform import (
    categorical_to_scalar,
    cross_entropy,
    largest_expressible,
    two_hot,
)
from rllib_efficientzero.models.unroll import Unrolled

PRIORITY_FLOOR = 1e-6

PolicyLosses = Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]]
"""(policy head's outputs `[B, K+1, ...]`, train batch) -> name -> `[B, K+1]`"""


def enumerated_policy_losses(policy_logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy between the search's policy and the policy head's, over all actions."""
    return {"policy": cross_entropy(policy_logits, batch["target_policy"])}


def sampled_policy_losses(distribution: ActionDistribution) -> PolicyLosses:
    """Cross-entropy over the sampled actions of the search (Sampled MuZero, section 4.3), and the negative entropy.

    Both are zero where there is no policy target.
    """

    def policy_losses(policy: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target = batch["target_policy"]
        log_prob = distribution.log_prob(policy, batch["target_actions"])
        return {
            "policy": -(target * log_prob).sum(dim=-1),
            "entropy": -distribution.entropy(policy) * (target.sum(dim=-1) > 0),
        }

    return policy_losses


def policy_losses_of(distribution: ActionDistribution | None) -> PolicyLosses:
    """The policy losses for a head that predicts logits (None), or the parameters of a distribution."""
    return enumerated_policy_losses if distribution is None else sampled_policy_losses(distribution)


def losses(
    predicted: Unrolled, batch: Mapping[str, Tensor], policy_losses: PolicyLosses = enumerated_policy_losses
) -> dict[str, Tensor]:
    """Every loss term per sample, summed over unroll steps.

    Args:
        predicted: of B positions, K steps.
        batch: `target_policy` `[B, K+1, A]`, `target_value` `[B, K+1]`, `target_value_prefix` `[B, K]`,
            `mask` `[B, K]` (1 where the action that leads to step k + 1 exists); `target_actions` `[B, K+1, A, D]`
            where actions are sampled.
        policy_losses: of the policy head's outputs.

    Returns:
        name -> `[B]`. Step 0 is never masked: a sampled position exists.
    """
    support_size = (predicted.value_logits.shape[-1] - 1) // 2
    mask = batch["mask"]
    root_mask = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
    value_target = two_hot(batch["target_value"], support_size)
    value_prefix_target = two_hot(batch["target_value_prefix"], support_size)
    of_policy = policy_losses(predicted.policy_logits, batch)
    terms = {
        **{name: (term * root_mask).sum(dim=1) for name, term in of_policy.items()},
        "value": (cross_entropy(predicted.value_logits, value_target) * root_mask).sum(dim=1),
        "value_prefix": (cross_entropy(predicted.value_prefix_logits, value_prefix_target) * mask).sum(dim=1),
    }
    if predicted.projection is not None and predicted.target_projection is not None:
        distance = negative_cosine(predicted.projection, predicted.target_projection)
        terms["consistency"] = (distance * mask).sum(dim=1)
    return terms


def total_loss(terms: Mapping[str, Tensor], coefficients: Mapping[str, float], weights: Tensor, steps: int) -> Tensor:
    """mean_i w_i sum_j c_j L_ij / K.

    The division by the number of unroll steps K scales all gradients, the root's included, as the paper's code does.

    Args:
        terms: name -> `[B]`.
        coefficients: the coefficient of each term, by the same names.
        weights: `[B]` importance weights; they multiply every term.
        steps: K.
    """
    if terms.keys() != coefficients.keys():
        raise ValueError(f"losses {sorted(terms)} and coefficients {sorted(coefficients)} do not match")
    per_sample = sum(coefficients[name] * term for name, term in terms.items())
    return (weights * per_sample).mean() / steps


def loss_and_observed(
    predicted: Unrolled, batch: Mapping[str, Tensor], coefficients: Mapping[str, float], policy_losses: PolicyLosses
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `total_loss` `[]` of a train batch, and what `observe` reports about it."""
    terms = losses(predicted, batch, policy_losses)
    loss = total_loss(terms, coefficients, batch["weights"], steps=batch["actions"].shape[1])
    return loss, observe(predicted, terms, batch)


@torch.no_grad()
def new_priorities(predicted: Unrolled, batch: Mapping[str, Tensor]) -> Tensor:
    """`[B]` |predicted - target value| at the sampled position, in reward units, plus a floor."""
    value = categorical_to_scalar(predicted.value_logits[:, 0])
    return (value - batch["target_value"][:, 0]).abs() + PRIORITY_FLOOR


@torch.no_grad()
def prediction_errors(predicted: Unrolled, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean absolute errors by unroll step over the unmasked samples: value `[K+1]`, value prefix `[K]`."""
    mask = batch["mask"]
    root_mask = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
    value = (categorical_to_scalar(predicted.value_logits) - batch["target_value"]).abs()
    prefix = (categorical_to_scalar(predicted.value_prefix_logits) - batch["target_value_prefix"]).abs()
    return _masked_mean(value, root_mask), _masked_mean(prefix, mask)


@torch.no_grad()
def saturated_share(predicted: Unrolled, batch: Mapping[str, Tensor]) -> Tensor:
    """Share of the value and value prefix targets that lie beyond the support and are cut at its end; `[]`."""
    limit = largest_expressible((predicted.value_logits.shape[-1] - 1) // 2)
    targets = torch.cat((batch["target_value"], batch["target_value_prefix"]), dim=1)
    return (targets.abs() > limit).float().mean()


@torch.no_grad()
def observe(predicted: Unrolled, terms: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an update reports, as tensors on the device, in the order in which they are computed.

    Returns:
        `largest <target>` `[]` and `<term>_loss` `[]` for each; SATURATED_TARGETS `[]`, VALUE_ERROR `[K+1]`,
        VALUE_PREFIX_ERROR `[K]`, PRIORITIES `[B]`.
    """
    targets = ("target_value", "target_value_prefix", "target_policy")
    observed = {f"largest {name}": batch[name].abs().amax() for name in targets}
    observed |= {f"{name}_loss": (batch["weights"] * term).mean() for name, term in terms.items()}
    observed[names.SATURATED_TARGETS] = saturated_share(predicted, batch)
    observed[names.VALUE_ERROR], observed[names.VALUE_PREFIX_ERROR] = prediction_errors(predicted, batch)
    observed[names.PRIORITIES] = new_priorities(predicted, batch)
    return observed


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum(dim=0) / mask.sum(dim=0).clamp(min=1.0)
