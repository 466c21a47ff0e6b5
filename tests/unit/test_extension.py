"""An extension that is not built says how to build it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_EXTENSION = """
import sys
sys.modules["rllib_efficientzero._ctree"] = None
import rllib_efficientzero.mcts
"""


def test_a_missing_extension_says_how_to_build_it() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_EXTENSION], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "is not built" in last
    assert "pip install ." in last
    assert "build_ext --inplace" in last
