"""The exact RNN-T loss of any joint, with a float64 recursion: of its logits, or of the joint itself in chunks.

Utterances are taken one by one: what lies beyond their lengths is neither computed nor read, and half-precision logits
are never upcast as a whole. In chunks the logits [B, T, U+1, V+1] never exist at once: some frames of an utterance at
a time, and again in the backward pass (Chen et al., arXiv:1604.06174). Imports torch and `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, H joint channels; T_b, U_b those of
# utterance b

from collections.abc import Callable

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from nemo_codert.losses.lattice import check_reduction, check_transducer_batch, reduce_losses, rnnt_lattice_loss

# Logits of a chunk, of which the backward pass needs some three at a time: 36 MB of float32, above the 32 MiB from
# which glibc always gives memory back; smaller ones leave the heap in pieces.
CHUNK_ELEMENTS = 9 * 2**20
KEPT_ELEMENTS = 2**24  # logits of a batch that are kept for the backward pass rather than computed again: 64 MB


def _own_columns(logits: torch.Tensor, targets: torch.Tensor, blank: int) -> torch.Tensor:
    """[T, U+1, V+1] -> [T, U+1, 2] float64: the next label's (-inf in the last state) and the blank's logits."""
    t, u = len(logits), len(targets)
    label = logits[:, :u].gather(2, targets.expand(t, u)[:, :, None]).squeeze(2).double()
    return torch.stack([pad(label, (0, 1), value=-torch.inf), logits[:, :, blank].double()], 2)


class _JointLogProbs(torch.autograd.Function):
    """Label [B, T, U] and blank [B, T, U+1] log-probabilities of joint logits, float64, 0 beyond the lengths."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        joint_logits: torch.Tensor,
        targets: torch.Tensor,
        sizes: list[tuple[int, int]],
        blank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.blank, ctx.sizes = blank, sizes
        blank_log_probs = joint_logits.new_zeros(joint_logits.shape[:3], dtype=torch.float64)
        label_log_probs = blank_log_probs[:, :, :-1].clone()
        for b, (t, u) in enumerate(ctx.sizes):
            logits = joint_logits[b, :t, : u + 1].to(torch.promote_types(joint_logits.dtype, torch.float32))
            own = _own_columns(logits, targets[b, :u], ctx.blank)  # [T_b, U_b+1, 2] float64, label and blank
            shift = logits.amax(-1, keepdim=True)
            exp = (logits - shift).exp_()
            exp[:, :, ctx.blank] = 0.0
            exp[:, :u].scatter_(2, targets[b, :u].expand(t, u)[:, :, None], 0.0)
            own -= shift.double()
            log_z = (exp.sum(-1).double() + own.exp().sum(-1)).log()  # [T_b, U_b+1], less the shift
            blank_log_probs[b, :t, : u + 1] = own[:, :, 1] - log_z
            label_log_probs[b, :t, :u] = own[:, :u, 0] - log_z[:, :u]
        ctx.save_for_backward(joint_logits, targets, label_log_probs, blank_log_probs)
        return label_log_probs, blank_log_probs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        joint_logits, targets, label, blank = ctx.saved_tensors
        dtype = torch.promote_types(joint_logits.dtype, torch.float32)
        gamma = -blank_upstream - pad(label_upstream, (0, 1))
        of_blank = (gamma * blank.exp() + blank_upstream).to(dtype)  # float64 until the occupancies are off
        of_label = (gamma[:, :, :-1] * label.exp() + label_upstream).to(dtype)
        gamma = gamma.to(dtype)
        gradient = torch.zeros_like(joint_logits, memory_format=torch.contiguous_format)
        for b, (t, u) in enumerate(ctx.sizes):
            part = joint_logits[b, :t, : u + 1].to(dtype).softmax(-1)  # [T_b, U_b+1, V+1]
            part *= gamma[b, :t, : u + 1, None]
            part[:, :, ctx.blank] = of_blank[b, :t, : u + 1]
            tokens = targets[b, :u].expand(t, u)[:, :, None]
            part[:, :u].scatter_(2, tokens, of_label[b, :t, :u, None])
            gradient[b, :t, : u + 1] = part
        return gradient, None, None, None


