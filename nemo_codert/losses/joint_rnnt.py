"""The exact RNN-T loss of any joint's materialised logits [B, T, U+1, V+1], with a float64 recursion.

Utterances are taken one by one: what lies beyond their lengths is neither computed nor read, and half-precision logits
are never upcast as a whole. Imports torch and `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank; T_b, U_b those of utterance b

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.lattice import check_reduction, check_transducer_batch, reduce_losses, rnnt_lattice_loss


class _JointLogProbs(torch.autograd.Function):
    """Label [B, T, U] and blank [B, T, U+1] log-probabilities of joint logits, float64, 0 beyond the lengths."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        joint_logits: torch.Tensor,
        targets: torch.Tensor,
        encoded_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        blank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(joint_logits, targets)
        ctx.blank, ctx.sizes = blank, list(zip(encoded_lengths.tolist(), target_lengths.tolist(), strict=True))
        blank_log_probs = joint_logits.new_zeros(joint_logits.shape[:3], dtype=torch.float64)
        label_log_probs = blank_log_probs[:, :, :-1].clone()
        for b, (t, u) in enumerate(ctx.sizes):
            logits = joint_logits[b, :t, : u + 1].to(torch.promote_types(joint_logits.dtype, torch.float32))
            shift = logits.amax(-1, keepdim=True)
            # A float32 log-sum-exp would round to 1e-5 where the logits are near 100.
            log_z = shift.squeeze(2).double() + (logits - shift).exp_().sum(-1).double().log()  # [T_b, U_b+1]
            label_logits = logits[:, :u].gather(2, targets[b, :u].expand(t, u)[:, :, None]).squeeze(2)
            blank_log_probs[b, :t, : u + 1] = logits[:, :, blank].double() - log_z
            label_log_probs[b, :t, :u] = label_logits.double() - log_z[:, :u]
        return label_log_probs, blank_log_probs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        joint_logits, targets = ctx.saved_tensors
        dtype = torch.promote_types(joint_logits.dtype, torch.float32)
        gamma = (-blank_upstream - pad(label_upstream, (0, 1))).to(dtype)
        gradient = torch.zeros_like(joint_logits, memory_format=torch.contiguous_format)
        for b, (t, u) in enumerate(ctx.sizes):
            part = joint_logits[b, :t, : u + 1].to(dtype).softmax(-1)  # [T_b, U_b+1, V+1]
            part *= gamma[b, :t, : u + 1, None]
            part[:, :, ctx.blank] += blank_upstream[b, :t, : u + 1].to(dtype)
            tokens = targets[b, :u].expand(t, u)[:, :, None]
            part[:, :u].scatter_add_(2, tokens, label_upstream[b, :t, :u, None].to(dtype))
            gradient[b, :t, : u + 1] = part
        return gradient, None, None, None, None


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
        batch.encoded_lengths,
        batch.target_lengths,
        blank,
    )
    losses = rnnt_lattice_loss(
        label_log_probs, blank_log_probs, batch.encoded_lengths, batch.target_lengths, fastemit_lambda
    )
    reduced = reduce_losses(losses, batch.target_lengths, reduction)
    return reduced.to(torch.promote_types(joint_logits.dtype, torch.float32))
