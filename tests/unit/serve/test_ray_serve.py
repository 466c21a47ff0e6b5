"""What runs in Ray Serve's processes, without these."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("ray.serve", exc_type=ImportError)

from rllib_efficientzero.serve.app import ServeBatcher
from rllib_efficientzero.serve.service import Query

QUERY = Query(np.zeros((2, 4), np.float32))


class NoAnswer:
    """Ray Serve's answer, which never comes; and the handle whose `act` gives it.

    Args:
        error: what `cancel` says, as of a request that has failed.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.act = self
        self.cancelled = False

    def remote(self, query: Query) -> NoAnswer:
        return self

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.cancelled = True
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, RuntimeError("failed meanwhile")])
def test_replicas_do_not_search_for_those_who_have_gone(error: Exception | None) -> None:
    answer = NoAnswer(error)

    async def go() -> None:
        asked = asyncio.create_task(ServeBatcher(answer).act(QUERY))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(go())
    assert answer.cancelled
