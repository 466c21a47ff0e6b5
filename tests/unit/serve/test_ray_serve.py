"""What runs in Ray Serve's processes, without these."""

from __future__ import annotations

import asyncio
import pathlib
import threading
import time
from collections.abc import Generator
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("ray.serve", exc_type=ImportError)

from serve_helpers import talk, write_checkpoint

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.serve import app
from rllib_efficientzero.serve.app import Front, ServeBatcher
from rllib_efficientzero.serve.service import PolicyService, Query

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


def make_front(checkpoint: pathlib.Path) -> Any:
    """As it is without what Ray Serve adds."""
    return Front.__bases__[0](None, {"checkpoint": str(checkpoint)})


def test_metadata_is_told_while_a_checkpoint_is_loaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front = make_front(write_checkpoint(tmp_path, 0))
    newer = write_checkpoint(tmp_path, 1, other_weights=True)
    loading, go_on = threading.Event(), threading.Event()
    load_newer = PolicyService.load_newer

    def load_slowly(service: PolicyService) -> bool:
        loading.set()
        assert go_on.wait(10)
        return load_newer(service)

    monkeypatch.setattr(PolicyService, "load_newer", load_slowly)
    monkeypatch.setattr(app, "FOLLOW_SECONDS", 0.01)

    async def conversation(client: httpx.AsyncClient) -> list[str]:
        await front.reconfigure({"checkpoint": str(tmp_path / "checkpoint_000000"), "follow": True})
        assert await asyncio.to_thread(loading.wait, 10)
        before = (await client.get("/v1/metadata")).json()["model"]
        assert not go_on.is_set()
        go_on.set()
        deadline = time.monotonic() + 60
        while (after := (await client.get("/v1/metadata")).json()["model"]) == before:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await front.reconfigure({"checkpoint": str(newer), "follow": False})
        return [before, after]

    models = talk(front.__serve_build_asgi_app__(), conversation)
    weights = [PolicyService(path).facts().metadata["model"] for path in sorted(tmp_path.glob("checkpoint_*"))]
    assert models == weights


def test_what_cannot_be_followed_is_not_deployed(tmp_path: pathlib.Path) -> None:
    policy = write_checkpoint(tmp_path, 0) / "policy"
    with pytest.raises(CheckpointError, match="no newer one will appear"):
        asyncio.run(make_front(policy).reconfigure({"checkpoint": str(policy), "follow": True}))
