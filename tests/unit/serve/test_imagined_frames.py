"""The page's games tell what the policy imagines, as pictures, if the server has a decoder."""

from __future__ import annotations

import base64
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from decoder_helpers import MovingSquare, write_random_decoder
from policy_helpers import IMAGES, write_tiny_policy

pytest.importorskip("fastapi")
from serve_helpers import talk

from rllib_efficientzero.policy import load_policy
from rllib_efficientzero.serve.application import create_app
from rllib_efficientzero.serve.batcher import LocalBatcher
from rllib_efficientzero.serve.service import PolicyService


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A decoder beside its policy."""
    write_tiny_policy(tmp_path, IMAGES, num_actions=2)
    return write_random_decoder(tmp_path / "d.safetensors", load_policy(tmp_path))


def states(service: PolicyService) -> list[dict[str, Any]]:
    """Of a game: its beginning, the same without a search, and a step."""

    async def conversation(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        game = (await client.post("/v1/games", json={"seed": 1, "num_simulations": 8})).json()
        at = f"/v1/games/{game['id']}"
        unsearched = (await client.post(f"{at}/search", json={"num_simulations": 0})).json()
        return [game, unsearched, (await client.post(f"{at}/step", json={"num_simulations": 8})).json()]

    batcher = LocalBatcher(service.search, ThreadPoolExecutor(1))
    return talk(create_app(batcher, service.facts(), make_env=MovingSquare), conversation)


def test_games_tell_what_is_imagined(file: pathlib.Path) -> None:
    first, unsearched, second = states(PolicyService(file.parent, decoder=file))
    assert unsearched["imagined"] == []
    for state in (first, second):
        assert len(state["imagined"]) == 1 + len(state["principal_line"]) > 1
        kind, _, content = state["imagined"][0].partition(",")
        assert kind == "data:image/png;base64"
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[0] == picture.shape[1] >= 200
    assert first["imagined"] != second["imagined"]


def test_a_server_without_a_decoder_tells_nothing(file: pathlib.Path) -> None:
    assert [state["imagined"] for state in states(PolicyService(file.parent))] == [[], [], []]
