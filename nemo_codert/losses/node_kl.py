"""KL divergence at the nodes of any joints' lattices, a part of the nodes at a time.

For stock joints, and where one joint is additive and the other is not. Nodes of weight 0 are left out, so that a path
costs T + U of them. As in `joint_rnnt` logits are computed again in the backward pass where there are many. Imports
torch, `class_scores`, `encoder_kl`, `frames`, `joint_rnnt`, `lattice_kl`, `temperature`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, V vocabulary without blank, H joint
# channels, N nodes; T_b, U_b those of utterance b

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from nemo_codert.losses.class_scores import class_log_probs_of, padded_nodes
from nemo_codert.losses.encoder_kl import check_settings, row_divergence
from nemo_codert.losses.frames import valid_cells
from nemo_codert.losses.joint_rnnt import CHUNK_ELEMENTS, KEPT_ELEMENTS
from nemo_codert.losses.lattice_kl import checked_lengths, reduced, scaled_weights, spread_weights
from nemo_codert.losses.temperature import least_temperature

SPARSE = 0.5  # share of nodes with weight below which these are gathered

Temperature = float | torch.Tensor  # one number, or [B]


class JointSide(NamedTuple):
    """A joint and its two projections.

    Args:
        joint: takes [N, 1, H] and [1, M, H], or [N, 1, H] twice, returns logits [N, M, V+1] or [N, 1, V+1].
        encoder_part: [B, T, H].
        prediction_part: [B, U+1, H]. H may differ between student and teacher.

    Example:
        >>> import torch
        >>> additive = lambda frames, states: frames + states
        >>> JointSide(additive, torch.zeros(1, 5, 8), torch.zeros(1, 3, 8)).width(num_classes=8)
        8
    """

    joint: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    encoder_part: torch.Tensor
    prediction_part: torch.Tensor

    def width(self, num_classes: int) -> int:
        """Return the elements of one node: its logits or its hidden layer."""
        return max(num_classes, self.encoder_part.shape[2])


class _Sizes(NamedTuple):
    num_frames: int
    num_tokens: int
    width: int  # elements of one node
    recompute: bool

    def chunks(self, nodes_per_row: int) -> int:
        """Return the rows of `nodes_per_row` nodes each that are computed at a time."""
        return max(CHUNK_ELEMENTS // (nodes_per_row * self.width), 1)


def _sizes(frames: torch.Tensor, tokens: torch.Tensor, width: int) -> list[_Sizes]:
    sizes = torch.stack([frames, tokens]).T.tolist()
    many = sum(t * (u + 1) for t, u in sizes) * width > KEPT_ELEMENTS
    return [_Sizes(t, u, width, many and torch.is_grad_enabled()) for t, u in sizes]


def _temperatures(temperature: Temperature, count: int) -> list[float]:
    return temperature.tolist() if isinstance(temperature, torch.Tensor) else [temperature] * count


def joint_lattice_kl(
    *,
    student: JointSide,
    teacher: JointSide,
    num_classes: int,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    node_weights: torch.Tensor | None = None,
    temperature: Temperature = 1.0,
    reduction: str = "per_utterance",
    frames_per_student_frame: int = 1,
    teacher_lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return KL(teacher || student) of any joints at the nodes of the lattice, times temperature^2.

    What `additive_lattice_kl` is for additive joints, for any others: the logits of a part of the nodes are computed
    at a time. No gradient reaches the teacher. Padding is never read.

    Args:
        student, teacher: the joints and their projections.
        num_classes: V+1.
        encoded_lengths, target_lengths, teacher_lengths: as in `additive_lattice_kl`.
        node_weights: as there. Nodes of weight 0 are not computed.
        temperature, reduction, frames_per_student_frame: as there.

    Returns:
        A scalar in nats; float32, or float64 for float64 logits.

    Raises:
        ValueError: lengths that do not fit, a temperature that is not positive and finite, an unknown reduction.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import JointSide, joint_lattice_kl
        >>> output = torch.nn.Linear(4, 3)
        >>> joint = lambda encoder, prediction: output(torch.relu(encoder + prediction))
        >>> student, teacher = (JointSide(joint, torch.randn(1, 2, 4), torch.randn(1, 2, 4)) for _ in range(2))
        >>> lengths = {"encoded_lengths": torch.tensor([2]), "target_lengths": torch.tensor([1])}
        >>> joint_lattice_kl(student=student, teacher=student, num_classes=3, **lengths).item()
        0.0
        >>> joint_lattice_kl(student=student, teacher=teacher, num_classes=3, **lengths).item() > 0
        True
    """
    check_settings(temperature, reduction)
    (batch, num_frames, _), num_states = student.encoder_part.shape, student.prediction_part.shape[1]
    device = student.encoder_part.device
    frames = checked_lengths("encoded_lengths", encoded_lengths, batch, num_frames, device)
    tokens = checked_lengths("target_lengths", target_lengths, batch, num_states - 1, device)
    weights, own_frames = scaled_weights(node_weights, frames, tokens, num_frames, num_states), frames
    factor, given = frames_per_student_frame, teacher.encoder_part.shape[1]
    if factor > 1:
        own_frames = frames * factor if teacher_lengths is None else teacher_lengths
        own_frames = checked_lengths("teacher_lengths", own_frames, batch, given, device)
        repeated = student.encoder_part.repeat_interleave(factor, 1)[:, :given]
        student, weights = (
            student._replace(encoder_part=repeated),
            spread_weights(weights, own_frames, factor, given),
        )
    width = max(student.width(num_classes), teacher.width(num_classes))
    sizes, taus = _sizes(own_frames, tokens, width), _temperatures(temperature, batch)
    # unbind, not indexing: the backward pass of each index would allocate a gradient of the whole batch.
    parts = (part.unbind() for part in (*student[1:], *(each.detach() for each in teacher[1:]), weights))
    values = []
    for *sides, weight, size, tau in zip(*parts, sizes, taus, strict=True):
        sums = [
            checkpoint(_weighted_sum, student.joint, teacher.joint, *nodes, tau, use_reentrant=False)
            if size.recompute
            else _weighted_sum(student.joint, teacher.joint, *nodes, tau)
            for nodes in _node_chunks(sides, weight, size)
        ]
        zero = 0.0 * sides[0][:0].sum()  # keeps the graph of an utterance without weight
        values.append(tau**2 * sum(sums, zero))
    return reduced(torch.stack(values), frames, reduction)


