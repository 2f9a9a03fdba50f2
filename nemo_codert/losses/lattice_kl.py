"""KL divergence of two additive joints on the whole lattice, without a tensor of size T·U·V.

The formulas are in `lattice_nodes`. On the CPU a compiled kernel computes them (`cpu/divergence`), elsewhere, and
where the kernel cannot be built, torch's functions. Imports torch, `additive_float64`, `cpu_kernels`, `encoder_kl`,
`frames`, `lattice_nodes`, `temperature`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, V vocabulary without blank

import math
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from nemo_codert.losses.additive_float64 import compute_dtype
from nemo_codert.losses.cpu_kernels import lattice_divergence
from nemo_codert.losses.encoder_kl import check_settings
from nemo_codert.losses.frames import valid_cells, valid_frames
from nemo_codert.losses.lattice_nodes import Logits, exact_divergence, node_divergence
from nemo_codert.losses.temperature import least_temperature

LEAST_TOTAL = 1e-6  # an utterance whose node weights sum to less gets none

Sizes = list[tuple[int, int]]  # frames and tokens of every utterance
Temperature = float | torch.Tensor  # one number, or [B]


class _LatticeKL(torch.autograd.Function):
    """Weighted sums [B] of the divergences of an utterance's nodes; the teacher and the weights are constants."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        student_encoder: torch.Tensor,
        student_prediction: torch.Tensor,
        teacher: Logits,
        weights: torch.Tensor,
        sizes: Sizes,
        temperature: Temperature,
    ) -> torch.Tensor:
        student, wanted = (student_encoder, student_prediction), ctx.needs_input_grad[:2]
        dtype = torch.promote_types(compute_dtype(*student), compute_dtype(*teacher))
        compiled = lattice_divergence(dtype) if student_encoder.device.type == "cpu" else None
        if compiled is not None:
            logits = [tuple(each.to(dtype) for each in side) for side in (student, teacher)]
            temperatures = _per_utterance(temperature, weights.new_empty(len(sizes)))
            is_shared = is_one_tensor(student[1], teacher[1])
            values, gradients, redo = compiled(*logits, weights, sizes, temperatures, wanted, is_shared)
        else:
            gradients = [
                torch.empty_like(side, dtype=dtype, memory_format=torch.contiguous_format) if wants else None
                for side, wants in zip(student, wanted, strict=True)
            ]
            values, redo = weights.new_zeros(len(sizes)), []
            for rows in _parts(len(sizes), student_encoder.device):
                t, m = (max(size) for size in zip(*sizes[rows], strict=True))
                if t == 0:
                    _put(gradients, [side[:1, :0] for side in student], rows)
                    continue
                cut = weights[rows, :t, : m + 1]
                own, target = _sides(student, teacher, rows, t, m + 1, sizes, temperature, dtype)
                found = node_divergence(own, target, cut, wanted)
                values[rows] = (found.divergence * cut).sum((1, 2))
                _put(gradients, found.gradients, rows)
                lost = [] if found.lost is None else (found.lost & (cut != 0)).flatten(1).any(1).tolist()
                redo += [rows.start + place for place, again in enumerate(lost) if again]
        for b in redo:
            one, (t, u) = slice(b, b + 1), sizes[b]
            own, target = _sides(student, teacher, one, t, u + 1, sizes, temperature, dtype)
            found = exact_divergence(own, target, weights[one, :t, : u + 1], wanted)
            values[b] = (found.divergence * weights[one, :t, : u + 1]).sum()
            _put(gradients, found.gradients, one)
        ctx.save_for_backward(*gradients)
        ctx.per_temperature, ctx.dtypes = 1 / _per_utterance(temperature, values), [side.dtype for side in student]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = (upstream * ctx.per_temperature)[:, None, None]
        given = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        found = [None if each is None else (each * scale.to(each.dtype)).to(dtype) for each, dtype in given]
        return *found, None, None, None, None


def _parts(num_utterances: int, device: torch.device) -> list[slice]:
    """Return the rows that torch computes at a time: all on a GPU, in few launches, one on a CPU, to fit its cache."""
    at_once = 1 if device.type == "cpu" else max(num_utterances, 1)
    return [slice(first, first + at_once) for first in range(0, num_utterances, at_once)]


def _put(gradients: list[torch.Tensor | None], parts: list[torch.Tensor | None], rows: slice) -> None:
    for whole, part in zip(gradients, parts, strict=True):
        if whole is not None:
            whole[rows, : part.shape[1]] = part
            whole[rows, part.shape[1] :] = 0.0


