"""Functions of the libraries that torch is linked to, under names by which compiled code finds them.

Imports torch, llvmlite.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding

PREFIX = "nemo_codert_"  # fixed prefix: cached machine code looks symbols up by name


def torch_functions(names: Sequence[str], *, preloaded: bool = False) -> list[Any] | None:
    """Return functions of torch's CPU library and of those it is linked to; None where one is missing.

    Args:
        names: names of the functions.
        preloaded: whether symbols visible to the whole process, such as those of preloaded libraries, come first.
    """
    paths = sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    for path in [*([None] if preloaded else []), *map(str, paths)]:
        try:
            library = ctypes.CDLL(path)
            return [getattr(library, name) for name in names]
        except (OSError, AttributeError):
            continue
    return None


def offer(name: str, function: Any) -> None:
    """Make a function of `ctypes`, or the one at an address, callable from compiled code as PREFIX + name."""
    binding.add_symbol(PREFIX + name, ctypes.cast(function, ctypes.c_void_p).value)
