"""The exact RNN-T loss of an additive joint, `z[b,t,u] = E[b,t] + G[b,u]`, without the [B, T, U+1, V+1] lattice.

The normaliser of every lattice cell is one batched matrix product of exponentials,
`Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and with the occupancies gamma the gradient is two more:
`dE = exp(E) * ((gamma / Z) @ exp(G)) - occupancies of the tokens`. These are float32. The columns of the utterance's
own tokens and of the blank are float64 throughout, for two reasons: only there is an occupancy taken off, and what is
left of it in a confident lattice may be a millionth; and they are nearly all of such a lattice's Z. An utterance on
which float32 could go wrong is computed in float64 altogether. Imports torch and `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns (the targets', some perhaps twice, and last the blank's), N lattice cells

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import hardshrink, pad

from nemo_codert.losses.lattice import (
    LatticeLoss,
    TransducerBatch,
    check_reduction,
    check_transducer_batch,
    reduce_losses,
    rnnt_lattice_loss,
)

UNSHIFTED = 20.0  # rows whose maximum lies within +-20 are exponentiated as they are: taking it off would round
TRUSTED_SHIFTED_Z = 1e-7  # of the maxima's product: where a row was shifted, terms below it are off by a millionth
CLASSES_PER_PRODUCT = 256  # or nearly: longer float32 sums are carried on in float64
CELL_CHUNK_ELEMENTS = 2**22  # cells times V+1 of one true log-sum-exp: 32 MB of float64


class _FullPrecision:
    """Keeps float32 products float32 whatever autocast, TF32 or bfloat16 products the user allowed elsewhere.

    torch's switches are the process's: the first thread that comes in sets them, the last one out sets them back.
    """

    def __init__(self) -> None:
        self.backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        self.lock, self.inside, self.allowed = Lock(), 0, []

    @contextmanager
    def __call__(self, device_type: str) -> Iterator[None]:
        with self.lock:
            if self.inside == 0:
                self.allowed = [backend.fp32_precision for backend in self.backends]
                self._set(["ieee", "ieee"])
            self.inside += 1
        try:
            with torch.autocast(device_type, enabled=False):
                yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self._set(self.allowed)

    def _set(self, precisions: list[str]) -> None:
        for backend, precision in zip(self.backends, precisions, strict=True):
            backend.fp32_precision = precision


_full_precision = _FullPrecision()


class _Side(NamedTuple):
    """The exponentials of one side's logits, [B, T, V+1] or [B, M, V+1], shifted and 0 beyond the lengths."""

    exp: torch.Tensor  # [B, T, V+1] float32 (float64 for float64 logits)
    shifts: torch.Tensor  # [B, T, 1] float64, what was taken off each row
    shifted: bool  # False where the host knows that this is 0
    maxima: torch.Tensor  # [B, T, 1], the largest logit of each row, shifted
    columns: torch.Tensor  # [B, T, K] float64, logits of the tokens, shifted
    exp_columns: torch.Tensor  # [B, T, K] float64


def _side(logits: torch.Tensor, dtype: torch.dtype, classes: torch.Tensor, padding: torch.Tensor | None) -> _Side:
    """Exponentiate [B, T, V+1]; classes: [B, K] of the token columns, padding: [B, T, 1] bool or None for none."""
    logits = logits.to(dtype)
    maxima = logits.amax(-1, keepdim=True)
    shifts = hardshrink(maxima, UNSHIFTED)
    shifted = logits.device.type != "cpu" or bool(shifts.any())  # if not, some passes are saved
    exp = (logits - shifts).exp_() if shifted else logits.exp()
    columns = logits.gather(2, classes[:, None, :].expand(-1, logits.shape[1], -1)).double()
    if shifted:
        columns -= shifts
    exp_columns = columns.exp()
    if padding is not None:
        exp.masked_fill_(padding, 0.0)
        exp_columns.masked_fill_(padding, 0.0)
    return _Side(exp, shifts.double(), shifted, maxima - shifts, columns, exp_columns)


def _count_tokens_once(prediction: _Side, classes: torch.Tensor) -> torch.Tensor:
    """Let one column stand for each class [B, K], in products of both sides: the first, which is returned, [B, K].

    The prediction's side, as the shorter one, gets zeros: in `exp` for all of them, in `exp_columns` for the others.
    """
    first = (classes[:, :, None] == classes[:, None, :]).byte().argmax(2)
    again = first != torch.arange(first.shape[1], device=first.device)
    prediction.exp_columns.masked_fill_(again[:, None, :], 0.0)
    zeros = prediction.exp.new_zeros(()).expand(prediction.columns.shape)  # up to five times faster than 0.0
    prediction.exp.scatter_(2, classes[:, None, :].expand(zeros.shape), zeros)
    return first


