"""Log-probabilities of three classes at every node: the next label, the blank, and all others together.

The collapsed lattice of Panchapagesan et al., arXiv:2011.06110. The others are summed without the two, so that
their probability never cancels. Imports torch, `additive_float64`, `encoder_kl`, `float32_products`, `frames`,
`lattice_nodes`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, V vocabulary without blank, N nodes

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.additive_float64 import CELL_CHUNK_ELEMENTS, compute_dtype
from nemo_codert.losses.encoder_kl import divergence_and_gradient
from nemo_codert.losses.float32_products import full_precision
from nemo_codert.losses.frames import valid_cells
from nemo_codert.losses.lattice_nodes import lost_nodes, node_product, row_exponentials

LEAST = -1e30  # logit of a class that is not among the others: its exponential is 0, and all may be such


def _own_classes(targets: torch.Tensor, blank: int) -> torch.Tensor:
    """Return the classes [M, 2] of each state that are not among the others; the last state has the blank alone."""
    labels = pad(targets, (0, 1), value=blank)
    return torch.stack([labels, torch.full_like(labels, blank)], 1)


class _RestLogSum(torch.autograd.Function):
    """log sum of `exp(E[t] + G[u])` over all classes but a state's own, [T, M] float64, of one utterance."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        ctx.dtypes = encoder_logits.dtype, prediction_logits.dtype
        dtype = compute_dtype(encoder_logits, prediction_logits)
        found = _rest(encoder_logits.to(dtype), prediction_logits.to(dtype), own)
        if found[-1].any() and dtype != torch.float64:
            found = _rest(encoder_logits.double(), prediction_logits.double(), own)
        *exps, z, log_z, lost = found
        cells = lost.nonzero()
        ctx.cells = cells.split(max(CELL_CHUNK_ELEMENTS // encoder_logits.shape[1], 1)) if len(cells) else ()
        for t, u in (part.unbind(1) for part in ctx.cells):
            log_z[t, u] = _rest_logits(encoder_logits, prediction_logits, own, t, u).logsumexp(-1)
        z = z.masked_fill(lost, torch.inf)  # the products leave these nodes out
        logits = (encoder_logits, prediction_logits) if ctx.cells else (None, None)
        ctx.save_for_backward(*exps, z, log_z, own, *logits)
        return log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        encoder, prediction, z, log_z, own, *logits = ctx.saved_tensors
        weight = (upstream / z).to(encoder.dtype)
        with full_precision(z.device.type):
            gradients = (weight @ prediction).mul_(encoder), (weight.T @ encoder).mul_(prediction)
        for t, u in (part.unbind(1) for part in ctx.cells):
            share = (_rest_logits(*logits, own, t, u) - log_z[t, u, None]).exp() * upstream[t, u, None]
            for gradient, index in zip(gradients, (t, u), strict=True):
                gradient.index_add_(0, index, share.to(gradient.dtype))
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)), None


