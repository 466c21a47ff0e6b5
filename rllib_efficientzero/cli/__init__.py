"""The `rllib` command: Ray dropped its own in 2.42. One module per verb; ray is imported only when a verb needs it."""
