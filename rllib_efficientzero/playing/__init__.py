"""Playing with a trained policy: episodes, and pictures, videos and search trees for people to look at. Without Ray."""

from rllib_efficientzero.playing.environment import PlayError, make_environment
from rllib_efficientzero.playing.episodes import Episode, Moment, play_episodes
from rllib_efficientzero.playing.frame_stack import FrameStack
from rllib_efficientzero.playing.search_tree import SearchTree

__all__ = ["Episode", "FrameStack", "Moment", "PlayError", "SearchTree", "make_environment", "play_episodes"]
