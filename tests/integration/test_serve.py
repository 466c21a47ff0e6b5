"""The service on Ray Serve: it answers, survives the loss of a replica, and exchanges its policy under load."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import ray
from policy_helpers import write_policy_with_other_weights, write_tiny_policy

pytest.importorskip("fastapi")
pytest.importorskip("ray.serve", exc_type=ImportError)
httpx = pytest.importorskip("httpx")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

# Ray Serve gives its proxy 5 s to start and replaces it if it is slower, for ever on a busy machine. Ray's processes
# have these from the one that starts them.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")

OBSERVATION = {"observation": [0.1, 0.2, 0.3, 0.4], "num_simulations": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("policy")
    write_tiny_policy(directory, num_actions=2, env="CartPole-v1")
    return directory


@pytest.fixture(scope="module")
def address(checkpoint: pathlib.Path, shared_ray: None) -> Iterator[str]:
    """Two replicas."""
    from ray import serve

    from rllib_efficientzero.serve.app import APP_NAME, build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"checkpoint": str(checkpoint), "replicas": 2}), name=APP_NAME)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def under_load(address: str, count: int, meanwhile: Callable[[], Awaitable[None]], **headers: str) -> list[Any]:
    """Answers to `count` requests, some of them on their way when something happens."""

    async def run() -> list[Any]:
        limits = httpx.Limits(max_connections=20)
        timeout = httpx.Timeout(120, pool=None)  # All requests but 20 wait for a connection here.
        async with httpx.AsyncClient(base_url=address, timeout=timeout, limits=limits, headers=headers) as client:
            asked = [asyncio.create_task(client.post("/v1/act", json=OBSERVATION)) for _ in range(count)]
            while sum(task.done() for task in asked) < count // 4:
                await asyncio.sleep(0.02)
            await meanwhile()
            return await asyncio.gather(*asked)

    return asyncio.run(run())


def test_it_answers_and_plays(address: str) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/v1/act", json=OBSERVATION)
        assert answer.status_code == 200, answer.text
        assert answer.json()["action"] in (0, 1)
        assert client.post("/v1/act", json={"observation": "x"}).status_code == 422
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "<title>EfficientZero" in client.get("/").text
        game = client.post("/v1/games", json={"seed": 1}).json()
        after = client.post(f"/v1/games/{game['id']}/step", json={}).json()
        assert after["step"] == 1


def test_no_request_is_lost_with_a_replica(address: str) -> None:
    async def kill_one() -> None:
        names = [named["name"] for named in ray.util.list_named_actors(all_namespaces=True)]
        replicas = [name for name in names if "#policy#" in name]
        assert len(replicas) == 2, names
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))

    answers = under_load(address, 1200, kill_one)
    failed = [answer.status_code for answer in answers if answer.status_code != 200]
    assert len(failed) / len(answers) < 0.001, failed


def test_the_policy_is_exchanged_under_load(address: str, tmp_path: pathlib.Path) -> None:
    from ray import serve

    from rllib_efficientzero.serve.app import APP_NAME, build

    write_tiny_policy(tmp_path, num_actions=2, env="CartPole-v1")
    model = write_policy_with_other_weights(tmp_path)[:12]

    async def exchange() -> None:
        await asyncio.to_thread(serve.run, build({"checkpoint": str(tmp_path), "replicas": 2}), name=APP_NAME)

    answers = under_load(address, 400, exchange)
    assert {answer.status_code for answer in answers} == {200}
    assert httpx.post(f"{address}/v1/act", json=OBSERVATION, timeout=60).json()["model"] == model
    assert httpx.get(f"{address}/v1/metadata", timeout=60).json()["model"] == model


def test_limits_hold_on_ray_serve_too(address: str, checkpoint: pathlib.Path) -> None:
    """One replica that searches for one request at a time, and a token; deployed over what is there."""
    from ray import serve

    from rllib_efficientzero.serve.app import APP_NAME, build

    strict = {"replicas": 1, "max_batch_size": 1, "max_queued": 1, "token": "secret"}
    serve.run(build({"checkpoint": str(checkpoint), **strict}), name=APP_NAME)

    async def nothing() -> None:
        pass

    answers = under_load(address, 60, nothing, Authorization="Bearer secret")
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 60
    assert {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.post("/v1/act", json=OBSERVATION).status_code == 401
        allowed = {"Authorization": "Bearer secret"}
        assert client.get("/v1/metadata", headers=allowed).json()["max_batch"] == 1
        two = client.post("/v1/act_batch", json={"requests": [OBSERVATION] * 2}, headers=allowed)
        assert two.status_code == 422
        large = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        assert client.post("/v1/act", content=b"x" * (9 << 20), headers=large).status_code == 413


def test_batches_are_answered_as_a_whole_or_not_at_all(address: str, checkpoint: pathlib.Path) -> None:
    """More of them at once than may wait; those refused leave nothing behind that others wait for."""
    from ray import serve

    from rllib_efficientzero.serve.app import APP_NAME, build

    narrow = {"replicas": 1, "max_batch_size": 1, "max_queued": 8}
    serve.run(build({"checkpoint": str(checkpoint), **narrow}), name=APP_NAME)
    batch = {"requests": [OBSERVATION] * 8}

    async def run() -> list[Any]:
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            together = await asyncio.gather(*(client.post("/v1/act_batch", json=batch) for _ in range(12)))
            return [*together, await client.post("/v1/act_batch", json=batch)]

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200, 503}
    assert answers[-1].status_code == 200
    for answer in answers:
        if answer.status_code == 200:
            assert ["action" in one for one in answer.json()["answers"]] == [True] * 8


def test_replicas_share_gpus(checkpoint: pathlib.Path) -> None:
    from rllib_efficientzero.serve.app import build

    application = build({"checkpoint": str(checkpoint), "replicas": 4, "gpus_per_replica": 0.25})
    policy, _ = application._bound_deployment.init_args
    deployment = policy._bound_deployment
    assert deployment.num_replicas == 4
    assert deployment.ray_actor_options["num_gpus"] == 0.25
