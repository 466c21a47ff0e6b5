"""The service on Ray Serve: replicas that search, and in front of them one that speaks HTTP.

`serve run rllib_efficientzero.serve.app:build checkpoint=results/.../checkpoint_000010`, or `rllib serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.schema import LoggingConfig

from rllib_efficientzero.playing import make_environment
from rllib_efficientzero.serve.application import Limits, create_app
from rllib_efficientzero.serve.batcher import OverloadedError
from rllib_efficientzero.serve.schemas import MAX_BATCH
from rllib_efficientzero.serve.service import Answer, PolicyService, Query

APP_NAME = "efficientzero"
POLICY = "policy"
FOLLOW_SECONDS = 5.0
MAX_ATTEMPTS = 6
"""A replica that ends while it searches takes its queries with it; they are asked again, elsewhere."""
REPLICA_GONE = (DeploymentUnavailableError, ReplicaUnavailableError, RayActorError)


class ServeArguments(BaseModel):
    """What `build` takes; of `serve run`, all of them strings."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    replicas: int = Field(1, ge=1)
    gpus_per_replica: float = Field(0.0, ge=0)
    cpus_per_replica: float = Field(1.0, ge=0)
    max_batch_size: int = Field(32, ge=1)
    batch_wait_s: float = Field(0.005, ge=0)
    max_queued: int = Field(256, ge=1)
    token: str | None = None
    env: str | None = None
    env_config: dict[str, Any] = Field(default_factory=dict)
    networks: str | None = None
    follow: bool = False


class PolicyReplica:
    """One policy on one device."""

    def __init__(self, gpus: float, max_batch_size: int, batch_wait_s: float, networks: str | None) -> None:
        self._device, self._networks = "cuda" if gpus > 0 else "cpu", networks
        self._service: PolicyService | None = None
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._watcher: asyncio.Task[None] | None = None
        self._search_batch.set_max_batch_size(max_batch_size)
        self._search_batch.set_batch_wait_timeout_s(batch_wait_s)

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        """Loads the checkpoint; called at the start, and when the application is deployed with another one."""
        if self._service is None:
            self._service = PolicyService(settings["checkpoint"], device=self._device, networks=self._networks)
        else:
            await asyncio.to_thread(self._service.load, settings["checkpoint"])
        self._watcher = _watcher(self._service, settings, self._watcher)

    async def act(self, query: Query) -> Answer:
        """One answer; concurrent calls share a search."""
        return await self._search_batch(query)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def _search_batch(self, queries: list[Query]) -> list[Answer]:
        assert self._service is not None
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._service.search, queries)


class ServeBatcher:
    """Asks the replicas; see `batcher.Batcher`.

    Args:
        handle: Ray Serve's, of the policy's deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def act(self, query: Query) -> Answer:
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self._handle.act.remote(query)
                return await response
            except asyncio.CancelledError:
                # A replica would search for nobody; if the request has failed by now, cancelling it fails too.
                with contextlib.suppress(Exception):
                    response.cancel()
                raise
            except BackPressureError as error:
                raise OverloadedError(str(error)) from error
            except REPLICA_GONE as error:
                if attempt == MAX_ATTEMPTS - 1:
                    raise OverloadedError(str(error)) from error
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


@serve.ingress()
class Front:
    """Speaks HTTP; what it says is the application's affair."""

    def __init__(self, policy: Any, arguments: dict[str, Any]) -> None:
        self._policy, self._arguments = policy, ServeArguments(**arguments)
        self._service = PolicyService(self._arguments.checkpoint, networks=self._arguments.networks)
        self._watcher: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray Serve once the replica runs."""
        given, service = self._arguments, self._service
        return create_app(
            ServeBatcher(self._policy),
            service.facts(),
            make_env=lambda: make_environment(service.policy, env=given.env, env_config=given.env_config),
            limits=Limits(max_batch=min(MAX_BATCH, given.max_queued)),
            token=given.token,
            describe=lambda: service.facts().metadata,
        )

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        """Told of a new checkpoint, as the replicas are."""
        await asyncio.to_thread(self._service.load, settings["checkpoint"])
        self._watcher = _watcher(self._service, settings, self._watcher)


def _watcher(
    service: PolicyService, settings: dict[str, Any], before: asyncio.Task[None] | None
) -> asyncio.Task[None] | None:
    """What takes over newer checkpoints from now on, if it is wanted, in the place of what did so `before`.

    Raises:
        CheckpointError: there is no trial to follow.
    """
    if before is not None:
        before.cancel()
    if not settings["follow"]:
        return None
    service.trial()
    return asyncio.create_task(_follow(service))


async def _follow(service: PolicyService) -> None:
    """In a thread: whoever asks meanwhile is answered."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        await asyncio.to_thread(service.load_newer)


def build(arguments: ServeArguments) -> Any:
    """The application for `serve run` and `serve.run`.

    Args:
        arguments: or a dict of them.
    """
    given = arguments if isinstance(arguments, ServeArguments) else ServeArguments(**arguments)
    searching = (given.gpus_per_replica, given.max_batch_size, given.batch_wait_s, given.networks)
    exchanged = {"checkpoint": given.checkpoint, "follow": given.follow}
    policy = serve.deployment(
        PolicyReplica,
        name=POLICY,
        num_replicas=given.replicas,
        ray_actor_options={"num_gpus": given.gpus_per_replica, "num_cpus": given.cpus_per_replica},
        max_ongoing_requests=2 * given.max_batch_size,
        max_queued_requests=given.max_queued,
        user_config=exchanged,
        graceful_shutdown_timeout_s=10,
        health_check_period_s=2,
    )
    front = serve.deployment(
        Front,
        name="front",
        # Sessions and games live in it, so that there is one.
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        user_config=exchanged,
        # The application's own limit answers with Retry-After; this one only keeps memory bounded.
        max_ongoing_requests=4 * given.max_queued,
    )
    values = given.model_dump()
    kept = {name: values[name] for name in ("token", "env", "env_config", "networks", "max_queued")}
    return _versioned(front, kept).bind(_versioned(policy, searching).bind(*searching), values)


def _versioned(deployment: Any, settings: Any) -> Any:
    """Says which settings need new replicas when they change.

    Without a version, `serve.run` replaces all replicas whenever it is called; with one, a new checkpoint reaches those
    that run (`reconfigure`), and sessions go on.
    """
    return deployment.options(version=json.dumps(settings, sort_keys=True), _internal=True)


def run_on_ray(
    arguments: dict[str, Any], host: str, port: int, on_ready: Callable[[str, int, str | None], None]
) -> None:
    """Deploys on the Ray of this process and waits until interrupted; then everything is taken down."""
    serve.start(http_options={"host": host, "port": port}, logging_config=LoggingConfig(log_level="WARNING"))
    try:
        serve.run(build(ServeArguments(**arguments)), name=APP_NAME, route_prefix="/")
        on_ready(host, port, arguments.get("token"))
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()
