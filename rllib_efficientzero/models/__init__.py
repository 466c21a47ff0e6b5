"""The networks of EfficientZero: representation, dynamics, prediction and the consistency heads. No Ray in here."""

from rllib_efficientzero.models.catalog import build_consistency_heads, build_network
from rllib_efficientzero.models.config import ModelConfig
from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.inference import InferenceNetwork
from rllib_efficientzero.models.network import EfficientZeroNetwork, NetworkOutput
from rllib_efficientzero.models.observations import observation_planes, stack_windows

__all__ = [
    "ConsistencyHeads",
    "EfficientZeroNetwork",
    "InferenceNetwork",
    "ModelConfig",
    "NetworkOutput",
    "build_consistency_heads",
    "build_network",
    "observation_planes",
    "stack_windows",
]
