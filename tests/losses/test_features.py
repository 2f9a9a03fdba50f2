"""Distances of hidden features and of CTC heads: against numpy, their invariances, padding, half precision."""

import math

import numpy as np
import pytest
import torch

from nemo_codert.losses import (
    feature_distance,
    full_sum_distillation_loss,
    group_features,
    softmax_l2_loss,
    valid_frames,
)
from tests.reference import features as reference

pytestmark = pytest.mark.unit

LENGTHS = [7, 3, 5]
# Name -> the loss of student, teacher [B, T, D] and lengths, and its reference.
MEASURES = {
    **{by: (by, {}, getattr(reference, by)) for by in ("mse", "cosine", "correlation", "energy", "gram")},
    "correlation_with_itself": (
        "correlation", {"self_weight": 0.3}, lambda s, t: reference.correlation(s, t, self_weight=0.3)
    ),
    "softmax_l2": ("softmax_l2", {}, reference.softmax_l2),
    "softmax_l2_warm": ("softmax_l2", {"temperature": 2.0}, lambda s, t: reference.softmax_l2(s, t, temperature=2.0)),
}  # fmt: skip
WIDTH_FREE = ("energy", "gram")


def distance(name: str, student, teacher, lengths=LENGTHS, **settings) -> torch.Tensor:
    by, options, _ = MEASURES[name]
    lengths = torch.tensor(lengths)
    if by == "softmax_l2":
        given = {"student_logits": student, "teacher_logits": teacher, "lengths": lengths}
        return softmax_l2_loss(**given, **options, **settings)
    return feature_distance(student=student, teacher=teacher, lengths=lengths, by=by, **options, **settings)


def features(seed: int, channels: int = 4, frames: int = 7, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)  # channels are correlated
    noise = torch.randn(len(LENGTHS), frames, channels, generator=generator, dtype=torch.float64)
    return (noise @ mixing + 0.5).to(dtype)


