"""Builds the extensions: the search tree and the decoder of frames. All else is declared in pyproject.toml."""

import pathlib
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py


def extension(name: str, folder: str, sources: list[str]) -> Extension:
    """C++ in a folder of its own, portable on purpose: measured on x86-64, -march=native brings next to nothing."""
    return Extension(
        f"rllib_efficientzero.{name}",
        sources=[f"{folder}/{source}" for source in sources],
        depends=sorted(glob(f"{folder}/*.hpp")),
        include_dirs=[folder, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        # Without contraction to fused multiply-adds a number is the same wherever it is computed.
        extra_compile_args=["-O3", "-std=c++17", "-pthread", "-ffp-contract=off"],
        extra_link_args=["-pthread"],
        language="c++",
    )


class BuildWithExamples(build_py):
    """Puts the examples, which stand beside the package in a checkout, into it, for `rllib example`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = pathlib.Path(self.build_lib) / "rllib_efficientzero" / "tuned_examples"
        self.mkpath(str(target))
        for example in sorted(glob("tuned_examples/*.yaml")):
            self.copy_file(example, str(target))


TREE = extension("_ctree", "ctree", ["cytree.pyx", "checks.cpp", "tree.cpp"])
FRAMES = extension("_frames", "cframes", ["cyframes.pyx", "frames.cpp"])

setup(ext_modules=cythonize([TREE, FRAMES], language_level=3), cmdclass={"build_py": BuildWithExamples})
