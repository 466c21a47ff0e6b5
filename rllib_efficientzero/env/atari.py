"""Atari as in the Atari 100k benchmark: an `AtariProtocol` has all settings of a game, and `make_atari` makes it.

The chain, from the emulator outwards: ALE (frame skip 1) -> gymnasium's `AtariPreprocessing` (no-op starts, frame
skip, max-pooling, resizing) -> `TimeLimit` -> `EpisodicLife` -> `ClipReward`. Observations are single frames; stacking
is left to the connectors and the replay.

Compared with the original wrappers, in gymnasium 1.2.2:

- Equal: 1 to `noop_max` raw no-op frames inside the frame skip; the reset observation is one raw frame, not pooled; an
  observation is the maximum of the last two of the skipped frames, then resized with INTER_AREA.
- If the game ends inside a frame skip, the observation is the previous one, as in the original. Only a game over does
  that here: the time limit counts agent steps, not ALE's raw frames, so that a truncated episode ends with its true
  last observation, from which values are bootstrapped.
- If the game ends during the no-op start and `reset` was given a seed, gymnasium resets with the same seed again.
- gymnasium's `terminal_on_life_loss` cuts the frame skip short and starts a whole new game after every life, so that
  later stages of a game are never seen. `EpisodicLife` continues the same game.
- The original reports the time limit as a termination; here it is a truncation.
- `ALE/...-v5` would add sticky actions (0.25), a second frame skip and its own time limit by default; all three are set
  explicitly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, TimeLimit

NOOP = 0

ATARI_100K_GAMES = (
    "Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand",
    "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull",
    "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown",
)  # fmt: skip
"""The 26 games of the benchmark."""

_ALE_ID = re.compile(r"(?:ale_py:)?ALE/(\w+)-v5")
_NAME = re.compile(r"[A-Za-z]\w*")


def is_atari_id(env: str) -> bool:
    """Whether `env` names an Atari game: `ale_py:ALE/Pong-v5`, `ALE/Pong-v5`, or plainly one of `ATARI_100K_GAMES`."""
    return _ALE_ID.fullmatch(env) is not None or env in ATARI_100K_GAMES


@dataclass(frozen=True)
class AtariProtocol:
    """How a game is played: the settings that two scores must share to be comparable. The defaults are for training.

    Example:
        >>> AtariProtocol("Pong").env_id
        'ALE/Pong-v5'
        >>> AtariProtocol.evaluation("Pong").clip_rewards
        False
    """

    game: str
    """`Pong`, `ALE/Pong-v5` or `ale_py:ALE/Pong-v5`; any game of ALE"""
    frame_skip: int = 4
    """raw frames per agent step, over which the action is repeated and rewards are summed"""
    noop_max: int = 30
    """a game begins with 1 to this many raw frames in which the agent does nothing (0: none)"""
    screen_size: int = 96
    """pixels; observations are u8`[screen_size, screen_size, 3]`"""
    grayscale: bool = False
    """observations are u8`[screen_size, screen_size, 1]` instead"""
    repeat_action_probability: float = 0.0
    """sticky actions; 0 in Atari 100k"""
    full_action_space: bool = False
    """all 18 actions instead of the game's own"""
    terminal_on_life_loss: bool = True
    """a lost life ends the episode; the next episode continues the game"""
    clip_rewards: bool = True
    """the reward of an agent step is the sign of the sum of its raw rewards"""
    max_frames: int = 108_000
    """raw frames after which a game is truncated, counted as agent steps of `frame_skip` frames, without the no-ops"""

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "game", _game_name(self.game))
        if self.frame_skip < 1 or self.screen_size < 1 or self.noop_max < 0:
            raise ValueError(
                f"Need frame_skip >= 1, screen_size >= 1 and noop_max >= 0, got {self.frame_skip}, {self.screen_size} "
                f"and {self.noop_max}."
            )
        if not 0 <= self.repeat_action_probability <= 1:
            raise ValueError(f"repeat_action_probability must lie in [0, 1], got {self.repeat_action_probability}.")
        if self.max_frames < self.frame_skip:
            raise ValueError(f"max_frames must allow at least one step of {self.frame_skip}, got {self.max_frames}.")

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expected = str if field.name == "game" else type(field.default)
            allowed = (int, float) if expected is float else (expected,)
            if type(value) not in allowed:
                raise ValueError(f"Atari setting {field.name} must be of type {expected.__name__}, got {value!r}.")

    @classmethod
    def training(cls, game: str, **settings: Any) -> AtariProtocol:
        """The protocol of self-play: a lost life ends the episode, rewards are clipped."""
        return cls(game, **{"terminal_on_life_loss": True, "clip_rewards": True, **settings})

    @classmethod
    def evaluation(cls, game: str, **settings: Any) -> AtariProtocol:
        """The protocol for measuring scores: whole games, raw rewards."""
        return cls(game, **{**cls(game).evaluation_settings, **settings})

    @classmethod
    def from_config(cls, env_config: Mapping[str, Any]) -> AtariProtocol:
        """The protocol of an RLlib `env_config`, whose keys are this class's fields.

        Raises:
            ValueError: a key is unknown (the message names the nearest), missing, or has a bad value.
        """
        known = [field.name for field in fields(cls)]
        for key in env_config:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f'did you mean "{nearest[0]}"?' if nearest else f"known are {', '.join(known)}."
                raise ValueError(f'Unknown Atari setting "{key}" in env_config: {hint}')
        if "game" not in env_config:
            raise ValueError('The env_config of an Atari game needs "game", for example "ALE/Pong-v5".')
        return cls(**env_config)

    @property
    def env_id(self) -> str:
        """gymnasium's id, known once ale_py is imported."""
        return f"ALE/{self.game}-v5"

    @property
    def steps_per_decision(self) -> int:
        """Raw frames per agent step."""
        return self.frame_skip

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """Settings that differ when scores are measured, unless the user sets them: whole games, raw rewards."""
        return {"terminal_on_life_loss": False, "clip_rewards": False}

    @property
    def max_steps(self) -> int:
        """Agent steps after which a game is truncated."""
        return self.max_frames // self.frame_skip

    def describe(self) -> dict[str, Any]:
        """Everything that a score depends on, versions included; for printing and for saving with results."""
        return {
            **asdict(self),
            "env_id": self.env_id,
            "max_steps": self.max_steps,
            "observation_shape": [self.screen_size, self.screen_size, 1 if self.grayscale else 3],
            "versions": package_versions("ale_py", "gymnasium", "opencv-python-headless"),
        }


