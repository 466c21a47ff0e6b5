"""What draws without a screen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rllib_efficientzero.env.rendering import choose_renderer


@pytest.mark.parametrize("how", ["by us", "by RLlib"])
def test_torch_can_load_triton_after_images_were_drawn(how: str) -> None:
    """Each of Triton and Mesa brings an LLVM: the process used to crash."""
    pytest.importorskip("triton")
    pytest.importorskip("dm_control")
    environment = dict(os.environ)
    if how == "by us":
        environment.pop("MUJOCO_GL", None)
        drawing = "import rllib_efficientzero.env.dm_control as ours; suite = ours._import_suite(with_images=True)"
    else:
        environment |= dict.fromkeys(("MUJOCO_GL", "PYOPENGL_PLATFORM"), choose_renderer())
        drawing = "import rllib_efficientzero; from dm_control import suite"
    code = f"""{drawing}
suite.load("cartpole", "swingup").physics.render(8, 8, camera_id=0)
import torch
torch.use_deterministic_algorithms(True)
"""
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
