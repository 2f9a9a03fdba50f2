"""The exact RNN-T loss of an additive joint, `z[b,t,u] = E[b,t] + G[b,u]`, without the [B, T, U+1, V+1] lattice.

The normaliser of every lattice cell is one batched matrix product of exponentials,
`Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and with the occupancies gamma the gradient is two more:
`dE = exp(E) * ((gamma / Z) @ exp(G)) - occupancies of the tokens`. Imports torch, `frames` and `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, R utterances
# redone in float64, N lattice cells

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.frames import valid_frames
from nemo_codert.losses.lattice import check_reduction, check_transducer_batch, reduce_losses, rnnt_lattice_loss

CELL_CHUNK_ELEMENTS = 2**22  # cells times V+1 of one true log-sum-exp: 32 MB of float64


class _Product(NamedTuple):
    """Exponentials shifted by their row maxima, their product, and the log-normaliser."""

    exp_encoder: torch.Tensor  # [B, T, V+1]
    exp_prediction: torch.Tensor  # [B, M, V+1]
    z: torch.Tensor  # [B, T, M], without the shifts
    log_z: torch.Tensor  # [B, T, M] float64, with them


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep float32 products float32 whatever autocast, TF32 or bfloat16 products the user allowed elsewhere."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    allowed = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = precision


def _multiply(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> _Product:
    """The normaliser by one product, right where `_doubtful` does not object."""
    max_encoder = encoder_logits.amax(-1, keepdim=True)
    max_prediction = prediction_logits.amax(-1, keepdim=True)
    exp_encoder = (encoder_logits - max_encoder).exp_()
    exp_prediction = (prediction_logits - max_prediction).exp_()
    z = torch.bmm(exp_encoder, exp_prediction.transpose(1, 2))
    log_z = z.double().log() + max_encoder.double() + max_prediction.double().transpose(1, 2)
    return _Product(exp_encoder, exp_prediction, z, log_z)


def _doubtful(product: _Product) -> torch.Tensor:
    """[B, T, M] bool, True where terms lost to underflow could matter: V+1 smallest normals against epsilon * Z.

    The threshold is 1e-28 in float32 and 1e-289 in float64 at V = 1024.
    """
    limits = torch.finfo(product.z.dtype)
    return product.z < product.exp_encoder.shape[-1] * limits.tiny / limits.eps


def _cell_chunks(cells: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, ...]:
    """Split cells [N, 3] so that the logits of a chunk stay small."""
    return cells.split(max(CELL_CHUNK_ELEMENTS // num_classes, 1))


def _multiply_in_float64(
    encoder_logits: torch.Tensor, prediction_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-normaliser [R, T, M] of float64 logits, and the cells [N, 3] where even that product underflows.

    Those (maxima that disagree by more than 600) are summed by a true log-sum-exp.
    """
    product = _multiply(encoder_logits, prediction_logits)
    cells = _doubtful(product).nonzero()
    for b, t, u in (chunk.unbind(1) for chunk in _cell_chunks(cells, encoder_logits.shape[-1])):
        product.log_z[b, t, u] = (encoder_logits[b, t] + prediction_logits[b, u]).logsumexp(-1)
    return product.log_z, cells


