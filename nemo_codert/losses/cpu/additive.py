"""The additive RNN-T loss on the CPU: allocation and the utterances that need float64, around compiled kernels.

The module docstring of `additive_rnnt` has what is computed in which precision. Here Z's rows and columns are also
checked against their sums in float64, and the gradients' float32 sums are short. The log-probabilities of the same
joint, for other recursions, have kernels of their own. Imports torch, numpy, `additive_kernels`, `additive_float64`,
`batch_checks`, `lattice`, `log_prob_kernels`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's)

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from nemo_codert.losses.additive_float64 import UNSHIFTED, Utterance, compute_dtype, smallest_sum, trusted_share
from nemo_codert.losses.batch_checks import TransducerBatch, reduce_losses, reduction_gradient
from nemo_codert.losses.cpu.additive_kernels import additive_kernel, gradient_kernel
from nemo_codert.losses.cpu.log_prob_kernels import factor_kernel, log_prob_kernel
from nemo_codert.losses.cpu.normaliser_kernels import Limits, SideArrays
from nemo_codert.losses.cpu.openmp import threads_for
from nemo_codert.losses.lattice import lattice_occupancies

TRUSTED_SUMS = 2.5e-7  # largest relative error of the sum of a row or column of Z: its cells are then within 1e-6


def _side(logits: torch.Tensor, num_columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Allocate the `SideArrays` of logits [B, T, V+1]."""
    columns = [logits.new_empty(*logits.shape[:2], num_columns, dtype=torch.float64) for _ in range(2)]
    return torch.empty_like(logits), *columns


def _arrays(tensors: tuple[torch.Tensor, ...]) -> SideArrays:
    return SideArrays(*(each.numpy() for each in tensors))


class _Setup(NamedTuple):
    """Logits within the lengths and all that kernels fill, for a batch; memory is not zeroed."""

    logits: tuple[torch.Tensor, torch.Tensor]  # those passed in, cut to the longest utterance
    contiguous: list[torch.Tensor]  # the same in the type of the computation
    sizes: np.ndarray  # [B, 2], frames and tokens
    limits: Limits
    encoder: tuple[torch.Tensor, ...]
    prediction: tuple[torch.Tensor, ...]
    first: np.ndarray  # [B, K]
    classes: np.ndarray  # [B, K]
    weight: torch.Tensor  # [B, T, M] float64
    redo: np.ndarray  # [B] bool


def _set_up(
    ctx: FunctionCtx, encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, batch: TransducerBatch, blank: int
) -> _Setup:
    """Allocate what the kernels fill, and keep in ctx what `_logit_gradients` needs."""
    ctx.inputs = [(each.shape, each.dtype) for each in (encoder_logits, prediction_logits)]
    dtype = compute_dtype(encoder_logits, prediction_logits)
    cut = encoder_logits[:, : batch.num_frames], prediction_logits[:, : batch.targets.shape[1] + 1]
    logits = [each.to(dtype).contiguous() for each in cut]
    (num_utterances, num_frames, num_classes), num_columns = logits[0].shape, logits[1].shape[1]
    first, classes = (np.empty((num_utterances, num_columns), np.int64) for _ in range(2))
    encoder, prediction = (_side(each, num_columns) for each in logits)
    weight = logits[0].new_empty(num_utterances, num_frames, num_columns, dtype=torch.float64)
    trusted_sums = TRUSTED_SUMS if dtype == torch.float32 else math.inf
    limits = Limits(UNSHIFTED, smallest_sum(num_classes, dtype), trusted_share(dtype), trusted_sums)
    sizes, redo = np.array(batch.sizes), np.empty(num_utterances, np.bool_)
    ctx.batch, ctx.blank, ctx.tokens, ctx.sizes, ctx.redo = batch, blank, (first, classes), sizes, redo
    return _Setup(cut, logits, sizes, limits, encoder, prediction, first, classes, weight, redo)


def _logit_gradients(
    ctx: FunctionCtx,
    factors: tuple[torch.Tensor, torch.Tensor],
    sides: list[torch.Tensor],
    logits: tuple[torch.Tensor | None, ...],
    upstream: np.ndarray,
    upstreams_of: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
) -> list[torch.Tensor | None]:
    """Return the gradients of both logits.

    factors: weight and rounded of `gradient_kernel`. logits: those of the utterances that needed float64. upstream:
    [B], multiplies what the kernel computes. upstreams_of: returns the gradients of the log-probabilities of labels
    and blanks of such an utterance, given its index.
    """
    wanted = ctx.needs_input_grad[:2]
    gradients = [
        exp.new_empty(shape if each else (shape[0], 0, shape[2]))
        for (shape, _), exp, each in zip(ctx.inputs, sides[::3], wanted, strict=True)
    ]
    arrays = _arrays(sides[:3]), _arrays(sides[3:]), *(each.numpy() for each in gradients)
    made = ctx.sizes, ctx.redo, upstream, *ctx.tokens, *(each.numpy() for each in factors)
    gradient_kernel(threads_for(len(upstream)), *made, *arrays)
    for b in ctx.redo.nonzero()[0].tolist():
        t, u = ctx.batch.sizes[b]
        utterance = Utterance(logits[0][b, :t], logits[1][b, : u + 1])
        parts = utterance.gradients(ctx.batch.targets[b, :u], ctx.blank, *upstreams_of(b))
        for whole, part, each in zip(gradients, parts, wanted, strict=True):
            if each:
                whole[b] = 0.0
                whole[b, : len(part)] = part
    given = zip(gradients, ctx.inputs, wanted, strict=True)
    return [whole.to(dtype) if each else None for whole, (_, dtype), each in given]


