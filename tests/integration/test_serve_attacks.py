"""The server in processes of its own, under load, under attack and in part killed: figures of `benchmarks.serve`, held
to limits."""

from __future__ import annotations

import pathlib

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from benchmarks import serve, serve_ray

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_good_traffic_is_served_beside_attackers(tmp_path: pathlib.Path) -> None:
    """50 connections that crawl and 4 that send nonsense; bodies of 100 MB are refused before they are read."""
    observation = serve.write_example_policy(tmp_path)
    seen = serve.measure_attacks(tmp_path, observation, requests=300)
    assert seen["errors_under_attack"] == 0
    assert all(code.startswith("4") for code in seen["nonsense_is_answered"]), seen
    assert seen["large_bodies_are_answered"] == [413]
    for name, limit in serve.LIMITS.items():
        assert seen[name] <= limit, seen


def test_batching_serves_more(tmp_path: pathlib.Path) -> None:
    observation = serve.write_example_policy(tmp_path)
    together, alone = (
        serve.measure(tmp_path, observation, serve.Case(serve.SIMULATIONS, batch, serve.CLIENTS), requests=200)
        for batch in (serve.BATCH, 1)
    )
    assert together["errors"] == alone["errors"] == 0
    assert together["server_cpu_ms_per_request"] < 0.7 * alone["server_cpu_ms_per_request"]
    assert set(serve.summary([together], dict.fromkeys(serve.LIMITS, 1.0))) == {
        f"{serve.SIMULATIONS} simulations, batches of {serve.BATCH}",
        "under attack",
    }


def test_requests_outlive_a_killed_replica(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rllib serve` on Ray Serve; one of its two replicas gets SIGKILL while it is asked."""
    pytest.importorskip("ray.serve", exc_type=ImportError)
    # Ray Serve gives up a proxy that a busy machine starts slowly.
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
    seen = serve_ray.measure_lost_replica(tmp_path, serve.write_example_policy(tmp_path), requests=1000)
    assert seen["replicas"] == serve_ray.REPLICAS
    assert seen["undisturbed"]["errors"] == 0
    assert seen["one_killed"]["errors"] <= serve_ray.MAX_ERRORS
    assert seen["one_killed"]["max_ms"] < 60_000, "whoever asked the lost one is not forgotten"
