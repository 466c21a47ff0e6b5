"""Games that the page shows: an environment, its stacked frames, and the search's results for each position."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from rllib_efficientzero.playing.environment import action_names, picture_of_frame, raw_picture, vector_name
from rllib_efficientzero.playing.frame_stack import FrameStack, split_mask
from rllib_efficientzero.playing.search_tree import name_in_tree
from rllib_efficientzero.serve.batcher import Batcher
from rllib_efficientzero.serve.observations import BadInputError
from rllib_efficientzero.serve.service import Answer, PolicyFacts, Query

SMALLEST_SIDE = 200


class Game:
    """One game. Calls must not overlap: take `lock`.

    Args:
        env: as `make_environment` makes it.
        facts: of the policy.
        executor: with one thread, in which the environment is stepped and drawn: some must stay in one thread.
    """

    def __init__(self, env: gym.Env, facts: PolicyFacts, executor: Executor) -> None:
        self.id = secrets.token_urlsafe(9)
        self.lock = asyncio.Lock()
        self._env, self._executor = env, executor
        self._stack = FrameStack(facts.frame_stack)
        self._names = [] if facts.num_actions is None else action_names(env, facts.num_actions)
        self._frames: np.ndarray = np.empty(0)
        self._legal: np.ndarray | None = None
        self._picture = ""
        self._step, self._return, self._reward, self._done = 0, 0.0, 0.0, False
        self._answer = Answer()
        self._is_answered = False
        """whether `_answer` is about the position as it is now"""

    async def begin(self, seed: int | None, batcher: Batcher, num_simulations: int | None) -> dict[str, Any]:
        """Resets the environment, and searches from the first position."""
        await self._call(self._reset, seed)
        return await self.search(batcher, num_simulations)

    async def step(self, action: int | None, batcher: Batcher, num_simulations: int | None) -> dict[str, Any]:
        """Takes an action, by default that of the search, and searches from the next position.

        If the last search failed, because too many requests were waiting, no action is taken but that search repeated:
        the client is only asking again, and its action was taken the first time.

        Raises:
            BadInputError: the game is over, or there is no such action.
        """
        if self._done:
            raise BadInputError("the game is over: begin a new one")
        if not self._is_answered:
            return await self.search(batcher, num_simulations)
        answer = self._answer
        chosen = answer.action if action is None else action
        if chosen >= len(answer.visits) or (self._legal is not None and not self._legal[chosen]):
            raise BadInputError("there is no such legal action")
        vectors, dtype = answer.candidates, self._env.action_space.dtype
        await self._call(self._take, chosen if vectors is None else np.asarray(vectors[chosen], dtype))
        return await self.search(batcher, num_simulations)

    async def search(self, batcher: Batcher, num_simulations: int | None) -> dict[str, Any]:
        """Searches from the current position, which is not changed.

        Raises:
            BadInputError: the network has no answer.
        """
        if not self._done:
            legal = None if self._legal is None or not self._legal.any() else self._legal
            answer = await batcher.act(Query(self._frames, legal, num_simulations, with_tree=True))
            if answer.problem is not None:
                raise BadInputError(answer.problem)
            self._answer, self._is_answered = answer, True
        return self._state()

    def close(self) -> None:
        """Has the executor's thread close the environment; does not wait for that."""
        with contextlib.suppress(RuntimeError):
            self._executor.submit(self._env.close)

    async def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _reset(self, seed: int | None) -> None:
        self._stack.reset()
        observation, _ = self._env.reset(seed=seed)
        self._step, self._return, self._reward, self._done = 0, 0.0, 0.0, False
        self._see(observation)

    def _take(self, action: int | np.ndarray) -> None:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self._step += 1
        self._reward = float(reward)
        self._return += self._reward
        self._done = bool(terminated or truncated)
        self._see(observation)

    def _see(self, observation: Any) -> None:
        frame, self._legal = split_mask(observation)
        self._is_answered = False
        self._frames = self._stack.push(frame)
        self._picture = _as_png(raw_picture(self._env, observation))

    def _state(self) -> dict[str, Any]:
        answer = self._answer
        sampled = answer.candidates is not None
        names = self._names if answer.candidates is None else [vector_name(one) for one in answer.candidates]
        line = [] if answer.tree is None else answer.tree["principal_line"]
        return {
            "id": self.id,
            "frame": self._picture,
            "step": self._step,
            "reward": self._reward,
            "episode_return": self._return,
            "done": self._done,
            "action_names": names,
            "legal": None if self._legal is None else self._legal.tolist(),
            "action": answer.action,
            "value": answer.value,
            "network_value": answer.network_value,
            "visit_policy": answer.visit_policy,
            "visits": answer.visits,
            "prior": answer.prior,
            "qvalues": answer.qvalues,
            "num_simulations": answer.num_simulations,
            "model": answer.model,
            "principal_line": [
                {**node, "name": name_in_tree(node["action"], node["depth"], names, sampled=sampled)} for node in line
            ],
            "imagined": [] if answer.imagined is None else [_as_png(picture_of_frame(one)) for one in answer.imagined],
        }


def _as_png(picture: np.ndarray) -> str:
    """Returns a picture as a data URL; small ones are enlarged by a whole factor, without smoothing."""
    factor = max(1, -(-SMALLEST_SIDE // picture.shape[0]))
    if factor > 1:
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
