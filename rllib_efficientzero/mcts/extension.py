"""The compiled search tree, with an error that says how to build it where it is missing."""

try:
    from rllib_efficientzero._ctree import BatchedTree
except ImportError as error:
    raise ImportError(
        "the search tree (rllib_efficientzero._ctree) is not built. With a C++ compiler installed "
        "(Debian: apt-get install g++ python3-dev), run `pip install .` or, inside a checkout, "
        "`python setup.py build_ext --inplace`."
    ) from error

__all__ = ["BatchedTree"]
