"""Threads that take turns."""

from __future__ import annotations

import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from rllib_efficientzero.turns import SWITCH_INTERVAL, Turn, given_up, switching_often, to_host


def test_nobody_works_while_another_has_the_turn() -> None:
    turn, at_work, most = Turn(), 0, 0

    def work() -> None:
        nonlocal at_work, most
        for _ in range(20):
            with turn.taken():
                at_work += 1
                most = max(most, at_work)
                time.sleep(1e-4)
                at_work -= 1
                with given_up():
                    time.sleep(1e-4)
                at_work += 1
                most = max(most, at_work)
                time.sleep(1e-4)
                at_work -= 1

    with ThreadPoolExecutor(4) as threads:
        for job in [threads.submit(work) for _ in range(4)]:
            job.result()
    assert most == 1


def test_who_waits_lets_the_other_have_the_turn() -> None:
    turn, is_done = Turn(), threading.Event()

    def work() -> None:
        with turn.taken():
            is_done.set()

    with ThreadPoolExecutor(1) as threads, turn.taken():
        job = threads.submit(work)
        assert not is_done.wait(0.05)
        with given_up():
            assert is_done.wait(20)
        job.result()


def test_the_turn_is_free_after_an_error() -> None:
    turn = Turn()
    with pytest.raises(OSError, match="gone"), turn.taken(), given_up():
        raise OSError("gone")
    with turn.taken():
        pass


def test_a_thread_without_a_turn_has_none_to_give_up() -> None:
    with given_up(), given_up():
        assert to_host(torch.ones(2)).tolist() == [1.0, 1.0]


def test_what_is_given_up_twice_is_taken_back_once() -> None:
    turn = Turn()
    with turn.taken():
        with given_up(), given_up(), turn.taken():
            pass
        with given_up(), turn.taken():
            pass


def test_a_signal_that_ends_the_waiting_for_the_turn_does_not_take_it_from_another() -> None:
    turn, has_it, may_end = Turn(), threading.Event(), threading.Event()

    def work() -> None:
        with turn.taken():
            has_it.set()
            assert may_end.wait(20)

    jobs: list[Future[None]] = []
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as threads:

            def lose() -> None:
                with turn.taken(), given_up():
                    jobs.append(threads.submit(work))
                    assert has_it.wait(20)
                    signal.setitimer(signal.ITIMER_REAL, 0.05)

            with pytest.raises(KeyboardInterrupt):
                lose()
            may_end.set()
            jobs[0].result()
    finally:
        signal.signal(signal.SIGALRM, before)
    with turn.taken():
        pass


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
