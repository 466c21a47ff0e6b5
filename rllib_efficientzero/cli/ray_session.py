"""Starting and stopping ray, and how much of its own talk is heard."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.env.rendering import load_triton_first, must_load_triton_first

CONNECT_SECONDS = 5.0
_starts_ray = threading.Event()
TRITON_HOOK = f"{load_triton_first.__module__}.{load_triton_first.__name__}"


@dataclass(frozen=True)
class RayOptions:
    """The `--ray-*` options and the verbosity."""

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    verbosity: int = 0
    dashboard: bool = False
    object_store_memory: int | None = None


def set_verbosity(verbosity: int) -> None:
    """Imports ray, and silences its and gymnasium's warnings unless `-v` asks for them."""
    if verbosity > 0:
        return
    # Tune's "new output" prints a header even at verbosity 0; our own display takes its place.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Silences a FutureWarning of ray.init.
    warnings.simplefilter("ignore")
    import ray  # noqa: F401  # It sets the levels of its loggers itself, when it is imported.

    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What goes wrong in a trial is reported at the end, with the file that holds the traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


@contextmanager
def ray_session(options: RayOptions) -> Iterator[None]:
    """Ray for the length of the block: a local one, or a connection to `--ray-address`."""
    import ray

    if options.address:
        _check_reachable(options.address)
    level = logging.INFO if options.verbosity else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    common = {"log_to_driver": options.verbosity > 0, "logging_level": level}
    try:
        if options.address:
            ray.init(address=options.address, **common)
        else:
            # In a process of one of RLlib's algorithms nothing else would import this package first.
            hook = {"worker_process_setup_hook": TRITON_HOOK} if must_load_triton_first() else None
            with _in_groups_of_their_own():
                ray.init(
                    num_cpus=options.num_cpus,
                    num_gpus=options.num_gpus,
                    object_store_memory=options.object_store_memory,
                    include_dashboard=options.dashboard,
                    runtime_env=hook,
                    **common,
                )
    except Exception as error:
        # Where its processes are not up within 30 s, Ray raises the base class itself.
        raise InputError(f"ray does not start: {error}", "--ray-address" if options.address else "") from error
    # Ray's own handler ends the process with an exit code of its own.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Ray's processes that are started in the block get no signal that is meant for the command's whole group.

    `timeout` and supervisors send SIGTERM to all of it. Without Ray no trial could save a checkpoint first.
    """
    _starts_ray.set()
    try:
        yield
    finally:
        _starts_ray.clear()


def _leave_group() -> None:
    if _starts_ray.is_set():
        os.setpgid(0, 0)


# Called in what `subprocess` starts for Ray, since Ray has it call a function there.
os.register_at_fork(after_in_child=_leave_group)


def _check_reachable(address: str) -> None:
    """Refuses a `host:port` where nobody listens: ray would try again for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", "local": ray answers these at once.
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"no ray cluster answers at {address!r}: {error}", "--ray-address") from error


def check_resources(needed: Mapping[str, float], where: str, is_cluster: bool) -> None:
    """Refuses a trial the local machine can never place: Tune would wait for ever. A cluster may still grow."""
    import ray

    problem = missing_resources(needed, ray.cluster_resources())
    if problem and not is_cluster:
        raise InputError(problem, where)


def missing_resources(needed: Mapping[str, float], available: Mapping[str, float]) -> str | None:
    """What a trial needs and nobody has, in a sentence; None if there is enough."""
    missing = [
        f"{amount:g} {name}s (there are {available.get(name, 0):g})"
        for name, amount in needed.items()
        if amount > available.get(name, 0)
    ]
    cure = "ask for less (num_env_runners, num_gpus_per_learner, ...) or see --ray-num-cpus, --ray-address"
    return f"one trial needs {' and '.join(missing)}; {cure}" if missing else None


def local_resources(options: RayOptions) -> dict[str, float]:
    """CPUs and GPUs that a local ray would have; it is not started."""
    import torch
    from ray._private.utils import get_num_cpus

    cpus, gpus = options.num_cpus, options.num_gpus
    return {
        "CPU": get_num_cpus() if cpus is None else cpus,
        "GPU": torch.cuda.device_count() if gpus is None else gpus,
    }