def make_atari(env_config: Mapping[str, Any]) -> gym.Env:
    """An Atari game that follows `AtariProtocol.from_config(env_config)`.

    Args:
        env_config: for example `{"game": "ALE/Pong-v5"}`, or `asdict(AtariProtocol.evaluation("Pong"))`.

    Returns:
        An environment with observations u8`[96, 96, 3]` and `Discrete` actions. `get_wrapper_attr("hidden_steps")` is
        the number of steps taken inside resets, see `EpisodicLife`.

    Raises:
        ValueError: see `AtariProtocol.from_config`; or ALE has no such game.
        ImportError: ale_py is not installed.
    """
    protocol = AtariProtocol.from_config(env_config)
    env = AtariPreprocessing(
        _make_emulator(protocol),
        noop_max=protocol.noop_max,
        frame_skip=protocol.frame_skip,
        screen_size=protocol.screen_size,
        terminal_on_life_loss=False,
        grayscale_obs=protocol.grayscale,
        grayscale_newaxis=protocol.grayscale,
        scale_obs=False,
    )
    env = TimeLimit(env, max_episode_steps=protocol.max_steps)
    env = EpisodicLife(env, terminal_on_life_loss=protocol.terminal_on_life_loss)
    return ClipReward(env) if protocol.clip_rewards else env


