"""The normaliser of an additive lattice, `Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and what it is made of.

The exponentials of both sides are float32, the columns of the utterance's own tokens and of the blank float64. Imports
torch, numpy, `lattice`, `lattice_kernels`, `full_precision`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's)

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import hardshrink, pad

from nemo_codert.losses.full_precision import full_precision
from nemo_codert.losses.lattice import TransducerBatch
from nemo_codert.losses.lattice_kernels import checksum_kernel, column_kernel

UNSHIFTED = 20.0  # rows whose maximum lies within +-20 are exponentiated as they are: taking it off would round
TRUSTED_Z = 1e-6  # of the maxima's product: terms below it may be off by more than a millionth
TRUSTED_SUMS = 2.5e-7  # relative error of Z's rows and columns: cells of one further off may be a millionth off
# Or nearly: longer float32 sums are carried on in float64. A GPU may be off by 1e-4, and waits for its host.
CLASSES_PER_PRODUCT, CLASSES_PER_PRODUCT_ON_GPU = 256, 1024


def compute_dtype(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> torch.dtype:
    """float32, or float64 where one of them is."""
    return torch.promote_types(torch.promote_types(encoder_logits.dtype, prediction_logits.dtype), torch.float32)


class Exponentials(NamedTuple):
    """Of one side's logits, [B, T, V+1] or [B, M, V+1], shifted."""

    exp: torch.Tensor  # [B, T, V+1] float32 (float64 for float64 logits)
    maxima: torch.Tensor  # [B, T, 1], the largest logit of each row
    shifts: torch.Tensor  # [B, T, 1], what was taken off each row


class Side(NamedTuple):
    """One side's exponentials, 0 beyond the lengths, and the columns of its tokens."""

    all: Exponentials
    columns: torch.Tensor  # [B, T, K] float64, logits of the tokens, shifted
    exp_columns: torch.Tensor  # [B, T, K] float64


def _exponentials(logits: torch.Tensor) -> Exponentials:
    """Exponentiate [B, T, V+1], garbage beyond the lengths included."""
    maxima = logits.amax(-1, keepdim=True)
    shifts = hardshrink(maxima, UNSHIFTED)
    shifted = logits.device.type != "cpu" or bool(shifts.any())  # if not, a pass is saved
    return Exponentials((logits - shifts).exp_() if shifted else logits.exp(), maxima, shifts)


def _side(logits: torch.Tensor, classes: torch.Tensor, padding: torch.Tensor | None) -> Side:
    """Of logits [B, T, V+1]; classes: [B, K] of the token columns, padding: [B, T, 1] bool or None for none."""
    exponentials = _exponentials(logits)
    columns = logits.gather(2, classes[:, None, :].expand(-1, logits.shape[1], -1)).double() - exponentials.shifts
    exp_columns = columns.exp()
    if padding is not None:
        exponentials.exp.masked_fill_(padding, 0.0)
        exp_columns.masked_fill_(padding, 0.0)
    return Side(exponentials, columns, exp_columns)


def _count_tokens_once(prediction: Side, classes: torch.Tensor) -> torch.Tensor:
    """Let one column stand for each class [B, K], in products of both sides: the first, which is returned, [B, K].

    The prediction's side, as the shorter one, gets zeros: in `exp` for all of them, in `exp_columns` for the others.
    """
    first = (classes[:, :, None] == classes[:, None, :]).byte().argmax(2)
    again = first != torch.arange(first.shape[1], device=first.device)
    prediction.exp_columns.masked_fill_(again[:, None, :], 0.0)
    zeros = prediction.all.exp.new_zeros(()).expand(prediction.columns.shape)  # up to five times faster than 0.0
    prediction.all.exp.scatter_(2, classes[:, None, :].expand(zeros.shape), zeros)
    return first


def _sides(
    logits: Sequence[torch.Tensor], batch: TransducerBatch, blank: int, padding: torch.Tensor | None
) -> tuple[Side, Side, torch.Tensor, torch.Tensor]:
    """Of encoder and prediction, [B, T, V+1] and [B, M, V+1]; with the classes of the token columns and the first
    column of each class, both [B, K] int64. padding: [B, T, M] bool or None."""
    frames, states = (None, None) if padding is None else (padding[:, :, :1], padding[:, :1].transpose(1, 2))
    classes = pad(batch.targets, (0, 1), value=blank)  # [B, K]
    encoder, prediction = _side(logits[0], classes, frames), _side(logits[1], classes, states)
    return encoder, prediction, classes, _count_tokens_once(prediction, classes)


