"""The encoder distillation loss: a divergence that is one, its gradient, its reductions, its padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import EncoderDistillationLoss, encoder_distillation_loss, valid_frames

pytestmark = pytest.mark.unit

SIDES = ("student_logits", "teacher_logits")


def ragged_logits(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A batch of 3 utterances with 5, 2 and 4 of 5 frames, 7 classes."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(3, 5, 7, generator=generator, dtype=dtype) for _ in range(2))
    return {"student_logits": student, "teacher_logits": teacher, "lengths": torch.tensor([5, 2, 4])}


def plain_divergence(batch: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """KL of each frame [B, T] in float64, by the textbook formula."""
    teacher = (batch["teacher_logits"].double() / temperature).log_softmax(-1)
    student = (batch["student_logits"].double() / temperature).log_softmax(-1)
    frames = (teacher.exp() * (teacher - student)).sum(-1) * temperature**2
    return frames * valid_frames(batch["lengths"], frames.shape[1])


def test_a_value_worked_out_by_hand():
    teacher = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    student = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    loss = EncoderDistillationLoss()(student_logits=student, teacher_logits=teacher, lengths=torch.tensor([2]))
    # 0.5 ln 2 + 0.5 ln(2/3) + 0.25 ln(1/2) + 0.75 ln(3/2) = 0.143841 + 0.130812, six digits: 5e-7 of rounding
    assert loss.item() == pytest.approx(0.274653, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_reductions_are_per_utterance_and_per_valid_frame(temperature):
    batch = ragged_logits()
    expected = plain_divergence(batch, temperature).sum().item()
    # float32 sum of 77 terms; 2e-7 relative seen
    for reduction, count in [("per_utterance", 3), ("per_frame", 11)]:
        loss = encoder_distillation_loss(**batch, temperature=temperature, reduction=reduction)
        assert loss.item() == pytest.approx(expected / count, rel=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_temperature_times_the_difference_of_the_distributions(temperature):
    batch = ragged_logits()
    batch["student_logits"].requires_grad_()
    (2.5 * encoder_distillation_loss(**batch, temperature=temperature)).backward()
    student, teacher = ((batch[side].double() / temperature).softmax(-1) for side in SIDES)
    expected = 2.5 / 3 * temperature * (student - teacher) * valid_frames(batch["lengths"], 5)[:, :, None]
    # float32 softmax of logits up to 10, times at most 4; 2e-7 seen
    torch.testing.assert_close(batch["student_logits"].grad.double(), expected, rtol=0, atol=3e-6)


def test_autograd_agrees_numerically_in_float64():
    batch = ragged_logits(dtype=torch.float64)
    student = batch.pop("student_logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encoder_distillation_loss(student_logits=x, **batch), student)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(-9, 0), st.floats(-2, 2), st.sampled_from([0.5, 1.0, 2.0, 8.0]))
def test_it_is_never_negative_in_float32_however_near_the_distributions(seed, nearness, scale, temperature):
    generator = torch.Generator().manual_seed(seed)
    teacher = 10**scale * torch.randn(2, 3, 40, generator=generator)
    student = teacher + 10**nearness * torch.randn(2, 3, 40, generator=generator)
    batch = {"student_logits": student, "teacher_logits": teacher, "lengths": torch.tensor([3, 1])}
    assert encoder_distillation_loss(**batch, temperature=temperature) >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_exactly_zero_with_zero_gradient_where_student_and_teacher_agree(dtype):
    logits = ragged_logits()["student_logits"].to(dtype)
    student = logits.clone().requires_grad_()
    loss = encoder_distillation_loss(student_logits=student, teacher_logits=logits, lengths=torch.tensor([5, 2, 4]))
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_small_differences_are_measured_and_not_only_bounded():
    batch = ragged_logits()
    batch["student_logits"] = batch["teacher_logits"] + 1e-3 * batch["student_logits"]
    expected = plain_divergence(batch, 1.0).sum().item() / 3
    # The float32 inputs' own rounding, 1e-7 of logits near 5, against differences of 2e-3; 1e-4 seen
    assert encoder_distillation_loss(**batch).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("apart", [30.0, 90.0, 1000.0])
def test_distributions_far_apart_stay_finite_and_right(apart):
    teacher = torch.tensor([[[apart, 0.0, 1.0]]])
    student = torch.tensor([[[0.0, apart, 1.0]]], requires_grad=True)
    loss = encoder_distillation_loss(student_logits=student, teacher_logits=teacher, lengths=torch.tensor([1]))
    loss.backward()
    # one-hot against one-hot: the student's log-probability of the teacher's class is -apart; 0 seen
    assert loss.item() == pytest.approx(apart, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[[-1.0, 1.0, 0.0]]]), rtol=0, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    batch = ragged_logits()
    for side in SIDES:
        batch[side].requires_grad_()
    encoder_distillation_loss(**batch).backward()
    assert batch["teacher_logits"].grad is None and batch["student_logits"].grad.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_does_not_matter(garbage):
    batch = ragged_logits()
    batch["student_logits"].requires_grad_()
    encoder_distillation_loss(**batch).backward()
    padded = {"lengths": batch["lengths"]}
    for side in SIDES:
        dirty = batch[side].detach().masked_fill(~valid_frames(batch["lengths"], 5)[:, :, None], garbage)
        padded[side] = torch.cat([dirty, torch.full((3, 2, 7), garbage)], dim=1)
    padded["student_logits"].requires_grad_()
    loss = encoder_distillation_loss(**padded)
    loss.backward()
    # Summed over 7 frames instead of 5: the order of the sum may differ; 1.5e-7 seen
    torch.testing.assert_close(loss, encoder_distillation_loss(**batch), rtol=5e-7, atol=0)
    torch.testing.assert_close(padded["student_logits"].grad[:, :5], batch["student_logits"].grad, rtol=0, atol=0)
    assert not padded["student_logits"].grad[:, 5:].any()


@pytest.mark.parametrize("reduction", ["per_utterance", "per_frame"])
def test_a_batch_without_valid_frames_costs_nothing_and_stays_in_the_graph(reduction):
    batch = ragged_logits() | {"lengths": torch.tensor([0, 0, 0])}
    batch["student_logits"].requires_grad_()
    loss = encoder_distillation_loss(**batch, reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and not batch["student_logits"].grad.any()


def test_classes_masked_on_both_sides_add_nothing():
    batch = ragged_logits()
    expected = encoder_distillation_loss(**batch)
    batch |= {side: torch.nn.functional.pad(batch[side], (0, 1), value=-math.inf) for side in SIDES}
    batch["student_logits"].requires_grad_()
    loss = encoder_distillation_loss(**batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # one more summand, another order; 0 seen
    assert batch["student_logits"].grad.isfinite().all() and not batch["student_logits"].grad[..., -1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_with_a_gradient_in_its_own_type(dtype):
    batch = ragged_logits()
    half = {**batch, "student_logits": batch["student_logits"].to(dtype).requires_grad_()}
    batch["student_logits"] = half["student_logits"].detach().float()
    loss = encoder_distillation_loss(**half)
    torch.testing.assert_close(loss, encoder_distillation_loss(**batch), rtol=0, atol=0)
    loss.backward()
    assert half["student_logits"].grad.dtype == dtype


def test_autocast_changes_nothing():
    batch = ragged_logits()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = encoder_distillation_loss(**batch)
    torch.testing.assert_close(loss, encoder_distillation_loss(**batch), rtol=0, atol=0)


def test_the_module_is_the_function():
    batch = ragged_logits()
    module = EncoderDistillationLoss(temperature=3.0, reduction="per_frame")
    expected = encoder_distillation_loss(**batch, temperature=3.0, reduction="per_frame")
    torch.testing.assert_close(module(**batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize("change, message", [
    ({"student_logits": torch.zeros(3, 4, 7)}, r"\(3, 4, 7\) \(student\) and \(3, 5, 7\) \(teacher\)"),
    ({"student_logits": torch.zeros(7), "teacher_logits": torch.zeros(7)}, r"\(7,\)"),
    ({"lengths": torch.tensor([1, 2])}, r"\(2,\)"),
    ({"lengths": torch.tensor([1, 2, 6])}, "between 0 and the 5 frames"),
    ({"lengths": torch.tensor([1, -2, 3])}, "between 0 and the 5 frames"),
    ({"temperature": 0.0}, "got 0.0"),
    ({"lengths": torch.tensor([1.0, 2.0, 3.5])}, "whole numbers of frames, got torch.float32"),
    ({"temperature": math.nan}, "got nan"),
    ({"temperature": math.inf}, "finite, got inf"),
    ({"reduction": "mean"}, "per_utterance, per_frame, got 'mean'"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_what_was_got(change, message):
    with pytest.raises(ValueError, match=message):
        encoder_distillation_loss(**(ragged_logits() | change))


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"reduction": "sum"}])
def test_the_module_refuses_bad_settings_when_it_is_built(setting):
    with pytest.raises(ValueError, match="distillation"):
        EncoderDistillationLoss(**setting)