class EpisodicLife(gym.Wrapper):
    """Ends the episode whenever a life is lost; the next episode continues the same game.

    A life is lost when ALE's counter falls and is still above 0: its absolute value means nothing in some games, and at
    0 the game ends by itself. The next `reset()` then takes one no-op agent step instead of a reset. That step counts
    as an interaction with the game, though the user sees neither its action nor its reward (which is dropped, as in the
    original): `hidden_steps` is the number of such steps since the environment was made, and is also in the info of
    every reset. A reset at any other time, or with a seed, begins a new game.

    Without `terminal_on_life_loss` episodes are unchanged and `hidden_steps` stays 0.
    """

    def __init__(self, env: gym.Env, *, terminal_on_life_loss: bool = True) -> None:
        super().__init__(env)
        self.terminal_on_life_loss = terminal_on_life_loss
        self.hidden_steps = 0
        self._lives = 0
        self._game_goes_on = False

    @property
    def game_goes_on(self) -> bool:
        """Whether the last step ended an episode by a lost life alone."""
        return self._game_goes_on

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the wrapped environment; `terminated` is also True when a life is lost."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives = self.unwrapped.ale.lives()
        life_lost = self.terminal_on_life_loss and 0 < lives < self._lives
        self._lives = lives
        self._game_goes_on = life_lost and not (terminated or truncated)
        return observation, reward, terminated or life_lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Continues the game after a lost life, else begins a new one."""
        ended = True
        if self._game_goes_on and seed is None:
            observation, _, terminated, truncated, info = self.env.step(NOOP)
            self.hidden_steps += 1
            ended = terminated or truncated
        if ended:
            observation, info = self.env.reset(seed=seed, options=options)
        self._lives = self.unwrapped.ale.lives()
        self._game_goes_on = False
        return observation, {**info, "hidden_steps": self.hidden_steps}


class ClipReward(gym.RewardWrapper):
    """Rewards become their signs: -1.0, 0.0 or 1.0."""

    def reward(self, reward: SupportsFloat) -> float:
        """The sign of `reward`."""
        return float(np.sign(float(reward)))


def import_ale(protocol: AtariProtocol) -> None:
    """Imports ale_py, which registers its games; raises if it is missing or has no such game."""
    try:
        import ale_py
    except ImportError as error:
        raise ImportError(
            "Atari games need ale_py (GPL-2.0), which is not installed: run pip install 'rllib_efficientzero[atari]'."
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner from every worker
    gym.register_envs(ale_py)
    if protocol.env_id not in gym.registry:
        games = [match[1] for match in map(_ALE_ID.fullmatch, gym.registry) if match]
        nearest = difflib.get_close_matches(protocol.game, games, n=1)
        hint = f'did you mean "{nearest[0]}"?' if nearest else f"there are {', '.join(games)}."
        raise ValueError(f'ALE has no game "{protocol.game}": {hint}')


def _make_emulator(protocol: AtariProtocol) -> gym.Env:
    """Makes ALE itself, with one raw frame per step.

    Its observations are the console's memory, which nobody reads: `AtariPreprocessing` only needs the space to have the
    screen's shape, and reads the screen itself for the frames it uses. Drawing every frame would take as long as
    playing it.
    """
    import_ale(protocol)
    env = gym.make(
        protocol.env_id,
        obs_type="ram",
        frameskip=1,
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=protocol.full_action_space,
        max_num_frames_per_episode=0,  # without limit; TimeLimit counts agent steps
        disable_env_checker=True,
    )
    emulator: Any = env.unwrapped
    env.observation_space = gym.spaces.Box(0, 255, (*emulator.ale.getScreenDims(), 3), np.uint8)
    return env


def _game_name(env: str) -> str:
    """The plain name of a game, such as `Pong`, from any of the forms that are accepted."""
    match = _ALE_ID.fullmatch(env)
    if match:
        return match[1]
    if not _NAME.fullmatch(env):
        raise ValueError(f'"{env}" is not an Atari game; write "ALE/Pong-v5", "ale_py:ALE/Pong-v5" or "Pong".')
    return env


def package_versions(*packages: str) -> dict[str, str | None]:
    """Versions of the packages; None for those that are not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
