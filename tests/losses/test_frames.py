"""Valid frames, the grouping of a faster teacher's frames, and the pairing with a student that lags behind."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import encoder_distillation_loss, group_frames, paired_frames, valid_frames

pytestmark = pytest.mark.unit


def test_valid_frames_are_those_before_the_length():
    valid = valid_frames(torch.tensor([0, 2, 3]), 3)
    assert valid.tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_factor_one_returns_the_very_arguments():
    logits, lengths = torch.randn(2, 3, 4, dtype=torch.float16), torch.tensor([3, 1])
    grouped, grouped_lengths = group_frames(logits, lengths, 1)
    assert grouped is logits and grouped_lengths is lengths


def test_a_group_is_the_mean_of_its_frames_distributions():
    first, second, third = [0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]
    logits = torch.tensor([[first, second, third]]).log() + torch.tensor([[[3.0], [-1.0], [0.5]]])  # any constants
    grouped, lengths = group_frames(logits, torch.tensor([3]), 2)
    expected = torch.tensor([[[0.3, 0.175, 0.525], third]])
    # float32 logarithms and sums of 3 terms; 6e-8 seen
    torch.testing.assert_close(grouped.exp(), expected, rtol=0, atol=1e-6)
    assert lengths.tolist() == [2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 11), st.integers(2, 4), st.integers(0, 10_000))
def test_grouping_matches_averaging_utterance_by_utterance(num_frames, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(3, num_frames, 6, generator=generator)
    lengths = torch.randint(0, num_frames + 1, (3,), generator=generator)
    grouped, grouped_lengths = group_frames(logits, lengths, factor)
    assert grouped.shape == (3, math.ceil(num_frames / factor), 6)
    for b, length in enumerate(lengths.tolist()):
        assert grouped_lengths[b] == math.ceil(length / factor)
        for group, frames in enumerate(logits[b, :length].double().softmax(-1).split(factor) if length else ()):
            # float32 log-softmax of logits up to 20; 2e-6 seen
            torch.testing.assert_close(grouped[b, group].double(), frames.mean(0).log(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_garbage_reaches_neither_values_nor_gradients(garbage):
    lengths = torch.tensor([5, 2, 0])
    clean = torch.randn(3, 7, 4)
    dirty = clean.masked_fill(~valid_frames(lengths, 7)[:, :, None], garbage).requires_grad_()
    clean = clean.masked_fill(~valid_frames(lengths, 7)[:, :, None], 0.0).requires_grad_()
    for logits in (clean, dirty):
        group_frames(logits, lengths, 3)[0].square().sum().backward()
    torch.testing.assert_close(group_frames(dirty, lengths, 3)[0], group_frames(clean, lengths, 3)[0], rtol=0, atol=0)
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)
    assert not dirty.grad[~valid_frames(lengths, 7)].any()


def test_groups_of_nothing_but_padding_are_zeros():
    grouped, lengths = group_frames(torch.full((2, 4, 3), math.nan), torch.tensor([0, 0]), 2)
    assert lengths.tolist() == [0, 0] and not grouped.any()


def test_the_gradient_is_that_of_the_formula():
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: group_frames(x, torch.tensor([5, 3]), 2)[0], logits)


def test_half_precision_is_grouped_in_float32():
    logits = torch.randn(1, 4, 3).half()
    grouped, _ = group_frames(logits, torch.tensor([4]), 2)
    torch.testing.assert_close(grouped, group_frames(logits.float(), torch.tensor([4]), 2)[0], rtol=0, atol=0)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        group_frames(torch.zeros(1, 2, 3), torch.tensor([2]), 0)


def numbered(frames: int, batch: int = 1) -> torch.Tensor:
    """Logits [batch, frames, 1] that say which frame they are of."""
    return torch.arange(float(frames)).view(1, frames, 1).repeat(batch, 1, 1)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_the_students_frame_t_plus_shift_meets_the_teachers_frame_t(shift):
    student, teacher, lengths = paired_frames(numbered(7), torch.tensor([7]), numbered(6), torch.tensor([6]), shift)
    assert torch.equal(student, teacher + shift)
    assert lengths.tolist() == [min(7 - shift, 6)] and student.shape[1] == lengths[0]


def test_pairs_end_with_the_shorter_side_of_each_utterance():
    student_lengths, teacher_lengths = torch.tensor([9, 9, 4, 2, 1, 0]), torch.tensor([8, 3, 8, 8, 8, 0])
    student, teacher = numbered(9, batch=6), numbered(8, batch=6)
    paired, _, lengths = paired_frames(student, student_lengths, teacher, teacher_lengths, 2)
    assert lengths.tolist() == [7, 3, 2, 0, 0, 0] and paired.shape[1] == 7


def distilled(student: torch.Tensor, teacher: torch.Tensor, lengths: list[int], shift: int) -> torch.Tensor:
    """Distillation loss of shifted pairs, the lengths being those of both sides."""
    paired = paired_frames(student, torch.tensor(lengths), teacher, torch.tensor(lengths), shift)
    return encoder_distillation_loss(**dict(zip(("student_logits", "teacher_logits", "lengths"), paired, strict=True)))


def test_a_shifted_distillation_has_the_value_worked_out_by_hand():
    teacher = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]]]).log()
    student = torch.tensor([[[0.8, 0.2], [0.25, 0.75], [0.9, 0.1]]]).log()
    # Pairs (1, 0) and (2, 1); the second is equal.
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distilled(student, teacher, [3], shift=1).item() == pytest.approx(expected, abs=1e-6)  # float32 logarithms


def test_a_student_that_says_the_same_later_has_nothing_to_learn():
    teacher = torch.randn(2, 8, 5)
    student = torch.cat([torch.randn(2, 2, 5), teacher[:, :-2]], 1)
    assert distilled(student, teacher, [8, 6], shift=2) == 0.0 < distilled(student, teacher, [8, 6], shift=0)


def test_a_shift_moves_the_gradient_to_the_paired_frames_alone():
    student = torch.randn(2, 6, 4, requires_grad=True)
    distilled(student, torch.randn(2, 6, 4), [6, 4], shift=2).backward()
    moved = student.grad.abs().sum(-1) > 0
    assert moved.tolist() == [[False, False, True, True, True, True], [False, False, True, True, False, False]]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_does_not_reach_a_shifted_distillation(garbage):
    lengths, teacher, student = [5, 3], torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    values, gradients = [], []
    for filling in (0.0, garbage):
        padding = ~valid_frames(torch.tensor(lengths), 9)[:, :, None]
        sides = [
            torch.nn.functional.pad(side, (0, 0, 0, 4)).masked_fill(padding, filling) for side in (student, teacher)
        ]
        sides[0].requires_grad_()
        values.append(distilled(*sides, lengths, shift=1))
        values[-1].backward()
        gradients.append(sides[0].grad)
    assert values[0] == values[1] == distilled(student, teacher, lengths, shift=1)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("shift", [4, 5, 100])
def test_nothing_is_learnt_where_the_shift_leaves_no_frame(shift):
    student = torch.randn(2, 4, 3, requires_grad=True)
    loss = distilled(student, torch.randn(2, 4, 3), [4, 2], shift=shift)
    loss.backward()
    assert loss == 0.0 and not student.grad.any()


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="0 frames or more, got -1"):
        paired_frames(numbered(3), torch.tensor([3]), numbered(3), torch.tensor([3]), -1)
