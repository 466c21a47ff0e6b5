"""Batching of concurrent queries, so that they share one search."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

from rllib_efficientzero.serve.service import Answer, Query

T = TypeVar("T")


class OverloadedError(RuntimeError):
    """More requests are waiting than may wait; the client should try again later."""


class Batcher(Protocol):
    """Interface of what answers queries: `LocalBatcher` in this process, or Ray Serve's replicas."""

    async def act(self, query: Query) -> Answer:
        """Answers a query; raises `OverloadedError` if too many are waiting."""
        ...


class LocalBatcher:
    """Collects the queries that arrive while a search runs, and answers them together with the next search.

    Args:
        search: answers a batch; called in `executor`, one batch at a time.
        executor: with one thread.
        max_batch_size: most queries of one search.
        wait_s: how long the first query of a batch waits for others.
        max_queued: queries that may wait.
    """

    def __init__(
        self,
        search: Callable[[Sequence[Query]], list[Answer]],
        executor: Executor,
        *,
        max_batch_size: int = 32,
        wait_s: float = 0.002,
        max_queued: int = 256,
    ) -> None:
        self._search, self._executor = search, executor
        self._max_batch_size, self._wait_s, self._max_queued = max_batch_size, wait_s, max_queued
        self._waiting: dict[asyncio.Future[Answer], Query] = {}
        """In the order of arrival."""
        self._worker: asyncio.Task[None] | None = None

    async def act(self, query: Query) -> Answer:
        if len(self._waiting) >= self._max_queued:
            raise OverloadedError(f"{len(self._waiting)} requests are waiting")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[future] = query
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            # A client that has disconnected needs no answer: its place in the queue is freed.
            self._waiting.pop(future, None)

    async def _work(self) -> None:
        """Searches until no query is waiting."""
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            futures = list(itertools.islice(self._waiting, self._max_batch_size))
            queries = [self._waiting.pop(future) for future in futures]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._executor, self._search, queries)
            except Exception as error:
                _fail(futures, error)
                continue
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _fail(futures: list[asyncio.Future[Answer]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines together and returns their results in order; if one fails, or on cancellation, cancels them."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
