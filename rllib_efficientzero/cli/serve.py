"""`rllib play` and `rllib serve`: a policy behind HTTP, for people to watch and for programs to query."""

from __future__ import annotations

import os
import pathlib
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.cli.checkpoints import CHECKPOINT_HELP, Networks, loading_explained, one_trial
from rllib_efficientzero.cli.console import say, say_warning
from rllib_efficientzero.cli.environments import cannot_be_played
from rllib_efficientzero.cli.errors import InputError, exit_codes
from rllib_efficientzero.cli.overrides import parse_json_option

if TYPE_CHECKING:
    from rllib_efficientzero.serve.service import PolicyService

TOKEN_VARIABLE = "RLLIB_SERVE_TOKEN"
LOCAL = "127.0.0.1"

Checkpoint = Annotated[pathlib.Path, typer.Argument(help=CHECKPOINT_HELP)]
Host = Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0: all of this machine's.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: any that is free.")]
Device = Annotated[str, typer.Option("--device", help="'cpu' or 'cuda'.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar=TOKEN_VARIABLE, help="Bearer token that every request has to bring.")
]
Env = Annotated[str | None, typer.Option("--env", "-e", help="Environment in place of the checkpoint's.")]
EnvConfig = Annotated[
    str, typer.Option("--env-config", metavar="JSON", help="Settings over those of the checkpoint's environment.")
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Exchange the policy whenever the checkpoint's trial has a newer one.")
]


def play(
    checkpoint: Checkpoint,
    host: Host = LOCAL,
    port: Port = 8000,
    token: Token = None,
    env: Env = None,
    env_config: EnvConfig = "{}",
    device: Device = "cpu",
    networks: Networks = None,
    follow: Follow = False,
    decoder: Annotated[
        pathlib.Path | None,
        typer.Option("--decoder", metavar="FILE", help="Of `rllib train-decoder`: also show what the policy imagines."),
    ] = None,
) -> None:
    """Watch a trained policy think: a page that plays its environment, in this process, until Ctrl-C.

    Needs the extra [serve]; neither the checkpoint nor the decoder need be trusted. One thread computes, unless
    OMP_NUM_THREADS says otherwise.
    """
    with exit_codes():
        settings = parse_json_option(env_config, "--env-config")
        checkpoint = one_trial(checkpoint)
        if decoder is not None and follow:
            raise InputError("a decoder knows one checkpoint; --follow exchanges it", "--decoder")
        service = _service(checkpoint, device, networks, decoder, follow=follow)
        _check_env(service, env, settings)
        _warn_if_open(host, token)
        _serve_here(service, host, port, env=env, env_config=settings, follow=follow, token=token)


def serve(
    checkpoint: Checkpoint,
    host: Host = LOCAL,
    port: Port = 8000,
    local: Annotated[bool, typer.Option("--local", help="One process without Ray Serve.")] = False,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=1024, help="Processes that search.")] = 1,
    gpus_per_replica: Annotated[
        float, typer.Option("--gpus-per-replica", min=0, help="GPUs, or a part of one, of each replica.")
    ] = 0.0,
    max_batch_size: Annotated[int, typer.Option("--max-batch-size", min=1, help="Requests of one search.")] = 32,
    max_queued: Annotated[
        int, typer.Option("--max-queued", min=1, help="Requests that may wait; more are answered by 503.")
    ] = 256,
    token: Token = None,
    env: Env = None,
    env_config: EnvConfig = "{}",
    networks: Networks = None,
    follow: Follow = False,
    ray_address: Annotated[str | None, typer.Option(help="Serve on this running cluster.")] = None,
) -> None:
    """Serve a policy over HTTP with Ray Serve: /v1/act, /v1/act_batch, /v1/metadata, /healthz, OpenAPI and a page.

    Needs the extra [serve-ray], with --local only [serve]; the checkpoint need not be trusted. With --local, too,
    one thread computes, unless OMP_NUM_THREADS says otherwise.
    """
    with exit_codes():
        settings = parse_json_option(env_config, "--env-config")
        checkpoint = one_trial(checkpoint)
        service = _service(checkpoint, "cpu", networks, follow=follow)
        if env is not None:
            _check_env(service, env, settings)
        _warn_if_open(host, token)
        if local:
            _serve_here(
                service,
                host,
                port,
                env=env,
                env_config=settings,
                follow=follow,
                token=token,
                max_batch_size=max_batch_size,
                max_queued=max_queued,
            )
            return
        from rllib_efficientzero.cli.ray_session import RayOptions, ray_session, set_verbosity

        set_verbosity(0)
        try:
            from rllib_efficientzero.serve.app import run_on_ray
        except ImportError as error:
            cure = "pip install 'rllib_efficientzero[serve-ray]', or serve from one process by --local"
            raise InputError(f"Ray Serve cannot be imported ({error}): {cure}") from error

        arguments: dict[str, Any] = {
            "checkpoint": str(checkpoint.absolute()),
            "replicas": replicas,
            "gpus_per_replica": gpus_per_replica,
            "max_batch_size": max_batch_size,
            "max_queued": max_queued,
            "token": token,
            "env": env,
            "env_config": settings,
            "networks": networks,
            "follow": follow,
        }
        with ray_session(RayOptions(address=ray_address)):
            run_on_ray(arguments, host, _free_port(host, port), on_ready=_say_address)


def _service(
    checkpoint: pathlib.Path,
    device: str,
    networks: str | None,
    decoder: pathlib.Path | None = None,
    *,
    follow: bool,
) -> PolicyService:
    """Loads the policy; reports what is wrong with it before anything is started."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError("serving needs FastAPI and uvicorn: pip install 'rllib_efficientzero[serve]'") from error
    from rllib_efficientzero.serve.service import PolicyService

    with loading_explained(device):
        service = PolicyService(checkpoint, device=device, networks=networks, decoder=decoder)
    try:
        if follow:
            service.trial()
    except CheckpointError as error:
        raise InputError(str(error), "--follow") from error
    return service


def _check_env(service: PolicyService, env: str | None, env_config: dict[str, Any]) -> None:
    from rllib_efficientzero.playing import PlayError, make_environment

    try:
        make_environment(service.policy, env=env, env_config=env_config).close()
    except PlayError as error:
        raise cannot_be_played(error, env) from error


def _warn_if_open(host: str, token: str | None) -> None:
    """Warns if other machines can reach the server and it asks for no token."""
    if host not in (LOCAL, "localhost", "::1") and token is None:
        say_warning(f"whoever reaches {host} may ask: consider --token (or {TOKEN_VARIABLE})")


def _serve_here(service: PolicyService, host: str, port: int, **settings: Any) -> None:
    from rllib_efficientzero.serve.local import build_local, run_local
    from rllib_efficientzero.threads import one_thread_unless_told

    port = _free_port(host, port)
    _say_address(host, port, settings.get("token"))
    with one_thread_unless_told():  # as on Ray Serve; this applies to the threads that search, too
        run_local(build_local(service, **settings), host, port)


def _free_port(host: str, port: int) -> int:
    """Returns the port after checking that it is free; for 0, any free port.

    Raises:
        InputError: it is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise InputError(f"cannot listen at {host}:{port}: {reason}", "--port") from error
        return int(probe.getsockname()[1])


def _say_address(host: str, port: int, token: str | None = None) -> None:
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{port}/{'#token=...' if token else ''}", "bold")
    say("Ctrl-C ends it")
