"""What an EnvRunner's process does not import."""

from __future__ import annotations

import subprocess
import sys

import torch

from rllib_efficientzero.env.seeding import without_compiler

# In a process of its own: whoever trains imports the compiler.
SEEDED = """
import sys
import torch
from rllib_efficientzero.env.seeding import without_compiler
from ray.rllib.utils.torch_utils import set_torch_seed
with without_compiler():
    set_torch_seed(3)
drawn = torch.rand(2).tolist()
print(torch.version.cuda is not None or torch.are_deterministic_algorithms_enabled())
print("torch._inductor" in sys.modules)
print(drawn == torch.rand(2, generator=torch.Generator().manual_seed(3)).tolist())
"""


def test_a_seed_makes_torch_deterministic_without_its_compiler() -> None:
    answers = subprocess.run([sys.executable, "-c", SEEDED], check=True, capture_output=True, text=True).stdout
    assert answers.split() == ["True", "False", "True"]


def test_torch_is_as_it_was_afterwards() -> None:
    before = torch.use_deterministic_algorithms
    with without_compiler():
        pass
    assert torch.use_deterministic_algorithms is before
