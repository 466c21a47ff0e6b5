"""Losses, their weights and their gradients, by hand and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rllib_efficientzero.losses import PRIORITY_FLOOR, losses, new_priorities, observe, prediction_errors, total_loss
from rllib_efficientzero.models import ModelConfig, build_consistency_heads, build_network
from rllib_efficientzero.models.consistency import negative_cosine
from rllib_efficientzero.models.scalar_transform import compress
from rllib_efficientzero.models.unroll import Unrolled, unroll

BATCH, STEPS, ACTIONS, SUPPORT = 3, 2, 2, 2
SIZES = ModelConfig(
    latent_size=32,
    mlp_hidden=(32,),
    head_hidden=(8,),
    lstm_hidden=6,
    support_size=SUPPORT,
    projector_hidden=32,
    projector_out=32,
    predictor_hidden=16,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_predictions(seed: int = 0, *, consistency: bool = True) -> Unrolled:
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).requires_grad_()

    random = generator(seed)
    return Unrolled(
        rand(BATCH, STEPS + 1, ACTIONS),
        rand(BATCH, STEPS + 1, 2 * SUPPORT + 1),
        rand(BATCH, STEPS, 2 * SUPPORT + 1),
        rand(BATCH, STEPS, 4) if consistency else None,
        rand(BATCH, STEPS, 4) if consistency else None,
    )


def random_batch(seed: int = 1) -> dict[str, Tensor]:
    random = generator(seed)
    return {
        "target_policy": torch.rand(BATCH, STEPS + 1, ACTIONS, generator=random).softmax(dim=-1),
        "target_value": torch.randn(BATCH, STEPS + 1, generator=random),
        "target_value_prefix": torch.randn(BATCH, STEPS, generator=random),
        "mask": torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
        "weights": torch.tensor([1.0, 0.5, 0.25]),
    }


# --- The terms -------------------------------------------------------------------------------------------------------


def plain_cross_entropy(logits: list[float], target: list[float]) -> float:
    total = math.log(sum(math.exp(logit) for logit in logits))
    return sum(p * (total - logit) for p, logit in zip(target, logits, strict=True))


def plain_two_hot(x: float) -> list[float]:
    position = max(-SUPPORT, min(SUPPORT, compress(torch.tensor(x, dtype=torch.float64)).item()))
    return [max(0.0, 1.0 - abs(position - integer)) for integer in range(-SUPPORT, SUPPORT + 1)]


def test_every_term_by_loops() -> None:
    predicted, batch = random_predictions(), random_batch()
    found = losses(predicted, batch)
    assert set(found) == {"policy", "value", "value_prefix", "consistency"}
    for i in range(BATCH):
        mask = [1.0, *batch["mask"][i].tolist()]
        policy = value = prefix = consistency = 0.0
        for k in range(STEPS + 1):
            targets = batch["target_policy"][i, k].tolist()
            policy += mask[k] * plain_cross_entropy(predicted.policy_logits[i, k].tolist(), targets)
            targets = plain_two_hot(batch["target_value"][i, k].item())
            value += mask[k] * plain_cross_entropy(predicted.value_logits[i, k].tolist(), targets)
        for k in range(STEPS):
            targets = plain_two_hot(batch["target_value_prefix"][i, k].item())
            prefix += mask[k + 1] * plain_cross_entropy(predicted.value_prefix_logits[i, k].tolist(), targets)
            a, b = predicted.projection[i, k], predicted.target_projection[i, k]
            consistency -= mask[k + 1] * (a @ b / (a.norm() * b.norm())).item()
        expected = {"policy": policy, "value": value, "value_prefix": prefix, "consistency": consistency}
        for name, term in expected.items():
            assert found[name][i].item() == pytest.approx(term, rel=1e-4, abs=1e-6), name


def test_without_consistency_its_term_is_absent() -> None:
    assert set(losses(random_predictions(consistency=False), random_batch())) == {"policy", "value", "value_prefix"}


def test_masked_steps_contribute_nothing() -> None:
    predicted, batch = random_predictions(), random_batch()
    before = losses(predicted, batch)
    sum(term.sum() for term in before.values()).backward()
    is_masked = batch["mask"] == 0
    root_is_masked = torch.cat((torch.zeros(BATCH, 1, dtype=torch.bool), is_masked), dim=1)
    for tensor in (predicted.policy_logits, predicted.value_logits):
        assert torch.all(tensor.grad[root_is_masked] == 0)
        assert torch.all(tensor.grad[~root_is_masked] != 0)
    for tensor in (predicted.value_prefix_logits, predicted.projection):
        assert torch.all(tensor.grad[is_masked] == 0)
        assert torch.all(tensor.grad[~is_masked] != 0)

    changed = {key: value.clone() for key, value in batch.items()}
    changed["target_policy"][root_is_masked] += 1.0
    changed["target_value"][root_is_masked] += 1.0
    changed["target_value_prefix"][is_masked] += 1.0
    for name, term in losses(predicted, changed).items():
        assert torch.equal(term, before[name]), name


def test_the_root_is_never_masked() -> None:
    predicted, batch = random_predictions(), random_batch()
    batch["mask"] = torch.zeros(BATCH, STEPS)
    terms = losses(predicted, batch)
    assert torch.all(terms["policy"] > 0)
    assert torch.all(terms["value"] > 0)
    assert torch.all(terms["value_prefix"] == 0)
    assert torch.all(terms["consistency"] == 0)


def test_a_target_policy_of_zeros_costs_nothing() -> None:
    predicted, batch = random_predictions(), random_batch()
    batch["target_policy"] = torch.zeros(BATCH, STEPS + 1, ACTIONS)
    assert torch.all(losses(predicted, batch)["policy"] == 0)


@pytest.mark.parametrize("key", ["target_value", "target_value_prefix", "target_policy"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_targets_that_are_not_finite_make_losses_that_are_not(key: str, bad: float) -> None:
    predicted, batch = random_predictions(), random_batch()
    batch[key][0, 0] = bad
    terms = losses(predicted, batch)
    assert not all(torch.isfinite(term).all() for term in terms.values())


# --- Their sum -------------------------------------------------------------------------------------------------------


def test_total_loss_by_hand() -> None:
    terms = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
    weights = torch.tensor([1.0, 0.5])
    # (1 (2 * 1 + 0.5 * 10) + 0.5 (2 * 2 + 0.5 * 20)) / 2 samples / 5 steps
    assert total_loss(terms, {"a": 2.0, "b": 0.5}, weights, steps=5).item() == pytest.approx((7.0 + 7.0) / 2 / 5)


def test_importance_weights_scale_all_of_a_samples_gradient() -> None:
    gradients = []
    for weights in (torch.ones(BATCH), torch.tensor([1.0, 0.5, 0.25])):
        predicted = random_predictions()
        terms = losses(predicted, random_batch())
        total_loss(terms, dict.fromkeys(terms, 1.0), weights, STEPS).backward()
        gradients.append([tensor.grad for tensor in predicted[:4]])
    for plain, weighted in zip(*gradients, strict=True):
        scale = torch.tensor([1.0, 0.5, 0.25]).view(-1, *[1] * (plain.ndim - 1))
        torch.testing.assert_close(weighted, scale * plain)


@pytest.mark.parametrize("coefficients", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}])
def test_losses_and_coefficients_must_match(coefficients: dict[str, float]) -> None:
    terms = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match="do not match"):
        total_loss(terms, coefficients, torch.ones(2), steps=1)


# --- What is made of the predictions besides -------------------------------------------------------------------------


def logits_of(values: list[float]) -> Tensor:
    """Logits whose expectation is the given scalars."""
    return torch.tensor([plain_two_hot(value) for value in values]).clamp(min=1e-30).log()


def test_priorities_by_hand() -> None:
    predicted = random_predictions()
    value_logits = torch.zeros(BATCH, STEPS + 1, 2 * SUPPORT + 1)
    value_logits[:, 0] = logits_of([1.0, -2.0, 0.5])
    batch = random_batch()
    batch["target_value"][:, 0] = torch.tensor([3.0, -2.5, 0.5])
    priorities = new_priorities(predicted._replace(value_logits=value_logits), batch)
    torch.testing.assert_close(priorities, torch.tensor([2.0, 0.5, 0.0]) + PRIORITY_FLOOR, rtol=1e-4, atol=1e-5)
    assert torch.all(priorities > 0)
    assert not priorities.requires_grad


def test_errors_by_unroll_step_count_unmasked_samples_only() -> None:
    batch = random_batch()
    batch["target_value"] = torch.zeros(BATCH, STEPS + 1)
    batch["target_value_prefix"] = torch.zeros(BATCH, STEPS)
    value_logits = torch.stack([logits_of([1.0, 2.0, 3.0]), logits_of([1.0, -2.0, 9.0]), logits_of([0.5, 9, 9])], dim=1)
    predicted = random_predictions()._replace(value_logits=value_logits, value_prefix_logits=value_logits[:, 1:])
    value, prefix = prediction_errors(predicted, batch)
    torch.testing.assert_close(value, torch.tensor([2.0, 1.5, 0.5]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prefix, torch.tensor([1.5, 0.5]), rtol=1e-4, atol=1e-4)


def test_what_is_observed_is_what_was_computed_and_sends_no_gradient() -> None:
    predicted, batch = random_predictions(), random_batch()
    terms = losses(predicted, batch)
    observed = observe(predicted, terms, batch)
    for name, term in terms.items():
        torch.testing.assert_close(observed[f"{name}_loss"], (batch["weights"] * term).mean())
    torch.testing.assert_close(observed["largest target_value"], batch["target_value"].abs().max())
    torch.testing.assert_close(observed["priorities"], new_priorities(predicted, batch))
    value_errors, value_prefix_errors = prediction_errors(predicted, batch)
    torch.testing.assert_close(observed["value_error"], value_errors)
    torch.testing.assert_close(observed["value_prefix_error"], value_prefix_errors)
    assert not any(value.requires_grad for value in observed.values())


# --- Gradients through the unroll ------------------------------------------------------------------------------------


class LinearToy(nn.Module):
    """s_0 = p x, s_{k+1} = w[a_k] s_k; every head reads the latent as it is. The LSTM's state sums the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(1.3))
        self.w = nn.Parameter(torch.tensor([0.7, 1.9, -1.1]))

    def represent(self, planes: Tensor) -> Tensor:
        return self.p * planes

    def initial_reward_hidden(self, latent: Tensor) -> Tensor:
        return torch.zeros_like(latent)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.w[action][:, None] * latent

    def advance_value_prefix(self, next_latent: Tensor, reward_hidden: Tensor) -> Tensor:
        return reward_hidden + next_latent

    def read_value_prefix(self, reward_hidden: Tensor) -> Tensor:
        return reward_hidden

    def predict(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return latent, latent


def gradients_and_differences(output: Callable[[Unrolled], Tensor], horizon: int = 99) -> tuple[Tensor, Tensor]:
    """Gradient and finite differences of one output of the toy unrolled along actions 0, 1, 2, by (p, w0, w1, w2)."""
    toy = LinearToy().double()
    planes, actions = torch.tensor([[0.9]], dtype=torch.float64), torch.tensor([[0, 1, 2]])

    def value() -> Tensor:
        arguments = {"consistency": None, "target_planes": planes, "value_prefix_horizon": horizon}
        return output(unroll(toy, planes, actions, **arguments))

    value().backward()
    gradient = torch.cat((toy.p.grad[None], toy.w.grad))
    differences = []
    for parameter, index in ((toy.p, ()), (toy.w, 0), (toy.w, 1), (toy.w, 2)):
        with torch.no_grad():
            original = parameter[index].item()
            parameter[index] = original + 1e-6
            high = value().item()
            parameter[index] = original - 1e-6
            low = value().item()
            parameter[index] = original
        differences.append((high - low) / 2e-6)
    return gradient, torch.tensor(differences, dtype=torch.float64)


@pytest.mark.parametrize("head", ["policy_logits", "value_logits"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_gradient_is_halved_at_every_imagined_latent(head: str, k: int) -> None:
    """From the heads of step k: once into the dynamics of step k, once more for every step before."""
    gradient, true = gradients_and_differences(lambda predicted: getattr(predicted, head)[0, k, 0])
    # w[j] makes latent j + 1: of the latents j + 1 .. k the gradient passes k - j. The root's is not halved.
    scale = [0.5**k, *(0.5 ** (k - j) if j < k else 0.0 for j in range(3))]
    torch.testing.assert_close(gradient, torch.tensor(scale, dtype=torch.float64) * true, rtol=1e-6, atol=1e-8)
    assert torch.all(true[: k + 1] != 0)


def test_the_first_value_prefix_halves_its_gradient_too() -> None:
    gradient, true = gradients_and_differences(lambda predicted: predicted.value_prefix_logits[0, 0, 0])
    torch.testing.assert_close(gradient, torch.tensor([0.5, 0.5, 0, 0]) * true, rtol=1e-6, atol=1e-8)


def test_the_lstm_state_carries_gradient_until_it_is_reset() -> None:
    """The state's own path is not scaled: through it, latent 1 is reached by prefix 3 over one hook only."""
    gradient, _ = gradients_and_differences(lambda predicted: predicted.value_prefix_logits[0, 2, 0])
    p, w1, w2, x = 1.3, 1.9, -1.1, 0.9
    expected = p * x * (0.5 + 0.25 * w1 + 0.125 * w1 * w2)  # d/dw0 of s1 + s2 + s3, by the path through each
    assert gradient[1].item() == pytest.approx(expected)

    reset, true = gradients_and_differences(lambda predicted: predicted.value_prefix_logits[0, 2, 0], horizon=2)
    assert reset[1].item() == pytest.approx(p * x * 0.125 * w1 * w2)  # s3 only
    torch.testing.assert_close(reset, torch.tensor([0.125, 0.125, 0.25, 0.5]) * true, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("horizon", "expected"), [(1, [2, 3, 4]), (2, [2, 5, 4]), (3, [2, 5, 9]), (5, [2, 5, 9])])
def test_value_prefixes_start_anew_after_every_horizon(horizon: int, expected: list[float]) -> None:
    toy = LinearToy()
    with torch.no_grad():
        toy.p.fill_(1.0)
        toy.w.copy_(torch.tensor([2.0, 1.5, 4 / 3]))  # latents 2, 3, 4
    planes = torch.ones(1, 1)
    arguments = {"consistency": None, "target_planes": planes, "value_prefix_horizon": horizon}
    predicted = unroll(toy, planes, torch.tensor([[0, 1, 2]]), **arguments)
    torch.testing.assert_close(predicted.value_prefix_logits[0, :, 0], torch.tensor(expected, dtype=torch.float32))


def test_the_division_by_the_unroll_steps_scales_the_roots_gradient_too() -> None:
    logits = torch.zeros(1, 6, 2, requires_grad=True)
    rest = torch.zeros(1, 6, 5), torch.zeros(1, 5, 5), None, None
    batch = {
        "target_policy": torch.tensor([1.0, 0.0]).expand(1, 6, 2),
        "target_value": torch.zeros(1, 6),
        "target_value_prefix": torch.zeros(1, 5),
        "mask": torch.ones(1, 5),
    }
    coefficients = {"policy": 1.0, "value": 1.0, "value_prefix": 1.0}
    total_loss(losses(Unrolled(logits, *rest), batch), coefficients, torch.ones(1), steps=5).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.5, 0.5]).expand(1, 6, 2) / 5)


