"""Ctrl-C and SIGTERM: every running trial saves a checkpoint, then the run ends. A second signal ends it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from rllib_efficientzero import interruption
from rllib_efficientzero.cli.console import say_warning
from rllib_efficientzero.cli.errors import Terminated

SECONDS_TO_SAVE = 20.0
"""How long trials may take to save after a signal; a machine that is taken away gives about 30 s."""


class Stop:
    """Whether, by which signal, and when a run was asked to end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.second: int | None = None
        self.time = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, _frame: Any) -> None:
        """Handler of SIGINT and SIGTERM: the first is noted, the second ends everything."""
        if self:
            self.second = number
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.signal, self.time = number, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its scheduler and callbacks with the run.
        return {"signal": None, "second": None, "time": 0.0}


@contextmanager
def signals_caught() -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM instead of dying of them, for the length of the block."""
    # Tune's own handler would end the run without a checkpoint.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        # Ray, interrupted while it waits, raises this whatever the handler has raised.
        if stop.second == signal.SIGTERM:
            raise Terminated from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopCallback(Callback):
    """Ends the run once every trial has saved, or when the time for that is over."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self._asked = self._ended = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if not self.stop or self._ended:
            return
        if not self._asked:
            self._asked = True
            say_warning("stopping: running trials save a checkpoint first (again: stop at once)")
            interruption.request()
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        if running and time.monotonic() < self.stop.time + SECONDS_TO_SAVE:
            return
        for trial in running:
            newest = f"the newest is {trial.checkpoint.path}" if trial.checkpoint else "there is none"
            say_warning(f"trial {trial.trial_id} saved no checkpoint within {SECONDS_TO_SAVE:g} s; {newest}")
        self._ended = True
        # On this signal Tune ends its loop and writes the experiment's state.
        os.kill(os.getpid(), signal.SIGUSR1)
