"""Access to the compiled CPU kernels of `losses/cpu`, which are imported, built and tried at their first use.

Where that fails (Numba is missing or lacks the internals that `cpu/openmp.py` needs, BLAS is not found, compilation
raises, results are wrong) torch's functions compute the losses: still exactly, but more slowly. Imports torch; numba
and `losses/cpu` inside functions only.
"""

import logging
import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Kernels = TypeVar("Kernels")
_causes: list[Exception] = []  # why kernels could not be built, in this process


@cache
def lattice_kernels() -> ModuleType | None:
    """Return the module with the compiled recursion and target check, or None where they cannot be built."""
    return _built(_lattice_kernels)


@cache
def tdt_kernels() -> ModuleType | None:
    """Return the module with the compiled TDT recursion, or None where it cannot be built."""
    return _built(_tdt_kernels)


@cache
def additive_loss(dtype: torch.dtype) -> type[torch.autograd.Function] | None:
    """Return the compiled additive loss for logits of a type, or None where it cannot be built.

    Args:
        dtype: type the loss is computed in, float32 or float64.
    """
    return _built(lambda: _additive_loss(dtype))


@cache
def additive_log_probs(dtype: torch.dtype) -> type[torch.autograd.Function] | None:
    """Return the compiled `AdditiveLogProbs` for logits of a type, or None where it cannot be built.

    Args:
        dtype: float32 or float64.
    """
    return _built(lambda: _additive_log_probs(dtype))


@cache
def lattice_divergence(dtype: torch.dtype) -> Callable | None:
    """Return the compiled `divergence_sums` for logits of a type, or None where it cannot be built.

    Args:
        dtype: float32 or float64.
    """
    return _built(lambda: _lattice_divergence(dtype))


def _built(build: Callable[[], Kernels]) -> Kernels | None:
    """Return build(), or None and one warning in this process where it raises."""
    try:
        return build()
    except Exception as cause:  # noqa: BLE001  compilers raise errors of any class
        if not _causes:
            logger.warning(
                "The compiled CPU kernels of the losses cannot be used (%s: %s). torch's functions compute the losses "
                "instead: still exactly, but more slowly, the RNN-T losses several times",
                type(cause).__name__,
                cause,
            )
        _causes.append(cause)
        return None


def _lattice_kernels() -> ModuleType:
    import numpy as np

    from nemo_codert.losses.cpu import lattice_kernels as kernels

    label, blank = np.zeros((1, 2, 1)), np.zeros((1, 2, 2))
    lengths, losses = (np.array([2]), np.array([1])), np.empty(1)
    kernels.lattice_kernel(label, blank, np.exp(label), np.exp(blank), *lengths, losses)
    targets, given = np.array([[1]]), np.zeros((1, 1), np.int64)
    faults = kernels.target_kernel(0, 3, targets, lengths[1], given)
    if not math.isclose(losses[0], -math.log(2)) or faults or given != targets:
        raise ArithmeticError(f"the compiled recursion gives {losses[0]} in place of {-math.log(2)}")
    return kernels


def _tdt_kernels() -> ModuleType:
    import numpy as np

    from nemo_codert.losses.cpu import tdt_kernels as kernels

    # One token in two frames, durations 0 and 1, all probabilities 1/2: paths of 1/64, 1/64 and 1/16.
    log_probs, losses = np.full((1, 2, 2, 4), -math.log(2)), np.empty(1)
    probs = np.exp(log_probs)
    kernels.tdt_kernel(log_probs, probs, np.array([0, 1]), np.array([2]), np.array([1]), losses)
    found, expected = [losses[0], *probs[0, 0, 0]], [math.log(32 / 3), 5 / 6, 1 / 6, 1 / 6, 5 / 6]
    if not all(math.isclose(*pair) for pair in zip(found, expected, strict=True)):
        raise ArithmeticError(f"the compiled TDT recursion gives {found} in place of {expected}")
    return kernels


