"""Measures a served policy under load: requests per second and latencies, with and without batching and search.

    python -m benchmarks.serve [--requests N] [--out FILE]

`rllib serve --local` runs in its own process. Clients in this process send it HTTP requests, each the next one as soon
as it has its answer. Then the same load is measured while the server is attacked (T20 of the fault tests) by
connections that send a byte a second and by others that send nonsense; and, if Ray Serve is installed, on Ray Serve
while a replica is killed. Latencies are wall time, which other work on the machine lengthens, unlike the CPU time of
the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import yaml

from benchmarks import report as reports
from rllib_efficientzero.checkpoint.policy_files import write_policy
from rllib_efficientzero.checkpoint.spaces import space_to_json
from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.models import ModelConfig, build_network

SIMULATIONS = 16
CLIENTS = 16
BATCH = 32
LORIS = 50
"""Number of connections that send a byte a second."""
ATTACKERS = 4
"""Number of clients that send nonsense."""
NONSENSE = [
    b"{" * 1000,
    b"[" * 100_000,
    b'{"observation": [1e400, 0, 0, 0]}',
    b'{"observation": [NaN, 0, 0, 0]}',
    b'{"observation": [0, 0, 0, 0], "num_simulations": 1000000000}',
    b'{"observation": "\\ud800"}',
    b"\x1f\x8b\x08\x00" + b"\x00" * 500,
    b"",
]
LIMITS = {"p99_ratio_under_attack": 2.0, "refusal_of_a_large_body_ms": 100.0, "rss_growth_mb": 20.0}
LARGE_BODY_BYTES = 100_000_000


class Case(NamedTuple):
    num_simulations: int
    max_batch_size: int
    clients: int


CASES = [Case(simulations, batch, CLIENTS) for simulations in (SIMULATIONS, 0) for batch in (BATCH, 1)]


@dataclass
class Load:
    """Latencies and statuses of the answers that clients received."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def figures(self) -> dict[str, float]:
        """Requests per second, percentiles of the latency, and the share of answers whose status was not 200."""
        p50, p99 = np.percentile(self.latencies_ms, (50, 99))
        count = len(self.latencies_ms)
        return {
            "requests_per_s": round(count / self.seconds, 1),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "errors": round(1 - self.statuses[200] / count, 6),
        }


