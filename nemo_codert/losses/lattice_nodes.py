"""KL divergence at every node of the lattice of two additive joints and its gradient, by products alone.

With `z = E[t] + G[u]`, `D = E_t - E_s`, `H = G_t - G_s`, `Z = exp(E) exp(G)'` of each side, and node weights w:

    KL   = ((exp(E_t) D) exp(G_t)' + exp(E_t) (exp(G_t) H)') / Z_t - log Z_t + log Z_s
    dE_s = exp(E_s) ((w / Z_s) exp(G_s)) - exp(E_t) ((w / Z_t) exp(G_t))

and likewise dG_s: four products and four, or three and two where both sides have one G that gets no gradient. Imports
torch, `additive_float64`, `float32_products`.
"""

# n utterances, T encoder frames, M prediction states, V vocabulary without blank, N nodes

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import hardshrink

from nemo_codert.losses.additive_float64 import CELL_CHUNK_ELEMENTS, UNSHIFTED, smallest_sum, trusted_share
from nemo_codert.losses.float32_products import full_precision

CLASSES_AT_ONCE = 1024  # classes of one float32 product, or nearly; the products are added up in float64

Logits = tuple[torch.Tensor, torch.Tensor]  # [n, T, V+1] of the encoder and [n, M, V+1] of the prediction network


class NodeDivergence(NamedTuple):
    """Divergences of nodes, and gradients of their weighted sum.

    divergence: [n, T, M] float64, 0 or more. gradients: of the student's logits, each None where it is not wanted.
    lost: [n, T, M] bool, the nodes at which exponentials that underflowed or were rounded could matter; both others
    are 0 there. None where there are none.
    """

    divergence: torch.Tensor
    gradients: list[torch.Tensor | None]
    lost: torch.Tensor | None


class Rows(NamedTuple):
    """Exponentials of one side's logits."""

    exp: torch.Tensor  # [n, T, V+1], less the shifts
    maxima: torch.Tensor  # [n, T, 1], the largest logit of each row
    shifts: torch.Tensor  # [n, T, 1], subtracted from each row before

    @property
    def bounds(self) -> torch.Tensor:
        """The largest exponential of each row, [n, T, 1] float64; at least 1."""
        return (self.maxima.double() - self.shifts).clamp_(min=0.0).exp_()


def row_exponentials(logits: torch.Tensor) -> Rows:
    """Return the exponentials of logits [n, T, V+1], finite."""
    maxima = logits.amax(-1, keepdim=True)
    shifts = hardshrink(maxima, UNSHIFTED)
    if shifts.device.type == "cpu" and not shifts.any():  # saves a pass; on a GPU the host would wait
        return Rows(logits.exp(), maxima, shifts)
    return Rows((logits - shifts).exp_(), maxima, shifts)


def node_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left right' of [n, T, V+1] and [n, M, V+1] as [n, T, M] float64."""
    chunks = max(round(left.shape[-1] / CLASSES_AT_ONCE), 1)
    if chunks == 1:
        return torch.bmm(left, right.transpose(1, 2)).double()
    pairs = zip(left.chunk(chunks, -1), right.chunk(chunks, -1), strict=True)
    return sum(torch.bmm(each, other.transpose(1, 2)).double() for each, other in pairs)


def lost_nodes(z: torch.Tensor, encoder: Rows, prediction: Rows) -> torch.Tensor:
    """Return [n, T, M] bool, see `additive_float64`."""
    dtype = encoder.exp.dtype
    bounds = encoder.bounds * prediction.bounds.transpose(1, 2)
    return z < (trusted_share(dtype) * bounds).clamp_(min=smallest_sum(encoder.exp.shape[-1], dtype))


def _centred(teacher: torch.Tensor, student: torch.Tensor, of_teacher: Rows, of_student: Rows) -> torch.Tensor:
    """Return teacher - student, each less its row's maximum: exact near the maximum, at any distance of the rows."""
    return (teacher - of_teacher.maxima).sub_(student - of_student.maxima)


def _row_constants(of_teacher: Rows, of_student: Rows) -> torch.Tensor:
    """Return what `_centred` and the shifts of both exponentials left out of the divergences, [n, T, 1] float64."""
    centre = of_teacher.maxima.double() - of_student.maxima.double()
    return centre - of_teacher.shifts + of_student.shifts