def _normaliser_gradient(product: _Product, gamma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of sum(gamma * log Z) with respect to both logits; gamma [B, T, M] float64, 0 in doubtful cells."""
    weight = torch.where(gamma == 0, 0.0, gamma / product.z).to(product.z.dtype)
    encoder_gradient = torch.bmm(weight, product.exp_prediction).mul_(product.exp_encoder)
    prediction_gradient = torch.bmm(weight.transpose(1, 2), product.exp_encoder).mul_(product.exp_prediction)
    return encoder_gradient, prediction_gradient


def _normaliser_gradient_in_float64(
    encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, cells: torch.Tensor, gamma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_normaliser_gradient`, from float64 logits; the listed cells add their softmax one by one."""
    product = _multiply(encoder_logits, prediction_logits)
    gradients = _normaliser_gradient(product, gamma.masked_fill(_doubtful(product), 0.0))
    encoder_rows, prediction_rows = (gradient.flatten(0, 1) for gradient in gradients)  # views [R * T, V+1]
    for b, t, u in (chunk.unbind(1) for chunk in _cell_chunks(cells, encoder_logits.shape[-1])):
        share = (encoder_logits[b, t] + prediction_logits[b, u]).softmax(-1) * gamma[b, t, u, None]  # [N, V+1]
        encoder_rows.index_add_(0, b * encoder_logits.shape[1] + t, share)
        prediction_rows.index_add_(0, b * prediction_logits.shape[1] + u, share)
    return gradients


def _without_padding(logits: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, T, V+1] in dtype with zeros beyond the lengths, whatever stood there."""
    return logits.masked_fill(~valid_frames(lengths, logits.shape[1])[:, :, None], 0.0).to(dtype)


class _AdditiveLogProbs(torch.autograd.Function):
    """Label [B, T, U] and blank [B, T, M] log-probabilities of an additive joint, float64, zero-gradient padding."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        encoder_logits: torch.Tensor,
        prediction_logits: torch.Tensor,
        targets: torch.Tensor,
        encoded_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        blank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.blank, ctx.dtypes = blank, (encoder_logits.dtype, prediction_logits.dtype)
        dtype = torch.promote_types(torch.promote_types(*ctx.dtypes), torch.float32)
        encoder_logits = _without_padding(encoder_logits, encoded_lengths, dtype)
        prediction_logits = _without_padding(prediction_logits, target_lengths + 1, dtype)
        with _full_precision(encoder_logits.device.type):
            product = _multiply(encoder_logits, prediction_logits)
            redo = _doubtful(product).flatten(1).any(1).nonzero().squeeze(1)  # [R]
            redo_logits = encoder_logits[redo].double(), prediction_logits[redo].double()
            log_z, cells = product.log_z, redo.new_empty(0, 3)
            if len(redo):
                log_z[redo], cells = _multiply_in_float64(*redo_logits)
        ctx.save_for_backward(*product[:3], targets, redo, *redo_logits, cells)
        tokens = pad(targets, (0, 1), value=blank)  # [B, M]: a row of E is asked for every target and the blank
        encoder_scores = encoder_logits.gather(2, tokens[:, None, :].expand(log_z.shape)).double()  # [B, T, M]
        label_scores = prediction_logits[:, :-1].gather(2, targets[:, :, None]).double()  # [B, U, 1]
        label = encoder_scores[:, :, :-1] + label_scores.transpose(1, 2) - log_z[:, :, :-1]
        return label, encoder_scores[:, :, -1:] + prediction_logits[:, None, :, blank].double() - log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        exp_encoder, exp_prediction, z, targets, redo, *redo_logits, cells = ctx.saved_tensors
        gamma = -blank_upstream - pad(label_upstream, (0, 1))  # [B, T, M]
        kept = gamma.index_fill(0, redo, 0.0)
        with _full_precision(z.device.type):
            gradients = _normaliser_gradient(_Product(exp_encoder, exp_prediction, z, kept), kept)
            if len(redo):
                redone = _normaliser_gradient_in_float64(*redo_logits, cells, gamma[redo])
                for gradient, part in zip(gradients, redone, strict=True):
                    gradient[redo] = part.to(gradient.dtype)
        encoder_gradient, prediction_gradient = gradients
        of_label, of_blank = label_upstream.to(z.dtype), blank_upstream.to(z.dtype)
        encoder_gradient.scatter_add_(2, targets[:, None, :].expand(of_label.shape), of_label)
        encoder_gradient[:, :, ctx.blank] += of_blank.sum(2)
        prediction_gradient[:, :-1].scatter_add_(2, targets[:, :, None], of_label.sum(1)[:, :, None])
        prediction_gradient[:, :, ctx.blank] += of_blank.sum(1)
        return encoder_gradient.to(ctx.dtypes[0]), prediction_gradient.to(ctx.dtypes[1]), None, None, None, None


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
) -> torch.Tensor:
    """RNN-T loss in nats of the joint `log_softmax(E[b,t] + G[b,u])`, exact at any scale of the logits.

    encoder_logits: [B, T, V+1] float. prediction_logits: [B, U+1, V+1] float. targets: [B, U] int, 0..V without blank.
    encoded_lengths: [B] int in frames, 1..T. target_lengths: [B] int in tokens, 0..U. What lies beyond the lengths is
    never read and gets a zero gradient. blank: any index of V+1. reduction: see `reduce_losses`. fastemit_lambda:
    at least 0, see `rnnt_lattice_loss`.
    Computed in float32 (float64 if an argument is), the recursion in float64. Memory grows with T·V + U·V + T·U. An
    utterance whose float32 product underflows (maxima of E and G that disagree by more than 60) is redone in float64.
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
    label, blank_log_probs = _AdditiveLogProbs.apply(
        encoder_logits[:, : batch.num_frames],
        prediction_logits[:, : batch.targets.shape[1] + 1],
        batch.targets,
        batch.encoded_lengths,
        batch.target_lengths,
        blank,
    )
    losses = rnnt_lattice_loss(label, blank_log_probs, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    dtype = torch.promote_types(torch.promote_types(encoder_logits.dtype, prediction_logits.dtype), torch.float32)
    return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)
