"""The additive RNN-T loss on the CPU: torch's products, and compiled kernels around them.

What is computed how precisely is told in `additive_rnnt`. Here Z's rows and columns are also checked against their
sums in float64, and the sums that make the gradients are short. Imports torch, numpy, `additive_kernels`,
`additive_precision`, `full_precision`, `lattice`, `torch_threads`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's)

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.additive_kernels import (
    SideArrays,
    additive_kernel,
    gradient_kernel,
    side_kernel,
    sum_kernel,
)
from nemo_codert.losses.additive_precision import UNSHIFTED, Utterance, compute_dtype, smallest_sum, trusted_share
from nemo_codert.losses.full_precision import full_precision
from nemo_codert.losses.lattice import TransducerBatch, lattice_occupancies, reduce_losses, reduction_gradient
from nemo_codert.losses.torch_threads import threads_for

TRUSTED_SUMS = 2.5e-7  # relative error of Z's rows and columns: cells of one further off may be a millionth off
CLASSES_PER_PRODUCT = 256  # or nearly: longer float32 sums are carried on in float64
PRODUCTS_AT_ONCE = 4  # of [B, T, M] each, kept until they are added up
TERMS_PER_PRODUCT = 32  # at most, of the float32 sums over frames and over states that gradients are
PRODUCT_ELEMENTS = 2**20  # of these products at a time, where there are several terms to add: 4 MB


class _Side(NamedTuple):
    """One side's exponentials, for torch, and all its arrays, for the kernels."""

    exp: torch.Tensor  # [B, T, V+1] float32 (float64 for float64 logits)
    exp_columns: torch.Tensor  # [B, T, K] float64
    arrays: SideArrays


class _Tokens(NamedTuple):
    """Which token columns there are, both [B, K] int64."""

    first: np.ndarray  # the column that stands for the class
    classes: np.ndarray


def _sides(
    logits: Sequence[torch.Tensor], batch: TransducerBatch, sizes: np.ndarray, blank: int
) -> tuple[_Side, _Side, _Tokens]:
    """Of contiguous logits [B, T, V+1] and [B, M, V+1]; sizes: [B, 2] int64, frames and tokens."""
    num_columns, exps = batch.targets.shape[1] + 1, [torch.empty_like(each) for each in logits]
    shapes = [(*each.shape[:2], num_columns) for each in logits]
    # A piece of memory for both sides, so that one call exponentiates. Nothing is zeroed: the kernels write it all.
    cut, whole = math.prod(shapes[0]), sum(map(math.prod, shapes))
    columns, exp_columns, taken = (torch.empty(whole, dtype=torch.float64) for _ in range(3))
    of_tokens = [
        (each[:cut].reshape(shapes[0]), each[cut:].reshape(shapes[1]))
        for each in (columns.numpy(), exp_columns.numpy(), taken.numpy())
    ]
    sides = [
        SideArrays(all_logits.numpy(), exp.numpy(), np.empty(shape[:2]), *rest)
        for all_logits, exp, shape, *rest in zip(logits, exps, shapes, *of_tokens, strict=True)
    ]
    tokens = _Tokens(*(np.empty((len(sizes), num_columns), np.int64) for _ in range(2)))
    targets = batch.targets.contiguous().numpy()
    side_kernel(threads_for(len(sizes)), sizes, targets, blank, UNSHIFTED, *sides, *tokens)
    torch.exp(columns, out=exp_columns)
    encoder, prediction = (
        _Side(exp, torch.from_numpy(side.exp_columns), side) for exp, side in zip(exps, sides, strict=True)
    )
    return encoder, prediction, tokens


def _normaliser(encoder: _Side, prediction: _Side) -> torch.Tensor:
    """Z [B, T, M] float64, without the shifts: the tokens' part from their float64 columns."""
    z = torch.bmm(encoder.exp_columns, prediction.exp_columns.transpose(1, 2))
    num_parts = max(round(encoder.exp.shape[2] / CLASSES_PER_PRODUCT), 1)
    parts = [*zip(*(side.exp.chunk(num_parts, 2) for side in (encoder, prediction)), strict=True)]
    products = encoder.exp.new_empty(min(len(parts), PRODUCTS_AT_ONCE), *z.shape)
    for start in range(0, len(parts), len(products)):
        some = parts[start : start + len(products)]
        for product, (of_encoder, of_prediction) in zip(products, some, strict=False):
            torch.bmm(of_encoder, of_prediction.transpose(1, 2), out=product)
        sum_kernel(threads_for(len(z)), products[: len(some)].numpy(), z.numpy())
    return z


