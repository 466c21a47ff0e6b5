"""What tests of several verbs share."""

from __future__ import annotations

import pathlib

import pytest
from policy_helpers import write_tiny_policy


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("policy")
    write_tiny_policy(directory, num_actions=2, env="CartPole-v1")
    return directory