def node_divergence(
    student: Logits, teacher: Logits, weights: torch.Tensor, wanted: Sequence[bool] = (True, True)
) -> NodeDivergence:
    """Return KL(teacher || student) at all nodes, and the gradients of its sum weighted by `weights`.

    Args:
        student, teacher: logits of both sides, float32 or float64, finite. Where both have one prediction tensor and
            no gradient of it is wanted, three products and two are computed, else four and four.
        weights: [n, T, M] float64.
        wanted: whether the gradients of the student's encoder and prediction logits are computed.

    Example:
        >>> import torch
        >>> student = torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)
        >>> teacher = torch.tensor([[[0.8, 0.2]]]).log(), torch.zeros(1, 1, 2)
        >>> found = node_divergence(student, teacher, torch.ones(1, 1, 1, dtype=torch.float64))
        >>> f"{found.divergence.item():.4f} nats", found.gradients[0]
        ('0.1927 nats', tensor([[[-0.3000,  0.3000]]]))
    """
    is_shared = student[1] is teacher[1]
    frames_t, frames_s, states_t = (
        row_exponentials(teacher[0]),
        row_exponentials(student[0]),
        row_exponentials(teacher[1]),
    )
    states_s = states_t if is_shared else row_exponentials(student[1])
    with full_precision(student[0].device.type):
        z_t, z_s = node_product(frames_t.exp, states_t.exp), node_product(frames_s.exp, states_s.exp)
        sums = node_product(_centred(teacher[0], student[0], frames_t, frames_s).mul_(frames_t.exp), states_t.exp)
        if not is_shared:
            of_states = _centred(teacher[1], student[1], states_t, states_s).mul_(states_t.exp)
            sums += node_product(frames_t.exp, of_states)
        lost = lost_nodes(z_t, frames_t, states_t).logical_or_(lost_nodes(z_s, frames_s, states_s))
        any_lost = bool(lost.any())
        if any_lost:
            z_t, z_s = z_t.masked_fill_(lost, 1.0), z_s.masked_fill_(lost, 1.0)
            weights = weights.masked_fill(lost, 0.0)
        divergence = (z_s / z_t).log_().add_(sums.div_(z_t)).add_(_row_constants(frames_t, frames_s))
        divergence = divergence.add_(_row_constants(states_t, states_s).transpose(1, 2)).clamp_(min=0.0)
        if any_lost:
            divergence.masked_fill_(lost, 0.0)
        per_z = [(weights / z).to(student[0].dtype) for z in (z_s, z_t)] if any(wanted) else []
        exps = (frames_s.exp, frames_t.exp), (states_s.exp, states_t.exp)
        gradients = [
            _gradient(per_z, *exps) if wanted[0] else None,
            _gradient([each.transpose(1, 2) for each in per_z], *exps[::-1]) if wanted[1] else None,
        ]
    return NodeDivergence(divergence, gradients, lost if any_lost else None)


def _gradient(per_z: list[torch.Tensor], own: Logits, other: Logits) -> torch.Tensor:
    """Return a gradient [n, T, V+1] of the student's logits; each pair is the student's and the teacher's.

    per_z: weights / Z, [n, T, M]. own: exponentials of the side whose gradient it is. other: of the other side.
    """
    gradient = torch.bmm(per_z[0], other[0]).mul_(own[0])
    return gradient.sub_(torch.bmm(per_z[1], other[1]).mul_(own[1]))


def exact_divergence(
    student: Logits, teacher: Logits, weights: torch.Tensor, wanted: Sequence[bool] = (True, True)
) -> NodeDivergence:
    """Return `node_divergence` of one utterance (n = 1) in float64, class by class where even that is not enough."""
    student, teacher = tuple(each.double() for each in student), tuple(each.double() for each in teacher)
    found = node_divergence(student, teacher, weights, wanted)
    if found.lost is None:
        return found
    cells = found.lost[0].nonzero().split(max(CELL_CHUNK_ELEMENTS // student[0].shape[-1], 1))
    for t, u in (part.unbind(1) for part in cells):
        p, q = ((side[0][0, t] + side[1][0, u]).log_softmax(-1) for side in (teacher, student))  # [N, V+1]
        found.divergence[0, t, u] = (p.exp() * (p - q)).sum(-1).clamp_(min=0.0)
        slopes = (q.exp() - p.exp()) * weights[0, t, u, None]
        for gradient, index in zip(found.gradients, (t, u), strict=True):
            if gradient is not None:
                gradient[0].index_add_(0, index, slopes)
    return found._replace(lost=None)