def utterances(padded: torch.Tensor) -> list[np.ndarray]:
    return [padded[b, :length].double().numpy() for b, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", MEASURES)
def test_value_and_gradient_are_those_of_numpy(name):
    teacher = features(2, channels=6 if name in WIDTH_FREE else 4)
    student = features(1).requires_grad_()
    _, _, plain = MEASURES[name]
    expected = plain(utterances(student.detach()), utterances(teacher))
    for reduction, count in (("per_utterance", 3), ("per_frame", 15)):
        value = distance(name, student, teacher, reduction=reduction)
        assert value.item() == pytest.approx(expected / count, rel=1e-12)  # float64 sums; 2e-15 seen
    (2.5 * value).backward()
    slopes = reference.numerical_gradient(lambda s: plain(s, utterances(teacher)), utterances(student.detach()))
    for b, slope in enumerate(slopes):
        # central differences with a step of 1e-5; 1e-9 seen
        torch.testing.assert_close(
            student.grad[b, : len(slope)], torch.from_numpy(2.5 / 15 * slope), rtol=0, atol=1e-6
        )
        assert not student.grad[b, len(slope) :].any()
    assert torch.autograd.gradcheck(lambda s: distance(name, s, teacher), student)


@pytest.mark.parametrize("name", MEASURES)
def test_float32_is_right_to_a_millionth_also_near_the_teacher(name):
    teacher = features(2, dtype=torch.float32)
    for apart in (1.0, 1e-2, 1e-4):
        student = teacher + apart * features(1, dtype=torch.float32)
        exact = distance(name, student.double(), teacher.double())
        # whichever is larger, relative or absolute: near models cancel
        torch.testing.assert_close(distance(name, student, teacher).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(name, dtype):
    student, teacher = features(1, dtype=dtype).requires_grad_(), features(2, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance(name, student, teacher)
    whole = distance(name, student.detach().float(), teacher.float())
    torch.testing.assert_close(value, whole, rtol=1e-6, atol=0)  # layouts of the products may differ
    value.backward()
    assert student.grad.dtype == dtype and student.grad.any()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_and_the_order_of_utterances_do_not_matter(name, garbage):
    values, gradients, order = [], [], [2, 0, 1]
    for dirty in (False, True):
        sides = [features(1), features(2)]
        if dirty:
            beyond = ~valid_frames(torch.tensor(LENGTHS), 9)[:, :, None]
            sides = [torch.nn.functional.pad(side, (0, 0, 0, 2)).masked_fill(beyond, garbage)[order] for side in sides]
        sides[0].requires_grad_()
        lengths = [LENGTHS[b] for b in order] if dirty else LENGTHS
        values.append(distance(name, *sides, lengths))
        values[-1].backward()
        gradients.append(sides[0].grad)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)  # sums in another order
    torch.testing.assert_close(gradients[1][:, :7], gradients[0][order], rtol=1e-10, atol=1e-14)
    assert not gradients[1][:, 7:].any()


@pytest.mark.parametrize("name", MEASURES)
def test_it_is_zero_at_equality_but_for_correlations_among_the_teachers_channels(name):
    teacher = features(2, dtype=torch.float32).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    value = distance(name, student, teacher)
    value.backward()
    assert teacher.grad is None
    if "correlation" not in name:
        assert value == 0 and not student.grad.any()
        return
    flat = np.concatenate(utterances(teacher.detach()))
    own = np.corrcoef(flat, rowvar=False) - np.eye(4)
    weight = 1 + MEASURES[name][1].get("self_weight", 0)
    assert value.item() == pytest.approx(weight * np.sum(own**2) / 4 * 15 / 3, rel=1e-6)


def test_a_copy_of_a_white_teacher_has_no_correlation_left():
    flat = np.concatenate(utterances(features(2)))
    white = torch.from_numpy(np.linalg.qr(flat - flat.mean(0))[0])  # [15, 4], uncorrelated channels
    white = torch.nn.utils.rnn.pad_sequence(white.split(LENGTHS), batch_first=True)
    value = distance("correlation_with_itself", 3 * white + 1, white)
    assert abs(value.item()) < 1e-24  # squares of float64's rounding; 3e-30 seen


@pytest.mark.parametrize("name, changed", [
    ("cosine", lambda x: 3 * x),
    ("correlation", lambda x: x * torch.tensor([1.0, 5.0, 0.1, 100.0]) + torch.tensor([0.0, 1.0, -2.0, 30.0])),
    ("energy", lambda x: 0.01 * x + 3),
    ("gram", lambda x: 7 * x @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] - 2),
    ("softmax_l2", lambda x: x + torch.randn(3, 7, 1, dtype=torch.float64)),
])  # fmt: skip
def test_what_it_does_not_see_changes_nothing(name, changed):
    student, teacher = features(1), features(2)
    value = distance(name, student, teacher)
    torch.testing.assert_close(distance(name, changed(student), teacher), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(distance(name, student, changed(teacher)), value, rtol=1e-12, atol=0)
    assert value > 0.01


def test_frames_of_one_energy_still_have_an_energy_map():
    normed = torch.nn.functional.layer_norm(features(1), (4,))  # as the output of a Conformer layer
    assert distance("energy", normed, features(2)) > 0.1 < distance("energy", features(2), normed)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("reduction", ["per_utterance", "per_frame"])
def test_a_batch_without_frames_costs_nothing_and_stays_in_the_graph(name, reduction):
    student = torch.full((2, 4, 3), math.nan, requires_grad=True)
    value = distance(name, student, torch.randn(2, 4, 3), [0, 0], reduction=reduction)
    value.backward()
    assert value == 0 and not student.grad.any()


@pytest.mark.parametrize("name", ["cosine", "correlation", "energy", "gram"])
@pytest.mark.parametrize("filling", [0.0, 0.1])
def test_constant_features_give_finite_gradients(name, filling):
    student = torch.full((3, 7, 4), filling, requires_grad=True)
    value = distance(name, student, features(2, dtype=torch.float32))
    value.backward()
    assert value.isfinite() and student.grad.abs().max() < 10


@pytest.mark.parametrize("change, message", [
    ({"by": "mae"}, "one of mse, cosine, correlation, energy, gram, got 'mae'"),
    ({"reduction": "mean"}, "per_utterance, per_frame, got 'mean'"),
    ({"teacher": torch.zeros(3, 7, 5)}, r"same shape for mse, got \(3, 7, 4\) .* and \(3, 7, 5\)"),
    ({"by": "gram", "teacher": torch.zeros(3, 8, 5)}, r"same B and T for gram, got \(3, 7, 4\)"),
    ({"lengths": torch.tensor([1, 2])}, r"shape \(3,\) like the batch, got \(2,\)"),
    ({"lengths": torch.tensor([1, 2, 8])}, "between 0 and the 7 frames"),
    ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, "whole numbers"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_what_was_got(change, message):
    given = {"student": features(1), "teacher": features(2), "lengths": torch.tensor(LENGTHS)}
    with pytest.raises(ValueError, match=message):
        feature_distance(**(given | change))


def test_a_group_of_features_is_the_mean_of_the_frames_it_has():
    lengths = torch.tensor(LENGTHS)
    dirty = features(1).masked_fill(~valid_frames(lengths, 7)[:, :, None], math.nan).requires_grad_()
    grouped, grouped_lengths = group_features(dirty, lengths, 3)
    assert grouped.shape == (3, 3, 4) and grouped_lengths.tolist() == [3, 1, 2]
    for b, length in enumerate(LENGTHS):
        for group, frames in enumerate(dirty[b, :length].split(3)):
            torch.testing.assert_close(grouped[b, group], frames.mean(0), rtol=1e-12, atol=0)
    grouped.sum().backward()
    assert dirty.grad[0, :3].unique().item() == pytest.approx(1 / 3) and dirty.grad[0, 6].unique() == 1
    assert not dirty.grad[1, 3:].any() and not grouped[1, 1:].any()
    assert group_features(dirty, lengths, 1)[0] is dirty
    with pytest.raises(ValueError, match="got 0"):
        group_features(dirty, lengths, 0)


def test_the_full_sum_distance_is_that_worked_out_by_hand():
    student = torch.tensor([4.0, 10.0], requires_grad=True)
    teacher = torch.tensor([1.0, 12.0], requires_grad=True)
    lengths = {"encoded_lengths": torch.tensor([5, 6]), "target_lengths": torch.tensor([4, 2])}
    loss = full_sum_distillation_loss(student_losses=student, teacher_losses=teacher, **lengths)
    loss.backward()
    assert loss.item() == pytest.approx((9 / 9 + 4 / 8) / 2)
    assert student.grad.tolist() == pytest.approx([2 * 3 / 9 / 2, -2 * 2 / 8 / 2]) and teacher.grad is None
    with pytest.raises(ValueError, match=r"\[B\] of one batch"):
        full_sum_distillation_loss(student_losses=student[:1], teacher_losses=teacher, **lengths)
