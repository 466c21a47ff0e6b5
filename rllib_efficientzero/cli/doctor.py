"""`rllib doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer
from rich.text import Text

from rllib_efficientzero.cli.console import out
from rllib_efficientzero.cli.errors import ExitCode

NEEDED = ("ray", "torch", "numpy", "gymnasium", "lz4", "opencv-python-headless", "safetensors", "typer", "rich")
EXTRAS = {
    "ale-py": "atari",
    "dm-control": "dmc",
    "mujoco": "dmc",
    "minigrid": "minigrid",
    "pygame": "render",
    "matplotlib": "plot",
    "fastapi": "serve",
    "uvicorn": "serve",
    "ray[serve]": "serve-ray",
    "onnxscript": "onnx",
    "wandb": "",
    "mlflow": "",
}
"""Distribution, or an extra of one -> the extra of this package that installs it; empty if none does."""
OTHER_NAMES = {"mlflow": "mlflow-skinny"}
"""Distribution -> another one that installs the same package."""
STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    status: str
    """"ok"; "missing": something optional; "broken": training or acting will fail."""
    text: str


def doctor(
    ray: Annotated[bool, typer.Option("--ray", help="Also start Ray and run a task (takes some seconds).")] = False,
) -> None:
    """Check versions, GPU, compiled extensions, rendering, video and (with --ray) Ray.

    Exit codes: 0 all that is needed works; 1 something is broken.
    """
    checks: list[Callable[[], list[Finding]]] = [_machine, _packages, _extensions, _gpu, _rendering, _video]
    if ray:
        checks.append(_ray)
    findings = [finding for check in checks for finding in check()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        status = (f"{finding.status:<8}", STYLES[finding.status])
        out.print(Text.assemble(status, f"{finding.name:<{width}}  {finding.text}"), soft_wrap=True)
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(ExitCode.TRIAL_ERRORED)


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python_ok = sys.version_info >= (3, 11)
    return [
        Finding("python", "ok" if python_ok else "broken", f"{platform.python_version()} on {platform.platform()}"),
        Finding("cpu", "ok", f"{cores} cores usable, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"),
    ]


def _packages() -> list[Finding]:
    findings = []
    for name in ("rllib_efficientzero", *NEEDED):
        version = _version(name)
        findings.append(Finding(name, "ok" if version else "broken", version or f"not installed: pip install {name}"))
    for name, extra in EXTRAS.items():
        version = _version(name) or _version(OTHER_NAMES.get(name, name))
        cure = f"'rllib_efficientzero[{extra}]'" if extra else name
        findings.append(Finding(name, "ok" if version else "missing", version or f"optional: pip install {cure}"))
    return findings


def _version(name: str) -> str | None:
    """Returns an installed distribution's version, else None; `ray[serve]` needs all packages of that extra, too."""
    distribution, _, extra = name.rstrip("]").partition("[")
    try:
        version = metadata.version(distribution)
        for needed in _needed_by(distribution, extra) if extra else []:
            metadata.version(needed)
    except metadata.PackageNotFoundError:
        return None
    return version


def _needed_by(distribution: str, extra: str) -> list[str]:
    from packaging.requirements import Requirement  # comes with Ray

    needed = map(Requirement, metadata.requires(distribution) or [])
    return [each.name for each in needed if each.marker is not None and each.marker.evaluate({"extra": extra})]


def _extensions() -> list[Finding]:
    findings = []
    for module, what in (("_ctree", "search tree"), ("_frames", "decoder of frames")):
        try:
            loaded = importlib.import_module(f"rllib_efficientzero.{module}")
        except ImportError as error:
            cure = "install a C++ compiler and run `pip install .` (in a checkout: `pip install -e .`)"
            findings.append(Finding(what, "broken", f"{error}; {cure}"))
        else:
            findings.append(Finding(what, "ok", str(loaded.__file__)))
    return findings


def _gpu() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("gpu", "broken", f"torch cannot be imported: {error}")]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was built without CUDA" if built is None else f"torch for CUDA {built} finds none"
        return [Finding("gpu", "missing", f"{why}: the paper's settings would take days; see pong-ez-cpu")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [Finding("gpu", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")]


def _rendering() -> list[Finding]:
    from rllib_efficientzero.env.rendering import PACKAGES, choose_renderer

    findings = []
    renderer = choose_renderer(required=False)
    absent = [package for package in ("mujoco", "dm_control") if importlib.util.find_spec(package) is None]
    if renderer == "disabled":
        findings.append(Finding("rendering", "missing", f"no OpenGL: DMControl's images need {PACKAGES['osmesa']}"))
    elif absent:
        text = f"{renderer} is there to draw with; DMControl's images need {' and '.join(absent)} too"
        findings.append(Finding("rendering", "missing", text))
    else:
        findings.append(Finding("rendering", "ok", f"MuJoCo draws with {renderer}"))
    if importlib.util.find_spec("ale_py") is not None:
        try:
            from rllib_efficientzero.env.atari import make_atari

            env = make_atari({"game": "Pong"})
            env.reset(seed=0)
            env.close()
            findings.append(Finding("atari", "ok", "Pong can be played"))
        except Exception as error:
            # Whatever it is, the report has to go on.
            findings.append(Finding("atari", "broken", f"{type(error).__name__}: {error}"))
    return findings


def _video() -> list[Finding]:
    try:
        import cv2
        import numpy as np
    except ImportError as error:
        return [Finding("video", "broken", f"OpenCV cannot be imported: {error}")]
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "probe.mp4"
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 15, (32, 32))
        writer.write(np.zeros((32, 32, 3), np.uint8))
        writer.release()
        written = file.is_file() and file.stat().st_size > 0
    return [Finding("video", "ok" if written else "missing", "MP4 can be written" if written else "no MP4 encoder")]


def _ray() -> list[Finding]:
    from rllib_efficientzero.cli.ray_session import RayOptions, ray_session, set_verbosity

    set_verbosity(0)
    try:
        import ray

        with ray_session(RayOptions()):
            answer = ray.get(ray.remote(_answer).remote(), timeout=60)
            resources = ray.cluster_resources()
    except Exception as error:
        return [Finding("ray session", "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")]
    told = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return [Finding("ray session", "ok" if answer == os.getuid() else "broken", f"a task ran; {told}")]


def _answer() -> int:
    return os.getuid()
