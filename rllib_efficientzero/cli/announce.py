"""What an algorithm's config wants said before a run: its notices and its environment protocol.

Any `AlgorithmConfig` may have `get_notices() -> list[str]` (how long the run would take without a GPU, say) and
`describe_protocol() -> dict[str, Any]` (frame skip, life handling, budget, ...).
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
