"""Samples positions of games that a policy plays, each with the steps after it and the emulator's states there.

They are drawn uniformly from all steps of whole games. As the number of steps is not known before the games end, this
is reservoir sampling: the nth step is drawn, in place of an earlier draw, with probability count / n. The recording of
a replaced draw is wasted; of N steps, about count * ln(N / count) are recorded in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from rllib_efficientzero.analysis.play import MAX_BATCH, Player
from rllib_efficientzero.policy import Policy


@dataclass(frozen=True)
class Position:
    """A sampled position of a trajectory, with the data for its targets; times are relative to it."""

    game: int
    """number of its game: positions of one game resemble each other"""
    start: int
    """steps of that game before it"""
    states: Sequence[bytes]
    """of the environment, at those of the times 0 .. K that come before the end of the episode"""
    frames: np.ndarray
    """`[reach + 1, S, ...]` stacked frames of the times 0 .. reach; the last ones are repeated after the end"""
    rewards: np.ndarray
    """`[reach]`; 0 after the end"""
    steps_left: int
    """to the end of the episode, or to the end of what was recorded"""
    terminated: bool
    """whether the episode terminated at that end"""


@dataclass(frozen=True)
class Played:
    """The positions drawn, and the lengths of the games that they are from."""

    positions: Sequence[Position]
    game_lengths: Sequence[int]
    """steps of every game, all its lives together"""


def sample_positions(
    behaviour: Policy,
    make: Callable[[], gym.Env],
    count: int,
    *,
    unroll_steps: int,
    reach: int,
    temperature: float,
    max_game_steps: int,
    rng: np.random.Generator,
) -> Played:
    """Plays `count` games, 64 at most, with exploration, and draws `count` positions uniformly from all their steps.

    Args:
        behaviour: plays with root noise, and samples from the search's policy.
        make: makes the environment.
        count: positions; fewer come back if the games have fewer steps.
        unroll_steps: K; the environment is saved at the times 0 .. K of a position.
        reach: steps recorded after a position.
        temperature: of the sampled actions.
        max_game_steps: games are cut after so many steps, which bounds the cost; no later positions are drawn.
        rng: of the play and of the choice of positions.
    """
    draws = _Reservoir(count, rng)
    games = [
        _Game(number, Player(make, behaviour.description["frame_stack"]), unroll_steps, reach)
        for number in range(min(count, MAX_BATCH))
    ]
    try:
        for game in games:
            game.player.reset(seed=int(rng.integers(2**31)))
        while playing := [game for game in games if not game.is_over]:
            stacks = np.stack([game.player.stacked for game in playing])
            actions = behaviour.act(stacks, rng=rng, explore=True, temperature=temperature).action
            for game, action in zip(playing, actions, strict=True):
                place = draws.place_of_next()
                if place is not None:
                    draws.drawn[place] = game.record()
                game.step(int(action))
                if game.length == max_game_steps:
                    game.cut()
    finally:
        for game in games:
            game.player.close()
    return Played([recording.position() for recording in draws.drawn.values()], [game.length for game in games])


class _Reservoir:
    """Uniform draws from a stream of unknown length."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self._count, self._rng, self._seen = count, rng, 0
        self.drawn: dict[int, _Recording] = {}
        """Place -> the recording drawn for it last."""

    def place_of_next(self) -> int | None:
        """Returns the place that the next item of the stream takes, or None if it is not drawn."""
        place = self._seen if self._seen < self._count else int(self._rng.integers(self._seen + 1))
        self._seen += 1
        return place if place < self._count else None


class _Game:
    """A game in progress, and its incomplete recordings."""

    def __init__(self, number: int, player: Player, unroll_steps: int, reach: int) -> None:
        self.player = player
        self.length = 0
        self.is_over = False
        self._number, self._unroll_steps, self._reach = number, unroll_steps, reach
        self._recordings: list[_Recording] = []

    def record(self) -> _Recording:
        """Begins a recording at the current step."""
        recording = _Recording(self._number, self.length, self._reach)
        self._recordings.append(recording)
        return recording

    def step(self, action: int) -> None:
        """Steps the player; a lost life ends the recordings, and the game goes on after it."""
        frame = self.player.stacked
        wanting = [recording for recording in self._recordings if len(recording.rewards) <= self._unroll_steps]
        state = self.player.save() if wanting else b""
        reward, terminated = self.player.step(action)
        self.length += 1
        for recording in self._recordings:
            recording.add(frame, reward)
        for recording in wanting:
            recording.states.append(state)
        self._complete(terminated, all_of_them=self.player.is_over)
        if self.player.is_over:
            if self.player.game_goes_on:
                self.player.reset()
            else:
                self.is_over = True

    def cut(self) -> None:
        """Ends the game here, as a time limit would."""
        self._complete(terminated=False, all_of_them=True)
        self.is_over = True

    def _complete(self, terminated: bool, *, all_of_them: bool) -> None:
        going_on = []
        for recording in self._recordings:
            if all_of_them or len(recording.rewards) == self._reach:
                recording.end(self.player.stacked, terminated)
            else:
                going_on.append(recording)
        self._recordings = going_on


class _Recording:
    """A position whose following steps are being recorded."""

    def __init__(self, game: int, start: int, reach: int) -> None:
        self.states: list[bytes] = []
        self.rewards: list[float] = []
        self._frames: list[np.ndarray] = []
        self._game, self._start, self._reach = game, start, reach
        self._terminated = False

    def add(self, frame: np.ndarray, reward: float) -> None:
        """Adds one step: the stack seen before it, and its reward."""
        self._frames.append(frame)
        self.rewards.append(reward)

    def end(self, frame: np.ndarray, terminated: bool) -> None:
        """Completes the recording, with the stack seen last."""
        self._frames.append(frame)
        self._terminated = terminated

    def position(self) -> Position:
        missing = self._reach - len(self.rewards)
        return Position(
            game=self._game,
            start=self._start,
            states=self.states,
            frames=np.stack(self._frames + self._frames[-1:] * missing),
            rewards=np.array(self.rewards + [0.0] * missing, np.float32),
            # To the end of the recording, which may come before that of the game: targets reach no further.
            steps_left=len(self.rewards),
            terminated=self._terminated,
        )
