"""The states of the global random generators, and their form in a checkpoint: numbers and tensors only.

A checkpoint is loaded without executing anything, so no NumPy array or tuple of thousands of numbers goes into it.
"""

import random
from typing import Any, NamedTuple

import numpy as np
import torch


class RandomState(NamedTuple):
    """What Python, NumPy, PyTorch on the CPU and on the present CUDA device (if in use) draw from."""

    python: tuple
    numpy: tuple
    torch: torch.Tensor
    cuda: torch.Tensor | None


def capture() -> RandomState:
    """Return the present states; some 20 microseconds."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return RandomState(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)


def restore(state: RandomState) -> None:
    """Set the generators to `state`."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.cuda)


def to_plain(state: RandomState) -> dict[str, Any]:
    """Return a state as a checkpoint keeps it."""
    name, keys, *rest = state.numpy
    numpy = [name, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"python": python_to_plain(state.python), "numpy": numpy, "torch": state.torch, "cuda": state.cuda}


def from_plain(plain: dict[str, Any]) -> RandomState:
    """Return the state that `to_plain` made this of."""
    name, keys, *rest = plain["numpy"]
    numpy = (name, keys.numpy().astype(np.uint32), *rest)
    return RandomState(python_from_plain(plain["python"]), numpy, plain["torch"], plain["cuda"])


def python_to_plain(state: tuple) -> list[Any]:
    """Return the state of a `random.Random` as a checkpoint keeps it."""
    version, numbers, gauss = state
    return [version, torch.tensor(numbers, dtype=torch.int64), gauss]


def python_from_plain(plain: list[Any]) -> tuple:
    """Return the state that `python_to_plain` made this of."""
    version, numbers, gauss = plain
    return version, tuple(numbers.tolist()), gauss
