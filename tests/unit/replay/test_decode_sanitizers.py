"""The decoder's C++ on damaged blocks under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(COMPILER is None, reason="needs g++, or the compiler named by CXX")
def test_damaged_blocks_under_sanitizers(tmp_path: Path) -> None:
    assert COMPILER is not None
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    (tmp_path / "empty.cpp").write_text("int main() { return 0; }")
    empty = [COMPILER, *sanitize, str(tmp_path / "empty.cpp"), "-o", str(tmp_path / "empty")]
    if subprocess.run(empty, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{COMPILER} cannot link the sanitizers")
    program = str(tmp_path / "test_frames")
    sources = ["cframes/test_frames.cpp", "cframes/frames.cpp"]
    subprocess.run([COMPILER, *flags, *sanitize, *sources, "-o", program], cwd=ROOT, check=True)
    ran = subprocess.run([program, "200000"], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
