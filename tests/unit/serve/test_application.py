"""The served policy answers as the policy itself; whatever else is sent is answered by 4xx, with a reason."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import pathlib
import random
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from policy_helpers import IMAGES, write_pendulum_policy, write_policy_with_other_weights, write_tiny_policy

pytest.importorskip("fastapi")
from serve_helpers import make_app, make_service, talk

from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.serve.application import Limits
from rllib_efficientzero.serve.batcher import LocalBatcher, OverloadedError
from rllib_efficientzero.serve.local import build_local
from rllib_efficientzero.serve.schemas import MAX_BATCH
from rllib_efficientzero.serve.service import Answer, PolicyService, Query
from rllib_efficientzero.serve.sessions import SessionStore

FRAME = [0.1, -0.2, 0.3, 0.4]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> PolicyService:
    return make_service(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> PolicyService:
    return make_service(tmp_path_factory.mktemp("images"), IMAGES)


def post(app: Any, path: str, *bodies: Any) -> list[httpx.Response]:
    """One request after the other."""

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(path, json=body) for body in bodies]

    return talk(app, conversation)


def npy(array: np.ndarray, **options: Any) -> dict[str, str]:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return {"npy": base64.b64encode(stream.getvalue()).decode()}


def png(image: np.ndarray) -> dict[str, str]:
    _, content = cv2.imencode(".png", image[..., ::-1])
    return {"png": base64.b64encode(content.tobytes()).decode()}


def test_acts_as_the_policy_does(service: PolicyService) -> None:
    stack = np.stack([FRAME, np.array(FRAME) + 1]).astype(np.float32)
    expected = service.policy.act(stack[None], num_simulations=7)
    bodies = [
        {"observation": stack.tolist(), "num_simulations": 7},
        {"observation": npy(stack), "num_simulations": 7},
        {"observation": {"observations": stack.tolist(), "action_mask": [1, 1]}, "num_simulations": 7},
    ]
    for answer in post(make_app(service), "/v1/act", *bodies):
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["action"] == expected.action[0]
        assert told["value"] == pytest.approx(float(expected.root_value[0]), abs=1e-5)
        np.testing.assert_allclose(told["visit_policy"], expected.policy[0], atol=1e-5)
        assert told["num_simulations"] == 7


def test_a_session_keeps_the_frames(service: PolicyService) -> None:
    asked: list[np.ndarray] = []

    class Recorder:
        async def act(self, query: Query) -> Answer:
            asked.append(query.frames)
            return Answer()

    first, second = FRAME, [1.0, 0.5, -1.0, 0.0]
    in_session = [{"observation": frame, "session_id": "s"} for frame in (first, second)]
    begun_anew = {"observation": second, "session_id": "s", "reset": True}
    whole_stack = {"observation": [first, second], "session_id": "s"}
    app = make_app(service, batcher=Recorder())
    answers = post(app, "/v1/act", *in_session, begun_anew, {"observation": first}, whole_stack)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 422]
    stacks = [[first, first], [first, second], [second, second], [first, first]]
    np.testing.assert_array_equal(np.array(asked), np.array(stacks, np.float32))


def test_images_as_png(images: PolicyService) -> None:
    image = np.random.default_rng(0).integers(0, 255, IMAGES.shape[1:]).astype(np.uint8)
    lists, encoded = post(make_app(images), "/v1/act", {"observation": image.tolist()}, {"observation": png(image)})
    assert lists.json() == encoded.json()
    assert encoded.status_code == 200


def test_only_legal_actions_are_taken(service: PolicyService) -> None:
    app = make_app(service)
    for legal in ([1], [False, True]):
        bodies = [{"observation": FRAME, "legal_actions": legal, "num_simulations": n} for n in (0, 1, 20)]
        for answer in post(app, "/v1/act", *bodies):
            assert answer.json()["action"] == 1
            assert answer.json()["visit_policy"][0] == 0.0


def test_sampled_actions_are_answered_by_their_components(tmp_path: pathlib.Path) -> None:
    write_pendulum_policy(tmp_path)
    service = PolicyService(tmp_path)
    frame = [0.5, -0.5, 1.0]
    expected = service.policy.act(np.array([[frame, frame]], np.float32))
    app = make_app(service)
    answer, without_search, with_mask = post(
        app,
        "/v1/act",
        {"observation": frame},
        {"observation": frame, "num_simulations": 0},
        {"observation": frame, "legal_actions": [0]},
    )
    told = answer.json()
    assert told["action"] == pytest.approx(expected.action[0].tolist())
    np.testing.assert_allclose(told["candidates"], expected.candidates[0], atol=1e-6)
    assert len(told["visit_policy"]) == len(told["candidates"]) > 1
    assert without_search.json()["candidates"] == [without_search.json()["action"]]
    assert (with_mask.status_code, "samples its actions" in with_mask.json()["detail"]) == (422, True)


def test_games_of_sampled_actions_choose_among_those_searched(tmp_path: pathlib.Path) -> None:
    write_pendulum_policy(tmp_path)

    async def conversation(client: httpx.AsyncClient) -> None:
        begun = (await client.post("/v1/games", json={"seed": 3, "num_simulations": 9})).json()
        assert len(begun["action_names"]) == len(begun["visits"]) == 16
        line = begun["principal_line"]
        assert line[0]["name"] == begun["action_names"][begun["action"]]
        assert all(node["name"] == f"sample {node['action']}" for node in line[1:])
        after = (await client.post(f"/v1/games/{begun['id']}/step", json={"action": 15})).json()
        assert (after["step"], after["reward"] < 0) == (1, True)
        assert (await client.post(f"/v1/games/{begun['id']}/step", json={"action": 16})).status_code == 422

    talk(make_app(PolicyService(tmp_path)), conversation)


def test_one_bad_request_does_not_spoil_a_batch(service: PolicyService) -> None:
    good = {"observation": FRAME}
    requests = [good, {"observation": "x"}, {"observation": FRAME, "num_simulations": 10**9}, 7, good]
    (answer,) = post(make_app(service), "/v1/act_batch", {"requests": requests})
    assert answer.status_code == 200
    found = answer.json()["answers"]
    assert found[0] == found[4]
    assert "action" in found[0]
    assert ["detail" in part for part in found] == [False, True, True, True, False]


def test_concurrent_requests_share_a_search(service: PolicyService) -> None:
    sizes: list[int] = []

    def search(queries: Sequence[Query]) -> list[Answer]:
        sizes.append(len(queries))
        time.sleep(0.02)
        return service.search(queries)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/act", json={"observation": FRAME}) for _ in range(40)))

    app = make_app(service, batcher=LocalBatcher(search, ThreadPoolExecutor(1), max_batch_size=16))
    answers = talk(app, conversation)
    assert {answer.status_code for answer in answers} == {200}
    assert sum(sizes) == 40
    assert len(sizes) <= 6
    assert max(sizes) == 16


def test_too_many_requests_are_told_to_come_back(service: PolicyService) -> None:
    class Full:
        async def act(self, query: Query) -> Answer:
            raise OverloadedError("full")

    (answer,) = post(make_app(service, batcher=Full()), "/v1/act", {"observation": FRAME})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1

    class Slow:
        async def act(self, query: Query) -> Answer:
            await asyncio.sleep(0.05)
            return Answer(visit_policy=[1.0, 0.0])

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/act", json={"observation": FRAME}) for _ in range(10)))

    app = make_app(service, batcher=Slow(), limits=Limits(max_pending=4))
    assert sorted(answer.status_code for answer in talk(app, conversation)) == [200] * 4 + [503] * 6
    (later,) = post(app, "/v1/act", {"observation": FRAME})
    assert later.status_code == 200, "those that were refused are not counted for ever"


def test_a_batch_may_have_as_many_requests_as_may_wait(service: PolicyService) -> None:
    batches = [{"requests": [{"observation": FRAME, "num_simulations": 0}] * count} for count in (4, 5)]

    async def conversation(client: httpx.AsyncClient) -> tuple[Any, list[httpx.Response]]:
        metadata = (await client.get("/v1/metadata")).json()
        return metadata, [await client.post("/v1/act_batch", json=batch) for batch in batches]

    metadata, (whole, too_large) = talk(build_local(service, max_queued=4), conversation)
    assert metadata["max_batch"] == 4
    assert ["action" in answer for answer in whole.json()["answers"]] == [True] * 4
    assert (too_large.status_code, too_large.json()["detail"]) == (422, "a batch may have 4 requests, not 5")
    many, _ = talk(build_local(service, max_queued=10_000), conversation)
    assert many["max_batch"] == MAX_BATCH


def test_nothing_goes_on_of_a_batch_that_is_refused(service: PolicyService) -> None:
    """Its requests are not searched for, and leave their places to others at once."""
    searching, go_on = threading.Event(), threading.Event()
    searched: list[int] = []

    def search(queries: Sequence[Query]) -> list[Answer]:
        searched.extend(int(query.frames[-1, 0]) for query in queries)
        searching.set()
        assert go_on.wait(60)
        return [Answer(visit_policy=[1.0, 0.0])] * len(queries)

    def act(client: httpx.AsyncClient, number: int) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(client.post("/v1/act", json={"observation": [number, 0, 0, 0]}))

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        first = act(client, 1)
        assert await asyncio.to_thread(searching.wait, 60)
        batch = {"requests": [{"observation": [2, 0, 0, 0]}] * 4}
        refused = await client.post("/v1/act_batch", json=batch)
        later = [act(client, number) for number in (3, 4, 5)]
        await asyncio.wait(later, timeout=0.2)
        go_on.set()
        return [refused.status_code, *(answer.status_code for answer in await asyncio.gather(first, *later))]

    app = make_app(service, batcher=LocalBatcher(search, ThreadPoolExecutor(1), max_queued=3))
    assert talk(app, conversation) == [503, 200, 200, 200, 200]
    assert searched == [1, 3, 4, 5]


def test_bodies_are_limited_before_they_are_read(service: PolicyService) -> None:
    app = make_app(service, limits=Limits(max_body_bytes=1000, body_timeout_s=0.1))

    async def conversation(client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/json"}
        announced = await client.post("/v1/act", content=b"x" * 1001, headers=headers)
        assert announced.status_code == 413

        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 100

        streamed = await client.post("/v1/act", content=endless(), headers=headers)
        assert streamed.status_code == 413
        assert sent < 20

        async def slow() -> Any:
            yield b"{"
            await asyncio.sleep(5)

        late = await client.post("/v1/act", content=slow(), headers=headers)
        assert late.status_code == 408
        coded = await client.post("/v1/act", content=b"x", headers=headers | {"Content-Encoding": "gzip"})
        assert coded.status_code == 415
        form = await client.post("/v1/act", content=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status_code == 415
        cut = await client.post("/v1/act", content=b'{"observation": ', headers=headers)
        assert (cut.status_code, cut.json()["detail"]) == (422, "the body is no JSON: it goes wrong at character 16")
        for response in (announced, streamed, late, coded, form):
            assert response.json()["detail"]

    talk(app, conversation)


def test_a_token_is_asked_for(service: PolicyService) -> None:
    app = make_app(service, token="secret")

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        headers = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret"}]
        codes = [(await client.post("/v1/act", json={"observation": FRAME}, headers=h)).status_code for h in headers]
        return [*codes, (await client.get("/healthz")).status_code, (await client.get("/")).status_code]

    assert talk(app, conversation) == [401, 401, 200, 200, 200]
    assert talk(app, conversation, root_path="/behind/a/prefix") == [401, 401, 200, 200, 200]


def test_metadata_and_openapi(service: PolicyService) -> None:
    async def conversation(client: httpx.AsyncClient) -> tuple[Any, Any]:
        return (await client.get("/v1/metadata")).json(), (await client.get("/openapi.json")).json()

    metadata, openapi = talk(make_app(service), conversation)
    assert metadata["env"] == "CartPole-v1"
    assert metadata["action_space"]["n"] == 2
    assert set(openapi["paths"]) == {"/healthz", "/v1/metadata", "/v1/act", "/v1/act_batch"}
    assert "/tmp" not in json.dumps(metadata)


def test_games_are_played_step_by_step(service: PolicyService) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        begun = (await client.post("/v1/games", json={"seed": 3, "num_simulations": 9})).json()
        assert begun["frame"].startswith("data:image/png;base64,")
        assert sum(begun["visits"]) == 9
        assert begun["principal_line"][0]["action"] == begun["action"]
        path = f"/v1/games/{begun['id']}"
        again = (await client.post(f"{path}/search", json={"num_simulations": 30})).json()
        assert (again["step"], sum(again["visits"])) == (0, 30)
        after = (await client.post(f"{path}/step", json={"action": 1, "num_simulations": 0})).json()
        assert (after["step"], after["episode_return"], after["principal_line"]) == (1, 1.0, [])
        state = after
        for _ in range(500):
            if state["done"]:
                break
            state = (await client.post(f"{path}/step", json={"num_simulations": 1})).json()
        assert state["done"]
        assert state["frame"] != begun["frame"]
        assert state["episode_return"] == state["step"]
        over = await client.post(f"{path}/step", json={})
        assert over.status_code == 422
        assert (await client.post("/v1/games/nothing/step", json={})).status_code == 404
        assert (await client.post(f"{path}/step", json={"action": 9})).status_code == 422

    talk(make_app(service), conversation)


def test_a_step_that_is_asked_for_again_after_a_503_is_taken_once(service: PolicyService) -> None:
    class FullAtTimes:
        num_calls = 0

        async def act(self, query: Query) -> Answer:
            self.num_calls += 1
            if self.num_calls in (2, 4):
                raise OverloadedError("full")
            return service.search([query])[0]

    async def conversation(client: httpx.AsyncClient) -> None:
        game = (await client.post("/v1/games", json={"seed": 3})).json()["id"]
        for expected in ((503, None), (200, 1), (503, None), (200, 2), (200, 3)):
            answer = await client.post(f"/v1/games/{game}/step", json={"action": 1})
            assert (answer.status_code, answer.json().get("step")) == expected

    talk(make_app(service, batcher=FullAtTimes()), conversation)


def test_old_games_end(service: PolicyService) -> None:
    async def conversation(client: httpx.AsyncClient) -> list[int]:
        games = [(await client.post("/v1/games", json={})).json()["id"] for _ in range(3)]
        return [(await client.post(f"/v1/games/{game}/step", json={})).status_code for game in games]

    assert talk(make_app(service, limits=Limits(max_games=2)), conversation) == [404, 200, 200]


def test_the_policy_is_exchanged_without_losing_a_request(tmp_path: pathlib.Path) -> None:
    service = make_service(tmp_path / "old")
    write_tiny_policy(tmp_path / "new", num_actions=2)
    description = (tmp_path / "new" / "policy.json").read_text()
    other = write_policy_with_other_weights(tmp_path / "new")
    assert (tmp_path / "new" / "policy.json").read_text() != description

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        waiting = [asyncio.create_task(client.post("/v1/act", json={"observation": FRAME})) for _ in range(20)]
        await asyncio.sleep(0.002)
        service.load(tmp_path / "new")
        waiting += [asyncio.create_task(client.post("/v1/act", json={"observation": FRAME})) for _ in range(20)]
        answers = await asyncio.gather(*waiting)
        assert (await client.get("/v1/metadata")).json()["model"] == answers[-1].json()["model"]
        return answers

    answers = talk(make_app(service, describe=lambda: service.facts().metadata), conversation)
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].json()["model"] == other[:12]
    with pytest.raises(CheckpointError, match="other observations or actions"):
        service.load(_other_actions(tmp_path / "other"))
    assert service.loaded_from == tmp_path / "new"


def _other_actions(directory: pathlib.Path) -> pathlib.Path:
    write_tiny_policy(directory, num_actions=5)
    return directory


def test_newer_checkpoints_are_followed(tmp_path: pathlib.Path) -> None:
    from rllib_efficientzero.checkpoint.manifest import write_manifest

    for number in range(2):
        checkpoint = tmp_path / f"checkpoint_00000{number}"
        write_tiny_policy(checkpoint / "policy", num_actions=2)
        write_manifest(checkpoint, known={})
        if number == 0:
            service = PolicyService(tmp_path)
            assert not service.load_newer()
            write_tiny_policy(tmp_path / "checkpoint_000001" / "policy", num_actions=2)
            assert not service.load_newer(), "not whole yet"
    assert service.load_newer()
    assert service.loaded_from.name == "checkpoint_000001"


def test_sessions_are_forgotten() -> None:
    now = [0.0]
    ended: list[int] = []
    numbers = iter(range(100))
    store = SessionStore(
        lambda: next(numbers), max_sessions=2, lifetime_s=10, on_end=ended.append, clock=lambda: now[0]
    )
    assert [store.get(name) for name in "aba"] == [0, 1, 0]
    assert store.get("c") == 2
    assert ended == [1], "the one that was unused the longest"
    now[0] = 11.0
    assert store.find("a") is None
    assert len(store) == 0


def test_the_command_refuses_in_a_sentence(service: PolicyService, tmp_path: pathlib.Path) -> None:
    from typer.testing import CliRunner

    from rllib_efficientzero.cli.main import app

    directory = str(service.loaded_from)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, complaint in (
            (["play", str(tmp_path)], "no policy and no whole checkpoint"),
            (["play", directory, "--env", "Acrobot-v1"], "has observations of"),
            (["play", directory, "--port", port], f"cannot listen at 127.0.0.1:{port}"),
            (["serve", directory, "--local", "--port", port], f"cannot listen at 127.0.0.1:{port}"),
            (["serve", directory, "--env-config", "x"], "--env-config: not valid JSON"),
        ):
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 2, done.output
            assert complaint in " ".join(done.stderr.split())


# --- Mutated requests ------------------------------------------------------------------------------------------------

WEIRD: list[Any] = [
    *(None, True, [], {}, "", "\ud800", "🦀" * 50, "a" * 5000, 0, -1, 10**400, 1e308, -0.0, math.nan, math.inf),
    *([[]], [[[[[[[[1]]]]]]]], {"png": "AAAA"}, {"npy": "AAAA"}, {"npy": 3}, {"png": "é"}, {"observations": 1}),
    *({"a": {"b": []}}, [None] * 4, ["1"] * 4, [[1, 2], [3]], [1e400] * 4, [True] * 4, list(range(4)), "../../etc"),
    *({"observations": [0.0] * 4, "action_mask": [0, 0]}, {"observations": [0.0] * 4, "action_mask": "x"}),
    {"npy": base64.b64encode(b"\x93NUMPY\x01\x00v\x00" + b"{'descr':'|O'}").decode()},
]
HUGE_NPY = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(128) + b"\n"
)
PATHS = ["/v1/act", "/v1/act_batch", "/v1/games", "/v1/games/x/step", "/v1/games/x/search"]


def mutated_value(rng: random.Random, value: Any) -> Any:
    """A valid body with one part of it exchanged, dropped, doubled or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if kind < 0.2:
            return value | {rng.choice(["extra", "", "observation "]): rng.choice(WEIRD)}
        return value | {key: mutated_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return [*value[:index], mutated_value(rng, value[index]), *value[index + 1 :]]
    if rng.random() < 0.1:
        nested = value
        for _ in range(rng.choice([1, 50, 500])):
            nested = [nested]
        return nested
    return rng.choice(WEIRD)


def mutated_body(rng: random.Random, body: Any) -> bytes:
    if rng.random() < 0.65:
        return json.dumps(mutated_value(rng, body)).encode("utf-8", "surrogatepass")
    raw = bytearray(json.dumps(body).encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(raw)) if raw else 0
        kind = rng.randrange(4)
        if kind == 0 and raw:
            raw[place] = rng.randrange(256)
        elif kind == 1:
            del raw[place:]
        elif kind == 2:
            raw[place:place] = rng.choice([b"[" * 100_000, b"NaN", b"1e400", b"\x00", b'"', b"\xff\xfe", b"{}", b"-"])
        else:
            raw *= 2
    return bytes(raw)


def check_answer(answer: httpx.Response, sent: bytes) -> None:
    assert 200 <= answer.status_code < 500, (answer.status_code, sent[:300], answer.text[:300])
    told = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in {answer.text[:200]}"))
    if answer.status_code >= 400:
        assert isinstance(told["detail"], str)
        assert told["detail"]
        for secret in ("/tmp", "/work", "site-packages", "Traceback", "rllib_efficientzero/", ".py"):
            assert secret not in told["detail"], told


def test_two_thousand_mutated_requests(service: PolicyService, images: PolicyService) -> None:
    rng = random.Random(0)
    image = np.zeros(IMAGES.shape[1:], np.uint8)
    full = {"observation": FRAME, "legal_actions": [0, 1], "num_simulations": 1, "session_id": "s", "reset": False}
    bodies = [full, {"requests": [full, {"observation": npy(np.array(FRAME))}]}, {"seed": 1}, {"action": 1}, {}]
    seen: dict[int, int] = {}

    async def conversation(client: httpx.AsyncClient) -> None:
        for number in range(1000):
            kind = rng.choices(range(5), weights=[12, 4, 1, 1, 1])[0]
            content = mutated_body(rng, bodies[kind])
            headers = {"Content-Type": "application/json"}
            if rng.random() < 0.03:
                headers = {
                    rng.choice(["Content-Type", "Content-Encoding"]): rng.choice(["", "gzip", "text/xml", "é"[:0]])
                }
            method = "POST" if rng.random() < 0.97 else rng.choice(["GET", "PUT", "DELETE", "PATCH", "TRACE"])
            path = PATHS[kind] if number % 50 else rng.choice(["/v1", "/v1/act/", "/%00", "/page/../x", "/openapi.jsn"])
            answer = await client.request(method, path, content=content, headers=headers, follow_redirects=True)
            check_answer(answer, content)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1

    for served in (service, images):
        full["observation"] = FRAME if served is service else png(image)
        talk(make_app(served), conversation)
    assert sum(seen.values()) == 2000
    assert seen[200] > 50
    assert seen[422] > 500


def test_claims_of_size_are_not_believed(service: PolicyService, images: PolicyService) -> None:
    observation = {"npy": base64.b64encode(HUGE_NPY).decode()}
    bomb = {"png": png(np.zeros((2000, 2000, 3), np.uint8))["png"]}
    pickled = npy(np.array([{}], dtype=object), allow_pickle=True)
    (claimed, objects) = post(make_app(service), "/v1/act", {"observation": observation}, {"observation": pickled})
    assert "shape" in claimed.json()["detail"]
    assert objects.status_code == 422
    (large,) = post(make_app(images), "/v1/act", {"observation": bomb})
    assert large.json()["detail"] == "the image must have 8x8 pixels"
