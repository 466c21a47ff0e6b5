"""A guard of speed: ratios within one run, with margins so wide that only a tenfold slip fails; and smoke runs.

Limits are about five times what the tree, or the search around the network, costs today: they hold on a busy machine
and on another one, but not against a loop that moved into Python.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from benchmarks import __main__ as benchmarks_main
from benchmarks import gpu, gpu_profile, lightzero_settings, loop, replay, report, search, tree
from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.models import InferenceNetwork, ModelConfig, build_network
from rllib_efficientzero.models.precision import cpu_has_bfloat16

TINY_SIZES = ModelConfig(latent_size=8, mlp_hidden=(8,), head_hidden=(8,), lstm_hidden=8, support_size=5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thread CPU time counts all the work only if there is one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numpy_yardstick(num_roots: int, num_actions: int, num_simulations: int) -> Callable[[], object]:
    """A fixed piece of NumPy: pUCT scores, argmax and running means of B roots that have no depth."""
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.ones(num_actions), num_roots).astype(np.float32)
    values = rng.normal(size=(num_simulations, num_roots)).astype(np.float32)
    rows = np.arange(num_roots)

    def run() -> np.ndarray:
        visits, total = np.zeros_like(prior), np.zeros_like(prior)
        for value in values:
            mean = total / np.maximum(visits, 1)
            bonus = prior * np.sqrt(1 + visits.sum(axis=1, keepdims=True)) / (1 + visits)
            action = (mean + 1.25 * bonus).argmax(axis=1)
            visits[rows, action] += 1
            total[rows, action] += value
        return visits

    return run


def ratio(fast: Callable[[], object], yardstick: Callable[[], object]) -> float:
    """Best time over best time of so many turns that on a busy machine both have met a quiet moment."""
    subjects = {"fast": (fast, time.thread_time), "yardstick": (yardstick, time.thread_time)}
    times = report.time_in_turns(subjects, 100, at_least=5, budget_s=0.5)
    return min(times["fast"]) / min(times["yardstick"])


# --- The guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
@pytest.mark.parametrize(("shape", "limit"), [((64, 18, 50), 4.0), ((1, 18, 50), 0.2)])
def test_the_tree_against_a_numpy_loop(policy: str, shape: tuple[int, int, int], limit: float) -> None:
    (run, _), _ = tree.tree_subject(tree.Shape(*shape), policy)
    assert ratio(run, numpy_yardstick(*shape)) < limit


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_the_search_against_its_bare_network_calls(policy: str) -> None:
    """With a network so small that a slip of the search around it shows: today the ratio is 1.4."""
    network = InferenceNetwork(build_network((1, 4), 6, TINY_SIZES))
    planes = torch.zeros(16, 4)
    whole = search.search_subject(network, planes, SearchConfig(policy=policy, num_simulations=25))
    assert ratio(whole, search.bare_subject(network, planes, 25)) < 2.5


# --- The benchmarks' smallest forms ----------------------------------------------------------------------------------


def test_tree_benchmark_runs() -> None:
    rows = tree.measure(tree.Shape(256, 18, 3), with_mctx=False, repetitions=7, num_threads=1)
    assert [row["subject"] for row in rows] == ["puct", "gumbel"]
    assert all(row["simulations_per_s"] > 0 for row in rows)
    assert set(tree.summary(rows)) == {"puct, B=256 A=18 N=3", "gumbel, B=256 A=18 N=3"}


def test_replay_benchmark_runs() -> None:
    pong, priorities = replay.benchmark_pong(300, repeats=2), [replay.benchmark_priorities(1000, repeats=2)]
    assert 0 < pong["bytes_per_step"] < pong["raw_bytes_per_step"]
    assert "replay of 100k steps of Pong" in replay.summary(pong, priorities)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("network", ["small", "paper"])
def test_search_benchmark_runs(network: str) -> None:
    rows = search.measure(search.Case(network, 6, 2, 4), "cpu", repetitions=1, at_least=1)
    assert [row["policy"] for row in rows] == list(search.POLICIES)
    for row in rows:
        split = row["split_ms"]
        assert all(milliseconds > 0 for milliseconds in split["of_copies"].values())
        assert split["network"] > split["tree"] > 0
        assert row["ratio"] > 0
    assert search.summary(rows)


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """What benchmarks start of Ray is shut down after the last of them, unless it ran before."""
    was_initialized = ray.is_initialized()
    yield
    if not was_initialized:
        ray.shutdown()


@pytest.mark.usefixtures("own_ray")
def test_lightzero_settings_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    few = 2  # to load a game takes ALE a fifth of a second
    monkeypatch.setattr(lightzero_settings, "ENVIRONMENTS", few)
    monkeypatch.setitem(lightzero_settings.SETTINGS, "num_envs_per_env_runner", few)
    tiny = {"model_config": gpu.QUICK_NETWORK, "num_simulations": 2, "train_batch_size_per_learner": 8}
    result = lightzero_settings.run(1, tiny)
    assert list(result["measured"]) == ["float32"] + ["bfloat16"] * cpu_has_bfloat16()
    for precision, measured in result["measured"].items():
        assert measured["updates"] == 1
        assert measured["env_steps"] == lightzero_settings.ENVIRONMENTS * lightzero_settings.FRAGMENT
        assert set(measured["seconds_per_update"]) == {"targets", "learn", "rest"}
        assert all(seconds > 0 for seconds in measured["seconds_per_update"].values())
        for name, goal in lightzero_settings.GOALS.items():
            ratio = result["goals"][f"{precision}: {name} over LightZero's, at least"]["measured"]
            assert ratio == pytest.approx(measured[name] / lightzero_settings.LIGHTZERO[name], abs=0.01)
            assert goal in (2.0, 3.0)


OURS = {"env_steps_per_s": 20.0, "learner_iterations_per_s": 0.125}


@pytest.fixture
def ours_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of ours at once: only what is done with LightZero's is tested."""
    report_of_ours = {report.SUMMARY: {"ours": "1"}, "measured": {"float32": OURS}, "goals": {"recorded": {}}}
    monkeypatch.setattr(lightzero_settings, "run", lambda updates, overrides=None: report_of_ours)


