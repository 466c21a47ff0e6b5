"""Whoever follows a run takes over its newer checkpoints, once they are whole; where there can be none, it is told."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from policy_helpers import write_tiny_policy

pytest.importorskip("fastapi")
from serve_helpers import write_checkpoint
from typer.testing import CliRunner

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.checkpoint.policy_files import newest_policy
from rllib_efficientzero.cli.main import app
from rllib_efficientzero.serve.local import build_local
from rllib_efficientzero.serve.service import PolicyService


def test_a_checkpoint_is_followed_by_those_of_its_trial(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_checkpoint(tmp_path, 0)
    monkeypatch.chdir(first)
    services = [PolicyService(path) for path in (tmp_path, first, ".")]
    assert not any(service.load_newer() for service in services)
    second = write_checkpoint(tmp_path, 1)
    assert all(service.load_newer() for service in services)
    assert {service.loaded_from for service in services} == {second}


def test_only_newer_ones_are_taken(tmp_path: pathlib.Path) -> None:
    write_checkpoint(tmp_path, 0)
    newest = write_checkpoint(tmp_path, 1)
    service = PolicyService(tmp_path)
    shutil.rmtree(newest)
    assert not service.load_newer(), "Tune keeps the best ones, which may be older"


def test_what_is_not_served_need_not_be_whole(tmp_path: pathlib.Path) -> None:
    """A replay has gigabytes, which nobody should have to wait for; who trains on it wants it whole."""
    whole, damaged, without_policy = (write_checkpoint(tmp_path, number, replay=b"frames") for number in range(3))
    (damaged / "replay").write_bytes(b"framez")
    (without_policy / "policy" / "policy.json").write_text("{}")
    assert PolicyService(tmp_path).loaded_from == damaged
    assert newest_policy(tmp_path) == whole


def test_a_policy_on_its_own_cannot_be_followed(tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path, num_actions=2, env="CartPole-v1")
    with pytest.raises(CheckpointError, match="no newer one will appear"):
        build_local(PolicyService(tmp_path), follow=True)
    for verb in (["play"], ["serve", "--local"], ["serve"]):
        done = CliRunner().invoke(app, [*verb, str(tmp_path), "--follow"])
        assert done.exit_code == 2, done.output
        assert f"--follow: {tmp_path} is no checkpoint of a trial" in " ".join(done.stderr.split())
