"""What is compiled on a GPU: that it can be traced in one piece is seen without one."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_efficientzero.models import ModelConfig, build_consistency_heads, build_network
from rllib_efficientzero.models.compilation import CompiledFunction, is_worth_compiling
from rllib_efficientzero.models.cuda_graphs import one_at_a_time
from rllib_efficientzero.models.folding import FoldedCopy
from rllib_efficientzero.models.unroll import unroll

CONFIG = ModelConfig(
    channels=4, reduced_channels=2, lstm_hidden=8, support_size=5, projector_hidden=8, projector_out=8,
    predictor_hidden=8,
)  # fmt: skip
BATCH, STEPS = 3, 2


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def planes(batch: int) -> Tensor:
    return torch.rand(batch, 2, 24, 24).contiguous(memory_format=torch.channels_last)


def test_unrolling_is_one_graph_with_the_same_gradients() -> None:
    """Halved gradients, value prefixes, and the branch without gradient."""
    network = build_network((2, 24, 24, 1), 3, CONFIG).train()
    heads = build_consistency_heads(network.latent_shape, CONFIG).train()
    targets, actions = (
        planes(BATCH * STEPS).unflatten(0, (BATCH, STEPS)),
        torch.arange(BATCH * STEPS).view(BATCH, -1) % 3,
    )
    root, found = planes(BATCH), []
    for function in (unroll, torch.compile(unroll, fullgraph=True, backend="aot_eager")):
        net, both = copy.deepcopy(network), copy.deepcopy(heads)
        predicted = function(net, root, actions, consistency=both, target_planes=targets, value_prefix_horizon=5)
        sum(part.square().mean() + part.mean() for part in predicted).backward()
        statistics = list(net.buffers())
        found.append([p.grad for p in (*net.parameters(), *both.parameters())] + statistics + list(predicted))
    for expected, same in zip(*found, strict=True):
        torch.testing.assert_close(same, expected)


@torch.inference_mode()
def test_inference_is_one_graph_for_all_batch_sizes() -> None:
    network = build_network((2, 24, 24, 1), 3, CONFIG).eval()
    folded = FoldedCopy(network, torch.float32).module
    initial = torch.compile(folded.initial_inference, fullgraph=True, dynamic=True, backend="eager")
    recurrent = torch.compile(folded.recurrent_inference, fullgraph=True, dynamic=True, backend="eager")
    for batch in (2, 5, 9):
        observed = planes(batch)
        root = folded.initial_inference(observed)
        for one, other in zip(initial(observed), root, strict=True):
            torch.testing.assert_close(one, other)
        arguments = (root.latent, root.reward_hidden, torch.zeros(batch, dtype=torch.int64))
        for one, other in zip(recurrent(*arguments), folded.recurrent_inference(*arguments), strict=True):
            torch.testing.assert_close(one, other)


def test_only_large_networks_for_images_are_worth_it() -> None:
    assert is_worth_compiling(build_network((4, 96, 96, 3), 6, ModelConfig()))
    assert not is_worth_compiling(build_network((2, 24, 24, 1), 6, CONFIG))
    assert not is_worth_compiling(build_network((1, 4), 6, ModelConfig()))


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_what_cannot_be_compiled_is_called_and_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    tried = []

    def without_a_compiler(function: Any, dynamic: bool | None) -> Any:
        def fail(*inputs: Any, **options: Any) -> Any:
            tried.append(inputs)
            raise kind("Cannot find a working triton installation.\nMore about it")

        return fail

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    function = CompiledFunction(lambda x, factor: factor * x, dynamic=True)
    with caplog.at_level(logging.WARNING):
        assert [function(x, factor=3) for x in (1, 2, 3)] == [3, 6, 9]
    assert len(tried) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed, which makes learning and searching slower: Cannot find a working triton installation."
    ]


def test_no_compiled_function_is_called_while_another_thread_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    function = CompiledFunction(lambda x: x + 1, dynamic=False)
    with ThreadPoolExecutor() as executor:
        with one_at_a_time:
            assert function(1) == 2, "within a recording it is"
            called = executor.submit(function, 2)
            with pytest.raises(TimeoutError):
                called.result(timeout=0.2)
        assert called.result(timeout=10) == 3


def test_an_error_of_the_function_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        CompiledFunction(broken, dynamic=False)(torch.zeros(1))


def test_a_recording_that_fails_does_not_speak_against_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def compiled_that_runs_out_of_memory_once(function: Any, dynamic: bool | None) -> Any:
        def call(x: int) -> int:
            tried.append(torch.cuda.is_current_stream_capturing())
            if tried == [True]:
                raise RuntimeError("out of memory")
            return 3 * x

        return call

    monkeypatch.setattr(torch, "compile", compiled_that_runs_out_of_memory_once)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    function = CompiledFunction(lambda x: -x, dynamic=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="out of memory"):
        function(1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert function(1) == 3