def fake_lightzero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> Path:
    """`code` instead of `lightzero_peer.py`; it may count its runs in `runs`. Returns the python that runs it."""
    script = tmp_path / "peer.py"
    lines = ("import json, os, pathlib, sys", f"log = pathlib.Path({str(tmp_path / 'runs')!r})")
    lines += ("log.open('a').write(' '.join(sys.argv[1:]) + '\\n')", "runs = len(log.read_text().splitlines())", code)
    script.write_text("\n".join(lines))
    monkeypatch.setattr(lightzero_settings, "PEER_SCRIPT", script)
    return Path(sys.executable)


PRINTS_FIGURES = """
print("a line of its log")
print(json.dumps({"version": "0.2.0", "env_steps_per_s": 8.0 * runs, "seconds_per_iteration": 10.0 * runs,
                  "train_s": 6.0 * runs, "targets_s": 4.0 * runs, "threads": os.environ["OMP_NUM_THREADS"]}))
"""


@pytest.mark.usefixtures("ours_measured")
def test_lightzero_is_measured_before_and_after_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = fake_lightzero(monkeypatch, tmp_path, PRINTS_FIGURES)
    result = lightzero_settings.run_beside(python, updates=3)
    peer = result["peer"]
    assert (tmp_path / "runs").read_text().splitlines() == ["--steps 120 --iterations 3"] * 2
    assert [run["env_steps_per_s"] for run in peer["runs"]] == [8.0, 16.0]
    assert [run["threads"] for run in peer["runs"]] == ["1", "1"]
    assert (peer["version"], peer["mean"]["env_steps_per_s"], peer["mean"]["train_s"]) == ("0.2.0", 12.0, 9.0)
    goals = {name: goal["measured"] for name, goal in result["goals"].items() if name != "recorded"}
    assert goals == {
        "float32: env_steps_per_s over LightZero's here, at least": round(20 / 12, 2),
        "float32: learner_iterations_per_s over LightZero's here, at least": round(15 / 8, 2),
    }
    assert len(result[report.SUMMARY]) == 3
    assert "recorded" in result["goals"]


@pytest.mark.usefixtures("ours_measured")
@pytest.mark.parametrize(
    ("code", "expected", "runs_kept"),
    [
        ("sys.exit('No module named lzero')", "exit code 1", 0),
        ("sys.exit('No module named lzero') if runs > 1 else None" + PRINTS_FIGURES, "No module named lzero", 1),
        ("print('no figures')", "JSON", 0),
        ("print(json.dumps({'version': '0.2.0'}))", "env_steps_per_s", 0),
        ("", "JSON", 0),
    ],
)
def test_a_lightzero_that_fails_costs_only_its_own_figures(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: str,
    expected: str,
    runs_kept: int,
) -> None:
    python, out = fake_lightzero(monkeypatch, tmp_path, code), tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["lightzero_settings", "--peer", str(python), "--out", str(out)])
    assert lightzero_settings.main() == 1
    assert expected in capsys.readouterr().err
    written = json.loads(out.read_text())
    assert written["measured"]["float32"] == OURS
    assert expected in written["peer"]["error"]
    assert len(written["peer"].get("runs", [])) == runs_kept


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(lightzero_settings.PeerError, match="no_python"):
        lightzero_settings.measure_peer(tmp_path / "no_python", updates=1)


