"""The RNN-T recursion by somebody else's kernel, made for whole lattices of logits, on a lattice of three classes.

A kernel that wants `[B, T, U+1, V+1]` gets `[B, T, U+1, 3]`: the next label, everything else, the blank. That is all
the recursion asks of a lattice, so a GPU kernel does the work without memory in V. Imports torch, `frames`, `lattice`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states

import math
from collections.abc import Callable

import torch
from torch.nn.functional import pad

from nemo_codert.losses.frames import valid_cells
from nemo_codert.losses.lattice import LatticeLoss, rnnt_lattice_loss

SHIFT = math.log(2.0)  # halves both probabilities, so that the rest is at least a half and has a logarithm
MOST_STATES = 1024  # threads of a CUDA block, one for each state in NeMo's kernel
BEYOND = math.log(0.25)  # stands beyond the lengths, where no path goes

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def three_columns(label_log_probs: torch.Tensor, blank_log_probs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[B, T, U] and [B, T, M] log-probabilities -> [B, T, M, 3] float32, normalised; valid: [B, T, M] bool."""
    blank = blank_log_probs.masked_fill(~valid, BEYOND) - SHIFT
    # The label of state u leads to state u + 1: where that is none, there is no label.
    label = pad(label_log_probs.masked_fill(~valid[:, :, 1:], BEYOND), (0, 1), value=BEYOND) - SHIFT
    rest = torch.log1p(-(label.exp() + blank.exp()))
    return torch.stack([label, rest, blank], 3).float()


def three_column_loss(kernel: Kernel) -> LatticeLoss:
    """A `LatticeLoss` whose recursion is `kernel`, as exact as that is (float32 for NeMo's).

    kernel: takes logits [B, T, M, 3], targets [B, U] (all 0; the blank is 2) and both lengths [B] int64, all
    contiguous, T and U the largest lengths; returns losses [B] with their gradient, FastEmit in it. Where no gradient
    is asked for, its value lacks FastEmit's factor 1 + lambda, as NeMo's does. Above `MOST_STATES` states the float64
    recursion of this package takes over.
    """

    def loss(
        label_log_probs: torch.Tensor,
        blank_log_probs: torch.Tensor,
        encoded_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        fastemit_lambda: float,
    ) -> torch.Tensor:
        if blank_log_probs.shape[2] > MOST_STATES:
            arguments = label_log_probs, blank_log_probs, encoded_lengths, target_lengths
            return rnnt_lattice_loss(*arguments, fastemit_lambda)
        valid = valid_cells(encoded_lengths, target_lengths, *blank_log_probs.shape[1:])
        lattice = three_columns(label_log_probs, blank_log_probs, valid)
        targets = torch.zeros_like(label_log_probs[:, 0], dtype=torch.int64)
        losses = kernel(lattice, targets, encoded_lengths.contiguous(), target_lengths.contiguous()).double()
        scale = 1 + fastemit_lambda
        if not lattice.requires_grad:
            losses = losses * scale
        return losses - scale * (encoded_lengths + target_lengths) * SHIFT  # a path takes T blanks and U labels

    return loss
