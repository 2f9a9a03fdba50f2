"""Building the student: its own random generator, and modules shared with the teacher."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def student_generator() -> Iterator[None]:
    """Draw random numbers in this block from a generator of their own, seeded as the process was.

    The student's initial weights then depend on the seed only: NeMo's own class, seeded the same way, draws the same
    weights for the lone student.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        yield


def refer(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` reachable as `owner.name` without registering it: files keep one name for it, its owner's."""
    owner._modules.pop(name, None)
    object.__setattr__(owner, name, module)