# --- Consistency -----------------------------------------------------------------------------------------------------


def consistency_setup(seed: int = 0, batch: int = 16, steps: int = 3) -> dict[str, Any]:
    """A deterministic toy: observations turn by an angle that depends on the action."""
    torch.manual_seed(seed)
    angles = 6.28 * torch.rand(batch, 1)
    actions = torch.randint(ACTIONS, (batch, steps))
    later = angles + 0.5 * (2.0 * actions - 1.0).cumsum(dim=1)
    planes = torch.stack((later.cos(), later.sin()), dim=-1)
    return {
        "network": build_network((1, 2), ACTIONS, SIZES).train(),
        "root_planes": torch.cat((angles.cos(), angles.sin()), dim=1),
        "actions": actions,
        "consistency": build_consistency_heads((SIZES.latent_size,), SIZES).train(),
        "target_planes": planes,
        "value_prefix_horizon": 5,
    }


def test_negative_cosine_by_hand() -> None:
    prediction = torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [0.0, 4.0], [7.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(negative_cosine(prediction, target), torch.tensor([-1.0, -math.sqrt(0.5), 1.0, 0.0]))


def test_the_target_branch_gets_no_gradient() -> None:
    arguments = consistency_setup()
    arguments["target_planes"].requires_grad_()
    arguments["root_planes"].requires_grad_()
    predicted = unroll(**arguments)
    assert not predicted.target_projection.requires_grad
    negative_cosine(predicted.projection, predicted.target_projection).sum().backward()
    assert arguments["target_planes"].grad is None
    assert torch.any(arguments["root_planes"].grad != 0)


def test_a_target_that_would_take_gradient_gets_none_either() -> None:
    prediction, target = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    negative_cosine(prediction, target).sum().backward()
    assert target.grad is None
    assert prediction.grad is not None


def test_the_target_is_the_projected_representation_of_the_online_network() -> None:
    arguments = consistency_setup()
    network, heads = arguments["network"].eval(), arguments["consistency"].eval()
    predicted = unroll(**arguments)
    latent = network.represent(arguments["root_planes"])
    for k in range(3):
        target = heads.project(network.represent(arguments["target_planes"][:, k]))
        torch.testing.assert_close(predicted.target_projection[:, k], target)
        latent, _ = network.step(latent, network.initial_reward_hidden(latent), arguments["actions"][:, k])
        torch.testing.assert_close(predicted.projection[:, k], heads.predictor(heads.projector(latent)))


def test_consistency_falls_to_nearly_minus_one_per_step() -> None:
    arguments = consistency_setup(batch=64)
    parameters = [*arguments["network"].parameters(), *arguments["consistency"].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    history = []
    for _ in range(200):
        predicted = unroll(**arguments)
        loss = negative_cosine(predicted.projection, predicted.target_projection).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[0] > -0.5
    assert history[-1] < -0.98
    # Not by collapse: the targets of different observations still differ.
    targets = nn.functional.normalize(predicted.target_projection.flatten(0, 1), dim=-1)
    assert (targets @ targets.T).mean() < 0.5