def test_gpu_benchmark_runs_on_a_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "EXAMPLES", {"pong-ezv2": 25.0})
    *_, result = gpu.run("cpu", quick=True, updates=1)
    assert {(row["policy"], row["num_roots"]) for row in result["searches"]} == {
        (policy, roots) for policy in gpu.SEARCHES for roots in (4, 80)
    }
    for row in result["searches"]:
        assert row["simulations_per_s"] > 0
        assert row["host_ms"][gpu.LAUNCH] > 0
        assert row["device"] == {}
    assert [row["example"] for row in result["updates"]] == list(gpu.EXAMPLES)
    for row in result["updates"]:
        assert row["updates"] >= 1
        assert row["minutes_of_a_run_extrapolated"] > 0
        assert row["ms_per_update"] > 0
        assert row["ms_per_env_step"] > 0
        assert row["parts"]["ms_per_update"]["reanalyze_search"] > 0
    assert result["goals"] == {}
    assert "a CPU" in result[report.SUMMARY]["device"]


def test_gpu_benchmark_without_a_gpu_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 1
    assert "no GPU" in capsys.readouterr().out


def test_a_gpu_is_busy_with_trees_copies_and_the_network() -> None:
    spans = [("Memcpy HtoD", 0.0, 150.0), ("gemm", 50.0, 450.0), ("conv", 500.0, 800.0), ("memcpy DtoH", 950.0, 1000.0)]
    spans += [("puct_select", 800.0, 850.0), ("expand_and_backup", 850.0, 900.0)]
    found = gpu.device_summary(spans, wall=0.0018)
    assert found == pytest.approx(
        {"wall_ms": 1.8, "busy_ms": 0.9, "copies_ms": 0.2, "trees_ms": 0.1, "network_ms": 0.7, "busy_share": 0.5}
    )
    row = {"policy": "puct", "num_roots": 4, "num_simulations": 50, "device": found, "simulations_per_s": 1}
    row |= {"search_ms": {"median": 2.0}, "trees_on_host_ms": {"median": 2.5}, "no_graph_ms": {"median": 3.0}}
    row["host_ms"] = dict.fromkeys((gpu.TREE, gpu.LAUNCH, gpu.WAIT, gpu.OTHER), 0.5)
    warned, line = gpu.summary([row], [], "cuda", ["torch._dynamo: the limit"]).values()
    assert warned == "torch._dynamo: the limit"
    assert "50% busy (trees 0.1 ms, copies 0.2 ms, network 0.7 ms)" in line


def test_what_overlaps_is_counted_once() -> None:
    assert gpu.covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 5.0
    assert gpu.covered([]) == 0.0


@pytest.mark.usefixtures("own_ray")
def test_a_profile_is_made_on_a_cpu_too(tmp_path: Path) -> None:
    """But for the device, of which there is none."""
    lines = list(gpu_profile.report("pong-ez", {"reanalyze_prefetch": 2}, "cpu", quick=True, out=tmp_path))
    assert re.match(r"pong-ez: \d+\.\d\d ms of wall time per update", lines[0])
    for thread, what in (
        ("MainThread", "gradient step"),
        ("reanalyze", "make a batch"),
        ("draw-windows", "draw windows"),
    ):
        assert any(line.startswith(thread) and what in line for line in lines)
    assert [line.split(",")[0] for line in lines[-2:]] == ["batch", "learn"]
    assert not list(tmp_path.iterdir())


def test_gaps_and_kernels_of_a_profile() -> None:
    works = [gpu.Work(name, 1000.0 * start, 1000.0 * end, stream) for name, start, end, stream in (
        ("conv", 0, 4, 1), ("gemm", 1, 2, 2), ("conv", 6, 7, 1), ("gemm", 7, 9, 2)
    )]  # fmt: skip
    assert gpu_profile.gaps(works) == [2000.0]
    assert gpu_profile.gaps([]) == []
    first, *others = gpu_profile.describe_device(works, updates=2)
    assert first.startswith(
        "busy 3.50 ms per update, idle 1.00, of it longer than 0.1 ms at a time 1.00; the longest 2.0"
    )
    assert "stream 1: 2.50 ms per update, 1 kernels" in others
    assert "2500.0 us per update,     1.0 times,  2500.0 us each: conv" in others[2]
    assert [line.split(": ")[-1] for line in gpu_profile.describe_order(works)] == ["conv", "gemm", "conv", "gemm"]