def _compiled_sides(
    logits: Sequence[torch.Tensor], batch: TransducerBatch, blank: int
) -> tuple[Side, Side, torch.Tensor, torch.Tensor]:
    """The same on the CPU, where one kernel does what some thirty calls would; but columns that are not the first of
    their class are -inf in the prediction's `columns` too."""
    encoder_logits, prediction_logits = (each.contiguous() for each in logits)
    encoder, prediction = _exponentials(encoder_logits), _exponentials(prediction_logits)
    (num_utterances, num_tokens), num_frames = batch.targets.shape, encoder_logits.shape[1]
    classes = batch.targets.new_empty(num_utterances, num_tokens + 1)  # [B, K]
    first = torch.empty_like(classes)
    # Neither is zeroed: the kernel writes all of both.
    frames = torch.empty(num_utterances, num_frames, num_tokens + 1, dtype=torch.float64)  # [B, T, K]
    states = torch.empty(num_utterances, num_tokens + 1, num_tokens + 1, dtype=torch.float64)  # [B, M, K]
    of_encoder = encoder_logits, encoder.shifts, encoder.exp, frames
    of_prediction = prediction_logits, prediction.shifts, prediction.exp, states
    arrays = [each.numpy() for each in (*of_encoder, *of_prediction, classes, first)]
    column_kernel(batch.targets.contiguous().numpy(), blank, np.array(batch.sizes), *arrays)
    return Side(encoder, frames, frames.exp()), Side(prediction, states, states.exp()), classes, first


def _normaliser(encoder: Side, prediction: Side) -> torch.Tensor:
    """Z [B, T, M] float64, without the shifts: the tokens' part from their float64 columns."""
    z = torch.bmm(encoder.exp_columns, prediction.exp_columns.transpose(1, 2))
    sides = encoder.all.exp, prediction.all.exp
    most = CLASSES_PER_PRODUCT if z.device.type == "cpu" else CLASSES_PER_PRODUCT_ON_GPU
    products = max(round(sides[0].shape[2] / most), 1)
    for part in zip(*(exp.chunk(products, 2) for exp in sides), strict=True):
        z += torch.bmm(part[0], part[1].transpose(1, 2))
    return z


def _distrusted(z: torch.Tensor, encoder: Exponentials, prediction: Exponentials) -> torch.Tensor:
    """[B, T, M] bool, True where terms that were lost or rounded in the exponentials' type could matter.

    Lost are terms below the smallest normal number, times e^20 at most where no row was shifted. Rounded are those far
    from the largest that Z could have been: a shifted row's by the shift, and where no row was shifted the many small
    ones by the sum, which has them beside a few large ones. They must not be what is left of Z. The tokens' terms are
    not among those of the sum, and often the largest of all.
    """
    exp, limits = encoder.exp, torch.finfo(encoder.exp.dtype)
    lost = exp.shape[2] * limits.tiny / limits.eps * math.exp(UNSHIFTED)
    frames = (encoder.maxima.double() - encoder.shifts).clamp_(min=0.0).exp_()  # [B, T, 1], 1 if shifted
    others = prediction.exp.amax(2, keepdim=True)  # [B, M, 1], 0 for the tokens
    states = others.masked_fill_(prediction.shifts != 0, 1.0).double()
    trusted = TRUSTED_Z if exp.dtype == torch.float32 else 0.0
    return z < (trusted * frames * states.transpose(1, 2)).clamp_(min=lost)


def _inexact(z: torch.Tensor, encoder: Side, prediction: Side, batch: TransducerBatch) -> torch.Tensor:
    """[B] bool, on the CPU: True where a row's or column's sum in z [B, T, M] is not what it is in float64.

    A float32 sum loses the terms that are some 10^7 times smaller than the largest, hundreds of which may be a
    millionth of it: as in every cell of a frame whose encoder is nearly certain of a class that is no token.
    """
    wrong = torch.empty(len(z), dtype=torch.bool)
    sides = encoder.all.exp, prediction.all.exp, encoder.exp_columns, prediction.exp_columns
    checksum_kernel(TRUSTED_SUMS, np.array(batch.sizes), *(each.numpy() for each in (*sides, z, wrong)))
    return wrong


class Normalised(NamedTuple):
    """What the loss of a batch is made of: all that the vocabulary is needed for."""

    encoder: Side
    prediction: Side
    classes: torch.Tensor  # [B, K] int64, of the token columns
    first: torch.Tensor  # [B, K] int64, the column that stands for the class
    z: torch.Tensor  # [B, T, M] float64, the normaliser without the shifts; nothing beyond the lengths
    redo: list[int]  # the utterances that need float64
    padding: torch.Tensor | None  # [B, T, M] bool, see `TransducerBatch.padding`


def normalised(
    encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, batch: TransducerBatch, blank: int, compiled: bool
) -> Normalised:
    """Of logits [B, T, V+1] and [B, M, V+1], T and M those of the longest. compiled: by `_compiled_sides`."""
    dtype = compute_dtype(encoder_logits, prediction_logits)
    logits = encoder_logits.to(dtype), prediction_logits.to(dtype)
    padding = batch.padding()
    sides = _compiled_sides(logits, batch, blank) if compiled else _sides(logits, batch, blank, padding)
    encoder, prediction, classes, first = sides
    with full_precision(encoder_logits.device.type):
        z = _normaliser(encoder, prediction)
    distrusted = _distrusted(z, encoder.all, prediction.all)
    if padding is not None:
        distrusted &= ~padding
    distrusted = distrusted.flatten(1).any(1)
    if z.device.type == "cpu" and dtype == torch.float32:
        distrusted |= _inexact(z, encoder, prediction, batch)
    redo = distrusted.tolist()  # the one copy to the host
    redo = [b for b, wanted in enumerate(redo) if wanted]
    return Normalised(encoder, prediction, classes, first, z, redo, padding)
