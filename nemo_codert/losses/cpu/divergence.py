"""The divergence on the whole lattice on the CPU: allocation around a compiled kernel.

Imports torch, numpy, `additive_float64`, `divergence_kernels`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, V vocabulary without blank, M = U + 1 prediction states

import math
from collections.abc import Sequence

import numpy as np
import torch

from nemo_codert.losses.additive_float64 import UNSHIFTED, smallest_sum, trusted_share
from nemo_codert.losses.cpu.divergence_kernels import divergence_kernel
from nemo_codert.losses.cpu.normaliser_kernels import Limits
from nemo_codert.losses.cpu.openmp import threads_for

Logits = tuple[torch.Tensor, torch.Tensor]  # [B, T, V+1] of the encoder and [B, M, V+1] of the prediction network


def divergence_sums(
    student: Logits,
    teacher: Logits,
    weights: torch.Tensor,
    sizes: list[tuple[int, int]],
    temperatures: torch.Tensor,
    wanted: Sequence[bool],
    is_shared: bool,
) -> tuple[torch.Tensor, list[torch.Tensor | None], list[int]]:
    """Return weighted sums of KL(teacher || student), their gradients, and utterances of which neither is right.

    Args:
        student, teacher: logits, all float32 or all float64; padding is not read.
        weights: [B, T, M] float64.
        sizes: frames and tokens of every utterance.
        temperatures: [B] float64, which divide the logits.
        wanted: whether the gradients of the student's encoder and prediction logits are computed.
        is_shared: whether both sides have one prediction tensor.

    Returns:
        [B] float64; gradients of the student's logits, contiguous, each None where it is not wanted; rows at which
        exponentials that underflowed or were rounded could matter.
    """
    logits = [each.detach().contiguous() for each in (*student, *teacher)]
    (num_utterances, _, num_classes), dtype = logits[0].shape, logits[0].dtype
    values, redo = weights.new_empty(num_utterances), np.empty(num_utterances, np.bool_)
    # Memory is not zeroed: the kernel writes everything but the rows to redo.
    gradients = [
        torch.empty_like(side) if wants else side.new_empty(num_utterances, 0, num_classes)
        for side, wants in zip(logits[:2], wanted, strict=True)
    ]
    limits = Limits(UNSHIFTED, smallest_sum(num_classes, dtype), trusted_share(dtype), math.inf)
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    given = sizes, temperatures.contiguous().numpy(), weights.contiguous().numpy(), limits, is_shared
    filled = values.numpy(), redo, *(each.numpy() for each in gradients)
    divergence_kernel(threads_for(num_utterances), *given, *(each.numpy() for each in logits), *filled)
    gradients = [each if wants else None for each, wants in zip(gradients, wanted, strict=True)]
    return values, gradients, redo.nonzero()[0].tolist()
