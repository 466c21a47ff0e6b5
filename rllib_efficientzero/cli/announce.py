"""What an algorithm's config says about its run: notices, the environment protocol, and the budget that ends it.

Any `AlgorithmConfig` may have `get_notices() -> list[str]` (how long the run would take without a GPU, say),
`describe_protocol() -> dict[str, Any]` (frame skip, life handling, budget, ...) and `budget() -> dict[str, int]`
(metric -> its value at the end of the run); a run with a budget reports `training_done`.
"""

from __future__ import annotations

from typing import Any


def announce(config: Any) -> list[str]:
    """The notices of a config, one sentence each; RLlib's own configs have none."""
    get_notices = getattr(config, "get_notices", None)
    return list(get_notices()) if callable(get_notices) else []


def protocol(config: Any) -> dict[str, Any]:
    """The environment protocol of a config; RLlib's own configs have none."""
    describe = getattr(config, "describe_protocol", None)
    return dict(describe()) if callable(describe) else {}


def budget(config: Any) -> dict[str, float]:
    """The budget of a config; RLlib's own configs have none, and go on until they are stopped."""
    state = getattr(config, "budget", None)
    return dict(state()) if callable(state) else {}
