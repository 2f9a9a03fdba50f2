"""How a pair comes by its student: initial weights of its own generator, modules that are the teacher's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def student_generator() -> Iterator[None]:
    """A generator for the student's initial weights alone, seeded as the process was: they depend on the seed only.

    NeMo's own class, seeded the same way, draws the same weights for the lone student.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        yield


def refer(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` reachable as `owner.name` without registering it: it has one owner, and one name in files."""
    owner._modules.pop(name, None)
    object.__setattr__(owner, name, module)
