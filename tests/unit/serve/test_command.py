"""`rllib play` and `rllib serve --local`: who may ask, and who is told so."""

from __future__ import annotations

import pathlib
from typing import Any

import httpx
import pytest
from policy_helpers import write_tiny_policy

pytest.importorskip("fastapi")
from serve_helpers import talk
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app
from rllib_efficientzero.cli.serve import TOKEN_VARIABLE
from rllib_efficientzero.serve import local

VERBS = pytest.mark.parametrize("verb", [["play"], ["serve", "--local"]], ids=lambda verb: verb[0])


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that would have been served."""
    applications: list[Any] = []
    monkeypatch.setattr(local, "run_local", lambda application, host, port: applications.append(application))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    return applications


def run(verb: list[str], directory: pathlib.Path, *options: str, **environment: str) -> Any:
    write_tiny_policy(directory, num_actions=2, env="CartPole-v1")
    done = CliRunner().invoke(app, [*verb, str(directory), "--port", "0", *options], env=environment)
    assert done.exit_code == 0, done.output
    return done


@VERBS
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_token_is_asked_for(verb: list[str], by_variable: bool, tmp_path: pathlib.Path, served: list[Any]) -> None:
    environment = {TOKEN_VARIABLE: "secret"} if by_variable else {}
    done = run(verb, tmp_path, *([] if by_variable else ["--token", "secret"]), "--host", "0.0.0.0", **environment)
    assert "#token=..." in done.stdout
    assert done.stderr == ""

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        headers = [{}, {"Authorization": "Bearer secret"}]
        games = [(await client.post("/v1/games", json={}, headers=header)).status_code for header in headers]
        return [*games, (await client.get("/")).status_code]

    assert talk(served[0], conversation) == [401, 200, 200]


@VERBS
def test_whoever_opens_the_door_to_everyone_is_told(verb: list[str], tmp_path: pathlib.Path) -> None:
    assert "whoever reaches 0.0.0.0 may ask" in run(verb, tmp_path, "--host", "0.0.0.0").stderr
    assert run(verb, tmp_path).stderr == ""
