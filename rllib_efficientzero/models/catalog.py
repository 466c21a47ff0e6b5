"""Builds the networks for an observation shape, and lets users replace parts of them."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.action_distributions import Actions
from rllib_efficientzero.models.config import ModelConfig
from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.dynamics import (
    ImageDynamics,
    ValuePrefixHead,
    VectorDynamics,
    action_encoding,
)
from rllib_efficientzero.models.layers import Reduce
from rllib_efficientzero.models.network import EfficientZeroNetwork
from rllib_efficientzero.models.prediction import Prediction, image_prediction, vector_prediction
from rllib_efficientzero.models.representation import ImageRepresentation, VectorRepresentation


class Networks:
    """Makes the parts of the networks for observations of one shape. Subclass it to replace parts by your own.

    Set `model_config["networks"]` to the subclass or its dotted path. Parts that it does not override adapt to the
    latents that its `representation` makes: images `[C, h, w]` or vectors `[D]`.

    Example:
        >>> class Wide(Networks):
        ...     def representation(self):
        ...         return nn.Sequential(nn.Linear(self.in_features, 256), nn.BatchNorm1d(256), nn.ReLU())
        >>> Wide((1, 4), 2, ModelConfig()).build().latent_shape
        (256,)
    """

    def __init__(self, stacked_shape: tuple[int, ...], actions: Actions, config: ModelConfig) -> None:
        """Args:
            stacked_shape: `(S, H, W, C)` for S stacked images, `(S, D)` for S stacked vectors.
            actions: A, the number of enumerated actions, or the distribution that actions are drawn from.
            config: sizes.

        Raises:
            ValueError: the shape is neither.
        """
        if len(stacked_shape) not in (2, 4):
            raise ValueError(
                f"observations of shape {stacked_shape[1:]} are not supported: images are (height, width, channels), "
                "vectors are (size,)"
            )
        self.stacked_shape = stacked_shape
        self.actions = actions
        self.distribution = None if isinstance(actions, int) else actions
        self.policy_size = actions if isinstance(actions, int) else actions.policy_size
        """A, logits of enumerated actions, or P, parameters of the distribution"""
        self.config = config
        self.support = 2 * config.support_size + 1
        """logits of a value or a value prefix"""

    @property
    def in_features(self) -> int:
        """Inputs of `representation`: channels of images `[B, in_features, H, W]`, or width of `[B, in_features]`."""
        return self.stacked_shape[0] * self.stacked_shape[-1]

    # --- The parts ---------------------------------------------------------------------------------------------------

    def representation(self) -> nn.Module:
        """h: `[B, in_features, H, W]` or `[B, in_features]` -> latent `[B, C, h, w]` or `[B, D]`."""
        config = self.config
        if len(self.stacked_shape) == 2:
            return VectorRepresentation(self.in_features, config.mlp_hidden, config.latent_size)
        _, height, width, _ = self.stacked_shape
        halvings = num_halvings(height, width, config.latent_side)
        return ImageRepresentation(self.in_features, config.channels, config.num_blocks, halvings)

    def dynamics(self, latent_shape: tuple[int, ...]) -> nn.Module:
        """g: latent, actions `[B]` (or `[B, D]` if they are sampled) -> next latent, of the same shape."""
        config = self.config
        if len(latent_shape) == 1:
            return VectorDynamics(latent_shape[0], action_encoding(self.actions, "one_hot"), config.mlp_hidden)
        encoding = action_encoding(self.actions, config.action_encoding)
        return ImageDynamics(latent_shape[0], encoding, config.num_blocks)

    def value_prefix(self, latent_shape: tuple[int, ...]) -> ValuePrefixHead:
        """The head: successive latents -> `[B, support]` logits of the sum of their rewards."""
        config = self.config
        features: nn.Module = nn.Identity()
        in_features = math.prod(latent_shape)
        if len(latent_shape) == 3:
            features = Reduce(latent_shape[0], config.reduced_channels)
            in_features = config.reduced_channels * math.prod(latent_shape[1:])
        return ValuePrefixHead(features, in_features, config.lstm_hidden, config.head_hidden, self.support)

    def prediction(self, latent_shape: tuple[int, ...]) -> Prediction:
        """f: latent -> `[B, policy_size]` policy logits, `[B, support]` value logits."""
        config = self.config
        if len(latent_shape) == 1:
            return vector_prediction(latent_shape[0], config.head_hidden, self.policy_size, self.support)
        return image_prediction(
            latent_shape[0],
            math.prod(latent_shape[1:]),
            config.reduced_channels,
            config.num_blocks,
            config.head_hidden,
            self.policy_size,
            self.support,
        )

    # --- Together ----------------------------------------------------------------------------------------------------

    def build(self) -> EfficientZeroNetwork:
        """Makes all parts and combines them in one module.

        Raises:
            ValueError: the parts do not fit each other; the message names both shapes.
        """
        representation = self.representation()
        latent = _run("representation", representation, self._sample_planes())
        latent_shape = tuple(latent.shape[1:])
        if len(latent_shape) not in (1, 3):
            raise ValueError(
                f"the representation makes latents of shape {latent_shape}, where (channels, height, width) or (size,) "
                "is needed"
            )
        network = EfficientZeroNetwork(
            representation=representation,
            dynamics=self.dynamics(latent_shape),
            value_prefix=self.value_prefix(latent_shape),
            prediction=self.prediction(latent_shape),
            latent_shape=latent_shape,
            distribution=self.distribution,
        )
        if type(self) is not Networks:
            self._check(network, latent)
        if len(self.stacked_shape) == 4:
            # Convolutions whose weights are channels last have outputs that are channels last: measured, a fifth less
            # time per update.
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def _sample_planes(self) -> Tensor:
        return torch.zeros(2, self.in_features, *self.stacked_shape[1:-1])

    def _check(self, network: EfficientZeroNetwork, latent: Tensor) -> None:
        """Checks on two latents that the parts of `network` fit each other; raises ValueError if not."""
        made = f"the representation makes latents of shape {network.latent_shape}"
        vector = () if self.distribution is None else (self.distribution.action_size,)
        action = torch.zeros(len(latent), *vector, dtype=torch.int64)
        following = _run("dynamics", network.dynamics, latent, action)
        if following.shape != latent.shape:
            raise ValueError(
                f"{made}, but the dynamics turns them into {tuple(following.shape[1:])}: it is applied to its own "
                "output, so that both shapes must be the same"
            )
        policy, value = _run("prediction", network.prediction, latent)
        prefix = _run("value prefix", _Method(network.value_prefix), latent)
        for name, found, size in (
            ("policy logits", policy, self.policy_size),
            ("value logits", value, self.support),
            ("value prefix logits", prefix, self.support),
        ):
            if tuple(found.shape) != (len(latent), size):
                raise ValueError(
                    f"the {name} of a latent have shape {tuple(found.shape[1:])}, where ({size},) is needed"
                )


def build_network(stacked_shape: tuple[int, ...], actions: Actions, config: ModelConfig) -> EfficientZeroNetwork:
    """Builds the networks for stacked observations, by the class `config.networks` if it is set.

    Args:
        stacked_shape: `(S, H, W, C)` for S stacked images, `(S, D)` for S stacked vectors.
        actions: A, the number of enumerated actions, or the distribution that actions are drawn from.
        config: sizes.

    Raises:
        ValueError: the shape is neither; or custom networks cannot be imported, or their parts do not fit each other.
    """
    return networks_class(config.networks)(stacked_shape, actions, config).build()


def build_consistency_heads(latent_shape: tuple[int, ...], config: ModelConfig) -> ConsistencyHeads:
    """Builds the heads of the consistency loss for a network's `latent_shape`; they are used in training only."""
    return ConsistencyHeads(math.prod(latent_shape), config)


