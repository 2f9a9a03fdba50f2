"""Compiled CPU kernel of the divergence of two additive joints on the whole lattice, on torch's threads.

The formulas are in `lattice_nodes`, whose steps the kernel takes for one utterance after the other: thread i of n
computes every n-th utterance, starting with utterance i. Imports numpy, `additive_kernels`, `blas`,
`compile_cache`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, V vocabulary without blank, M = U + 1 prediction states

from typing import Any, NamedTuple

import numpy as np

from nemo_codert.losses.cpu.additive_kernels import ROW_ELEMENTS
from nemo_codert.losses.cpu.blas import fill_product
from nemo_codert.losses.cpu.compile_cache import callee, compiled
from nemo_codert.losses.cpu.normaliser_kernels import Limits, add_product, exponentiate, row_maximum
from nemo_codert.losses.cpu.openmp import on_torch_threads


class Rows(NamedTuple):
    """Rows of one side of an utterance, of its encoder or its prediction network."""

    logits: np.ndarray  # [T, V+1]
    exp: np.ndarray  # [T, V+1], exponentials of the logits less the shifts
    maxima: np.ndarray  # [T], the largest logit
    shifts: np.ndarray  # [T], the largest logit where it is far from 0, else 0


@callee
def _rows(logits: np.ndarray, temperature: float, unshifted: float) -> Rows:
    """Return the rows of logits [T, V+1] over the temperature."""
    if temperature != 1.0:
        logits = logits / logits.dtype.type(temperature)
    length, dtype = len(logits), logits.dtype
    rows = Rows(logits, np.empty(logits.shape, dtype), np.empty(length, dtype), np.zeros(length, dtype))
    for t in range(length):
        rows.maxima[t] = row_maximum(logits[t])
        if not abs(rows.maxima[t]) <= unshifted:
            rows.shifts[t] = rows.maxima[t]
        exponentiate(logits[t], rows.shifts[t], rows.exp[t])
    return rows


@callee
def _difference(teacher: Rows, student: Rows) -> np.ndarray:
    """Return teacher - student, each less its row's maximum, times the teacher's exponentials, [T, V+1]."""
    result = np.empty(teacher.exp.shape, teacher.exp.dtype)
    for t in range(len(result)):
        of_teacher, of_student, exp, row = teacher.logits[t], student.logits[t], teacher.exp[t], result[t]
        teacher_maximum, student_maximum = teacher.maxima[t], student.maxima[t]
        for v in range(len(row)):
            row[v] = ((of_teacher[v] - teacher_maximum) - (of_student[v] - student_maximum)) * exp[v]
    return result


@callee
def _constants(teacher: Rows, student: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three [T] float64: what a row adds to its divergences, and the largest exponential of either side."""
    length = len(teacher.maxima)
    added, teacher_bounds, student_bounds = np.empty(length), np.empty(length), np.empty(length)
    for t in range(length):
        teacher_maximum, student_maximum = np.float64(teacher.maxima[t]), np.float64(student.maxima[t])
        teacher_left = teacher_maximum - np.float64(teacher.shifts[t])
        student_left = student_maximum - np.float64(student.shifts[t])
        added[t] = teacher_left - student_left
        teacher_bounds[t], student_bounds[t] = np.exp(max(teacher_left, 0.0)), np.exp(max(student_left, 0.0))
    return added, teacher_bounds, student_bounds


@callee
def _node_sum(
    frames: tuple[Rows, Rows],
    states: tuple[Rows, Rows],
    sums: np.ndarray,
    z_teacher: np.ndarray,
    z_student: np.ndarray,
    weights: np.ndarray,
    limits: Limits,
    per_teacher: np.ndarray,
    per_student: np.ndarray,
) -> tuple[float, bool]:
    """Fill per_teacher and per_student with weights / Z, all [T, M]; frames and states: the teacher's, the student's.

    Returns the weighted sum of the divergences, and whether a node of weight cannot be trusted.
    """
    of_frames, teacher_frames, student_frames = _constants(*frames)
    of_states, teacher_states, student_states = _constants(*states)
    total, lost = 0.0, False
    for t in range(len(sums)):
        teacher_share, student_share = (
            limits.trusted_share * teacher_frames[t],
            limits.trusted_share * student_frames[t],
        )
        for u in range(len(of_states)):
            weight, z_t, z_s = weights[t, u], z_teacher[t, u], z_student[t, u]
            if z_t < max(teacher_share * teacher_states[u], limits.smallest_sum) or (
                z_s < max(student_share * student_states[u], limits.smallest_sum)
            ):
                lost |= weight != 0
                per_teacher[t, u], per_student[t, u] = 0.0, 0.0
                continue
            divergence = np.log(z_s / z_t) + sums[t, u] / z_t + of_frames[t] + of_states[u]
            if not divergence <= 0:  # or NaN
                total += divergence * weight
            per_teacher[t, u], per_student[t, u] = weight / z_t, weight / z_s
    return total, lost


