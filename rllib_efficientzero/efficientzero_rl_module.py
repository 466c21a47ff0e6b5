"""The RLModule: networks, search for acting, unroll for training.

Symbols of the paper and their names here:

    h, g, f, P1, P2    representation, dynamics, prediction, projector, predictor
    s_t                latent
    nu_t, LSTM state   value_prefix, reward_hidden
    pi, v, u, z        policy, value, reward, n_step_target
    gamma, l, k, K     gamma (RLlib) or discount, horizon, unroll step, unroll_steps
    N, A, B            num_simulations, num_actions, batch
    K of EfficientZero V2, where actions are sampled, is A here
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rllib_efficientzero.env.checks import ACTION_MASK, OBSERVATIONS
from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult, sample_action
from rllib_efficientzero.models import (
    ConsistencyHeads,
    EfficientZeroNetwork,
    InferenceNetwork,
    ModelConfig,
    actions_of,
    build_consistency_heads,
    build_network,
    observation_planes,
)
from rllib_efficientzero.models.compilation import CompiledFunction
from rllib_efficientzero.models.cuda_graphs import follow_default_stream
from rllib_efficientzero.models.precision import MixedPrecision, autocast, low_precision
from rllib_efficientzero.models.unroll import Unrolled, unroll, unroll_planes

ROOT_VALUE = "root_value"
VISIT_POLICY = "visit_policy"
SAMPLED_ACTIONS = "sampled_actions"
"""Keys of the extra model outputs stored in episodes: `[]`, `[A]` and, if actions are sampled, `[A, D]` per step."""


class EfficientZeroRLModule(TorchRLModule, TargetNetworkAPI, InferenceOnlyAPI):
    """Acts by tree search over its networks; EnvRunners, evaluation and Ray Serve all call the same search.

    Input `batch["obs"]` of the acting forwards: `[B, S, H, W, C]` or `[B, S, D]` stacked raw observations, or a dict of
    `observations` and `action_mask` `[B, A]`. Output: `actions` `[B]`, `root_value` `[B]`, `visit_policy` `[B, A]`;
    where actions are sampled (Box(-1, 1) and MultiDiscrete spaces) `actions` `[B, D]`, `sampled_actions` `[B, A, D]`.
    """

    framework = "torch"

    def setup(self) -> None:
        settings = self.model_config["efficientzero"]
        sizes = {key: value for key, value in self.model_config.items() if key != "efficientzero"}
        self.search_config = SearchConfig(**settings["search"])
        actions = actions_of(self.action_space)
        self.num_actions = actions if isinstance(actions, int) else self.search_config.num_sampled_actions
        model_config = ModelConfig.from_dict(sizes)
        stacked_shape = _observation_shape(self.observation_space)
        self.network: EfficientZeroNetwork = build_network(stacked_shape, actions, model_config)
        self.consistency: ConsistencyHeads | None = None
        if settings["use_consistency"]:
            self.consistency = build_consistency_heads(self.network.latent_shape, model_config)
        self.target_network: EfficientZeroNetwork | None = None
        self._inference_networks: dict[str, InferenceNetwork] = {}
        # A buffer, so that the count goes wherever the weights go: EnvRunners, checkpoints, Ray Serve.
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._unroll: Callable[..., Unrolled] = unroll
        self.searcher = Searcher(self.search_config)
        self.use_augmentation: bool = settings["use_augmentation"]
        self.mixed_precision: MixedPrecision = settings["mixed_precision"]
        self.compiled_inference: bool = settings.get("compiled_inference", True)  # not in checkpoints before it
        self.rng = np.random.default_rng()
        self.temperature = 1.0
        self.on_search: Callable[[SearchResult], None] | None = None

    # --- Acting ------------------------------------------------------------------------------------------------------

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # Searching with untrained weights is of no use: as in the paper, the first steps are random.
        if int(self.num_updates) == 0:
            return self._act_randomly(batch[Columns.OBS])
        return self._act(batch[Columns.OBS], explore=True)

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch[Columns.OBS], explore=False)

    def _act(self, observation: Any, *, explore: bool) -> dict[str, Any]:
        frames, legal_actions = _split(observation)
        network = self.inference_network
        result = self.searcher.search(
            network,
            network.initial_inference(observation_planes(frames, network.dtype)),
            legal_actions=legal_actions,
            rng=self.rng,
            explore=explore,
            temperature=self.temperature if explore else 0.0,
        )
        if self.on_search is not None:
            self.on_search(result)
        return _to_columns(result.action, result.root_value, result.policy, result.candidates)

    def _act_randomly(self, observation: Any) -> dict[str, Any]:
        frames, legal_actions = _split(observation)
        legal = np.ones((len(frames), self.num_actions)) if legal_actions is None else legal_actions
        policy = (legal / legal.sum(axis=1, keepdims=True)).astype(np.float32)
        root_value = np.zeros(len(policy), dtype=np.float32)
        distribution = self.network.distribution
        if distribution is None:
            return _to_columns(sample_action(legal, temperature=1.0, rng=self.rng), root_value, policy)
        candidates = distribution.draw_uniform(self.rng, (len(frames), self.num_actions))
        return _to_columns(candidates[:, 0].astype(distribution.dtype), root_value, policy, candidates)

    # --- Inference ---------------------------------------------------------------------------------------------------

    @property
    def inference_network(self) -> InferenceNetwork:
        """The inference form of `network`, to act with; it always has that network's current weights."""
        return self._inference_network("network")

    @property
    def target_inference_network(self) -> InferenceNetwork:
        """The inference form of the target network, to make targets with."""
        assert self.target_network is not None, "call make_target_networks() first"
        return self._inference_network("target_network")

    def _inference_network(self, name: str) -> InferenceNetwork:
        network = getattr(self, name)
        inference = self._inference_networks.get(name)
        if inference is None or inference.network is not network or inference.device != self.num_updates.device:
            inference = InferenceNetwork(
                network, mixed_precision=self.mixed_precision, compiled=self.compiled_inference, fused=True
            )
            self._inference_networks[name] = inference
        return inference

    # --- Training ----------------------------------------------------------------------------------------------------

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Train batch of `targets.Reanalyzer` -> fields of `models.unroll.Unrolled`."""
        return self._unrolled(batch, self._unroll)

    def forward_train_once(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As `_forward_train`, in train mode and uncompiled: for calls too rare to compile."""
        self.train()
        return self._unrolled(batch, unroll)

    def compile_training(self) -> None:
        """Lets `torch.compile` fuse the kernels of `forward_train`."""
        # Without `unroll_planes`: compiled into one kernel, gathering, augmenting and stacking took 4 ms on an H200.
        self._unroll = CompiledFunction(unroll, dynamic=False)

    def _unrolled(self, batch: dict[str, Any], function: Callable[..., Unrolled]) -> dict[str, Any]:
        device = batch["frames"].device
        # The first layer would round the planes to this dtype anyway, and smaller ones take half the memory traffic.
        dtype = low_precision(device, self.mixed_precision) or torch.float32
        root, targets = unroll_planes(
            batch,
            use_augmentation=self.use_augmentation,
            dtype=dtype,
            layout=self.network.plane_layout,
        )
        with autocast(device, self.mixed_precision):
            predicted = function(
                self.network,
                root,
                batch["actions"],
                consistency=self.consistency,
                target_planes=targets,
                value_prefix_horizon=self.search_config.value_prefix_horizon,
            )
        return predicted._asdict()

    # --- RLlib's APIs ------------------------------------------------------------------------------------------------

    def make_target_networks(self) -> None:
        self.target_network = copy.deepcopy(self.network).requires_grad_(False).eval()

    def get_target_network_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [] if self.target_network is None else [(self.network, self.target_network)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Evaluates `batch["obs"]` with the target network."""
        frames, _ = _split(batch[Columns.OBS])
        return self.target_inference_network.initial_inference(observation_planes(frames))._asdict()

    def get_non_inference_attributes(self) -> list[str]:
        return ["target_network", "consistency"]

    def train(self, mode: bool = True) -> EfficientZeroRLModule:
        if self.training == self.network.training == mode:
            # RLlib calls this around every forward pass, and visiting two hundred submodules takes time.
            return self
        super().train(mode)
        # RLlib switches the whole module; a target network in train mode would corrupt its normalisation statistics.
        if self.target_network is not None:
            self.target_network.eval()
        return self


def _observation_shape(space: gym.Space) -> tuple[int, ...]:
    if isinstance(space, gym.spaces.Dict):
        space = space[OBSERVATIONS]
    return tuple(space.shape)


def _split(observation: Any) -> tuple[Tensor, np.ndarray | None]:
    """Observation batch -> frames, legal actions `[B, A]` bool or None.

    A row without legal actions (the observation after an episode's end) gets all: its action is thrown away.
    """
    frames, mask = observation, None
    if isinstance(observation, dict):
        frames, mask = observation[OBSERVATIONS], observation[ACTION_MASK]
    follow_default_stream(frames.device)
    if mask is None:
        return frames, None
    legal_actions = np.asarray(mask.cpu()).astype(bool)
    return frames, legal_actions | ~legal_actions.any(axis=1, keepdims=True)


def _to_columns(
    action: np.ndarray, root_value: np.ndarray, policy: np.ndarray, candidates: np.ndarray | None = None
) -> dict[str, Any]:
    columns = {Columns.ACTIONS: action, ROOT_VALUE: root_value, VISIT_POLICY: policy}
    return columns if candidates is None else columns | {SAMPLED_ACTIONS: candidates}
