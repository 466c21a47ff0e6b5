"""Batches made in a thread beside the Learner: the same run, but for the priorities and steps that it misses."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from scale_helpers import tiny_config, train_until
from test_scale_reanalyze import finish, run, short

from rllib_efficientzero import interruption, turns
from rllib_efficientzero.actors.ahead import SWITCH_INTERVAL, BatchesAhead
from rllib_efficientzero.actors.self_play import SynchronousSelfPlay
from rllib_efficientzero.turns import Turn

pytestmark = pytest.mark.usefixtures("shared_ray")

UNIFORM = {"replay_buffer_config": {"alpha": 0.0}}
ALL_STEPS_FIRST = {"num_steps_sampled_before_learning_starts": 150}  # of 160


def threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("reanalyze", "draw-windows", "self-play"))}


@pytest.mark.parametrize("prefetch", [1, 2, 20])
def test_where_nothing_is_missed_the_run_is_the_same(prefetch: int) -> None:
    """Bit by bit, over several copies of the target network: priorities do not matter, and no steps come any more."""
    expected, result = run(short(**UNIFORM, **ALL_STEPS_FIRST))
    ahead, other = run(short(**UNIFORM, **ALL_STEPS_FIRST).reanalyze(prefetch=prefetch))
    assert result["num_updates_lifetime"] == other["num_updates_lifetime"] > 3 * 5
    assert ahead == expected
    assert other["learners"]["default_policy"]["reanalyze"]["simulations_per_s"] > 0
    assert not threads()


def test_where_something_is_the_run_repeats_itself() -> None:
    first, _ = run(short().reanalyze(prefetch=2))
    second, _ = run(short().reanalyze(prefetch=2))
    assert first == second
    assert first not in (run(short())[0], run(short().reanalyze(prefetch=1))[0])


def test_a_batch_is_made_while_the_learner_is_at_the_one_before() -> None:
    before_all = sys.getswitchinterval()
    algo = short(target_network_update_freq=4).reanalyze(prefetch=1).build_algo()
    assert isinstance(algo.batches, BatchesAhead)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    update, sample = algo.learner_group._learner.update, algo.local_replay_buffer.sample
    is_drawn, ahead = threading.Event(), []

    def watched_sample(*args: Any, **kwargs: Any) -> Any:
        windows = sample(*args, **kwargs)
        is_drawn.set()
        return windows

    def watched_update(*args: Any, **kwargs: Any) -> Any:
        if algo.batches.is_ahead():
            assert is_drawn.wait(20), "nobody draws the next windows meanwhile"
        ahead.append(algo.batches.is_ahead())
        is_drawn.clear()
        return update(*args, **kwargs)

    algo.learner_group._learner.update, algo.local_replay_buffer.sample = watched_update, watched_sample
    while algo.num_updates < 16:
        before = len(ahead)
        algo.train()
        # Not across a copy of the target network, which is after every fourth update, and the end of an iteration.
        last = len(ahead) - 1
        assert ahead[before:] == [update % 4 != 3 and update < last for update in range(before, len(ahead))]
        assert not algo.batches.is_ahead()
    algo.stop()
    assert sys.getswitchinterval() == pytest.approx(before_all)


def test_an_iteration_s_steps_are_played_while_its_updates_are_made() -> None:
    algo = short(self_play_update_freq=100).reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    replay, runner, events = algo.local_replay_buffer, algo.env_runner_group.local_env_runner, []
    learner = algo.learner_group._learner
    update, add, play = learner.update, replay.add, runner.sample
    has_learned = threading.Event()

    def watched_update(*args: Any, **kwargs: Any) -> Any:
        events.append(replay.num_added)
        has_learned.set()
        return update(*args, **kwargs)

    def watched_play(*args: Any, **kwargs: Any) -> Any:
        assert has_learned.wait(20), "the Learner waits for self-play"
        assert threading.current_thread().name.startswith("self-play")
        return play(*args, **kwargs)

    def watched_add(*args: Any, **kwargs: Any) -> Any:
        events.append("added")
        return add(*args, **kwargs)

    learner.update, replay.add, runner.sample = watched_update, watched_add, watched_play
    before = algo.num_interactions
    algo.train()
    assert algo.num_interactions > before
    assert events == [*8 * [before], "added"]
    algo.stop()


def test_threads_that_take_turns_make_the_same_run() -> None:
    """As on a GPU, where they wait for it. Whoever learns, plays or searches has the turn."""
    expected, _ = run(short().reanalyze(prefetch=3))
    algo = short().reanalyze(prefetch=3).build_algo()
    algo.batches._turn = Turn()
    learner, runner, replay = (
        algo.learner_group._learner,
        algo.env_runner_group.local_env_runner,
        algo.local_replay_buffer,
    )
    watched = [(learner, "update"), (runner, "_log_search"), (replay, "update_priorities")]
    watched += [(worker, "_connector") for worker in algo.batches._workers]
    had_turn = []

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watching(*args: Any, **kwargs: Any) -> Any:
            had_turn.append(algo.batches._turn._lock is getattr(turns._of_this_thread, "lock", None))
            return function(*args, **kwargs)

        setattr(owner, name, watching)

    for owner, name in watched:
        watch(owner, name)
    found, _ = finish(algo)
    assert found == expected
    assert all(had_turn)
    assert len(had_turn) > 60


def test_weights_do_not_change_while_it_plays() -> None:
    algo = short(self_play_update_freq=3).reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    runner, learner, events = algo.env_runner_group.local_env_runner, algo.learner_group._learner, []
    play, copy_weights = runner.sample, learner.copy_weights_to

    def watched_play(*args: Any, **kwargs: Any) -> Any:
        episodes = play(*args, **kwargs)
        events.append("played")
        return episodes

    def watched_copy(env_runner: Any) -> None:
        events.append("weights")
        copy_weights(env_runner)

    runner.sample, learner.copy_weights_to = watched_play, watched_copy
    algo.train()
    assert events[0] == "played"
    assert events[1:] in (2 * ["weights"], 3 * ["weights"])
    algo.stop()


def test_where_fewer_steps_come_their_updates_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    runner, made, steps = algo.env_runner_group.local_env_runner, algo.num_updates, algo.num_interactions
    with monkeypatch.context() as patch:
        patch.setattr(runner, "sample", lambda **kwargs: [])
        algo.train()
    assert (algo.num_updates, algo.num_interactions) == (made + 8, steps)
    algo.train()
    assert algo.num_updates == made + 8
    assert algo.num_interactions > steps
    algo.stop()


def test_batches_that_no_update_asks_for_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sample, which is waited for, has fewer steps than it was asked for."""
    algo = short().reanalyze(prefetch=2).build_algo()
    algo.self_play.stop()
    algo.self_play = SynchronousSelfPlay(algo.env_runner_group, algo.config, restore=list)
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    made = algo.num_updates
    with monkeypatch.context() as patch:
        patch.setattr(algo.self_play, "sample", lambda num_steps, **kwargs: [])
        algo.train()
    assert algo.num_updates == made
    assert not algo.batches.is_ahead()
    result = algo.train()
    assert result["num_updates_lifetime"] == made + 8
    algo.stop()


