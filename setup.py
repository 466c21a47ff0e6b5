"""Builds the one extension of the package, the search tree. Everything else is declared in pyproject.toml."""

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

TREE = Extension(
    "rllib_efficientzero._ctree",
    sources=["ctree/cytree.pyx", "ctree/tree.cpp"],
    depends=["ctree/tree.hpp", "ctree/simd.hpp", "ctree/thread_pool.hpp"],
    include_dirs=["ctree", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    # Portable on purpose: measured on x86-64, -march=native brings little below 100 actions.
    extra_compile_args=["-O3", "-std=c++17", "-pthread"],
    extra_link_args=["-pthread"],
    language="c++",
)

setup(ext_modules=cythonize([TREE], language_level=3))
