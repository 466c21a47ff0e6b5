"""What draws without a screen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rllib_efficientzero.env.rendering import HEADLESS, choose_renderer

GIVEN = {"MUJOCO_GL", "PYOPENGL_PLATFORM"}
OURS = "import rllib_efficientzero.env.dm_control as ours; suite = ours._import_suite(with_images=True)"


def run(code: str, given: dict[str, str]) -> None:
    """In a process whose environment names a renderer only where one is given."""
    others = {name: value for name, value in os.environ.items() if name not in GIVEN}
    # In the path of integration tests, RLlib does without DMControl.
    others["PYTHONPATH"] = ""
    subprocess.run([sys.executable, "-c", code], env=others | given, check=True, timeout=120)


@pytest.mark.parametrize(
    ("drawing", "is_given"),
    [
        (OURS, False),
        (f"import ray.rllib; {OURS}", False),
        ("import rllib_efficientzero; from dm_control import suite", True),
    ],
    ids=["by us", "by us, after RLlib was imported", "by RLlib"],
)
def test_torch_can_load_triton_after_images_were_drawn(drawing: str, is_given: bool) -> None:
    """Each of Triton and Mesa brings an LLVM: the process used to crash."""
    pytest.importorskip("triton")
    pytest.importorskip("dm_control")
    given = dict.fromkeys(GIVEN, choose_renderer()) if is_given else {}
    code = f"""{drawing}
suite.load("cartpole", "swingup").physics.render(8, 8, camera_id=0)
import torch
torch.use_deterministic_algorithms(True)
"""
    run(code, given)


def test_the_choice_is_not_left_to_other_processes() -> None:
    """Their own imports of dm_control would load Mesa by it, and before Triton."""
    pytest.importorskip("dm_control")
    code = f"""{OURS}
import os
from dm_control import _render
assert _render.BACKEND in {HEADLESS}, _render.BACKEND
assert not {GIVEN} & os.environ.keys()
assert ours._import_suite(with_images=True) is suite
"""
    run(code, {})