def joint_rnnt_loss(
    joint_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    blank: int,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """RNN-T loss in nats of joint logits (log-probabilities will do, as a log-softmax leaves them as they are).

    joint_logits: [B, T, U+1, V+1] float. targets: [B, U] int, 0..V without blank. encoded_lengths: [B] int in frames,
    1..T. target_lengths: [B] int in tokens, 0..U. What lies beyond the lengths is never read and gets a zero gradient.
    blank: any index of V+1. reduction: see `reduce_losses`. fastemit_lambda: at least 0, see `rnnt_lattice_loss`.
    Computed in float32 (float64 for float64 logits), the recursion in float64. Returns a scalar, or [B] for `none`.
    Graves, arXiv:1211.3711. Raises ValueError for shapes, lengths, targets, blank or reduction that do not fit.
    """
    check_reduction(reduction)
    if joint_logits.dim() != 4:
        raise ValueError(f"joint_logits must be [B, T, U+1, V+1], got {tuple(joint_logits.shape)}")
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=tuple(joint_logits.shape),
        blank=blank,
        device=joint_logits.device,
    )
    label_log_probs, blank_log_probs = _JointLogProbs.apply(
        joint_logits[:, : batch.num_frames, : batch.targets.shape[1] + 1],
        batch.targets,
        batch.sizes,
        blank,
    )
    losses = rnnt_lattice_loss(
        label_log_probs, blank_log_probs, batch.encoded_lengths, batch.target_lengths, fastemit_lambda
    )
    reduced = reduce_losses(losses, batch.target_lengths, reduction)
    return reduced.to(torch.promote_types(joint_logits.dtype, torch.float32))


def chunked_joint_rnnt_loss(
    joint: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    encoder_part: torch.Tensor,
    prediction_part: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    num_classes: int,
    blank: int,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """RNN-T loss in nats of `joint(encoder_part, prediction_part)`, whose logits are never all there at once.

    joint: takes [T', 1, H] and [1, U'+1, H], returns logits [T', U'+1, V+1]; may have parameters and dropout.
    encoder_part: [B, T, H]. prediction_part: [B, U+1, H]. num_classes: V+1. The rest as in `joint_rnnt_loss`.
    At most `CHUNK_ELEMENTS` logits (or H channels, where those are more) at a time, but a whole frame; where a batch
    has more than `KEPT_ELEMENTS` they are computed again in the backward pass, with the same dropout.
    Raises ValueError as `joint_rnnt_loss` does, and where the joint gives another number of classes.
    """
    check_reduction(reduction)
    parts = tuple(encoder_part.shape), tuple(prediction_part.shape)
    if any(len(shape) != 3 for shape in parts) or parts[0][0] != parts[1][0]:
        raise ValueError(f"encoder_part must be [B, T, H] and prediction_part [B, U+1, H], got {parts}")
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*parts[0][:2], parts[1][1], num_classes),
        blank=blank,
        device=encoder_part.device,
    )

    def log_probs(frames: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = joint(frames[:, None], states[None])[None]  # [1, T', U_b+1, V+1]
        if logits.shape[3] != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but the joint gives {logits.shape[3]} classes")
        return _JointLogProbs.apply(logits, tokens[None], [(len(frames), len(tokens))], blank)

    width = max(num_classes, parts[0][2])  # of a cell: its logits or its hidden layer
    recompute = torch.is_grad_enabled() and sum(t * (u + 1) for t, u in batch.sizes) * width > KEPT_ELEMENTS
    rows = []
    # unbind: indexing each utterance would make a gradient of the whole batch for each.
    for frames_b, states_b, tokens, (t, u) in zip(
        encoder_part.unbind(), prediction_part.unbind(), batch.targets, batch.sizes, strict=True
    ):
        arguments = states_b[: u + 1], tokens[:u]
        chunks = [
            checkpoint(log_probs, frames, *arguments, use_reentrant=False)
            if recompute
            else log_probs(frames, *arguments)
            for frames in frames_b[:t].split(max(CHUNK_ELEMENTS // ((u + 1) * width), 1))
        ]
        beyond = batch.num_frames - t, batch.targets.shape[1] - u
        rows.append([pad(torch.cat(part, 1)[0], (0, beyond[1], 0, beyond[0])) for part in zip(*chunks, strict=True)])
    label, blanks = (torch.stack(part) for part in zip(*rows, strict=True))  # [B, T, U] and [B, T, U+1]
    losses = rnnt_lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    reduced = reduce_losses(losses, batch.target_lengths, reduction)
    return reduced.to(torch.promote_types(encoder_part.dtype, torch.float32))
