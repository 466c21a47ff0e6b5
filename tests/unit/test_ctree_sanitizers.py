"""The tree's C++ under the address, undefined-behaviour and thread sanitizers, and its Cython door under the first."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["ctree/checks.cpp", "ctree/tree.cpp"]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, or the compiler named by CXX")


def compile_with(flag, source, output):
    """Whether this compiler has the sanitizer and can link it: some systems come without its library."""
    command = [COMPILER, "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={flag}", "-fno-sanitize-recover=all"]
    return subprocess.run([*command, *source, "-o", str(output)], capture_output=True, text=True, cwd=ROOT, check=False)


def require_sanitizer(flag, tmp_path):
    (tmp_path / "empty.cpp").write_text("int main() { return 0; }")
    if compile_with(flag, [str(tmp_path / "empty.cpp")], tmp_path / "empty").returncode != 0:
        pytest.skip(f"{COMPILER} cannot link -fsanitize={flag}")


@pytest.mark.parametrize(("flag", "trees"), [("address,undefined", 10_000), ("thread", 1000)])
def test_random_trees_under_sanitizers(flag, trees, tmp_path):
    require_sanitizer(flag, tmp_path)
    built = compile_with(flag, ["-Wall", "-Wextra", "-Werror", "ctree/test_tree.cpp", *SOURCES], tmp_path / "test_tree")
    assert built.returncode == 0, built.stderr
    # Without address randomisation where the system allows it: older thread sanitizers refuse some layouts.
    command = [
        *([setarch, "-R"] if (setarch := shutil.which("setarch")) else []),
        str(tmp_path / "test_tree"),
        str(trees),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def library(name):
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


BUILD = """
import sys, numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g", "-std=c++17", "-pthread"]
sources = ["ctree/cytree.pyx", "ctree/checks.cpp", "ctree/tree.cpp"]
tree = Extension("rllib_efficientzero._ctree", sources, include_dirs=["ctree", numpy.get_include()], language="c++",
                 extra_compile_args=flags, extra_link_args=flags)
setup(name="tree", packages=[], ext_modules=cythonize([tree], language_level=3), script_args=["build_ext", "--inplace"])
"""


@pytest.mark.long
def test_the_contract_holds_under_the_address_sanitizer(tmp_path):
    """The tests of the contract and the random trees once more, with a sanitized extension loaded into Python."""
    require_sanitizer("address,undefined", tmp_path)
    for name in ("ctree", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("cytree.cpp", "__pycache__"))
    (tmp_path / "rllib_efficientzero").mkdir()
    (tmp_path / "rllib_efficientzero" / "__init__.py").touch()
    (tmp_path / "build_tree.py").write_text(BUILD)
    subprocess.run([sys.executable, "build_tree.py"], cwd=tmp_path, check=True, capture_output=True)
    environment = {
        **os.environ,
        # The C++ library too: what the sanitizer wraps, __cxa_throw among it, must be there when it starts.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # Python itself leaks; the tests of huge sizes expect MemoryError, not an abort.
        "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1",
        "PYTHONPATH": str(tmp_path),
    }
    tests = [
        "tests/unit/test_ctree_contract.py",
        "tests/property/test_tree_reference.py",
        "tests/property/test_tree_independence.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not ten_thousand", *tests]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
