"""Batched Monte-Carlo tree search over the learned model. No Ray in here."""

from rllib_efficientzero.mcts.actions import greedy_action, sample_action
from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.search import Model, Searcher, SearchResult, prior_alone, search

__all__ = [
    "Model",
    "SearchConfig",
    "SearchResult",
    "Searcher",
    "greedy_action",
    "prior_alone",
    "sample_action",
    "search",
]