@callee
def _fill_gradient(
    per_teacher: np.ndarray,
    per_student: np.ndarray,
    own: tuple[Rows, Rows],
    other: tuple[Rows, Rows],
    gradient: np.ndarray,
) -> None:
    """Fill the gradient [T, V+1] of the student's logits on one side; own, other: the teacher's rows, the student's.

    Some rows are computed at a time, which stay in the processor's cache until they are finished.
    """
    (own_teacher, own_student), (other_teacher, other_student) = own, other
    length, num_classes = own_teacher.exp.shape
    gradient[length:] = 0.0
    most = min(max(ROW_ELEMENTS // num_classes, 32), length)
    piece = np.empty((most, num_classes), gradient.dtype)
    for start in range(0, length, most):
        end = min(start + most, length)
        fill_product(per_student[start:end], other_student.exp, gradient[start:end])
        fill_product(per_teacher[start:end], other_teacher.exp, piece[: end - start])
        for t in range(start, end):
            row, part, student, teacher = gradient[t], piece[t - start], own_student.exp[t], own_teacher.exp[t]
            for v in range(num_classes):
                row[v] = row[v] * student[v] - part[v] * teacher[v]


@callee
def _divergences(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    temperatures: np.ndarray,
    weights: np.ndarray,
    limits: Limits,
    is_shared: bool,
    student_encoder: np.ndarray,
    student_prediction: np.ndarray,
    teacher_encoder: np.ndarray,
    teacher_prediction: np.ndarray,
    values: np.ndarray,
    redo: np.ndarray,
    of_encoder: np.ndarray,
    of_prediction: np.ndarray,
) -> None:
    """Compute every `threads`-th utterance; see `divergence_kernel`."""
    for b in range(thread, len(values), threads):
        t, m = sizes[b, 0], sizes[b, 1] + 1
        values[b], redo[b] = 0.0, False
        if t == 0:
            of_encoder[b], of_prediction[b] = 0.0, 0.0
            continue
        how = temperatures[b], limits.unshifted
        frames = _rows(teacher_encoder[b, :t], *how), _rows(student_encoder[b, :t], *how)
        teacher_states = _rows(teacher_prediction[b, :m], *how)
        student_states = teacher_states if is_shared else _rows(student_prediction[b, :m], *how)
        states = teacher_states, student_states
        z_teacher, z_student, sums = np.zeros((t, m)), np.zeros((t, m)), np.zeros((t, m))
        add_product(frames[0].exp, teacher_states.exp, z_teacher)
        add_product(frames[1].exp, student_states.exp, z_student)
        add_product(_difference(*frames), teacher_states.exp, sums)
        if not is_shared:
            add_product(frames[0].exp, _difference(*states), sums)
        per_z = np.empty((t, m), frames[0].exp.dtype), np.empty((t, m), frames[0].exp.dtype)
        found = _node_sum(frames, states, sums, z_teacher, z_student, weights[b, :t, :m], limits, *per_z)
        values[b], redo[b] = found
        if redo[b]:
            continue
        if of_encoder.shape[1] > 0:
            _fill_gradient(*per_z, frames, states, of_encoder[b])
        if of_prediction.shape[1] > 0:
            _fill_gradient(per_z[0].T, per_z[1].T, states, frames, of_prediction[b])


@compiled
def divergence_kernel(threads: int, *arguments: Any) -> None:
    """Compute weighted sums of the divergences of an utterance's nodes, and their gradients.

    The arguments are those of `_divergences` after the first two.

    Args:
        threads: number of threads.
        sizes: [B, 2] int64, frames and tokens.
        temperatures: [B] float64.
        weights: [B, T, M] float64.
        limits: of the logits' type.
        is_shared: whether both joints have one prediction network.
        student_encoder, student_prediction, teacher_encoder, teacher_prediction: [B, T, V+1] and [B, M, V+1], all
            float32 or all float64.
        values: [B] float64, filled.
        redo: [B] bool, filled: True for utterances that need float64, of which nothing else is right.
        of_encoder: [B, T, V+1], filled, unless it has no rows.
        of_prediction: [B, M, V+1], filled, unless it has no rows.
    """
    on_torch_threads(_divergences, arguments, threads)