def test_an_environment_that_fails_in_the_thread_ends_the_iteration() -> None:
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    runner = algo.env_runner_group.local_env_runner
    play, made = runner.sample, algo.num_updates

    def failing_play(**kwargs: Any) -> Any:
        raise OSError("the joystick is gone")

    runner.sample = failing_play
    with pytest.raises(OSError, match="the joystick is gone"):
        algo.train()
    runner.sample = play
    algo.train()
    assert algo.num_updates >= made
    algo.stop()
    assert not threads()


def test_an_error_in_the_thread_ends_the_iteration() -> None:
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    sample, drawn = algo.local_replay_buffer.sample, []

    def failing_sample(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 3:
            raise OSError("the memory is gone")
        return sample(*args, **kwargs)

    algo.local_replay_buffer.sample = failing_sample
    with pytest.raises(OSError, match="the memory is gone"):
        algo.train()
    algo.stop()
    assert not threads()


def test_an_interrupted_iteration_loses_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch that was drawn is learned from, so that the run goes on as if nothing had been drawn ahead."""
    algo = short(**UNIFORM, **ALL_STEPS_FIRST).reanalyze(prefetch=2).build_algo()
    plain = short(**UNIFORM, **ALL_STEPS_FIRST).build_algo()
    for running in (algo, plain):
        train_until(running, lambda result: result["num_updates_lifetime"] >= 8)
    made = algo.num_updates
    assert plain.num_updates == made
    asked = iter([False] * 3)
    monkeypatch.setattr(interruption, "requested", lambda: next(asked, True))
    algo.train()
    assert made < algo.num_updates < made + 8
    assert not algo.batches.is_ahead()
    monkeypatch.setattr(interruption, "requested", lambda: plain.num_updates >= algo.num_updates)
    plain.train()
    assert plain.num_updates == algo.num_updates
    drawn = [running.local_replay_buffer.sample(16, beta=1.0).position_ids.tolist() for running in (algo, plain)]
    assert drawn[0] == drawn[1]
    algo.stop()
    plain.stop()


def test_nothing_is_made_ahead_for_learners_elsewhere_without_actors() -> None:
    config = tiny_config().learners(num_learners=2).reanalyze(prefetch=1)
    with pytest.raises(ValueError, match="`reanalyze_prefetch` 1 needs somebody who makes batches ahead"):
        config.validate()
    assert tiny_config().prefetched_batches() == 0
    assert tiny_config().reanalyze(num_actors=3).prefetched_batches() == 3
