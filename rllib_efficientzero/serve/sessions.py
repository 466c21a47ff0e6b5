"""Sessions: state kept between requests, for a limited time and a limited number of clients."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from rllib_efficientzero.playing.frame_stack import FrameStack

T = TypeVar("T")


class Session:
    """The last frames of a client's episode.

    Args:
        stack: of these frames.
    """

    def __init__(self, stack: FrameStack) -> None:
        self.stack = stack
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def draft(self) -> AsyncIterator[Session]:
        """Yields a copy of the session, which replaces it if the block succeeds; allows one block at a time.

        If the block fails, the session stays as it was: a client that is told to try again sends the same frame again,
        which must not be in the stack twice.
        """
        async with self._lock:
            draft = Session(self.stack.copy())
            yield draft
            self.stack = draft.stack


class SessionStore(Generic[T]):
    """Keeps things by id; forgets those unused for `lifetime_s` and, if there are too many, the least recently used.

    Args:
        make: makes the thing of a new id.
        max_sessions: most things that are kept.
        lifetime_s: seconds without use after which a thing is forgotten.
        on_end: called with each thing that is forgotten.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self,
        make: Callable[[], T],
        *,
        max_sessions: int,
        lifetime_s: float,
        on_end: Callable[[T], None] = lambda thing: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._max_sessions, self._lifetime_s = make, max_sessions, lifetime_s
        self._on_end, self._clock = on_end, clock
        self._things: collections.OrderedDict[str, tuple[float, T]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, session_id: str) -> T:
        """Returns the thing of this id; makes it if there is none."""
        thing = self.find(session_id)
        if thing is None:
            thing = self._make()
            self._things[session_id] = (self._clock(), thing)
            while len(self._things) > self._max_sessions:
                self._end(next(iter(self._things)))
        return thing

    def find(self, session_id: str) -> T | None:
        """The thing of this id, or None."""
        self._forget_old()
        known = self._things.pop(session_id, None)
        if known is None:
            return None
        self._things[session_id] = (self._clock(), known[1])
        return known[1]

    def end_all(self) -> None:
        """Forgets everything."""
        for session_id in list(self._things):
            self._end(session_id)

    def _forget_old(self) -> None:
        oldest_allowed = self._clock() - self._lifetime_s
        while self._things:
            session_id, (used, _) = next(iter(self._things.items()))
            if used >= oldest_allowed:
                return
            self._end(session_id)

    def _end(self, session_id: str) -> None:
        _, thing = self._things.pop(session_id)
        self._on_end(thing)
