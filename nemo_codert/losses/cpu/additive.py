"""The additive RNN-T loss on the CPU: allocation and the utterances that need float64, around two compiled kernels.

The module docstring of `additive_rnnt` has what is computed in which precision. Here Z's rows and columns are also
checked against their sums in float64, and the gradients' float32 sums are short. Imports torch, numpy,
`additive_kernels`, `additive_float64`, `batch_checks`, `lattice`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's)

import math

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from nemo_codert.losses.additive_float64 import UNSHIFTED, Utterance, compute_dtype, smallest_sum, trusted_share
from nemo_codert.losses.batch_checks import TransducerBatch, reduce_losses, reduction_gradient
from nemo_codert.losses.cpu.additive_kernels import additive_kernel, gradient_kernel
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
        ctx.inputs = [(each.shape, each.dtype) for each in (encoder_logits, prediction_logits)]
        dtype = compute_dtype(encoder_logits, prediction_logits)
        encoder_logits = encoder_logits[:, : batch.num_frames]
        prediction_logits = prediction_logits[:, : batch.targets.shape[1] + 1]
        logits = [each.to(dtype).contiguous() for each in (encoder_logits, prediction_logits)]
        (num_utterances, num_frames, num_classes), num_columns = logits[0].shape, logits[1].shape[1]
        sizes, scale, redo = np.array(batch.sizes), 1.0 + float(fastemit_lambda), np.empty(num_utterances, np.bool_)
        first, classes = (np.empty((num_utterances, num_columns), np.int64) for _ in range(2))
        # Memory is not zeroed: the kernels write everything that they read.
        encoder, prediction = (_side(each, num_columns) for each in logits)
        weight = logits[0].new_empty(num_utterances, num_frames, num_columns, dtype=torch.float64)
        rounded, losses = torch.empty_like(weight, dtype=dtype), weight.new_empty(num_utterances)
        trusted_sums = TRUSTED_SUMS if dtype == torch.float32 else math.inf
        limits = Limits(UNSHIFTED, smallest_sum(num_classes, dtype), trusted_share(dtype), trusted_sums)
        given = sizes, batch.targets.contiguous().numpy(), blank, scale, limits, *(each.numpy() for each in logits)
        filled = first, classes, *(each.numpy() for each in (weight, rounded, losses)), redo
        additive_kernel(threads_for(num_utterances), *given, _arrays(encoder), _arrays(prediction), *filled)
        ctx.occupancies = {}
        for b in redo.nonzero()[0].tolist():
            (t, u), targets = batch.sizes[b], batch.targets[b]
            utterance = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            log_probs = [each[None] for each in utterance.log_probs(targets[:u], blank)]
            loss, label, blanks = lattice_occupancies(*log_probs, *torch.tensor([[t], [u]]))
            losses[b], ctx.occupancies[b] = scale * loss[0], (scale * label[0], blanks[0])
        ctx.batch, ctx.blank, ctx.reduction, ctx.tokens = batch, blank, reduction, (first, classes)
        ctx.sizes, ctx.redo = sizes, redo
        logits = (encoder_logits, prediction_logits) if ctx.occupancies else (None, None)
        ctx.save_for_backward(weight, rounded, *encoder, *prediction, *logits)
        return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        weight, rounded, *sides, encoder_logits, prediction_logits = ctx.saved_tensors
        upstream = reduction_gradient(upstream.numpy(), ctx.batch.target_lengths.numpy(), ctx.reduction)  # [B]
        wanted = ctx.needs_input_grad[:2]
        gradients = [
            exp.new_empty(shape if each else (shape[0], 0, shape[2]))
            for (shape, _), exp, each in zip(ctx.inputs, sides[::3], wanted, strict=True)
        ]
        arrays = _arrays(sides[:3]), _arrays(sides[3:]), *(each.numpy() for each in gradients)
        made = ctx.sizes, ctx.redo, upstream, *ctx.tokens, weight.numpy(), rounded.numpy()
        gradient_kernel(threads_for(len(upstream)), *made, *arrays)
        for b, occupancies in ctx.occupancies.items():
            upstreams = [-float(upstream[b]) * each for each in occupancies]
            t, u = ctx.batch.sizes[b]
            utterance = Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            parts = utterance.gradients(ctx.batch.targets[b, :u], ctx.blank, *upstreams)
            for whole, part, each in zip(gradients, parts, wanted, strict=True):
                if each:
                    whole[b] = 0.0
                    whole[b, : len(part)] = part
        given = zip(gradients, ctx.inputs, wanted, strict=True)
        return *(whole.to(dtype) if each else None for whole, (_, dtype), each in given), None, None, None, None
