"""A thread with a stream of its own."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch

from rllib_efficientzero.actors import side_thread
from rllib_efficientzero.actors.side_thread import SideThread

CPU = torch.device("cpu")


class FakeStream:
    """Remembers what it was told; an event says how much of that comes before it."""

    def __init__(self) -> None:
        self.device, self.told = torch.device("cuda"), list[Any]()

    def record_event(self) -> FakeEvent:
        return FakeEvent(self, len(self.told))

    def wait_event(self, event: FakeEvent) -> None:
        self.told.append(("waits for", event.stream.told[: event.count]))


class FakeEvent:
    def __init__(self, stream: FakeStream, count: int) -> None:
        self.stream, self.count, self.device = stream, count, stream.device


def test_calls_come_one_after_the_other_and_errors_come_back() -> None:
    thread, seen = SideThread("side", CPU), []
    tasks = [thread.submit(seen.append, number) for number in range(3)]
    failing = thread.submit(int, "x")
    for task in tasks:
        task.wait()
    assert seen == [0, 1, 2]
    failing.wait()
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result()
    assert thread.submit(lambda: threading.current_thread().name).result().startswith("side")
    thread.stop()


def test_the_receiver_s_stream_waits_for_what_made_it_and_not_for_what_came_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, theirs, streams = FakeStream(), FakeStream(), threading.local()
    streams.current = mine

    @contextlib.contextmanager
    def entered(stream: FakeStream) -> Any:
        before, streams.current = getattr(streams, "current", None), stream
        yield
        streams.current = before

    monkeypatch.setattr(side_thread, "own_stream", lambda device: theirs)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams.current)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    thread = SideThread("side", torch.device("cuda"))

    def compute(what: str) -> str:
        streams.current.told.append(what)
        return what

    mine.told.append("weights")
    first = thread.submit(compute, "first")
    mine.told.append("more")
    second = thread.submit(compute, "second")
    second.wait()
    assert first.result() == "first"
    thread.stop()
    assert theirs.told == [("waits for", ["weights"]), "first", ("waits for", ["weights", "more"]), "second"]
    assert mine.told == ["weights", "more", ("waits for", [("waits for", ["weights"]), "first"])]
