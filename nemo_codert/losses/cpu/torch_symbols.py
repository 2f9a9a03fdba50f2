"""Functions of the libraries that torch is linked to, by the names under which compiled code asks for them.

Imports torch, llvmlite.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding

PREFIX = "nemo_codert_"  # of the names: cached code asks for them in later processes


def torch_functions(names: Sequence[str], *, preloaded: bool = False) -> list[Any] | None:
    """Of torch's CPU library and those it is linked to; None where one is missing.

    preloaded: what the whole process sees comes first.
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
    """Let compiled code call a function of `ctypes`, or one at an address, as PREFIX + name."""
    binding.add_symbol(PREFIX + name, ctypes.cast(function, ctypes.c_void_p).value)
