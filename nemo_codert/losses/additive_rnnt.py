"""The exact RNN-T loss of an additive joint, `z[b,t,u] = E[b,t] + G[b,u]`, without the [B, T, U+1, V+1] lattice.

The normaliser of every lattice cell is one batched matrix product of exponentials,
`Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and with the occupancies gamma the gradient is two more:
`dE = exp(E) * ((gamma / Z) @ exp(G)) - occupancies of the tokens`. These are float32. The columns of the utterance's
own tokens and of the blank are float64 throughout, for two reasons: only there is an occupancy taken off, and what is
left of it in a confident lattice may be a millionth; and they are nearly all of such a lattice's Z. An utterance on
which float32 could go wrong is computed in float64 altogether. On the CPU Z's rows and columns are checked against
their sums in float64, and the sums that make the gradients are short.
Imports torch, numpy, `additive_normaliser`, `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's), N lattice cells

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.additive_normaliser import compute_dtype, normalised
from nemo_codert.losses.full_precision import full_precision as _full_precision
from nemo_codert.losses.lattice import (
    LatticeLoss,
    TransducerBatch,
    check_fastemit,
    check_reduction,
    check_transducer_batch,
    lattice_occupancies,
    reduce_losses,
    reduction_gradient,
    rnnt_lattice_loss,
)
from nemo_codert.losses.lattice_kernels import additive_kernel, token_kernel

TERMS_PER_PRODUCT = 32  # at most, of the float32 sums over frames and over states that gradients are
CELL_CHUNK_ELEMENTS = 2**22  # cells times V+1 of one true log-sum-exp: 32 MB of float64


class _Utterance:
    """One utterance in float64: logits [T, V+1] and [M, V+1], their exponentials and the normaliser [T, M]."""

    def __init__(self, encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> None:
        self.logits = encoder_logits.double(), prediction_logits.double()
        maxima = [part.amax(-1, keepdim=True) for part in self.logits]
        self.exp = [(part - shift).exp_() for part, shift in zip(self.logits, maxima, strict=True)]
        self.z = self.exp[0] @ self.exp[1].T
        self.shift = maxima[0] + maxima[1].T
        limits, num_classes = torch.finfo(torch.float64), encoder_logits.shape[1]
        cells = (self.z < num_classes * limits.tiny / limits.eps).nonzero()  # maxima more than 600 apart
        self.cells = [part.unbind(1) for part in cells.split(max(CELL_CHUNK_ELEMENTS // num_classes, 1))]

    def log_z(self) -> torch.Tensor:
        """[T, M]; by a true log-sum-exp in the cells where even float64 underflows."""
        log_z = self.z.log() + self.shift
        for t, u in self.cells:
            log_z[t, u] = (self.logits[0][t] + self.logits[1][u]).logsumexp(-1)
        return log_z

    def log_probs(self, targets: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of labels [T, U] and blanks [T, M], given targets [U]."""
        (encoder, prediction), log_z = self.logits, self.log_z()
        next_label = prediction[:-1].gather(1, targets[:, None]).T  # [1, U]: state u asks for target u + 1
        label = encoder[:, targets] + next_label - log_z[:, :-1]
        return label, encoder[:, blank, None] + prediction[:, blank] - log_z

    def gradients(
        self, targets: torch.Tensor, blank: int, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With respect to both logits, given those of the log-probabilities of labels [T, U] and blanks [T, M]."""
        gamma = -blank_upstream - pad(label_upstream, (0, 1))  # [T, M]
        weight = (gamma / self.z).masked_fill_(gamma == 0, 0.0)
        for t, u in self.cells:
            weight[t, u] = 0.0
        gradients = (weight @ self.exp[1]).mul_(self.exp[0]), (weight.T @ self.exp[0]).mul_(self.exp[1])
        for t, u in self.cells:
            share = (self.logits[0][t] + self.logits[1][u]).softmax(-1) * gamma[t, u, None]  # [N, V+1]
            gradients[0].index_add_(0, t, share)
            gradients[1].index_add_(0, u, share)
        gradients[0].scatter_add_(1, targets.expand(label_upstream.shape), label_upstream)
        gradients[0][:, blank] += blank_upstream.sum(1)
        gradients[1][:-1].scatter_add_(1, targets[:, None], label_upstream.sum(0)[:, None])
        gradients[1][:, blank] += blank_upstream.sum(0)
        return gradients


def _product_in_pieces(weights: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
    """weights [B, M, T] @ exp [B, T, V+1], some terms at a time.

    A float32 sum loses terms 2^25 times smaller than itself: of 31 beside a large one at most 31 * 2^-25, 9e-7 of it.
    Every further piece rounds once more, one way or the other.
    """
    pieces = math.ceil(exp.shape[1] / TERMS_PER_PRODUCT)
    (weight, rows), *others = zip(weights.chunk(pieces, 2), exp.chunk(pieces, 1), strict=True)
    product = torch.bmm(weight, rows)
    for weight, rows in others:
        product.baddbmm_(weight, rows)
    return product


class _AdditiveLoss(torch.autograd.Function):
    """The reduced loss on the CPU: what is between the products is three compiled kernels, not some hundred calls."""

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
        encoder_logits = encoder_logits[:, : batch.num_frames]
        prediction_logits = prediction_logits[:, : batch.targets.shape[1] + 1]
        encoder, prediction, classes, first, z, redo, _ = normalised(
            encoder_logits, prediction_logits, batch, blank, compiled=True
        )
        sizes, scale = np.array(batch.sizes), 1 + fastemit_lambda
        if redo:
            sizes[redo] = 0
        columns = encoder.columns, prediction.columns, encoder.exp_columns, prediction.exp_columns
        taken = torch.zeros_like(columns[2]), torch.zeros_like(columns[3])
        losses = z.new_empty(len(z))
        arrays = [each.numpy() for each in (*columns, first, z, losses, *taken)]
        additive_kernel(sizes, scale, *arrays)
        ctx.classes = arrays[4], classes.numpy()
        ctx.columns = arrays[2::5], arrays[3::5]  # exponentials and what is taken off, of each side
        ctx.batch, ctx.blank, ctx.reduction, ctx.occupancies = batch, blank, reduction, {}
        for b in redo:
            (t, u), targets = batch.sizes[b], batch.targets[b]
            utterance = _Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            log_probs = [each[None] for each in utterance.log_probs(targets[:u], blank)]
            losses[b], label, blanks = lattice_occupancies(*log_probs, *torch.tensor([[t], [u]]))
            ctx.occupancies[b] = scale * label[0], blanks[0]
        logits = (encoder_logits, prediction_logits) if redo else (None, None)
        ctx.save_for_backward(z, encoder.all.exp, prediction.all.exp, *columns[2:], *logits)
        return reduce_losses(losses * scale, batch.target_lengths, reduction).to(encoder.all.exp.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        weight, *sides, encoder_logits, prediction_logits = ctx.saved_tensors
        exps, columns = sides[:2], sides[2:]
        upstream = reduction_gradient(upstream.double(), ctx.batch.target_lengths, ctx.reduction).contiguous()  # [B]
        weight = weight * upstream[:, None, None]  # [B, T, M]
        rounded, (first, classes) = weight.to(exps[0].dtype), ctx.classes
        weights = (weight, rounded), (weight.transpose(1, 2), rounded.transpose(1, 2))

        def gradient(side: int) -> torch.Tensor:
            """With respect to the logits of a side."""
            in_float64, in_float32 = weights[side]
            result = _product_in_pieces(in_float32, exps[1 - side]).mul_(exps[side])  # 0 for the tokens
            tokens = in_float64.bmm(columns[1 - side])  # [B, T, K], the normaliser's part
            arrays = upstream.numpy(), first, classes, tokens.numpy(), *ctx.columns[side]
            token_kernel(*arrays, result.numpy())
            return result

        with _full_precision("cpu"):
            gradients = {side: gradient(side) for side in (0, 1) if ctx.needs_input_grad[side]}
        for b, occupancies in ctx.occupancies.items():
            upstreams = [-upstream[b] * each for each in occupancies]
            t, u = ctx.batch.sizes[b]
            utterance = _Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
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


class _AdditiveLogProbs(torch.autograd.Function):
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
        encoder, prediction, classes, first, z, redo, padding = normalised(
            encoder_logits, prediction_logits, batch, blank, compiled=False
        )
        if padding is not None:
            z.masked_fill_(padding, 1.0)  # something to divide 0 by, as below
        for b in redo:
            z[b] = 1.0
        log_z = z.log()  # without the shifts, which the columns lack too
        next_label = prediction.columns.diagonal(dim1=1, dim2=2)[:, None, :-1]  # state u asks for target u + 1
        label = (encoder.columns[:, :, :-1] + next_label).sub_(log_z[:, :, :-1])
        blanks = (encoder.columns[:, :, -1:] + prediction.columns[:, None, :, -1]).sub_(log_z)
        for b in redo:
            t, u = batch.sizes[b]
            utterance = _Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
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
        # Where each label's and the blank's occupancies go, in [B, T, K] and, as a state has one label, in [B, M, K].
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
        with _full_precision(z.device.type):
            gradients = [
                _side_gradient(*side) if wanted else None
                for side, wanted in zip(sides, ctx.needs_input_grad, strict=False)
            ]
        for b in ctx.utterances:
            t, u = ctx.batch.sizes[b]
            parts = _Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1]).gradients(
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
    """Gradient of one side's logits [B, T, V+1]; of the other's with everything the other way round.

    weights: gamma / Z [B, T, M] as float64 and as exp's type. exp: of this side and of the other, all classes.
    columns: exp_columns likewise. occupancies: what the tokens' columns get besides the normaliser's part, float64:
    indices of columns and values, both up to [B, T, K]. classes: [B, K].
    """
    gradient = torch.bmm(weights[1], exp[1]).mul_(exp[0])  # 0 for the tokens
    tokens = weights[0].bmm(columns[1]).mul_(columns[0])  # [B, T, K], 0 in all but the first column of a class
    for index, values in occupancies:
        tokens.scatter_add_(2, index.expand(values.shape), values)
    return gradient.scatter_add_(2, classes[:, None, :].expand(tokens.shape), tokens.to(gradient.dtype))


def _check_logits(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> None:
    """Raise ValueError unless the shapes are [B, T, V+1] and [B, U+1, V+1]."""
    shapes = tuple(encoder_logits.shape), tuple(prediction_logits.shape)
    if any(len(shape) != 3 for shape in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(f"encoder_logits must be [B, T, V+1] and prediction_logits [B, U+1, V+1], got {shapes}")


def additive_rnnt_loss(
    encoder_logits: torch.Tensor,
    prediction_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    blank: int,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
    lattice_loss: LatticeLoss = rnnt_lattice_loss,
) -> torch.Tensor:
    """RNN-T loss in nats of the joint `log_softmax(E[b,t] + G[b,u])`, exact at any scale of the logits.

    encoder_logits: [B, T, V+1] float. prediction_logits: [B, U+1, V+1] float. targets: [B, U] int, 0..V without blank.
    encoded_lengths: [B] int in frames, 1..T. target_lengths: [B] int in tokens, 0..U. What lies beyond the lengths is
    never read and gets a zero gradient. blank: any index of V+1. reduction: see `reduce_losses`. fastemit_lambda:
    at least 0, see `rnnt_lattice_loss`. lattice_loss: who runs the recursion, by default float64 on any device.
    Computed in float32 (float64 if an argument is) where that is exact to a millionth or two (docs/performance.md),
    else in float64, utterance by utterance; the recursion in float64. Memory grows with T·V + U·V + T·U.
    Returns a scalar, or [B] for `none`. Graves, arXiv:1211.3711; the joint is that of CoDERT, arXiv:2106.07734.
    Raises ValueError for shapes, lengths, targets, blank or reduction that do not fit.
    """
    check_reduction(reduction)
    _check_logits(encoder_logits, prediction_logits)
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_logits.shape[:2], *prediction_logits.shape[1:]),
        blank=blank,
        device=encoder_logits.device,
    )
    check_fastemit(fastemit_lambda)
    if encoder_logits.device.type == "cpu" and lattice_loss is rnnt_lattice_loss:
        return _AdditiveLoss.apply(encoder_logits, prediction_logits, batch, blank, fastemit_lambda, reduction)
    label, blanks = _AdditiveLogProbs.apply(
        encoder_logits[:, : batch.num_frames],
        prediction_logits[:, : batch.targets.shape[1] + 1],
        batch,
        blank,
    )
    losses = lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    dtype = compute_dtype(encoder_logits, prediction_logits)
    return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)
