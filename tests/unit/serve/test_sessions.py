"""A session has just the frames whose requests were answered, each once, in the order in which they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from serve_helpers import make_app, make_service, talk

from rllib_efficientzero.serve.batcher import OverloadedError
from rllib_efficientzero.serve.service import Answer, PolicyService, Query

ANSWER = Answer(visit_policy=[1.0, 0.0])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> PolicyService:
    """Of a policy that sees two frames of four numbers."""
    return make_service(tmp_path_factory.mktemp("policy"))


class Recorder:
    """Answers, in no hurry; what it answered and what it was asked, by the first numbers of the frames.

    Args:
        fails: what happens to a query in place of an answer, told the query and how often its stack came before.
    """

    def __init__(self, fails: Callable[[list[int], int], Answer | None] = lambda stack, times: None) -> None:
        self._fails = fails
        self.asked: list[list[int]] = []
        self.answered: list[list[int]] = []

    async def act(self, query: Query) -> Answer:
        stack = [int(frame[0]) for frame in query.frames]
        times = self.asked.count(stack)
        self.asked.append(stack)
        failed = self._fails(stack, times)
        await asyncio.sleep(0.01)
        if failed is not None:
            return failed
        self.answered.append(stack)
        return ANSWER


def body(number: int, session: str = "s", **more: Any) -> dict[str, Any]:
    return {"observation": [number, 0, 0, 0], "session_id": session, **more}


def one_after_the_other(path: str, *bodies: Any) -> Callable[[httpx.AsyncClient], Any]:
    async def conversation(client: httpx.AsyncClient) -> list[int]:
        return [(await client.post(path, json=one)).status_code for one in bodies]

    return conversation


def overloaded(stack: list[int], times: int) -> None:
    if stack[-1] == 2 and times == 0:
        raise OverloadedError("full")


def broken(stack: list[int], times: int) -> None:
    if stack[-1] == 2 and times == 0:
        raise RuntimeError("a bug")


def without_an_answer(stack: list[int], times: int) -> Answer | None:
    return Answer(problem="the network has no finite answer") if stack[-1] == 2 and times == 0 else None


@pytest.mark.parametrize(("fails", "status"), [(overloaded, 503), (broken, 500), (without_an_answer, 422)])
def test_a_frame_without_an_answer_is_sent_again(service: PolicyService, fails: Any, status: int) -> None:
    recorder = Recorder(fails)
    bodies = [body(1), body(2), body(2), body(3)]
    found = talk(make_app(service, batcher=recorder), one_after_the_other("/v1/act", *bodies))
    assert found == [200, status, 200, 200]
    assert recorder.answered == [[1, 1], [1, 2], [2, 3]]


def test_an_episode_that_could_not_begin_begins_again(service: PolicyService) -> None:
    recorder = Recorder(overloaded)
    bodies = [body(1), body(2, reset=True), body(3)]
    found = talk(make_app(service, batcher=recorder), one_after_the_other("/v1/act", *bodies))
    assert found == [200, 503, 200]
    assert recorder.answered == [[1, 1], [1, 3]], "the old episode goes on, as its client was told"


def test_whoever_does_not_wait_for_the_answer_leaves_no_frame(service: PolicyService) -> None:
    recorder = Recorder()

    async def conversation(client: httpx.AsyncClient) -> None:
        await client.post("/v1/act", json=body(1))
        gone = asyncio.create_task(client.post("/v1/act", json=body(2)))
        while len(recorder.asked) < 2:
            await asyncio.sleep(0)
        gone.cancel()
        await client.post("/v1/act", json=body(3))

    talk(make_app(service, batcher=recorder), conversation)
    assert recorder.answered == [[1, 1], [1, 3]]


def test_frames_keep_their_order(service: PolicyService) -> None:
    """Sent together, and in one batch: each is stacked upon those before it."""
    recorder = Recorder()

    async def conversation(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(client.post("/v1/act", json=body(number)) for number in (1, 2, 3)))
        batch = {"requests": [body(4), body(4, "other"), body("x"), body(5)]}
        details = ["detail" in answer for answer in (await client.post("/v1/act_batch", json=batch)).json()["answers"]]
        assert details == [False, False, True, False]

    talk(make_app(service, batcher=recorder), conversation)
    assert recorder.answered == [[1, 1], [1, 2], [2, 3], [3, 4], [4, 4], [4, 5]]


def test_a_batch_that_fails_leaves_all_of_its_sessions(service: PolicyService) -> None:
    recorder = Recorder(overloaded)
    first = {"requests": [body(1, "a"), body(1, "b")]}
    second = {"requests": [body(5, "a"), body(2, "b")]}
    conversation = one_after_the_other("/v1/act_batch", first, second, second)
    assert talk(make_app(service, batcher=recorder), conversation) == [200, 503, 200]
    assert sorted(recorder.answered[-2:]) == [[1, 2], [1, 5]]


def test_batches_of_the_same_sessions_do_not_wait_for_each_other(service: PolicyService) -> None:
    recorder = Recorder()
    batches = [{"requests": [body(number, name) for name in names]} for number, names in ((1, "ab"), (2, "ba"))]

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = asyncio.gather(*(client.post("/v1/act_batch", json=batch) for batch in batches))
        return await asyncio.wait_for(asked, timeout=30)

    assert [answer.status_code for answer in talk(make_app(service, batcher=recorder), conversation)] == [200, 200]
    assert recorder.answered == [[1, 1], [1, 1], [1, 2], [1, 2]]
