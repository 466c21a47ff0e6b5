"""What runs in processes of its own when one is not enough: reanalysis, the replay, and self-play that does not wait.

Each has the interface of what it takes the place of in one process, so that `EfficientZero.training_step` reads the
same.
"""