def networks_class(networks: Any) -> type[Networks]:
    """The class that `model_config["networks"]` means: a class, its dotted path, or None for `Networks`.

    Raises:
        ValueError: it cannot be imported, or is no subclass of `Networks`.
    """
    if networks is None:
        return Networks
    found = networks
    if isinstance(networks, str):
        module, _, name = networks.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"model_config['networks'] {networks!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Networks)):
        raise ValueError(
            f"model_config['networks'] must be a subclass of rllib_efficientzero.Networks, not {found!r:.80}"
        )
    return found


def path_of(networks: type[Networks] | str) -> str:
    """The dotted path of custom networks."""
    return networks if isinstance(networks, str) else f"{networks.__module__}.{networks.__qualname__}"


def num_halvings(height: int, width: int, latent_side: int) -> int:
    """How often to halve images so that the longer side comes nearest to `latent_side`."""
    return max(0, round(math.log2(max(height, width) / latent_side)))


class _Method(nn.Module):
    """Computes value prefix logits from a latent in one call."""

    def __init__(self, head: ValuePrefixHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, latent: Tensor) -> Tensor:
        state = latent.new_zeros(len(latent), 2 * self.head.lstm.hidden_size)
        return self.head.read(self.head.advance(latent, state))


def _run(name: str, part: nn.Module, *inputs: Tensor) -> Any:
    """Returns a part's output in eval mode; an input that it cannot take raises a ValueError with its name."""
    was_training = part.training
    part.eval()
    try:
        with torch.no_grad():
            return part(*inputs)
    except RuntimeError as error:
        shape = tuple(inputs[0].shape[1:])
        raise ValueError(f"the {name} cannot take inputs of shape {shape}: {error}") from error
    finally:
        part.train(was_training)
