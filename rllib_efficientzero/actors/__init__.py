"""Parts that can run outside the driver's process or its main thread: reanalysis, replay, asynchronous self-play.

Each has the same interface as the part that it replaces, so that `EfficientZero.training_step` stays the same.
"""
