"""Measures `rllib serve` on Ray Serve with two replicas, one of which is killed under load; part of `benchmarks.serve`.

The replica's process gets SIGKILL, as on a machine that runs out of memory. Ray Serve starts another one. The server's
front repeats requests that the lost replica had not answered; the figures are those that clients observe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve import CLIENTS, SIMULATIONS, Load, body_of, load, serving

REPLICAS = 2
REPLICA_NAME = b"ServeReplica:efficientzero:policy"
MAX_ERRORS = 0.001
"""Share of the answers whose status is not 200."""


def measure_lost_replica(policy: Path, observation: np.ndarray, requests: int) -> dict[str, Any]:
    """Measures the same load twice: with both replicas alive, and with one killed after a quarter of that time."""
    body = body_of(observation, SIMULATIONS)
    with serving(policy, "--replicas", str(REPLICAS), on_ray=True) as server:
        asyncio.run(load(server.port, body, 10 * CLIENTS, CLIENTS))
        quiet = asyncio.run(load(server.port, body, requests, CLIENTS))
        replicas = replica_processes(server.process.pid)
        lost = asyncio.run(_load_and_kill(server.port, body, requests, replicas[0], quiet.seconds / 4))
    return {
        "replicas": len(replicas),
        "requests": requests,
        "undisturbed": quiet.figures(),
        "one_killed": {**lost.figures(), "max_ms": round(max(lost.latencies_ms), 1)},
        "max_errors": MAX_ERRORS,
    }


async def _load_and_kill(port: int, body: bytes, requests: int, process: int, after_s: float) -> Load:
    asked = asyncio.create_task(load(port, body, requests, CLIENTS))
    await asyncio.sleep(after_s)
    if asked.done():
        raise RuntimeError(f"{requests} requests are answered before a replica could be killed: ask for more")
    os.kill(process, signal.SIGKILL)
    return await asked


def replica_processes(server: int) -> list[int]:
    """The replicas' processes among the descendants of the command's, recognised by their command lines."""
    below, found = [server], []
    while below:
        process = below.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # One may end while we look.
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                below += map(int, children.read_text().split())
            if REPLICA_NAME in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found
