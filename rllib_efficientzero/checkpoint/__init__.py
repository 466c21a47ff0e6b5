"""Checkpoints that are complete, or recognised as incomplete or damaged. Nothing here imports Ray."""

from rllib_efficientzero.checkpoint.manifest import CheckpointError

__all__ = ["CheckpointError"]