def _normaliser(encoder: _Side, prediction: _Side) -> torch.Tensor:
    """Z [B, T, M] float64, without the shifts: the tokens' part from their float64 columns."""
    z = torch.bmm(encoder.exp_columns, prediction.exp_columns.transpose(1, 2))
    products = max(round(encoder.exp.shape[2] / CLASSES_PER_PRODUCT), 1)
    for part in zip(encoder.exp.chunk(products, 2), prediction.exp.chunk(products, 2), strict=True):
        z += torch.bmm(part[0], part[1].transpose(1, 2))
    return z


def _distrusted(z: torch.Tensor, encoder: _Side, prediction: _Side) -> torch.Tensor:
    """[B, T, M] bool, True where terms that were lost or rounded in the exponentials' type could matter.

    Lost are terms below the smallest normal number, times e^20 at most where no row was shifted. Rounded are those of
    a shifted row far from its maximum: they must not be what is left of Z beside the largest that it could have been.
    """
    exp, limits = encoder.exp, torch.finfo(encoder.exp.dtype)
    lost = exp.shape[2] * limits.tiny / limits.eps * math.exp(UNSHIFTED)
    if not (encoder.shifted or prediction.shifted):
        return z < lost
    sides = encoder, prediction
    frames, states = (side.maxima.double().clamp_(min=0.0).exp_() for side in sides)  # 1 in shifted rows
    trusted = TRUSTED_SHIFTED_Z if exp.dtype == torch.float32 else lost
    unshifted = (encoder.shifts == 0) & (prediction.shifts == 0).transpose(1, 2)
    return z < (trusted * frames * states.transpose(1, 2)).masked_fill_(unshifted, lost)


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
        padding = batch.padding()  # [B, T, M] or None
        classes = pad(batch.targets, (0, 1), value=blank)  # [B, K]
        ctx.dtypes = encoder_logits.dtype, prediction_logits.dtype
        dtype = torch.promote_types(torch.promote_types(*ctx.dtypes), torch.float32)
        encoder = _side(encoder_logits, dtype, classes, None if padding is None else padding[:, :, :1])
        states = None if padding is None else padding[:, :1].transpose(1, 2)
        prediction = _side(prediction_logits, dtype, classes, states)
        first = _count_tokens_once(prediction, classes)
        with _full_precision(encoder_logits.device.type):
            z = _normaliser(encoder, prediction)
        distrusted = _distrusted(z, encoder, prediction)
        if padding is not None:
            distrusted &= ~padding
            z.masked_fill_(padding, 1.0)  # something to divide 0 by, as below
        log_z = z.log()  # without the shifts, which the columns lack too
        redo = distrusted.flatten(1).any(1).tolist()  # the one copy to the host
        utterances = [b for b, wanted in enumerate(redo) if wanted]
        for b in utterances:
            t, u = batch.sizes[b]
            utterance = _Utterance(encoder_logits[b, :t], prediction_logits[b, : u + 1])
            shifts = encoder.shifts[b, :t] + prediction.shifts[b, : u + 1].T
            log_z[b, :t, : u + 1] = utterance.log_z() - shifts
            z[b] = 1.0
        next_label = prediction.columns.diagonal(dim1=1, dim2=2)[:, None, :-1]  # state u asks for target u + 1
        label = (encoder.columns[:, :, :-1] + next_label).sub_(log_z[:, :, :-1])
        blanks = (encoder.columns[:, :, -1:] + prediction.columns[:, None, :, -1]).sub_(log_z)
        if padding is not None:
            label.masked_fill_(padding[:, :, :-1], 0.0)
            blanks.masked_fill_(padding, 0.0)
        ctx.batch, ctx.blank, ctx.utterances = batch, blank, utterances
        logits = (encoder_logits, prediction_logits) if utterances else (None, None)
        sides = encoder.exp, prediction.exp, encoder.exp_columns, prediction.exp_columns
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
    Computed in float32 (float64 if an argument is) where that is exact to a millionth, else in float64, utterance by
    utterance; the recursion in float64. Memory grows with T·V + U·V + T·U.
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
    label, blanks = _AdditiveLogProbs.apply(
        encoder_logits[:, : batch.num_frames],
        prediction_logits[:, : batch.targets.shape[1] + 1],
        batch,
        blank,
    )
    losses = lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    dtype = torch.promote_types(torch.promote_types(encoder_logits.dtype, prediction_logits.dtype), torch.float32)
    return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)
