"""The Learner: losses, one guarded gradient step, new priorities, target network."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from torch import Tensor

from rllib_efficientzero import metrics as names
from rllib_efficientzero.divergence import DivergenceWatch
from rllib_efficientzero.losses import losses, new_priorities, prediction_errors, total_loss
from rllib_efficientzero.models.unroll import Unrolled
from rllib_efficientzero.schedules import warmup_step_decay

logger = logging.getLogger(__name__)

OPTIMIZER_CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class DivergedError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class EfficientZeroLearner(TorchLearner):
    """Takes train batches of `targets.Reanalyzer`, made by the learner connector.

    RLlib's handling of non-finite gradients (two host synchronisations per parameter, then a step with zeros in their
    place) is replaced: one check per update, and an update that is not finite changes nothing.
    """

    def build(self) -> None:
        super().build()
        self._num_non_finite_in_a_row = 0
        self._divergence_watch = DivergenceWatch()
        self._watched: dict[str, Tensor] = {}  # of the update at work, in the order in which they are computed
        for module_id in list(self.module.keys()):
            self._unwrapped(module_id).make_target_networks()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        options = dict(config.optimizer)
        optimizer_class = OPTIMIZER_CLASSES[options.pop("type")]
        parameters = [p for p in self.get_parameters(self.module[module_id]) if p.requires_grad]
        optimizer = optimizer_class(parameters, lr=config.lr, **options)
        # Without a schedule of RLlib's, which counts environment steps: ours counts updates (see `_set_learning_rate`).
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        predicted = Unrolled(**fwd_out)
        terms = losses(predicted, batch)
        loss = total_loss(terms, config.loss_coefficients(), batch["weights"], steps=batch["actions"].shape[1])
        self._log_predictions(module_id, predicted, terms, batch)
        return loss

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, dict[str, Tensor], dict]:
        """Forward, losses, gradients; then a step if everything is finite, else none."""
        statistics = _NormalisationStatistics(self._unwrapped(module_id) for module_id in batch)
        fwd_out = self.module.forward_train(batch)
        loss_per_module = self.compute_losses(fwd_out=fwd_out, batch=batch)
        self.compute_gradients(loss_per_module)
        for module_id, loss in loss_per_module.items():
            has_stepped = self._step_if_finite(module_id, loss.detach(), statistics)
            self._log_priorities(module_id, Unrolled(**fwd_out[module_id]), batch[module_id], has_stepped)
        return fwd_out, loss_per_module, {}

    def _step_if_finite(self, module_id: str, loss: Tensor, statistics: _NormalisationStatistics) -> bool:
        config = self.config.get_config_for_module(module_id)
        module = self._unwrapped(module_id)
        update = int(module.num_updates)
        for _, optimizer in self.get_optimizers_for_module(module_id):
            learning_rate = self._set_learning_rate(optimizer, update, config)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or torch.inf)
            self._divergence_watch.record(update, self._watched | {names.GRADIENT_NORM: norm})
            # The one host synchronisation of the update.
            if not _agreed_finite(loss, norm):
                statistics.restore()
                self._count_non_finite(module_id, update, config.max_consecutive_non_finite_updates)
                return False
            optimizer.step()
            self._log(module_id, {names.GRADIENT_NORM: norm, names.LEARNING_RATE: learning_rate})
        self._num_non_finite_in_a_row = 0
        self.metrics.log_value((module_id, names.NUM_NON_FINITE_UPDATES_LIFETIME), 0, reduce="lifetime_sum")
        module.num_updates += 1
        return True

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id in list(self.module.keys()):
            module = self._unwrapped(module_id)
            frequency = self.config.get_config_for_module(module_id).target_network_update_freq
            staleness = int(module.num_updates) % frequency
            if staleness == 0:
                for online, target in module.get_target_network_pairs():
                    target.load_state_dict(online.state_dict())
            self._log(module_id, {names.TARGET_STALENESS: staleness})

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        return [TargetNetworkAPI]

    # --- Helpers -----------------------------------------------------------------------------------------------------

    def _unwrapped(self, module_id: str) -> Any:
        """The module itself, where several learners have wrapped it for gradient synchronisation."""
        return self.module[module_id].unwrapped()

    @staticmethod
    def _set_learning_rate(optimizer: torch.optim.Optimizer, update: int, config: Any) -> float:
        learning_rate = warmup_step_decay(
            update,
            config.lr,
            warmup_updates=config.lr_warmup_updates,
            decay_rate=config.lr_decay_rate,
            decay_updates=config.lr_decay_updates,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _count_non_finite(self, module_id: str, update: int, most_in_a_row: int) -> None:
        self._num_non_finite_in_a_row += 1
        self.metrics.log_value((module_id, names.NUM_NON_FINITE_UPDATES_LIFETIME), 1, reduce="lifetime_sum")
        logger.warning("update %d of module %r skipped: its loss or gradient is not finite", update, module_id)
        if self._num_non_finite_in_a_row >= most_in_a_row:
            raise DivergedError(
                f"diverged at update {update}: the loss or gradient of module {module_id!r} was not finite "
                f"{most_in_a_row} times in a row; {self._divergence_watch.first_symptom()}. "
                f"Weights and optimizer are as they were after update {update - 1}. "
                "Try a lower lr, a longer lr_warmup_updates, or look for rewards or observations that are not finite."
            )

    def _log_predictions(
        self, module_id: str, predicted: Unrolled, terms: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> None:
        weights = batch["weights"]
        term_means = {f"{name}_loss": (weights * term.detach()).mean() for name, term in terms.items()}
        self._log(module_id, term_means)
        targets = ("target_value", "target_value_prefix", "target_policy")
        self._watched = {f"largest {name}": batch[name].abs().amax() for name in targets} | term_means
        value_errors, value_prefix_errors = prediction_errors(predicted, batch)
        for k, error in enumerate(value_errors):
            self._log(module_id, {(names.VALUE_ERROR, str(k)): error})
        for k, error in enumerate(value_prefix_errors, start=1):
            self._log(module_id, {(names.VALUE_PREFIX_ERROR, str(k)): error})

    def _log_priorities(self, module_id: str, predicted: Unrolled, batch: dict[str, Tensor], has_stepped: bool) -> None:
        # Ids travel with the priorities: with several learners no other order could be relied on.
        priorities = new_priorities(predicted, batch)
        pairs = torch.stack((batch["position_ids"].double(), priorities.double()), dim=1)
        if not has_stepped:
            # What was not learned from keeps its priority; the new one may be NaN.
            pairs = pairs[:0]
        self.metrics.log_value((module_id, names.PRIORITIES), pairs, reduce="item_series")

    def _log(self, module_id: str, values: dict[Any, Any]) -> None:
        for key, value in values.items():
            path = key if isinstance(key, tuple) else (key,)
            self.metrics.log_value((module_id, *path), value, reduce="mean", window=100)


class _NormalisationStatistics:
    """A copy of the running statistics of modules, to undo what a forward pass that is not finite did to them.

    The target network's never change in a forward pass.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        named = [pair for module in modules for pair in module.named_buffers()]
        self._buffers = [buffer for name, buffer in named if not name.startswith("target_network.")]
        self._copies = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            buffer.copy_(copy)


def _agreed_finite(*values: Tensor) -> bool:
    """Whether all values are finite, on every learner of the group."""
    finite = torch.stack([torch.isfinite(value).all() for value in values]).all()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        votes = finite.to(torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
        finite = votes.bool()
    return bool(finite)