def _cut(
    side: Logits, rows: slice, t: int, m: int, sizes: Sizes, temperature: Temperature, dtype: torch.dtype
) -> Logits:
    """Return the logits of some utterances over the temperature, [n, t, V+1] and [n, m, V+1], 0 in the padding."""
    found = []
    for logits, length, counts in zip(
        side, (t, m), ([s[0] for s in sizes[rows]], [s[1] + 1 for s in sizes[rows]]), strict=True
    ):
        part = logits[rows, :length].to(dtype)
        if min(counts) < length:
            valid = valid_frames(torch.tensor(counts, device=part.device), length)
            part = part.masked_fill(~valid[:, :, None], 0.0)
        if isinstance(temperature, torch.Tensor):
            part = part / temperature[rows, None, None].to(dtype)
        elif temperature != 1:
            part = part / temperature
        found.append(part)
    return tuple(found)


def _sides(student: Logits, teacher: Logits, rows: slice, *cut: Any) -> tuple[Logits, Logits]:
    """Return `_cut` of both sides, with one prediction tensor where they have one."""
    own, target = _cut(student, rows, *cut), _cut(teacher, rows, *cut)
    return ((own[0], target[1]), target) if is_one_tensor(student[1], teacher[1]) else (own, target)


def is_one_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are views of the same numbers, as a tensor and its `detach()` are."""

    def place(tensor: torch.Tensor) -> tuple:
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device

    return place(one) == place(other)


def _per_utterance(value: Temperature, like: torch.Tensor) -> torch.Tensor:
    """Return a number or a tensor [B] as [B], of the type and device of `like` [B]."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape)


def scaled_weights(
    node_weights: torch.Tensor | None,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    num_frames: int,
    num_states: int,
) -> torch.Tensor:
    """Return node weights that sum to T + U in every utterance, and are 0 beyond the lengths.

    Args:
        node_weights: [B, T, U+1] float, 0 or more, padding is not read; None: all nodes weigh the same.
        encoded_lengths: [B] int in frames, 0..T.
        target_lengths: [B] int in tokens, 0..U.
        num_frames: T.
        num_states: U + 1.

    Returns:
        [B, T, U+1] float64 without a graph; all 0 in an utterance without frames or whose weights sum to less than
        1e-6.

    Example:
        >>> import torch
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> scaled_weights(torch.tensor([[[1.0, 0.0], [1.0, 2.0]]]), *lengths, 2, 2)
        tensor([[[0.7500, 0.0000],
                 [0.7500, 1.5000]]], dtype=torch.float64)
    """
    valid = valid_cells(encoded_lengths, target_lengths, num_frames, num_states)
    weights = valid.double() if node_weights is None else node_weights.detach().double().masked_fill(~valid, 0.0)
    totals = weights.sum((1, 2))
    scale = torch.where(totals < LEAST_TOTAL, 0.0, (encoded_lengths + target_lengths) / totals.clamp(min=LEAST_TOTAL))
    return weights * scale[:, None, None]


