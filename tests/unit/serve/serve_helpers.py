"""An application over a tiny policy, and a client in the same process."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import httpx
from policy_helpers import VECTORS, write_policy_with_other_weights, write_tiny_policy

from rllib_efficientzero.checkpoint.manifest import write_manifest
from rllib_efficientzero.playing import make_environment
from rllib_efficientzero.serve.application import Limits, create_app
from rllib_efficientzero.serve.batcher import LocalBatcher
from rllib_efficientzero.serve.service import PolicyService


def make_service(directory: pathlib.Path, space: gym.spaces.Box = VECTORS) -> PolicyService:
    """A CartPole policy, or one that sees images."""
    write_tiny_policy(directory, space, num_actions=2, env="CartPole-v1")
    return PolicyService(directory)


def write_checkpoint(trial: pathlib.Path, number: int, *, other_weights: bool = False, **files: bytes) -> pathlib.Path:
    """A whole one: a CartPole policy, and other files of these names and contents."""
    checkpoint = trial / f"checkpoint_{number:06}"
    write_tiny_policy(checkpoint / "policy", num_actions=2, env="CartPole-v1")
    if other_weights:
        write_policy_with_other_weights(checkpoint / "policy")
    for name, content in files.items():
        (checkpoint / name).write_bytes(content)
    write_manifest(checkpoint, known={})
    return checkpoint


def make_app(service: PolicyService, *, batcher: Any = None, limits: Limits | None = None, **options: Any) -> Any:
    """With games of the policy's environment."""
    batcher = batcher or LocalBatcher(service.search, ThreadPoolExecutor(1))
    return create_app(
        batcher,
        service.facts(),
        make_env=lambda: make_environment(service.policy),
        limits=limits,
        **options,
    )


def talk(app: Any, conversation: Callable[[httpx.AsyncClient], Any], root_path: str = "") -> Any:
    """Runs a conversation with the application; what it raises inside comes back as a 500, as from a server."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://policy{root_path}") as client:
            return await conversation(client)

    return asyncio.run(run())
