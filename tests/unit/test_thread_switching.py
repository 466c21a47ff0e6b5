"""Threads of a process that keep a device busy."""

from __future__ import annotations

import sys

import pytest

from rllib_efficientzero.actors.thread_switching import SWITCH_INTERVAL, switching_often


def test_the_switch_interval_of_before_comes_back_with_the_last() -> None:
    """In whatever order they leave, as two algorithms in one process do."""
    before = sys.getswitchinterval()
    first, second = switching_often(), switching_often()
    for entering in (first, second):
        entering.__enter__()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(before)