def reduced(values: torch.Tensor, encoded_lengths: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce sums [B] over an utterance's nodes: over utterances (`per_utterance`) or frames (`per_frame`)."""
    count = encoded_lengths.sum() if reduction == "per_frame" else torch.tensor(len(values), device=values.device)
    return values.sum() / count.clamp(min=1)


def additive_lattice_kl(
    *,
    student_encoder_logits: torch.Tensor,
    student_prediction_logits: torch.Tensor,
    teacher_encoder_logits: torch.Tensor,
    teacher_prediction_logits: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    node_weights: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    reduction: str = "per_utterance",
    frames_per_student_frame: int = 1,
    teacher_lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return KL(teacher || student) of two additive joints at the nodes of the lattice, times temperature^2.

    A node's distribution is `softmax((E[b,t] + G[b,u]) / temperature)`. The value does not change where a constant
    c [V+1] is moved from one side of a joint to the other, `E + c, G - c`. Node weights are rescaled to T + U in every
    utterance. No gradient reaches the teacher. Computed in float32 (float64 if an argument is) where that is right to
    1e-6 nats a node, else in float64, utterance by utterance. Memory grows with T·V + U·V + T·U: there is no tensor of
    size T·U·V. Padding is never read. The joints are those of CoDERT, arXiv:2106.07734; the divergence on the whole
    lattice by products is this package's own.

    Args:
        student_encoder_logits: [B, T, V+1] float.
        student_prediction_logits: [B, U+1, V+1] float.
        teacher_encoder_logits: [B, T, V+1] float; with k = `frames_per_student_frame` up to kT frames, of which a
            group's divergences from the one student node are averaged.
        teacher_prediction_logits: [B, U+1, V+1] float. The student's own tensor, or its `detach()`, where the models
            share a decoder: less is then computed.
        encoded_lengths: [B] int, the student's frames, 0 <= encoded_lengths <= T; 0 leaves an utterance out.
        target_lengths: [B] int in tokens, 0..U.
        node_weights: [B, T, U+1] float, 0 or more, see `node_weights`; an utterance whose weights sum to less than
            1e-6 adds nothing. None: all nodes weigh the same.
        temperature: divides all logits, above 0: a number, or a tensor [B] (`lattice_temperatures`).
        reduction: `per_utterance` sums over nodes and averages over the batch; `per_frame` divides by the number of
            the student's frames instead (by 1 if there is none).
        frames_per_student_frame: k, 1 or more.
        teacher_lengths: [B] int, the teacher's frames; None: k times `encoded_lengths`.

    Returns:
        A scalar in nats: 0 where the distributions agree at every node of weight, never negative; float32, or float64
        if an argument is.

    Raises:
        ValueError: shapes or lengths that do not fit, a temperature that is not positive and finite, an unknown
            reduction.

    Example:
        One node, at which the teacher's probabilities are 0.8 and 0.2:

        >>> import torch
        >>> from nemo_codert.losses import additive_lattice_kl
        >>> student_encoder_logits = torch.zeros(1, 1, 2, requires_grad=True)  # B = 1, T = 1, V = 1
        >>> loss = additive_lattice_kl(
        ...     student_encoder_logits=student_encoder_logits,
        ...     student_prediction_logits=torch.zeros(1, 1, 2),  # U = 0
        ...     teacher_encoder_logits=torch.tensor([[[0.4, 0.2]]]).log(),
        ...     teacher_prediction_logits=torch.tensor([[[2.0, 1.0]]]).log(),
        ...     encoded_lengths=torch.tensor([1]),
        ...     target_lengths=torch.tensor([0]),
        ... )
        >>> f"{loss.item():.4f} nats"
        '0.1927 nats'
        >>> loss.backward()
        >>> student_encoder_logits.grad
        tensor([[[-0.3000,  0.3000]]])
    """
    student = student_encoder_logits, student_prediction_logits
    teacher = teacher_encoder_logits.detach(), teacher_prediction_logits.detach()
    _check_shapes(student, teacher, frames_per_student_frame)
    _check_settings(temperature, reduction, len(student[0]))
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.detach()
    device, (num_frames, num_states) = student[0].device, (student[0].shape[1], student[1].shape[1])
    frames = checked_lengths("encoded_lengths", encoded_lengths, len(student[0]), num_frames, device)
    tokens = checked_lengths("target_lengths", target_lengths, len(student[0]), num_states - 1, device)
    if node_weights is not None and node_weights.shape != (len(frames), num_frames, num_states):
        wanted = (len(frames), num_frames, num_states)
        raise ValueError(f"node_weights must be [B, T, U+1] = {list(wanted)}, got {tuple(node_weights.shape)}")
    weights, own_frames = scaled_weights(node_weights, frames, tokens, num_frames, num_states), frames
    if frames_per_student_frame > 1:
        factor, given = frames_per_student_frame, teacher[0].shape[1]
        own_frames = frames * factor if teacher_lengths is None else teacher_lengths
        own_frames = checked_lengths("teacher_lengths", own_frames, len(frames), given, device)
        student = student[0].repeat_interleave(factor, 1)[:, :given], student[1]
        weights = spread_weights(weights, own_frames, factor, given)
    sizes = list(zip(*torch.stack([own_frames, tokens]).tolist(), strict=True))
    values = _LatticeKL.apply(*student, teacher, weights, sizes, temperature)
    values = values * _per_utterance(temperature, values) ** 2
    return reduced(values, frames, reduction).to(torch.promote_types(compute_dtype(*student), compute_dtype(*teacher)))


def spread_weights(weights: torch.Tensor, teacher_lengths: torch.Tensor, factor: int, num_frames: int) -> torch.Tensor:
    """Share the weights of the student's nodes [B, T, M] among the teacher's frames of each group, as [B, T', M].

    Args:
        weights: [B, T, M].
        teacher_lengths: [B] int in frames; the last group of an utterance may have fewer than `factor`.
        factor: teacher frames per student frame.
        num_frames: T', at most T times factor.

    Example:
        >>> import torch
        >>> spread_weights(torch.ones(1, 2, 1), torch.tensor([3]), 2, 4).flatten()
        tensor([0.5000, 0.5000, 1.0000, 0.0000])
    """
    first = torch.arange(weights.shape[1], device=weights.device) * factor
    count = (teacher_lengths[:, None] - first).clamp(min=1, max=factor)  # [B, T]
    shares = (weights / count[:, :, None]).repeat_interleave(factor, 1)[:, :num_frames]
    return shares.masked_fill(~valid_frames(teacher_lengths, num_frames)[:, :, None], 0.0)


def _check_settings(temperature: Temperature, reduction: str, num_utterances: int) -> None:
    check_settings(temperature, reduction)
    if not isinstance(temperature, torch.Tensor):
        return
    if temperature.shape != (num_utterances,):
        raise ValueError(f"temperature must be a number or [{num_utterances}], got shape {tuple(temperature.shape)}")
    if not bool(((temperature > 0) & temperature.isfinite()).all()):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature.tolist()}")


def _check_shapes(student: Logits, teacher: Logits, factor: int) -> None:
    shapes = [tuple(each.shape) for each in (*student, *teacher)]
    if factor < 1:
        raise ValueError(f"frames_per_student_frame must be 1 or more, got {factor}")
    fits = all(len(shape) == 3 and shape[2] for shape in shapes) and len({shape[::2] for shape in shapes}) == 1
    if fits:
        frames, groups = shapes[0][1], -(-shapes[2][1] // factor)
        fits = shapes[1] == shapes[3] and frames == groups
    if not fits:
        raise ValueError(
            "logits must be [B, T, V+1] and [B, U+1, V+1] of one batch for student and teacher (T times "
            f"{factor} teacher frames), got {shapes[0]}, {shapes[1]} (student) and {shapes[2]}, {shapes[3]} (teacher)"
        )


def checked_lengths(
    name: str, lengths: torch.Tensor, num_utterances: int, most: int, device: torch.device
) -> torch.Tensor:
    """Return lengths as int64 on a device.

    Raises:
        ValueError: lengths that are not [B] of whole numbers between 0 and `most`.
    """
    if lengths.shape != (num_utterances,) or lengths.is_floating_point():
        raise ValueError(f"{name} must be [{num_utterances}] int, got {lengths.dtype} {tuple(lengths.shape)}")
    counts = lengths.tolist()
    if counts and not 0 <= min(counts) <= max(counts) <= most:
        raise ValueError(f"{name} must lie between 0 and {most}, got {counts}")
    return lengths.to(device).long()


def lattice_temperatures(
    *,
    encoder_logits: torch.Tensor,
    prediction_logits: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    floor: float,
) -> torch.Tensor:
    """Return for each utterance the least temperature of 1 or above that lifts the mean entropy of nodes to `floor`.

    The mean is over all nodes of the utterance's lattice, of an additive joint. Entropies take products alone:
    `H = log Z - ((exp(E) E) exp(G)' + exp(E) (exp(G) G)') / Z`. After Tang et al., arXiv:2306.15171, see
    `temperature`.

    Args:
        encoder_logits: E, [B, T, V+1] float, the teacher's.
        prediction_logits: G, [B, U+1, V+1] float.
        encoded_lengths: [B] int in frames, 0..T.
        target_lengths: [B] int in tokens, 0..U.
        floor: in nats, 0 or more and below log(V+1); 0 gives exactly 1.

    Returns:
        [B] without a graph, 1..1000; float64.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import lattice_temperatures
        >>> logits = {"encoder_logits": torch.tensor([[[4.0, 0.0]]]), "prediction_logits": torch.zeros(1, 1, 2)}
        >>> lengths = {"encoded_lengths": torch.tensor([1]), "target_lengths": torch.tensor([0])}
        >>> round(lattice_temperatures(**logits, **lengths, floor=0.5).item(), 2)
        2.88
    """
    with torch.no_grad():
        lengths = encoded_lengths.to(encoder_logits.device), target_lengths.to(encoder_logits.device)
        sizes = [encoder_logits.shape[1], prediction_logits.shape[1]]
        valid = valid_cells(*lengths, *sizes)
        sides = [
            side.double().masked_fill(~valid_frames(count, side.shape[1])[:, :, None], 0.0)
            for side, count in zip((encoder_logits, prediction_logits), (lengths[0], lengths[1] + 1), strict=True)
        ]
        sides = [side - side.amax(-1, keepdim=True) for side in sides]
        count = valid.sum((1, 2)).clamp(min=1)

        def entropy(temperature: torch.Tensor) -> torch.Tensor:
            nodes = _entropies(*(side / temperature[:, None, None] for side in sides))
            return nodes.masked_fill(~valid, 0.0).sum((1, 2)) / count

        one = torch.ones(len(count), dtype=torch.float64, device=count.device)
        if floor == 0 or bool((entropy(one) >= floor).all()):
            return one
        return torch.where(valid.any(2).any(1), least_temperature(entropy, floor, one), one)


def _entropies(encoder: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Return entropies [B, T, M] of the nodes of float64 logits whose rows have a maximum of 0."""
    exps = encoder.exp(), prediction.exp().transpose(1, 2)
    z = torch.bmm(exps[0], exps[1]).clamp_(min=math.exp(-700.0))  # the entropy of nodes with less counts as 0
    sums = torch.bmm(exps[0] * encoder, exps[1]) + torch.bmm(exps[0], exps[1] * prediction.transpose(1, 2))
    return z.log().sub_(sums.div_(z)).clamp_(min=0.0)