class Server:
    """`rllib serve` in a separate process."""

    def __init__(self, policy: Path, *options: str) -> None:
        command = [sys.executable, "-m", "rllib_efficientzero", "serve", str(policy), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("http://"):
            raise RuntimeError(f"the server does not start: {line}")
        self.port = int(line.partition("#")[0].strip().rstrip("/").rpartition(":")[2])
        self._told = Path(f"/proc/{self.process.pid}")

    def cpu_s(self) -> float:
        """CPU time of the process so far."""
        fields = (self._told / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Resident memory of the process now."""
        return int((self._told / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(300)


@contextlib.contextmanager
def serving(policy: Path, *options: str, on_ray: bool = False) -> Iterator[Server]:
    """Starts a server for the length of the block, on Ray Serve or in one process, and waits until it answers."""
    server = Server(policy, *options, *([] if on_ray else ["--local"]))
    try:
        asyncio.run(_until_it_answers(server))
        yield server
    finally:
        server.close()


async def _until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            async with connected(server.port) as ask:
                await ask("GET", "/healthz", b"")
                return
        except OSError:
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise
            await asyncio.sleep(0.1)


def head_of(method: str, path: str, length: int) -> bytes:
    """The head of a request, without its body."""
    lines = (f"{method} {path} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


Ask = Callable[[str, str, bytes], Awaitable[int]]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Ask]:
    """Opens a connection and yields a function that sends a request, reads the whole answer and returns its status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(method: str, path: str, body: bytes) -> int:
        writer.write(head_of(method, path, len(body)) + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.decode("latin-1").lower().split("\r\n")
        (length,) = (int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        await reader.readexactly(length)
        return int(lines[0].split()[1])

    try:
        yield ask
    finally:
        writer.close()


async def load(port: int, body: bytes, requests: int, clients: int) -> Load:
    """Sends `requests` requests in total from `clients` clients, each on its own connection."""
    seen = Load()
    left = iter(range(requests))

    async def client() -> None:
        async with connected(port) as ask:
            for _ in left:
                begun = time.perf_counter()
                status = await ask("POST", "/v1/act", body)
                seen.latencies_ms.append(1000 * (time.perf_counter() - begun))
                seen.statuses[status] += 1

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seen.seconds = time.perf_counter() - begun
    return seen


def body_of(observation: np.ndarray, num_simulations: int) -> bytes:
    """The body of a request for one action."""
    return json.dumps({"observation": observation.tolist(), "num_simulations": num_simulations}).encode()


def write_example_policy(directory: Path) -> np.ndarray:
    """Writes a policy with the network of `cartpole-ez` and random weights; returns an observation."""
    file = reports.ROOT / "tuned_examples" / "cartpole-ez.yaml"
    sizes = yaml.safe_load(file.read_text())["cartpole-ez"]["config"]["rl_module"]["model_config"]
    torch.manual_seed(0)
    network = build_network((1, 4), 2, ModelConfig.from_dict(sizes)).eval()
    write_policy(
        directory,
        network.state_dict(),
        observation_space=space_to_json(gym.spaces.Box(-np.inf, np.inf, (1, 4), np.float32)),
        action_space=space_to_json(gym.spaces.Discrete(2)),
        model=sizes,
        search=asdict(SearchConfig(num_simulations=SIMULATIONS)),
        mixed_precision=False,
        num_updates=1,
        frame_stack=1,
        protocol={"env": "CartPole-v1"},
    )
    return np.array([0.01, -0.02, 0.03, 0.04], np.float32)


def measure(policy: Path, observation: np.ndarray, case: Case, requests: int) -> dict[str, Any]:
    """Measures one row: starts a server, sends it a few requests to warm up, then those that are measured."""
    body = body_of(observation, case.num_simulations)
    with serving(policy, "--max-batch-size", str(case.max_batch_size)) as server:
        asyncio.run(load(server.port, body, 4 * case.clients, case.clients))
        cpu = server.cpu_s()
        seen = asyncio.run(load(server.port, body, requests, case.clients))
        cpu = server.cpu_s() - cpu
    return {**case._asdict(), **seen.figures(), "server_cpu_ms_per_request": round(1000 * cpu / requests, 3)}


# --- Attacks ---------------------------------------------------------------------------------------------------------


async def _crawl(port: int) -> None:
    """Announces a body and sends it a byte a second; connects again when the server closes the connection."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head_of("POST", "/v1/act", 999))
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(1)
        except OSError:
            pass
        finally:
            writer.close()


async def _babble(port: int, statuses: Counter[int]) -> None:
    """Sends nonsense, one piece after the other, forever."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with connected(port) as ask:
                for content in NONSENSE:
                    statuses[await ask("POST", "/v1/act", content)] += 1


async def load_under_attack(port: int, body: bytes, requests: int, clients: int) -> tuple[Load, Counter[int]]:
    """Runs `load` while attackers are active; also returns the statuses of the answers to these."""
    statuses: Counter[int] = Counter()
    attacks = [asyncio.create_task(_crawl(port)) for _ in range(LORIS)]
    attacks += [asyncio.create_task(_babble(port, statuses)) for _ in range(ATTACKERS)]
    await asyncio.sleep(1)
    seen = await load(port, body, requests, clients)
    for attack in attacks:
        attack.cancel()
    await asyncio.gather(*attacks, return_exceptions=True)
    return seen, statuses


def refuse_large_body(port: int) -> tuple[int, float]:
    """Status of, and milliseconds until, the answer to a body of 100 MB, sent as far as the server accepts it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        begun = time.perf_counter()
        connection.sendall(head_of("POST", "/v1/act", LARGE_BODY_BYTES))
        with contextlib.suppress(OSError):
            for _ in range(LARGE_BODY_BYTES // 100_000):
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(b"x" * 100_000)
        answer = connection.recv(1000)
        milliseconds = 1000 * (time.perf_counter() - begun)
    return int(answer.split()[1]), milliseconds


def measure_attacks(policy: Path, observation: np.ndarray, requests: int, turns: int = 3) -> dict[str, Any]:
    """Measures one server with and without attackers in turns, then its answers to large bodies."""
    body = body_of(observation, SIMULATIONS)
    quiet, attacked, statuses = Load(), Load(), Counter[int]()
    with serving(policy) as server:
        asyncio.run(load(server.port, body, 100, CLIENTS))
        rss = server.rss_mb()
        for _ in range(turns):
            quiet.latencies_ms += asyncio.run(load(server.port, body, requests, CLIENTS)).latencies_ms
            seen, told = asyncio.run(load_under_attack(server.port, body, requests, CLIENTS))
            attacked.latencies_ms += seen.latencies_ms
            attacked.statuses += seen.statuses
            statuses += told
        refusals = [refuse_large_body(server.port) for _ in range(5)]
        grown = server.rss_mb() - rss
    before, during = (float(np.percentile(of.latencies_ms, 99)) for of in (quiet, attacked))
    return {
        "p99_ms": round(before, 2),
        "p99_ms_under_attack": round(during, 2),
        "p99_ratio_under_attack": round(during / before, 2),
        "errors_under_attack": attacked.statuses.total() - attacked.statuses[200],
        "nonsense_is_answered": {str(status): count for status, count in sorted(statuses.items())},
        "large_bodies_are_answered": sorted({status for status, _ in refusals}),
        "refusal_of_a_large_body_ms": round(max(milliseconds for _, milliseconds in refusals), 2),
        "rss_growth_mb": round(grown, 1),
        "limits": LIMITS,
    }


# --- The report ------------------------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]], attacks: dict[str, Any], lost: dict[str, Any] | None = None) -> dict[str, str]:
    """Lines for the table: one per row, one for the attacks, and one for the lost replica."""
    lines = {}
    for row in rows:
        together = f"batches of {row['max_batch_size']}" if row["max_batch_size"] > 1 else "one by one"
        lines[f"{row['num_simulations']} simulations, {together}"] = (
            f"{row['requests_per_s']:,.0f} requests/s, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
            f"{row['server_cpu_ms_per_request']:.2f} ms of CPU each"
        )
    lines["under attack"] = (
        f"p99 {attacks['p99_ratio_under_attack']:.2f} times as long, 413 within "
        f"{attacks['refusal_of_a_large_body_ms']:.0f} ms, {attacks['rss_growth_mb']:+.1f} MB"
    )
    if lost is not None:
        lines["Ray Serve, a replica killed"] = (
            f"{lost['one_killed']['errors']:.3%} of {lost['requests']} requests failed, "
            f"p99 {lost['one_killed']['p99_ms']:.0f} ms beside {lost['undisturbed']['p99_ms']:.0f} ms"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each measurement")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "serve.json")
    args = parser.parse_args()
    conditions = reports.conditions("torch", "fastapi", "uvicorn")
    with tempfile.TemporaryDirectory() as directory:
        policy = Path(directory)
        observation = write_example_policy(policy)
        rows = []
        for case in CASES:
            rows.append(measure(policy, observation, case, args.requests))
            print(rows[-1], flush=True)
        attacks = measure_attacks(policy, observation, args.requests // 2)
        print(attacks, flush=True)
        lost = _measure_on_ray(policy, observation, 4 * args.requests)
        print(lost, flush=True)
    report = {reports.SUMMARY: summary(rows, attacks, lost), "conditions": conditions, "rows": rows, "attacks": attacks}
    reports.write(args.out, report | {"lost_replica": lost})


def _measure_on_ray(policy: Path, observation: np.ndarray, requests: int) -> dict[str, Any] | None:
    """Measures the loss of a replica on Ray Serve; returns None if that is not installed."""
    try:
        import ray.serve  # noqa: F401
    except ImportError:
        return None
    from benchmarks.serve_ray import measure_lost_replica

    return measure_lost_replica(policy, observation, requests)


if __name__ == "__main__":
    main()