def _node_chunks(
    sides: list[torch.Tensor], weight: torch.Tensor, size: _Sizes
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield parts of student and teacher that broadcast to nodes, and the weights of these nodes."""
    t, m = size.num_frames, size.num_tokens + 1
    weight = weight[:t, :m]
    nodes = weight.nonzero()
    if len(nodes) < SPARSE * t * m:
        for chunk in nodes.split(size.chunks(1)) if len(nodes) else ():
            rows, states = chunk.unbind(1)
            own = [side[index][:, None] for side, index in zip(sides, (rows, states, rows, states), strict=True)]
            yield *own, weight[rows, states]
        return
    steps = [each.split(size.chunks(m)) for each in (sides[0][:t], sides[2][:t], weight)]
    for own, target, of_nodes in zip(*steps, strict=True):
        yield own[:, None], sides[1][None, :m], target[:, None], sides[3][None, :m], of_nodes.flatten()


def _weighted_sum(
    student: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    teacher: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *arguments: torch.Tensor | float,
) -> torch.Tensor:
    """Return the weighted sum of the nodes' divergences; see `_node_chunks` for the arguments, and a temperature."""
    *parts, weights, tau = arguments
    with torch.no_grad():
        targets = teacher(*parts[2:]).flatten(0, 1)  # [N, V+1]
    logits = student(*parts[:2]).flatten(0, 1)
    nodes = row_divergence(logits, targets, tau)
    return (nodes * weights.to(nodes.dtype)).sum()


def joint_class_log_probs(
    side: JointSide,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    num_classes: int,
    blank: int,
    temperature: Temperature = 1.0,
) -> torch.Tensor:
    """Return log-probabilities of next label, blank and all others at the nodes of any joint.

    Args:
        side: the joint and its projections.
        targets: [B, U] int; padding is not read.
        encoded_lengths: [B] int in frames, 0..T. target_lengths: [B] int in tokens, 0..U.
        num_classes: V+1.
        blank: class of the blank, 0..V.
        temperature: divides the logits, above 0: a number, or a tensor [B].

    Returns:
        [B, T, U+1, 3] float64, with a graph; 0 beyond the lengths, the label's -inf in the last state of an utterance.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import JointSide
        >>> parts = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)
        >>> side = JointSide(lambda encoder, prediction: encoder + prediction, *parts)
        >>> lengths = torch.tensor([1]), torch.tensor([0])
        >>> joint_class_log_probs(side, torch.zeros(1, 0), *lengths, num_classes=4, blank=3).exp()
        tensor([[[[0.0000, 0.2500, 0.7500]]]], dtype=torch.float64)
    """

    def log_probs(frames: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor, tau: float) -> torch.Tensor:
        logits = side.joint(frames[:, None], states[None])
        return class_log_probs_of(logits if tau == 1 else logits / tau, tokens, blank)

    sizes = _sizes(encoded_lengths, target_lengths, side.width(num_classes))
    parts = side.encoder_part.unbind(), side.prediction_part.unbind(), targets.long().unbind()
    rows = []
    for frames, states, tokens, size, tau in zip(*parts, sizes, _temperatures(temperature, len(sizes)), strict=True):
        arguments = states[: size.num_tokens + 1], tokens[: size.num_tokens], tau
        chunks = [
            checkpoint(log_probs, part, *arguments, use_reentrant=False)
            if size.recompute
            else log_probs(part, *arguments)
            for part in frames[: size.num_frames].split(size.chunks(size.num_tokens + 1))
        ]
        rows.append(torch.cat(chunks))
    return padded_nodes(rows, side.encoder_part.shape[1], side.prediction_part.shape[1])


def joint_node_logits(side: JointSide, num_outputs: int) -> torch.Tensor:
    """Return the logits of a joint with few outputs at all nodes, padding included, without a graph.

    Args:
        side: a joint and its projections, such as a TDT joint's outputs for durations.
        num_outputs: N.

    Returns:
        [B, T, U+1, N], computed for some frames at a time.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import JointSide
        >>> parts = torch.ones(1, 2, 3), torch.ones(1, 1, 3)
        >>> side = JointSide(lambda encoder, prediction: encoder + prediction, *parts)
        >>> joint_node_logits(side, num_outputs=3).shape
        torch.Size([1, 2, 1, 3])
    """
    with torch.no_grad():
        batch, num_states = side.prediction_part.shape[:2]
        step = max(CHUNK_ELEMENTS // (batch * num_states * side.width(num_outputs)), 1)
        states = side.prediction_part[:, None]
        return torch.cat([side.joint(frames[:, :, None], states) for frames in side.encoder_part.split(step, 1)], 1)


def joint_temperatures(
    side: JointSide,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    num_classes: int,
    floor: float,
) -> torch.Tensor:
    """Return `lattice_temperatures` of any joint, whose logits are computed again for every temperature that is tried.

    Args:
        side: the teacher's joint and its projections.
        encoded_lengths: [B] int in frames, 0..T. target_lengths: [B] int in tokens, 0..U.
        num_classes: V+1.
        floor: in nats, 0 or more and below log(V+1); 0 gives exactly 1.

    Returns:
        [B] float64 without a graph, 1..1000.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import JointSide
        >>> logits = torch.tensor([[[4.0, 0.0]]]), torch.zeros(1, 1, 2)
        >>> side = JointSide(lambda encoder, prediction: encoder + prediction, *logits)
        >>> lengths = torch.tensor([1]), torch.tensor([0])
        >>> round(joint_temperatures(side, *lengths, num_classes=2, floor=0.5).item(), 2)
        2.88
    """
    with torch.no_grad():
        one = torch.ones(len(side.encoder_part), dtype=torch.float64, device=side.encoder_part.device)
        if floor == 0:
            return one
        sizes = _sizes(encoded_lengths, target_lengths, side.width(num_classes))

        def entropy(temperature: torch.Tensor) -> torch.Tensor:
            return torch.stack([_mean_entropy(side, b, sizes[b], tau) for b, tau in enumerate(temperature.tolist())])

        if bool((entropy(one) >= floor).all()):
            return one
        exists = valid_cells(encoded_lengths, target_lengths, 1, 1).flatten()
        return torch.where(exists.to(one.device), least_temperature(entropy, floor, one), one)


def _mean_entropy(side: JointSide, b: int, size: _Sizes, tau: float) -> torch.Tensor:
    """Return the mean entropy of the nodes of utterance b, a scalar float64."""
    total, states = torch.zeros((), dtype=torch.float64, device=side.encoder_part.device), size.num_tokens + 1
    for frames in side.encoder_part[b, : size.num_frames].split(size.chunks(states)):
        log_probs = (side.joint(frames[:, None], side.prediction_part[b, None, :states]).float() / tau).log_softmax(-1)
        total -= (log_probs.exp() * log_probs).nan_to_num_(0.0).sum(dtype=torch.float64)
    return total / max(size.num_frames * states, 1)
