"""Checkpoints that are whole or recognised as not being so. Nothing here imports Ray."""

from rllib_efficientzero.checkpoint.manifest import CheckpointError

__all__ = ["CheckpointError"]
