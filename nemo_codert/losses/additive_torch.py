"""The additive RNN-T loss in plain torch functions: on a GPU, and on a CPU without compiled kernels.

The module docstring of `additive_rnnt` has what is computed in which precision. Imports torch, `additive_float64`,
`batch_checks`, `float32_products`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's)

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import hardshrink, pad

from nemo_codert.losses.additive_float64 import UNSHIFTED, Utterance, compute_dtype, smallest_sum, trusted_share
from nemo_codert.losses.batch_checks import TransducerBatch
from nemo_codert.losses.float32_products import full_precision

CLASSES_AT_ONCE = 1024  # of one float32 product, or nearly; the products are added up in float64


class _Exponentials(NamedTuple):
    """Exponentials of one side's logits, [B, T, V+1] or [B, M, V+1], shifted."""

    exp: torch.Tensor  # [B, T, V+1] float32 (float64 for float64 logits)
    maxima: torch.Tensor  # [B, T, 1], the largest logit of each row
    shifts: torch.Tensor  # [B, T, 1], subtracted from each row before


class _Side(NamedTuple):
    """One side's exponentials, 0 beyond the lengths, and the columns of its tokens."""

    all: _Exponentials
    columns: torch.Tensor  # [B, T, K] float64, logits of the tokens, shifted
    exp_columns: torch.Tensor  # [B, T, K] float64


def _exponentials(logits: torch.Tensor) -> _Exponentials:
    """Exponentiate [B, T, V+1], garbage beyond the lengths included."""
    maxima = logits.amax(-1, keepdim=True)
    shifts = hardshrink(maxima, UNSHIFTED)
    return _Exponentials((logits - shifts).exp_(), maxima, shifts)


def _side(logits: torch.Tensor, classes: torch.Tensor, padding: torch.Tensor | None) -> _Side:
    """Exponentiate logits [B, T, V+1] of a side; classes: [B, K] of token columns, padding: [B, T, 1] bool or None."""
    exponentials = _exponentials(logits)
    columns = logits.gather(2, classes[:, None, :].expand(-1, logits.shape[1], -1)).double() - exponentials.shifts
    exp_columns = columns.exp()
    if padding is not None:
        exponentials.exp.masked_fill_(padding, 0.0)
        exp_columns.masked_fill_(padding, 0.0)
    return _Side(exponentials, columns, exp_columns)


def _count_tokens_once(prediction: _Side, classes: torch.Tensor) -> torch.Tensor:
    """Leave one column of each class [B, K] in products of both sides, and return the first column of each, [B, K].

    The prediction side, which is the shorter one, gets zeros: in `exp` for all tokens, in `exp_columns` for the
    repeated ones.
    """
    first = (classes[:, :, None] == classes[:, None, :]).byte().argmax(2)
    again = first != torch.arange(first.shape[1], device=first.device)
    prediction.exp_columns.masked_fill_(again[:, None, :], 0.0)
    # A tensor of zeros: scattering the number 0.0 takes up to five times longer.
    zeros = prediction.all.exp.new_zeros(()).expand(prediction.columns.shape)
    prediction.all.exp.scatter_(2, classes[:, None, :].expand(zeros.shape), zeros)
    return first


def _sides(
    logits: Sequence[torch.Tensor], batch: TransducerBatch, blank: int, padding: torch.Tensor | None
) -> tuple[_Side, _Side, torch.Tensor, torch.Tensor]:
    """Exponentiate the logits of encoder and prediction, [B, T, V+1] and [B, M, V+1].

    padding: [B, T, M] bool or None. Returns both sides, the classes of the token columns and the first column of each
    class, both [B, K] int64.
    """
    frames, states = (None, None) if padding is None else (padding[:, :, :1], padding[:, :1].transpose(1, 2))
    classes = pad(batch.targets, (0, 1), value=blank)  # [B, K]
    encoder, prediction = _side(logits[0], classes, frames), _side(logits[1], classes, states)
    return encoder, prediction, classes, _count_tokens_once(prediction, classes)


def _normaliser(encoder: _Side, prediction: _Side) -> torch.Tensor:
    """Return Z [B, T, M] float64, without the shifts: the tokens' part from their float64 columns."""
    z = torch.bmm(encoder.exp_columns, prediction.exp_columns.transpose(1, 2))
    sides = encoder.all.exp, prediction.all.exp
    products = max(round(sides[0].shape[2] / CLASSES_AT_ONCE), 1)
    for part in zip(*(exp.chunk(products, 2) for exp in sides), strict=True):
        z += torch.bmm(part[0], part[1].transpose(1, 2))
    return z


def _distrusted(z: torch.Tensor, encoder: _Exponentials, prediction: _Exponentials) -> torch.Tensor:
    """Return [B, T, M] bool, True where terms lost or rounded in the exponentials could matter in z.

    See `smallest_sum` and `trusted_share`.
    """
    frames = (encoder.maxima.double() - encoder.shifts).clamp_(min=0.0).exp_()  # [B, T, 1], 1 if shifted
    others = prediction.exp.amax(2, keepdim=True)  # [B, M, 1], 0 for the tokens
    states = others.masked_fill_(prediction.shifts != 0, 1.0).double().transpose(1, 2)
    least = smallest_sum(encoder.exp.shape[2], others.dtype)
    return z < (trusted_share(others.dtype) * frames * states).clamp_(min=least)