def _additive_loss(dtype: torch.dtype) -> type[torch.autograd.Function]:
    from nemo_codert.losses.batch_checks import TransducerBatch
    from nemo_codert.losses.cpu.additive import AdditiveLoss

    # Two equal utterances (one a thread) of two frames and one token; each of the three classes has probability 1/3.
    with torch.inference_mode(False), torch.enable_grad():
        encoder, prediction = (torch.zeros(2, 2, 3, dtype=dtype, device="cpu", requires_grad=True) for _ in range(2))
        ones = torch.ones(2, dtype=torch.int64, device="cpu")
        batch = TransducerBatch(ones[:, None], 2 * ones, ones, [(2, 1), (2, 1)])
        loss = AdditiveLoss.apply(encoder, prediction, batch, 0, 0.0, "sum")
        gradients = torch.autograd.grad(loss, (encoder, prediction))
    found = [float(loss.detach()), *(row for gradient in gradients for row in gradient[0].flatten().tolist())]
    expected = [2 * math.log(27 / 2), -0.5, 0.0, 0.5, -0.5, 0.0, 0.5, 0.0, -0.5, 0.5, -1.0, 0.5, 0.5]
    if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-5) for pair in zip(found, expected, strict=True)):
        raise ArithmeticError(f"the compiled loss and gradients are {found} in place of {expected}")
    return AdditiveLoss


def _additive_log_probs(dtype: torch.dtype) -> type[torch.autograd.Function]:
    from nemo_codert.losses.batch_checks import TransducerBatch
    from nemo_codert.losses.cpu.additive import CompiledLogProbs

    # Two equal utterances (one a thread) of one frame and one token, of probability 1/2, the blank of 1/6.
    with torch.inference_mode(False), torch.enable_grad():
        logits = torch.tensor([[[1.0, 3.0, 2.0]]], dtype=dtype, device="cpu").log().repeat(2, 1, 1).requires_grad_()
        ones = torch.ones(2, dtype=torch.int64, device="cpu")
        batch = TransducerBatch(ones[:, None], ones, ones, [(1, 1), (1, 1)])
        label, blank = CompiledLogProbs.apply(logits, torch.zeros_like(logits).expand(2, 2, 3), batch, 0)
        (gradient,) = torch.autograd.grad(label.sum() + blank.sum(), logits)
    found = [*label[1].flatten().tolist(), *blank[1].flatten().tolist(), *gradient[0].flatten().tolist()]
    expected = [-math.log(2), -math.log(6), -math.log(6), 1.5, -0.5, -1.0]
    if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-5) for pair in zip(found, expected, strict=True)):
        raise ArithmeticError(f"the compiled log-probabilities and gradients are {found} in place of {expected}")
    return CompiledLogProbs


def _lattice_divergence(dtype: torch.dtype) -> Callable:
    from nemo_codert.losses.cpu.divergence import divergence_sums

    # Two equal utterances (one a thread) of one node, at which the teacher has 2/3 and the student 1/2.
    with torch.inference_mode(False):
        zeros = torch.zeros(2, 1, 2, dtype=dtype, device="cpu")
        teacher = torch.tensor([[[math.log(2), 0.0]]], dtype=dtype, device="cpu").expand(2, 1, 2)
        weights = torch.ones(2, 1, 1, dtype=torch.float64, device="cpu")
        given = (zeros, zeros), (teacher, zeros), weights, [(1, 0), (1, 0)], torch.ones(2).double(), (True, True)
        values, gradients, redo = divergence_sums(*given, is_shared=False)
    found = [*values.tolist(), *(number for gradient in gradients for number in gradient.flatten().tolist())]
    expected = [5 / 3 * math.log(2) - math.log(3)] * 2 + [-1 / 6, 1 / 6] * 4
    if redo or not all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(found, expected, strict=True)):
        raise ArithmeticError(f"the compiled divergence and gradients are {found} in place of {expected}")
    return divergence_sums