@pytest.mark.usefixtures("own_ray")
def test_loop_benchmark_runs_and_its_phases_sum_to_the_wall_clock() -> None:
    overrides = {
        "model_config": gpu.QUICK_NETWORK,
        "num_simulations": 2,
        "reanalyze_ratio": 0.5,
        "train_batch_size_per_learner": 8,
        "num_envs_per_env_runner": 2,
        "rollout_fragment_length": 5,
    }
    result = loop.run(loop.Plan("pong-ez-cpu", (8,), updates=1, overrides=overrides))
    (run,), figures = result["runs"], result["figures"]
    assert sum(run["phases_s"].values()) == pytest.approx(run["timers_s"]["wall"], rel=0.05, abs=0.01)
    assert set(run["phases_s"]) == {"other", loop.ACT, loop.EMULATE, loop.SEARCH, loop.ENCODE, loop.LEARN}
    assert all(milliseconds >= 0 for milliseconds in (loop.per_step(run) | loop.per_update(run)).values())
    assert (figures["extrapolated"], figures["batch"], figures["simulations"]) == (False, 8, 2)
    assert figures["iteration"]["ms"]["update/learn"] > 0
    assert 0 < figures["iteration"]["share_of_rllib_replay_and_glue"] < 1


def test_a_straight_line_is_drawn_through_two_batches() -> None:
    def run(batch: int, learn: float) -> dict[str, Any]:
        timers = dict.fromkeys(("replay_sample", "update_priorities", "sync_weights"), 0.0)
        timers |= {"learner_update": 2.0 + 0.2 * batch + learn, "reanalyze": 0.2 * batch}
        phases = {"reanalyze_search": 1.0 + 0.1 * batch, "learn": learn}
        return {"batch": batch, "updates": 1, "timers_s": timers, "phases_s": phases}

    update = loop.line(256, [run(8, learn=3.0), run(16, learn=2.5)])
    assert update["reanalyze_search"] == pytest.approx(1000 * (1 + 0.1 * 256))
    assert update["learner_rest"] == pytest.approx(1000 * 2.0)
    assert update["learn"] == pytest.approx(1000 * 2.5), "noise must not make larger batches faster"
    update = loop.line(256, [run(8, learn=0.1), run(16, learn=2.0)])
    assert update["learn"] == pytest.approx(1000 * 2.0 * 256 / 16), "nor slower than in proportion"
    assert loop.line(8, [run(8, learn=1.0)]) == loop.per_update(run(8, learn=1.0))


# --- The common parts ------------------------------------------------------------------------------------------------


def test_a_stopwatch_gives_every_moment_to_one_phase() -> None:
    now = iter(range(100))
    watch = report.Stopwatch(lambda: float(next(now)))
    double = watch.wrap(lambda x: 2 * x, "double", before="gap")
    assert [double(1), double(2)] == [2, 4]
    watch.mark("end")
    assert watch.seconds == {"gap": 2.0, "double": 2.0, "end": 1.0}
    assert watch.calls == {"double": 2}


def test_slow_subjects_are_repeated_less_often() -> None:
    clock = iter(range(0, 1000, 3))
    subjects = {"slow": (lambda: None, lambda: float(next(clock))), "fast": (lambda: None, lambda: 0.0)}
    times = report.time_in_turns(subjects, 9, at_least=2, budget_s=5.0)
    assert times == {"slow": [3000.0, 3000.0], "fast": [0.0] * 9}


def test_reports_say_under_which_conditions_they_were_made(tmp_path: Path) -> None:
    conditions = report.conditions("torch")
    assert {"commit", "cpu", "cores", "load_average_before", "python", "numpy", "torch"} <= set(conditions)
    path = tmp_path / "new" / "x.json"
    report.write(path, {report.SUMMARY: {"speed": "3 per s"}, "conditions": conditions})
    assert json.loads(path.read_text())["conditions"] == conditions
    table = benchmarks_main.table({"x": path})
    assert f"on {conditions['cores']} cores" in table
    assert "speed  3 per s" in table
