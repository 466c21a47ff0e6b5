"""The networks of EfficientZero: representation, dynamics, prediction and the consistency heads. No Ray in here."""

from rllib_efficientzero.models.action_distributions import ActionDistribution, Actions, actions_of
from rllib_efficientzero.models.catalog import Networks, build_consistency_heads, build_network
from rllib_efficientzero.models.config import ModelConfig
from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.inference import InferenceNetwork
from rllib_efficientzero.models.network import EfficientZeroNetwork, NetworkOutput
from rllib_efficientzero.models.observations import observation_planes, stack_windows

__all__ = [
    "ActionDistribution",
    "Actions",
    "ConsistencyHeads",
    "EfficientZeroNetwork",
    "InferenceNetwork",
    "ModelConfig",
    "NetworkOutput",
    "Networks",
    "actions_of",
    "build_consistency_heads",
    "build_network",
    "observation_planes",
    "stack_windows",
]
