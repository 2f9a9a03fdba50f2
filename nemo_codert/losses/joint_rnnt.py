"""The exact RNN-T loss of any joint, with a float64 recursion: of its logits, or of the joint itself in chunks.

Utterances are computed one by one: padding is neither computed nor read, and half-precision logits are never upcast as
a whole. In chunks the logits [B, T, U+1, V+1] never exist at once: some frames of an utterance are computed at a time,
and again in the backward pass (Chen et al., arXiv:1604.06174). Imports torch, `batch_checks` and `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, H joint channels; T_b, U_b those of
# utterance b

from collections.abc import Callable

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from nemo_codert.losses.batch_checks import TransducerBatch, check_reduction, check_transducer_batch, reduce_losses
from nemo_codert.losses.lattice import rnnt_lattice_loss

# Logits of a chunk, some three of which exist in the backward pass: 36 MB of float32, above the 32 MiB from which
# glibc always gives memory back. Smaller chunks fragment the heap.
CHUNK_ELEMENTS = 9 * 2**20
KEPT_ELEMENTS = 2**24  # largest number of logits kept for the backward pass, not computed again: 64 MB of float32


def _own_columns(logits: torch.Tensor, targets: torch.Tensor, blank: int) -> torch.Tensor:
    """Return next label's (-inf in the last state) and blank's logits of [T, U+1, V+1], as [T, U+1, 2] float64."""
    t, u = len(logits), len(targets)
    label = logits[:, :u].gather(2, targets.expand(t, u)[:, :, None]).squeeze(2).double()
    return torch.stack([pad(label, (0, 1), value=-torch.inf), logits[:, :, blank].double()], 2)


class JointLogProbs(torch.autograd.Function):
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
        of_blank = (gamma * blank.exp() + blank_upstream).to(dtype)  # occupancies are subtracted in float64
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
    """Return the RNN-T loss of joint logits, or of log-probabilities, which a log-softmax leaves unchanged.

    Computed in float32 (float64 for float64 logits), the recursion in float64. Logits beyond the lengths are never
    read and get a zero gradient. Graves, arXiv:1211.3711.

    Args:
        joint_logits: [B, T, U+1, V+1] float.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        blank: class of the blank, 0..V.
        reduction: `mean_batch`, `mean`, `mean_volume`, `sum` or `none`, as in NeMo.
        fastemit_lambda: 0 or more; scales the value and the labels' gradient by 1 + lambda (arXiv:2010.11148).

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes, lengths, targets, blank, reduction or lambda that do not fit.

    Example:
        Two paths emit the one token in two frames, each in three steps of probability 1/3:

        >>> import torch
        >>> from nemo_codert.losses import joint_rnnt_loss
        >>> joint_logits = torch.zeros(1, 2, 2, 3)  # B = 1, T = 2, U = 1, V = 2
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> loss = joint_rnnt_loss(joint_logits, torch.tensor([[0]]), *lengths, blank=2)
        >>> f"a probability of {torch.exp(-loss).item():.4f}, which is 2/27 = {2 / 27:.4f}"
        'a probability of 0.0741, which is 2/27 = 0.0741'
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
    label_log_probs, blank_log_probs = JointLogProbs.apply(
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


def chunked_nodes(
    of_frames: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    encoder_part: torch.Tensor,
    prediction_part: torch.Tensor,
    batch: TransducerBatch,
    num_classes: int,
) -> tuple[torch.Tensor, ...]:
    """Return what a joint gives at all nodes, computed for some frames of an utterance at a time.

    Args:
        of_frames: takes [T', H], [U_b+1, H] and targets [U_b]; returns tensors [1, T', U_b (or more), ...].
        encoder_part: [B, T, H] float.
        prediction_part: [B, U+1, H] float.
        batch: checked targets and lengths.
        num_classes: of the joint; with H, what an element of a chunk is counted by.

    Returns:
        The tensors of all utterances, [B, T, U (or more), ...], 0 beyond the lengths.
    """
    width = max(num_classes, encoder_part.shape[2])  # elements of a lattice cell: its logits or its hidden layer
    recompute = torch.is_grad_enabled() and sum(t * (u + 1) for t, u in batch.sizes) * width > KEPT_ELEMENTS
    rows = []
    # unbind, not indexing: the backward pass of each index would allocate a gradient of the whole batch.
    for frames_b, states_b, tokens, (t, u) in zip(
        encoder_part.unbind(), prediction_part.unbind(), batch.targets, batch.sizes, strict=True
    ):
        arguments = states_b[: u + 1], tokens[:u]
        chunks = [
            checkpoint(of_frames, frames, *arguments, use_reentrant=False)
            if recompute
            else of_frames(frames, *arguments)
            for frames in frames_b[:t].split(max(CHUNK_ELEMENTS // ((u + 1) * width), 1))
        ]
        beyond = 0, batch.targets.shape[1] - u, 0, batch.num_frames - t
        parts = [torch.cat(part, 1)[0] for part in zip(*chunks, strict=True)]
        rows.append([pad(part, (0, 0) * (part.dim() - 2) + beyond) for part in parts])
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def check_joint_parts(encoder_part: torch.Tensor, prediction_part: torch.Tensor) -> None:
    """Raise ValueError unless the shapes are [B, T, H] and [B, U+1, H]."""
    parts = tuple(encoder_part.shape), tuple(prediction_part.shape)
    if any(len(shape) != 3 for shape in parts) or parts[0][0] != parts[1][0]:
        raise ValueError(f"encoder_part must be [B, T, H] and prediction_part [B, U+1, H], got {parts}")


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
    """Return the RNN-T loss of `joint(encoder_part, prediction_part)`, whose logits never exist all at once.

    At most `CHUNK_ELEMENTS` logits (or H channels, where those are more) are computed at a time, but at least a frame.
    Where a batch has more than `KEPT_ELEMENTS` logits, they are computed again in the backward pass, with the same
    dropout.

    Args:
        joint: takes [T', 1, H] and [1, U'+1, H], returns logits [T', U'+1, V+1]; may have parameters and dropout.
        encoder_part: [B, T, H] float.
        prediction_part: [B, U+1, H] float.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        num_classes: V+1.
        blank: class of the blank, 0..V.
        reduction: `mean_batch`, `mean`, `mean_volume`, `sum` or `none`, as in NeMo.
        fastemit_lambda: 0 or more; scales the value and the labels' gradient by 1 + lambda (arXiv:2010.11148).

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 for float64 encoder_part.

    Raises:
        ValueError: arguments that do not fit, or a joint that returns another number of classes.

    Example:
        A joint with a hidden layer, and an utterance of two frames and one token:

        >>> import torch
        >>> from nemo_codert.losses import chunked_joint_rnnt_loss
        >>> output = torch.nn.Linear(4, 3)
        >>> _ = torch.nn.init.zeros_(output.weight), torch.nn.init.zeros_(output.bias)
        >>> joint = lambda encoder, prediction: output(torch.relu(encoder + prediction))
        >>> encoder, prediction = torch.ones(1, 2, 4), torch.ones(1, 2, 4)
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> batch = encoder, prediction, torch.tensor([[0]]), *lengths
        >>> loss = chunked_joint_rnnt_loss(joint, *batch, num_classes=3, blank=2)
        >>> f"a probability of {torch.exp(-loss).item():.4f}, which is 2/27 = {2 / 27:.4f}"
        'a probability of 0.0741, which is 2/27 = 0.0741'
        >>> loss.backward()
        >>> [round(number, 4) + 0.0 for number in output.bias.grad.tolist()]
        [0.0, 1.0, -1.0]
    """
    check_reduction(reduction)
    check_joint_parts(encoder_part, prediction_part)
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_part.shape[:2], prediction_part.shape[1], num_classes),
        blank=blank,
        device=encoder_part.device,
    )

    def log_probs(frames: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = joint(frames[:, None], states[None])[None]  # [1, T', U_b+1, V+1]
        if logits.shape[3] != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but the joint gives {logits.shape[3]} classes")
        return JointLogProbs.apply(logits, tokens[None], [(len(frames), len(tokens))], blank)

    label, blanks = chunked_nodes(log_probs, encoder_part, prediction_part, batch, num_classes)
    losses = rnnt_lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    reduced = reduce_losses(losses, batch.target_lengths, reduction)
    return reduced.to(torch.promote_types(encoder_part.dtype, torch.float32))
