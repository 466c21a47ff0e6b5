"""Scores of the Atari 100k benchmark relative to a random player (0) and a human one (1)."""

from __future__ import annotations

from rllib_efficientzero.analysis.reference import atari_games
from rllib_efficientzero.env.atari import AtariProtocol, is_atari_id


def human_normalised(env: str, score: float) -> float | None:
    """(score - random) / (human - random); None if `env` is not a game of the benchmark.

    >>> human_normalised("ale_py:ALE/Pong-v5", 14.6)
    1.0
    """
    game = atari_games().get(AtariProtocol(env).game) if is_atari_id(env) else None
    return None if game is None else game.normalise(score)
