"""The server in one process, without Ray: uvicorn, and one thread that searches."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastapi
import uvicorn

from rllib_efficientzero.playing import make_environment
from rllib_efficientzero.serve.application import Limits, create_app
from rllib_efficientzero.serve.batcher import LocalBatcher
from rllib_efficientzero.serve.schemas import MAX_BATCH
from rllib_efficientzero.serve.service import PolicyService

FOLLOW_SECONDS = 5.0


def build_local(
    service: PolicyService,
    *,
    env: str | None = None,
    env_config: Mapping[str, Any] | None = None,
    max_batch_size: int = 32,
    max_queued: int = 256,
    token: str | None = None,
    follow: bool = False,
) -> fastapi.FastAPI:
    """Makes the application over a policy in this process.

    Args:
        service: the policy.
        env, env_config: environment of the page's games; by default the policy's own.
        max_batch_size: queries of one search.
        max_queued: queries that may wait.
        token: see `create_app`.
        follow: look for newer checkpoints of the policy's trial, and exchange the policy for them.

    Raises:
        CheckpointError: there is no trial to follow.
    """
    if follow:
        service.trial()
    searching = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(FOLLOW_SECONDS):
            service.load_newer()

    def start() -> None:
        if follow:
            threading.Thread(target=watch, name="follow", daemon=True).start()

    def stop() -> None:
        stopped.set()
        searching.shutdown(wait=False)

    return create_app(
        LocalBatcher(service.search, searching, max_batch_size=max_batch_size, max_queued=max_queued),
        service.facts(),
        make_env=lambda: make_environment(service.policy, env=env, env_config=env_config),
        limits=Limits(max_batch=min(MAX_BATCH, max_queued)),
        token=token,
        describe=lambda: service.facts().metadata,
        on_start=start,
        on_stop=stop,
    )


def run_local(app: fastapi.FastAPI, host: str, port: int, *, verbose: bool = False) -> None:
    """Serves until Ctrl-C or SIGTERM; then gives requests that are being answered 10 s to finish."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info" if verbose else "warning",
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=10,
        limit_concurrency=1000,
    )
