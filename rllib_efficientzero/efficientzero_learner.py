"""The Learner: losses, one guarded gradient step, new priorities, target network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core import ALL_MODULES, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import (
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor

from rllib_efficientzero import metrics as names
from rllib_efficientzero.divergence import DivergenceWatch
from rllib_efficientzero.gradient_step import FINITE, GradientStep, own_state
from rllib_efficientzero.losses import PolicyLosses, loss_and_observed, policy_losses_of
from rllib_efficientzero.memory import reuse_freed_memory
from rllib_efficientzero.models.compilation import CompiledFunction, is_worth_compiling
from rllib_efficientzero.models.normalization import fresh_statistics
from rllib_efficientzero.models.unroll import Unrolled
from rllib_efficientzero.schedules import warmup_step_decay

logger = logging.getLogger(__name__)

POSITION_IDS = "position_ids"
LOGGED = (names.GRADIENT_NORM, names.LEARNING_RATE, names.SATURATED_TARGETS, names.TARGET_STALENESS)
"""beside losses and errors"""
UPDATES_IN_MEANS = 100
"""About how many updates the logged means are taken over."""
OPTIMIZER_CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class DivergedError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""

    def __init__(self, message: str, last_updates: list[dict[str, Any]]) -> None:
        """Args:
        message: a sentence.
        last_updates: see `DivergenceWatch.last_updates`.
        """
        super().__init__(message, last_updates)
        self.last_updates = last_updates

    def __str__(self) -> str:
        return str(self.args[0])


class EfficientZeroLearner(TorchLearner):
    """Learns from the train batches of `targets.Reanalyzer`, which the learner connector makes.

    It replaces RLlib's handling of non-finite gradients (two host synchronisations per parameter, then a step with
    zeros in their place): it checks once per update, and an update that is not finite changes nothing.
    """

    def build(self) -> None:
        reuse_freed_memory()
        super().build()
        # Given a seed, RLlib asks torch for deterministic algorithms, and torch then also fills all new memory. That
        # only helps to find reads of uninitialised memory, and costs a twentieth of a small network's update.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._num_non_finite_in_a_row = 0
        self._has_warned_of_saturation = False
        self._divergence_watch = DivergenceWatch()
        self._gradient_steps: dict[str, GradientStep] = {}
        self._updates_made: dict[str, int] = {}  # by module: what their buffers say, on the host
        self._observed: dict[str, list[dict[str, np.ndarray]]] = {}  # by module, of updates that are still to be logged
        self._batch_sizes: dict[str, list[int]] = {}  # by module, of updates that are still to be logged
        self._num_env_steps_trained = 0  # in updates that are still to be logged
        self._priorities: dict[str, np.ndarray] = {}  # by module: position ids and their new priorities
        self._last_batch: dict[str, dict[str, Tensor]] = {}  # of modules whose statistics are older than their weights
        for module_id in list(self.module.keys()):
            module = self._unwrapped(module_id)
            module.make_target_networks()
            self._gradient_steps[module_id] = self._make_gradient_step(module_id)

    def _make_modules_ddp_if_necessary(self) -> None:
        if self.config.sync_batch_norm:
            for module_id in list(self.module.keys()):
                torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.module[module_id])
        super()._make_modules_ddp_if_necessary()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        options = dict(config.optimizer)
        optimizer_class = OPTIMIZER_CLASSES[options.pop("type")]
        parameters = self._trained_parameters(module_id)
        optimizer = optimizer_class(parameters, lr=config.lr, fused=True, **options)
        # Without a schedule of RLlib's, which counts environment steps: ours counts updates (see `_set_learning_rate`).
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Tensor:
        return loss_and_observed(Unrolled(**fwd_out), batch, *self._losses_of(module_id, config))[0]

    def _losses_of(self, module_id: str, config: Any) -> tuple[dict[str, float], PolicyLosses]:
        """The coefficients of a module's losses, and the loss function of its policy."""
        distribution = self._unwrapped(module_id).network.distribution
        coefficients = config.loss_coefficients(sampled_actions=distribution is not None)
        return coefficients, policy_losses_of(distribution)

    def _make_gradient_step(self, module_id: str) -> GradientStep:
        """Makes a module's `GradientStep`: one CUDA graph, given `compiled_learner`, a GPU and no other Learners."""
        config = self.config.get_config_for_module(module_id)
        module, how = self._unwrapped(module_id), self._losses_of(module_id, config)
        recorded = config.compiled_learner and self._device.type == "cuda" and config.num_learners <= 1
        evaluate: Callable[..., tuple[Tensor, dict[str, Tensor]]] = loss_and_observed
        if recorded and is_worth_compiling(module.network):
            module.compile_training()
            if module.network.distribution is None:  # The compiler cannot handle an entropy by quadrature.
                evaluate = CompiledFunction(evaluate, dynamic=False)

        def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            fwd_out = self.module.forward_train({module_id: batch})[module_id]
            loss, observed = evaluate(Unrolled(**fwd_out), batch, *how)
            ids = {POSITION_IDS: batch[POSITION_IDS]}
            return loss, observed | ids | {self.TOTAL_LOSS_KEY: loss.detach()}

        ((_, optimizer),) = self.get_optimizers_for_module(module_id)
        return GradientStep(compute, optimizer, module, max_norm=config.grad_clip, recorded=recorded)

    def update(self, *args: Any, _no_metrics_reduce: bool = False, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's. With RLlib's flag `_no_metrics_reduce` it returns the priorities only, and `report` returns the
        other metrics: reducing them takes a tenth of an update's time."""
        super().update(*args, _no_metrics_reduce=True, **kwargs)
        results = {} if _no_metrics_reduce else self.report()
        for module_id, pairs in self._priorities.items():
            results.setdefault(module_id, {})[names.PRIORITIES] = pairs
        return results

    def report(self) -> dict[str, Any]:
        """Returns the metrics of the updates since the last report, without priorities."""
        self._log_observed()
        self._log_steps_trained()
        return self.metrics.reduce()

    def _make_batch_if_necessary(self, training_data: TrainingData) -> MultiAgentBatch:
        """As RLlib's, but returns a batch that is on the device already at once: RLlib walks through it three times."""
        batch = training_data.batch
        if isinstance(batch, MultiAgentBatch) and all(
            isinstance(value, Tensor) and value.device == self._device
            for module_batch in batch.policy_batches.values()
            for value in module_batch.values()
        ):
            return batch
        return super()._make_batch_if_necessary(training_data)

    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        """Counts what RLlib would log here; `_log_steps_trained` logs it later. RLlib's eight metrics take 0.1 ms."""
        for module_id, module_batch in batch.policy_batches.items():
            self._batch_sizes.setdefault(module_id, []).append(len(module_batch))
        self._num_env_steps_trained += batch.env_steps()

    def _log_steps_trained(self) -> None:
        """Logs RLlib's step metrics for all updates since the last time at once; they reduce to the same values."""
        if not self._batch_sizes:
            return
        log, throughput = self.metrics.log_value, {"with_throughput": True}
        for module_id, sizes in self._batch_sizes.items():
            num_steps = sum(sizes)
            log((module_id, WEIGHTS_SEQ_NO), self._weights_seq_no, window=1)
            log((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), num_steps / len(sizes), reduce="mean")
            log((module_id, NUM_MODULE_STEPS_TRAINED), num_steps, reduce="sum")
            log((module_id, NUM_MODULE_STEPS_TRAINED_LIFETIME), num_steps, reduce="lifetime_sum", **throughput)
            log((ALL_MODULES, NUM_MODULE_STEPS_TRAINED), num_steps, reduce="sum", **throughput)
            log((ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), num_steps, reduce="lifetime_sum", **throughput)
        num_env_steps = self._num_env_steps_trained
        log((ALL_MODULES, NUM_ENV_STEPS_TRAINED), num_env_steps, reduce="sum", **throughput)
        log((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), num_env_steps, reduce="lifetime_sum", **throughput)
        self._batch_sizes.clear()
        self._num_env_steps_trained = 0

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, dict[str, Tensor], dict]:
        """Makes a gradient step with each module's batch, unless its loss or gradient is not finite."""
        loss_on_host = {}
        for module_id, module_batch in batch.items():
            learning_rate = self._set_learning_rate(module_id)
            observed = self._gradient_steps[module_id](module_batch, learning_rate)
            observed[names.LEARNING_RATE] = np.array(learning_rate)
            loss_on_host[module_id] = torch.as_tensor(observed[self.TOTAL_LOSS_KEY])
            self._note_step(module_id, module_batch, observed)
        return {}, loss_on_host, {}

    def _note_step(self, module_id: str, batch: dict[str, Tensor], observed: dict[str, np.ndarray]) -> None:
        """Counts an optimizer step that was taken, or skipped because the loss or a gradient is not finite."""
        update, is_finite = self._num_updates_made(module_id), bool(observed.pop(FINITE))
        scalars = {name: value for name, value in observed.items() if value.ndim == 0}
        self._divergence_watch.record(update, scalars, observed[POSITION_IDS])
        if is_finite:
            self._last_batch[module_id] = batch
            self._unwrapped(module_id).num_updates.add_(1)
            self._updates_made[module_id] = update + 1
            self._num_non_finite_in_a_row = 0
        else:
            self._count_non_finite(module_id, update)
        self._log_update(module_id, observed, has_stepped=is_finite)

    def _num_updates_made(self, module_id: str) -> int:
        """The value of the module's `num_updates` buffer, which is read from the device only once."""
        if module_id not in self._updates_made:
            self._updates_made[module_id] = int(self._unwrapped(module_id).num_updates)
        return self._updates_made[module_id]

    def set_state(self, state: dict[str, Any]) -> None:
        """As RLlib's, but the optimizer keeps the config's options instead of those that were saved with the state."""
        groups = {module_id: self._optimizer_options(module_id) for module_id in self._gradient_steps}
        super().set_state(state)
        self._updates_made.clear()
        if COMPONENT_RL_MODULE in state:
            # These belong to updates that the new weights have not seen: drop their batches and metrics.
            self._last_batch.clear()
            self._observed.clear()
        for module_id in self._gradient_steps:
            for _, optimizer in self.get_optimizers_for_module(module_id):
                for group, options in zip(optimizer.param_groups, groups[module_id], strict=True):
                    group.update(options)
                own_state(optimizer)
            # A recorded CUDA graph would go on using the optimizer's old state tensors.
            self._gradient_steps[module_id] = self._make_gradient_step(module_id)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, updates in self._updates_made.items():
            config = self.config.get_config_for_module(module_id)
            if config.sync_batch_norm and (updates == 1 or updates % config.self_play_update_freq == 0):
                self._refresh_statistics(module_id)
            staleness = updates % config.target_network_update_freq
            if staleness == 0:
                self._refresh_statistics(module_id)
                for online, target in self._unwrapped(module_id).get_target_network_pairs():
                    target.load_state_dict(online.state_dict())
                    _average_over_learners(list(target.buffers()))
            if module_id in self._observed:
                self._observed[module_id][-1][names.TARGET_STALENESS] = np.array(float(staleness))

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's, after fitting the normalisation statistics to the weights that EnvRunners and checkpoints get."""
        self._refresh_all_statistics()
        return super().get_state(*args, **kwargs)

    @torch.no_grad()
    def copy_weights_to(self, env_runner: Any) -> None:
        """Copies the weights for acting to an EnvRunner in this process, tensor by tensor.

        Same result as passing `get_state` to its `set_state`, but without NumPy and Ray's object store in between.
        """
        self._refresh_all_statistics()
        weights = self._unwrapped(DEFAULT_MODULE_ID).state_dict()
        for name, tensor in env_runner.module.state_dict().items():
            tensor.copy_(weights[name])
        env_runner._weights_seq_no = self._weights_seq_no

    def _refresh_all_statistics(self) -> None:
        # A forward pass with synchronised batch normalisation needs all Learners, and here only this one takes part.
        if not self.config.sync_batch_norm:
            for module_id in list(self._last_batch):
                self._refresh_statistics(module_id)

    @torch.no_grad()
    def _refresh_statistics(self, module_id: str) -> None:
        """Fits the running statistics to the current weights, with one forward pass of the last train batch."""
        batch = self._last_batch.pop(module_id, None)
        if batch is not None:
            module = self._unwrapped(module_id)
            with fresh_statistics(module):
                module.forward_train_once(batch)
            if self._device.type == "cuda":
                # The batch's memory may belong to another stream, which reuses it once the batch is released.
                torch.cuda.current_stream(self._device).synchronize()

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        return [TargetNetworkAPI]

    # --- Helpers -----------------------------------------------------------------------------------------------------

    def _unwrapped(self, module_id: str) -> Any:
        """The module itself, where several learners have wrapped it for gradient synchronisation."""
        return self.module[module_id].unwrapped()

    def _trained_parameters(self, module_id: str) -> list[Tensor]:
        """The module's parameters with gradients, which leaves out the target network's."""
        return [parameter for parameter in self.get_parameters(self.module[module_id]) if parameter.requires_grad]

    def _optimizer_options(self, module_id: str) -> list[dict[str, Any]]:
        """The options of each parameter group, without the learning rate, which is set before every update."""
        ((_, optimizer),) = self.get_optimizers_for_module(module_id)
        return [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        ]

    def _set_learning_rate(self, module_id: str) -> float:
        """Sets the optimizer's learning rate for the next update, and returns it."""
        config = self.config.get_config_for_module(module_id)
        learning_rate = warmup_step_decay(
            self._num_updates_made(module_id),
            config.lr,
            warmup_updates=config.lr_warmup_updates,
            decay_rate=config.lr_decay_rate,
            decay_updates=config.lr_decay_updates,
        )
        ((_, optimizer),) = self.get_optimizers_for_module(module_id)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _count_non_finite(self, module_id: str, update: int) -> None:
        most_in_a_row = self.config.get_config_for_module(module_id).max_consecutive_non_finite_updates
        self._num_non_finite_in_a_row += 1
        logger.warning("update %d of module %r skipped: its loss or gradient is not finite", update, module_id)
        if self._num_non_finite_in_a_row >= most_in_a_row:
            raise DivergedError(
                f"diverged at update {update}: the loss or gradient of module {module_id!r} was not finite "
                f"{most_in_a_row} times in a row; {self._divergence_watch.first_symptom()}. "
                f"Weights and optimizer are as they were after update {update - 1}. "
                "Try a lower lr, a longer lr_warmup_updates, or look for rewards or observations that are not finite; "
                "diverged.json in the run's directory has the last updates.",
                self._divergence_watch.last_updates(),
            )

    def _log_update(self, module_id: str, observed: dict[str, np.ndarray], *, has_stepped: bool) -> None:
        """Stores an update's priorities, unless it was skipped, and keeps the other numbers for `_log_observed`."""
        # Position ids go with the priorities: with several Learners the order of the results is not reliable.
        pairs = np.stack((observed.pop(POSITION_IDS), observed.pop(names.PRIORITIES)), axis=1)
        if not has_stepped:
            # Positions that were not learned from keep their priority; the new one may be NaN.
            pairs = pairs[:0]
            del observed[names.GRADIENT_NORM], observed[names.LEARNING_RATE]
        self._priorities[module_id] = pairs
        skipped = (module_id, names.NUM_NON_FINITE_UPDATES_LIFETIME)
        self.metrics.log_value(skipped, int(not has_stepped), reduce="lifetime_sum")
        self._observed.setdefault(module_id, []).append(observed)

    def _log_observed(self) -> None:
        """Logs the means over the updates since the last time."""
        for module_id, updates in self._observed.items():
            means = _means(updates)
            self._warn_of_saturation(module_id, float(means[names.SATURATED_TARGETS]))
            # RLlib logs the total loss.
            terms = [name for name in means if name.endswith("_loss") and name != self.TOTAL_LOSS_KEY]
            for name in (*terms, *(name for name in LOGGED if name in means)):
                self._log((module_id, name), float(means[name]))
            for name, first_step in ((names.VALUE_ERROR, 0), (names.VALUE_PREFIX_ERROR, 1)):
                for k, error in enumerate(means[name], start=first_step):
                    self._log((module_id, name, str(k)), float(error))
        self._observed.clear()

    def _warn_of_saturation(self, module_id: str, share: float) -> None:
        if share > 0 and not self._has_warned_of_saturation:
            self._has_warned_of_saturation = True
            logger.warning(
                "targets of module %r are beyond what its networks can express, and are cut there: scale the rewards, "
                "or raise support_size in model_config (metric %s)",
                module_id,
                names.SATURATED_TARGETS,
            )

    def _log(self, key: tuple[str, ...], value: float) -> None:
        window = max(1, UPDATES_IN_MEANS // self.config.updates_per_sample())
        self.metrics.log_value(key, value, reduce="mean", window=window)


def _means(updates: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """name -> mean over the updates that have this entry, element by element, without NaNs."""
    means = {}
    for name in dict.fromkeys(name for observed in updates for name in observed):
        values = np.stack([observed[name] for observed in updates if name in observed])
        with np.errstate(invalid="ignore"):
            means[name] = np.nansum(values, axis=0) / (~np.isnan(values)).sum(axis=0)
    return means


def _average_over_learners(statistics: list[Tensor]) -> None:
    """Replaces floating point statistics, in place, by their averages over all learners of the group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    statistics = [statistic for statistic in statistics if statistic.is_floating_point()]
    flat = torch.cat([statistic.flatten() for statistic in statistics])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for statistic, average in zip(statistics, flat.split([len(s.flatten()) for s in statistics]), strict=True):
        statistic.copy_(average.view(statistic.shape))
