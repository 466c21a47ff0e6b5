"""Starts and stops ray, and sets how many of its own messages are shown."""

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
    """Silences the warnings of ray, which it imports for that, and of all other packages; does nothing under `-v`."""
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
    """Runs the block with Ray, a local one or a connection to `--ray-address`, and shuts it down afterwards."""
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
            # Worker processes of RLlib's own algorithms do not import this package, which would load triton first.
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
        # Any exception: if its processes are not up within 30 s, Ray raises `Exception` itself.
        raise InputError(f"ray does not start: {error}", "--ray-address" if options.address else "") from error
    # Puts ours back: Ray's handler ends the process with an exit code of its own.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Puts processes that Ray starts in the block into groups of their own, so that they outlive a signal to ours.

    `timeout` and supervisors send SIGTERM to the command's whole group. Without Ray no trial could save a checkpoint.
    """
    _starts_ray.set()
    try:
        yield
    finally:
        _starts_ray.clear()


def _leave_group() -> None:
    if _starts_ray.is_set():
        os.setpgid(0, 0)


# `subprocess` runs this in the processes that it starts for Ray, because Ray passes it a `preexec_fn`.
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
    """Says in a sentence which resources a trial needs beyond those available; None if there is enough."""
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
