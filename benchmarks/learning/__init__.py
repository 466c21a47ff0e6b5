"""Learning curves: real runs through the `rllib` command, kept as JSON and drawn."""
