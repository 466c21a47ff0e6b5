"""Recording and streams: by a stand-in for CUDA that keeps its rules, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rllib_efficientzero.models import cuda_graphs
from rllib_efficientzero.models.cuda_graphs import follow_default_stream, own_stream, record

DEVICE = torch.device("cuda", 1)


class FakeStream:
    def __init__(self, device: torch.device, number: int, priority: int = 0) -> None:
        self.device, self.number, self.priority = device, number, priority
        self.waits_for: list[FakeStream] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeStream) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def wait_stream(self, other: FakeStream) -> None:
        self.waits_for.append(other)


class FakeCuda:
    """A current stream per device, of which device 0 is the current one; and few streams, given out in turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_streams: int = 3) -> None:
        self.current_device, self.given, self.num_streams = 0, 0, num_streams
        self.default = {index: FakeStream(torch.device("cuda", index), -1 - index) for index in (0, 1)}
        self.current = dict(self.default)
        self.recorded_on: list[tuple[int, FakeStream]] = []
        self.begun_in: list[tuple[bool, bool]] = []
        self.fails_at_the_end = False
        for name in ("stream", "device", "graph", "current_stream", "default_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "Stream", self._new_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)

    def _new_stream(self, device: torch.device, priority: int = 0) -> FakeStream:
        self.given += 1
        device = torch.device("cuda", self.current_device if device.index is None else device.index)
        return FakeStream(device, self.given % self.num_streams, priority)

    def _current_stream(self, device: torch.device) -> FakeStream:
        return self.current[device.index]

    def _default_stream(self, device: torch.device) -> FakeStream:
        return self.default[device.index]

    @contextlib.contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        before, self.current_device = self.current_device, device.index
        try:
            yield
        finally:
            self.current_device = before

    @contextlib.contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        index = stream.device.index
        before, self.current[index] = self.current[index], stream
        try:
            yield
        finally:
            self.current[index] = before

    @contextlib.contextmanager
    def _graph(self, graph: Any, *, pool: Any, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.current[stream.device.index] = stream
        self.recorded_on.append((self.current_device, stream))
        self.begun_in.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        yield
        if self.fails_at_the_end:
            raise RuntimeError("operation not permitted when stream is capturing")  # as torch's, which stays entered


class FakeGraph:
    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda_graphs._recording_stream.cache_clear()
    yield FakeCuda(monkeypatch)
    cuda_graphs._recording_stream.cache_clear()


def test_a_recording_is_on_the_device_of_its_tensors_whichever_is_the_current_one(cuda: FakeCuda) -> None:
    calls: list[int] = []
    recorded = record(lambda: calls.append(cuda.current_device), device=DEVICE)
    assert recorded is not None
    assert set(calls) == {1}
    assert [(device, stream.device) for device, stream in cuda.recorded_on] == [(1, DEVICE)]
    assert cuda.current_device == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_a_recording_begins_outside_of_inference_mode_and_goes_on_in_the_mode_that_it_was(
    cuda: FakeCuda, mode: Any
) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with mode():
        outside, recorded = modes(), record(modes, device=DEVICE)
        assert recorded is not None
        assert recorded[1] == outside == modes()
    assert cuda.begun_in == [(False, True)]


def test_a_recording_that_fails_at_its_end_leaves_the_stream_that_was(
    cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.fails_at_the_end = True
    mine = FakeStream(DEVICE, 99)
    cuda.current[1] = mine
    assert record(lambda: None, device=DEVICE) is None
    assert "no CUDA graph could be recorded" in caplog.text
    assert cuda.current[1] is mine
    (recording,) = mine.waits_for  # for what it computed before
    assert recording.device == DEVICE


def test_nobody_gets_the_stream_that_is_recorded_on(cuda: FakeCuda) -> None:
    record(lambda: None, device=DEVICE)
    ((_, recording),) = cuda.recorded_on
    assert all(own_stream(DEVICE) != recording for _ in range(2 * cuda.num_streams))
    cuda.current_device = 1
    assert all(own_stream(torch.device("cuda")) != recording for _ in range(2 * cuda.num_streams))


def test_uploads_of_others_come_first(cuda: FakeCuda) -> None:
    mine = FakeStream(DEVICE, 99)
    cuda.current[1] = mine
    follow_default_stream(DEVICE)
    assert mine.waits_for == [cuda.default[1]]
    follow_default_stream(torch.device("cpu"))  # nothing to wait for


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_failed_recording_leaves_the_stream_and_others_can_be_recorded() -> None:
    device = torch.device("cuda", 0)
    mine, x = own_stream(device), torch.ones(3, device=device)
    with torch.cuda.stream(mine):
        assert record(lambda: x.sum().item(), device=device) is None
        assert torch.cuda.current_stream(device) == mine
        recorded = record(lambda: x + 1, device=device)
        assert recorded is not None
        replay, result = recorded
        x.fill_(5.0)
        replay()
        assert result.tolist() == [6.0, 6.0, 6.0]


def test_bytes_are_copied_as_words_where_rows_allow() -> None:
    windows = torch.randint(0, 256, (3, 5, 4, 2, 3), dtype=torch.uint8)
    part, place = windows[:, 1:3], torch.empty(3, 2, 4, 2, 3, dtype=torch.uint8)
    to, given = cuda_graphs._in_words(place, part)
    assert to.dtype == given.dtype == torch.int64
    to.copy_(given)
    assert torch.equal(place, part)
    odd = windows.flatten()[1:97].view(4, 24)  # does not begin at a word
    for tensors in ((windows.float(), windows.float()), (odd.clone(), odd), (windows[..., :2], windows[..., 1:])):
        assert all(found is tensor for found, tensor in zip(cuda_graphs._in_words(*tensors), tensors, strict=True))
