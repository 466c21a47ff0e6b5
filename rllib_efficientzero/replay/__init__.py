"""The replay: whole episodes with one compressed frame per step, sampled by priority as windows.

Imports numpy, lz4 and torch only; RLlib's episodes are read through their getters.
"""

from rllib_efficientzero.replay.buffer import PrioritizedReplay
from rllib_efficientzero.replay.storage import ReplayLoadError
from rllib_efficientzero.replay.windows import Windows

__all__ = ["PrioritizedReplay", "ReplayLoadError", "Windows"]
