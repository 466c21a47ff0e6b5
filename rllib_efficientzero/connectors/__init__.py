"""RLlib connector pieces: frames to stacks before acting, windows to train batches before learning."""