class AdditiveLogProbs(torch.autograd.Function):
    """Label [B, T, U] and blank [B, T, M] log-probabilities of an additive joint, float64, 0 beyond the lengths."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        encoder_logits: torch.Tensor,
        prediction_logits: torch.Tensor,
        batch: TransducerBatch,
        blank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.dtypes = encoder_logits.dtype, prediction_logits.dtype
        dtype, padding = compute_dtype(encoder_logits, prediction_logits), batch.padding()
        logits = encoder_logits.to(dtype), prediction_logits.to(dtype)
        encoder, prediction, classes, first = _sides(logits, batch, blank, padding)
        with full_precision(encoder_logits.device.type):
            z = _normaliser(encoder, prediction)
        distrusted = _distrusted(z, encoder.all, prediction.all)
        if padding is not None:
            distrusted &= ~padding
        wanted = distrusted.flatten(1).any(1).tolist()  # the one copy to the host
        redo = [b for b, again in enumerate(wanted) if again]
        if padding is not None:
            z.masked_fill_(padding, 1.0)  # not 0: the backward pass divides 0 by it, here and in the utterances below
        for b in redo:
            z[b] = 1.0
        log_z = z.log()  # without the shifts, which the columns are without too
        next_label = prediction.columns.diagonal(dim1=1, dim2=2)[:, None, :-1]  # state u emits target u + 1
        label = (encoder.columns[:, :, :-1] + next_label).sub_(log_z[:, :, :-1])
        blanks = (encoder.columns[:, :, -1:] + prediction.columns[:, None, :, -1]).sub_(log_z)
        for b in redo:
            t, u = batch.sizes[b]
            utterance = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            label[b, :t, :u], blanks[b, :t, : u + 1] = utterance.log_probs(batch.targets[b, :u], blank)
        if padding is not None:
            label.masked_fill_(padding[:, :, :-1], 0.0)
            blanks.masked_fill_(padding, 0.0)
        ctx.batch, ctx.blank, ctx.utterances = batch, blank, redo
        logits = (encoder_logits, prediction_logits) if redo else (None, None)
        sides = encoder.all.exp, prediction.all.exp, encoder.exp_columns, prediction.exp_columns
        ctx.save_for_backward(*sides, z, classes, first, *logits)
        return label, blanks

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        *sides, z, classes, first, encoder_logits, prediction_logits = ctx.saved_tensors
        gamma = -blank_upstream  # [B, T, M]
        gamma[:, :, :-1] -= label_upstream
        if ctx.utterances:
            gamma[ctx.utterances] = 0.0
        weight = gamma.div_(z)
        weights, exp, columns = (weight, weight.to(sides[0].dtype)), sides[:2], sides[2:]
        # Columns and values of the labels' and the blank's occupancies, in [B, T, K] and, with one label a state, in
        # [B, M, K].
        of_encoder = (
            (first[:, None, :-1], label_upstream),
            (first[:, None, -1:], blank_upstream.sum(2, keepdim=True)),
        )
        of_prediction = (
            (first[:, :-1, None], label_upstream.sum(1)[:, :, None]),
            (first[:, -1:, None], blank_upstream.sum(1)[:, :, None]),
        )
        sides = (
            (weights, exp, columns, of_encoder, classes),
            ([each.transpose(1, 2) for each in weights], exp[::-1], columns[::-1], of_prediction, classes),
        )
        with full_precision(z.device.type):
            gradients = [
                _side_gradient(*side) if wanted else None
                for side, wanted in zip(sides, ctx.needs_input_grad, strict=False)
            ]
        for b in ctx.utterances:
            t, u = ctx.batch.sizes[b]
            parts = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1]).gradients(
                ctx.batch.targets[b, :u], ctx.blank, label_upstream[b, :t, :u], blank_upstream[b, :t, : u + 1]
            )
            for gradient, part in zip(gradients, parts, strict=True):
                if gradient is not None:
                    gradient[b] = 0.0
                    gradient[b, : len(part)] = part
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return *(None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs), None, None


def _side_gradient(
    weights: Sequence[torch.Tensor],
    exp: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor],
    occupancies: Iterable[tuple[torch.Tensor, torch.Tensor]],
    classes: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of one side's logits [B, T, V+1]; for the other side all arguments are transposed.

    weights: gamma / Z [B, T, M] as float64 and as exp's type. exp: exponentials of this side and of the other, all
    classes. columns: exp_columns of both sides. occupancies: terms of the tokens' columns besides the normaliser's,
    float64: indices of columns and values, both up to [B, T, K]. classes: [B, K].
    """
    gradient = torch.bmm(weights[1], exp[1]).mul_(exp[0])  # 0 for the tokens
    tokens = weights[0].bmm(columns[1]).mul_(columns[0])  # [B, T, K], 0 in all but the first column of a class
    for index, values in occupancies:
        tokens.scatter_add_(2, index.expand(values.shape), values)
    return gradient.scatter_add_(2, classes[:, None, :].expand(tokens.shape), tokens.to(gradient.dtype))
