"""Environments and the EnvRunner that plays them."""