def _product_in_pieces(weights: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
    """weights [B, M, T] @ exp [B, T, V+1], some terms at a time, for some utterances at a time.

    A float32 sum loses terms 2^25 times smaller than itself: of 31 beside a large one at most 31 * 2^-25, 9e-7 of it.
    Every further piece rounds once more, one way or the other, and walks over the product, which had better be in a
    cache.
    """
    pieces = math.ceil(exp.shape[1] / TERMS_PER_PRODUCT)
    if pieces == 1:
        return torch.bmm(weights, exp)
    product = exp.new_empty(*weights.shape[:2], exp.shape[2])
    parts = min(len(product), math.ceil(product.numel() / PRODUCT_ELEMENTS))
    for some, *factors in zip(product.chunk(parts), weights.chunk(parts), exp.chunk(parts), strict=True):
        (weight, rows), *others = zip(factors[0].chunk(pieces, 2), factors[1].chunk(pieces, 1), strict=True)
        torch.bmm(weight, rows, out=some)
        for weight, rows in others:
            some.baddbmm_(weight, rows)
    return product


class AdditiveLoss(torch.autograd.Function):
    """The reduced loss of checked arguments; see `additive_rnnt_loss`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        encoder_logits: torch.Tensor,
        prediction_logits: torch.Tensor,
        batch: TransducerBatch,
        blank: int,
        fastemit_lambda: float,
        reduction: str,
    ) -> torch.Tensor:
        ctx.inputs = [(each.shape[1], each.dtype) for each in (encoder_logits, prediction_logits)]
        dtype = compute_dtype(encoder_logits, prediction_logits)
        encoder_logits = encoder_logits[:, : batch.num_frames]
        prediction_logits = prediction_logits[:, : batch.targets.shape[1] + 1]
        logits = [each.to(dtype).contiguous() for each in (encoder_logits, prediction_logits)]
        sizes, scale = np.array(batch.sizes), 1.0 + fastemit_lambda
        encoder, prediction, tokens = _sides(logits, batch, sizes, blank)
        with full_precision("cpu"):
            z = _normaliser(encoder, prediction)
        tolerance = TRUSTED_SUMS if dtype == torch.float32 else math.inf
        limits = smallest_sum(encoder.exp.shape[2], dtype), trusted_share(dtype), tolerance
        weight, rounded, losses = z, torch.empty_like(z, dtype=dtype), z.new_empty(len(z))
        redo, threads = np.empty(len(z), np.bool_), threads_for(len(z))
        arrays = [each.numpy() for each in (weight, rounded, losses)]
        additive_kernel(threads, sizes, scale, limits, encoder.arrays, prediction.arrays, tokens.first, *arrays, redo)
        ctx.occupancies = {}
        for b in redo.nonzero()[0].tolist():
            (t, u), targets = batch.sizes[b], batch.targets[b]
            utterance = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            log_probs = [each[None] for each in utterance.log_probs(targets[:u], blank)]
            loss, label, blanks = lattice_occupancies(*log_probs, *torch.tensor([[t], [u]]))
            losses[b], ctx.occupancies[b] = scale * loss[0], (scale * label[0], blanks[0])
        ctx.batch, ctx.blank, ctx.reduction, ctx.tokens = batch, blank, reduction, tokens
        ctx.taken = encoder.arrays.taken, prediction.arrays.taken
        logits = (encoder_logits, prediction_logits) if ctx.occupancies else (None, None)
        ctx.save_for_backward(weight, rounded, *encoder[:2], *prediction[:2], *logits)
        return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        weight, rounded, *tensors, encoder_logits, prediction_logits = ctx.saved_tensors
        exps, columns = tensors[::2], tensors[1::2]
        upstream = reduction_gradient(upstream.numpy(), ctx.batch.target_lengths.numpy(), ctx.reduction)  # [B]
        weights = (weight, rounded), (weight.transpose(1, 2), rounded.transpose(1, 2))

        def gradient(side: int) -> torch.Tensor:
            """With respect to the logits of a side."""
            in_float64, in_float32 = weights[side]
            result = _product_in_pieces(in_float32, exps[1 - side])
            own = in_float64.bmm(columns[1 - side])  # [B, T, K], of the tokens
            arrays = [each.numpy() for each in (own, exps[side], columns[side])]
            threads = threads_for(len(own))
            gradient_kernel(threads, upstream, *ctx.tokens, *arrays, ctx.taken[side], result.numpy())
            return result

        with full_precision("cpu"):
            gradients = {side: gradient(side) for side in (0, 1) if ctx.needs_input_grad[side]}
        for b, occupancies in ctx.occupancies.items():
            upstreams = [-float(upstream[b]) * each for each in occupancies]
            t, u = ctx.batch.sizes[b]
            utterance = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            parts = utterance.gradients(ctx.batch.targets[b, :u], ctx.blank, *upstreams)
            for side, whole in gradients.items():
                whole[b] = 0.0
                whole[b, : len(parts[side])] = parts[side]
        for side, whole in gradients.items():
            rows, dtype = ctx.inputs[side]
            if rows > whole.shape[1]:  # pad alone would copy all of it
                whole = pad(whole, (0, 0, 0, rows - whole.shape[1]))
            gradients[side] = whole.to(dtype)
        return gradients.get(0), gradients.get(1), None, None, None, None
