"""The divergence of stored classes and the rest: against loops, against all classes, and its gradient."""

import pytest
import torch

from nemo_codert.losses import encoder_distillation_loss, top_k_distillation_loss
from tests.reference.top_k_kl import top_k_kl

pytestmark = pytest.mark.unit

B, T, CLASSES = 3, 6, 11
LENGTHS = torch.tensor([6, 4, 0])


def drawn(dtype=torch.float64, temperature: float = 1.0):
    student = (3 * torch.randn(B, T, CLASSES, dtype=dtype)).requires_grad_()
    teacher = 3 * torch.randn(B, T, CLASSES, dtype=dtype)
    return student, teacher, (teacher / temperature).softmax(-1)


def likeliest(probabilities: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    values, ids = probabilities.topk(k, dim=-1)
    return {"teacher_ids": ids, "teacher_probabilities": values, "lengths": LENGTHS}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, CLASSES])
def test_value_and_gradient_are_those_of_loops_and_finite_differences(k, temperature):
    student, _, probabilities = drawn(temperature=temperature)
    known = likeliest(probabilities, k)
    loss = top_k_distillation_loss(student_logits=student, temperature=temperature, **known)
    wanted = sum(
        top_k_kl(
            student[b, t].detach().numpy(),
            known["teacher_ids"][b, t].numpy(),
            known["teacher_probabilities"][b, t].numpy(),
            temperature,
        )
        for b in range(B)
        for t in range(LENGTHS[b])
    )
    assert loss.item() == pytest.approx(wanted / B, rel=1e-12)
    how = {**known, "temperature": temperature}
    assert torch.autograd.gradcheck(lambda x: top_k_distillation_loss(student_logits=x, **how), student, eps=1e-6)
    [gradient] = torch.autograd.grad(loss, student)
    assert gradient[1, 4:].abs().max() == 0 == gradient[2].abs().max()
    assert gradient.sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("reduction", ["per_utterance", "per_frame"])
def test_all_classes_are_the_whole_divergence_and_fewer_are_below_it(reduction):
    student, teacher, probabilities = drawn()
    how = {"student_logits": student, "reduction": reduction}
    whole = encoder_distillation_loss(teacher_logits=teacher, lengths=LENGTHS, **how)
    values = [top_k_distillation_loss(**likeliest(probabilities, k), **how) for k in range(1, CLASSES + 1)]
    assert values[-1].item() == pytest.approx(whole.item(), rel=1e-12)
    assert all(low <= high + 1e-12 for low, high in zip(values, values[1:], strict=False))
    of_both = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (whole, values[-1])]
    assert (of_both[0] - of_both[1]).abs().max() < 1e-12


def test_float32_agrees_with_float64_also_where_the_rest_is_almost_nothing():
    student, _, probabilities = drawn(torch.float32)
    sharp = torch.zeros_like(probabilities).scatter_(-1, probabilities.argmax(-1, keepdim=True), 1.0)
    for teacher in (probabilities, sharp):
        known = likeliest(teacher, 4)
        value = top_k_distillation_loss(student_logits=student, **known)
        doubled = {**known, "teacher_probabilities": known["teacher_probabilities"].double()}
        exact = top_k_distillation_loss(student_logits=student.double(), **doubled)
        assert value.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-6)
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_sums_above_one_by_rounding_and_half_precision_are_taken():
    student, _, probabilities = drawn(torch.float32)
    known = likeliest(probabilities, CLASSES)
    above = {**known, "teacher_probabilities": known["teacher_probabilities"] * 1.002}
    values = [top_k_distillation_loss(student_logits=student, **each) for each in (known, above)]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-5)
    half = top_k_distillation_loss(student_logits=student.bfloat16(), **known)
    assert half.dtype == torch.float32 and half.isfinite()
    itself = likeliest(student.detach().softmax(-1), 4)
    assert abs(top_k_distillation_loss(student_logits=student, **itself)) < 1e-6