class AdditiveLoss(torch.autograd.Function):
    """Reduced loss of checked arguments; see `additive_rnnt_loss`."""

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
        made = _set_up(ctx, encoder_logits, prediction_logits, batch, blank)
        scale, dtype = 1.0 + float(fastemit_lambda), made.contiguous[0].dtype
        rounded, losses = torch.empty_like(made.weight, dtype=dtype), made.weight.new_empty(len(made.redo))
        tokens = batch.targets.contiguous().numpy(), blank
        given = made.sizes, *tokens, scale, made.limits, *(each.numpy() for each in made.contiguous)
        filled = made.first, made.classes, *(each.numpy() for each in (made.weight, rounded, losses)), made.redo
        sides = _arrays(made.encoder), _arrays(made.prediction)
        additive_kernel(threads_for(len(made.redo)), *given, *sides, *filled)
        ctx.occupancies = {}
        for b in made.redo.nonzero()[0].tolist():
            (t, u), targets = batch.sizes[b], batch.targets[b]
            utterance = Utterance(made.logits[0][b, :t], made.logits[1][b, : u + 1])
            log_probs = [each[None] for each in utterance.log_probs(targets[:u], blank)]
            loss, label, blanks = lattice_occupancies(*log_probs, *torch.tensor([[t], [u]]))
            losses[b], ctx.occupancies[b] = scale * loss[0], (scale * label[0], blanks[0])
        ctx.reduction = reduction
        logits = made.logits if ctx.occupancies else (None, None)
        ctx.save_for_backward(made.weight, rounded, *made.encoder, *made.prediction, *logits)
        return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        weight, rounded, *sides, encoder_logits, prediction_logits = ctx.saved_tensors
        upstream = reduction_gradient(upstream.numpy(), ctx.batch.target_lengths.numpy(), ctx.reduction)  # [B]

        def upstreams_of(b: int) -> tuple[torch.Tensor, ...]:
            return tuple(-float(upstream[b]) * each for each in ctx.occupancies[b])

        factors, logits = (weight, rounded), (encoder_logits, prediction_logits)
        return *_logit_gradients(ctx, factors, sides, logits, upstream, upstreams_of), None, None, None, None


class CompiledLogProbs(torch.autograd.Function):
    """Label [B, T, U] and blank [B, T, M] log-probabilities of an additive joint, float64, 0 beyond the lengths.

    Arguments and results are those of `additive_torch.AdditiveLogProbs`.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        encoder_logits: torch.Tensor,
        prediction_logits: torch.Tensor,
        batch: TransducerBatch,
        blank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        made = _set_up(ctx, encoder_logits, prediction_logits, batch, blank)
        label, blanks = torch.empty_like(made.weight[:, :, :-1]), torch.empty_like(made.weight)
        tokens = batch.targets.contiguous().numpy(), blank
        given = made.sizes, *tokens, made.limits, *(each.numpy() for each in made.contiguous)
        filled = made.first, made.classes, *(each.numpy() for each in (made.weight, label, blanks)), made.redo
        sides = _arrays(made.encoder), _arrays(made.prediction)
        log_prob_kernel(threads_for(len(made.redo)), *given, *sides, *filled)
        redo = made.redo.nonzero()[0].tolist()
        for b in redo:
            t, u = batch.sizes[b]
            utterance = Utterance(made.logits[0][b, :t], made.logits[1][b, : u + 1])
            label[b, :t, :u], blanks[b, :t, : u + 1] = utterance.log_probs(batch.targets[b, :u], blank)
        logits = made.logits if redo else (None, None)
        ctx.save_for_backward(made.weight, *made.encoder, *made.prediction, *logits)
        return label, blanks

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        per_z, *sides, encoder_logits, prediction_logits = ctx.saved_tensors
        upstreams = label_upstream.contiguous(), blank_upstream.contiguous()
        weight, rounded = per_z.clone(), torch.empty_like(per_z, dtype=sides[0].dtype)
        given = ctx.sizes, ctx.redo, *(each.numpy() for each in upstreams), ctx.tokens[0]
        filled = weight.numpy(), rounded.numpy(), _arrays(sides[:3]), _arrays(sides[3:])
        factor_kernel(threads_for(len(ctx.redo)), *given, *filled)

        def upstreams_of(b: int) -> tuple[torch.Tensor, ...]:
            t, u = ctx.batch.sizes[b]
            return label_upstream[b, :t, :u], blank_upstream[b, :t, : u + 1]

        ones, logits = np.ones(len(ctx.redo)), (encoder_logits, prediction_logits)
        return *_logit_gradients(ctx, (weight, rounded), sides, logits, ones, upstreams_of), None, None