def _rest(encoder: torch.Tensor, prediction: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return both sides' exponentials, Z, log Z and the nodes that are lost in this precision, [T, M] each."""
    frames, states = row_exponentials(encoder[None]), row_exponentials(prediction.scatter(1, own, LEAST)[None])
    with full_precision(encoder.device.type):
        z = node_product(frames.exp, states.exp)
    lost = lost_nodes(z, frames, states)
    log_z = z.log() + frames.shifts + states.shifts.transpose(1, 2)
    return frames.exp[0], states.exp[0], z[0], log_z[0], lost[0]


def _rest_logits(
    encoder: torch.Tensor, prediction: torch.Tensor, own: torch.Tensor, t: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """Return the float64 logits [N, V+1] of nodes (t, u), `LEAST` for a state's own classes."""
    return (encoder[t].double() + prediction[u].double()).scatter(1, own[u], LEAST)


def additive_class_log_probs(
    encoder_logits: torch.Tensor,
    prediction_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    blank: int,
    temperature: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Return log-probabilities of next label, blank and all others at the nodes of an additive joint.

    Args:
        encoder_logits: [B, T, V+1] float.
        prediction_logits: [B, U+1, V+1] float.
        targets: [B, U] int; padding is not read.
        encoded_lengths: [B] int in frames, 0..T.
        target_lengths: [B] int in tokens, 0..U.
        blank: class of the blank, 0..V.
        temperature: divides the logits, above 0: a number, or a tensor [B].

    Returns:
        [B, T, U+1, 3] float64, with a graph; 0 beyond the lengths, the label's -inf in the last state of an utterance.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 1, 4), torch.zeros(1, 2, 4)  # T = 1, U = 1, V = 3
        >>> lengths = torch.tensor([1]), torch.tensor([1])
        >>> additive_class_log_probs(*logits, torch.tensor([[0]]), *lengths, blank=3).exp()
        tensor([[[[0.2500, 0.2500, 0.5000],
                  [0.0000, 0.2500, 0.7500]]]], dtype=torch.float64)
    """
    rows, sizes = [], list(zip(encoded_lengths.tolist(), target_lengths.tolist(), strict=True))
    if isinstance(temperature, torch.Tensor) or temperature != 1:
        tau = torch.as_tensor(temperature, device=encoder_logits.device).view(-1, 1, 1)
        dtype = compute_dtype(encoder_logits, prediction_logits)
        encoder_logits, prediction_logits = (
            each.to(dtype) / tau.to(dtype) for each in (encoder_logits, prediction_logits)
        )
    sides = encoder_logits.unbind(), prediction_logits.unbind(), targets.long().unbind()
    for encoder, prediction, tokens, (t, u) in zip(*sides, sizes, strict=True):
        encoder, prediction, tokens = encoder[:t], prediction[: u + 1], tokens[:u]  # noqa: PLW2901
        rest = _RestLogSum.apply(encoder, prediction, _own_classes(tokens, blank))
        of_blank = encoder[:, blank, None].double() + prediction[:, blank].double()
        next_label = prediction[:-1].gather(1, tokens[:, None]).T.double()  # [1, U]
        label = pad(encoder[:, tokens].double() + next_label, (0, 1), value=-torch.inf)
        rows.append(torch.stack([label, of_blank, rest], -1).log_softmax(-1))
    return padded_nodes(rows, encoder_logits.shape[1], prediction_logits.shape[1])


def padded_nodes(rows: list[torch.Tensor], num_frames: int, num_states: int) -> torch.Tensor:
    """Stack nodes [T_b, U_b+1, 3] of utterances to [B, T, U+1, 3], 0 beyond the lengths."""
    sizes = [(num_states - each.shape[1], num_frames - each.shape[0]) for each in rows]
    padded = [pad(each, (0, 0, 0, states, 0, frames)) for each, (states, frames) in zip(rows, sizes, strict=True)]
    return torch.stack(padded)


def class_log_probs_of(logits: torch.Tensor, targets: torch.Tensor, blank: int) -> torch.Tensor:
    """Return float64 log-probabilities [T, U+1, 3] of label, blank and others of logits [T, U+1, V+1]."""
    own = _own_classes(targets, blank).expand(len(logits), -1, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    label, of_blank = logits.gather(2, own).unbind(-1)  # [T, U+1] each
    last = torch.arange(logits.shape[1], device=logits.device) == len(targets)
    label = label.masked_fill(last, -torch.inf)
    rest = logits.scatter(2, own, LEAST).logsumexp(-1)
    return torch.stack([label, of_blank, rest], -1).double().log_softmax(-1)


def class_divergence(
    student_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Return KL(teacher || student) of the three classes at every node; the teacher gets no gradient.

    Args:
        student_log_probs, teacher_log_probs: [B, T, U+1, 3] float64.
        encoded_lengths: [B] int in frames. target_lengths: [B] int in tokens.

    Returns:
        [B, T, U+1], 0 or more, 0 beyond the lengths.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[0.5, 0.3, 0.2]]]]).log()
        >>> class_divergence(teacher, teacher, torch.tensor([1]), torch.tensor([0]))
        tensor([[[0.]]])
    """
    # Finite numbers in the place of -inf, of the last state's label.
    least = torch.finfo(student_log_probs.dtype).min / 4
    log_probs = student_log_probs.clamp(min=least), teacher_log_probs.detach().clamp(min=least)
    nodes = _ClassDivergence.apply(*log_probs)
    return nodes.masked_fill(~valid_cells(encoded_lengths, target_lengths, *nodes.shape[1:]), 0.0)


class _ClassDivergence(torch.autograd.Function):
    """KL(teacher || student) [..., N] of log-probabilities [..., N, 3], which stem from a log-softmax.

    The gradient is that of the log-softmax's argument, q - p, which the log-softmax hands on: exactly 0 at equality.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        divergence, gradient = divergence_and_gradient(student, teacher)
        ctx.save_for_backward(gradient)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[..., None], None
