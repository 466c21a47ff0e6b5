"""What ends a run at once says by which signal, although Ray takes every interruption for Ctrl-C."""

from __future__ import annotations

import contextlib
import signal

import pytest

from rllib_efficientzero.cli.errors import Terminated
from rllib_efficientzero.cli.signals import signals_caught


@pytest.mark.parametrize(("second", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("is_in_ray", [False, True])
def test_the_second_signal_decides(second: signal.Signals, error: type[BaseException], is_in_ray: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with signals_caught():
            signal.raise_signal(signal.SIGTERM)
            with contextlib.suppress(KeyboardInterrupt) if is_in_ray else contextlib.nullcontext():
                signal.raise_signal(second)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run()
    assert raised.type is error
    assert signal.getsignal(signal.SIGTERM) == before
