"""Measures of logits: exact on known distributions, blind to padding, equal to what training computes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.analysis.measures import (
    Agreement,
    Confusions,
    agreement,
    blank_mass,
    divergence,
    entropy,
    piece_entropy,
    piece_probabilities,
    readings,
    shift,
)
from nemo_codert.losses import encoder_distillation_loss, group_frames, valid_frames

pytestmark = pytest.mark.unit

INF = float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 41, 1025])
def test_equal_logits_have_the_entropy_of_all_classes(dtype, classes):
    for value in (0.0, -30.0, 100.0):
        logits = torch.full((3, classes), value, dtype=dtype)
        # log and sum of 1025 float64 terms; 3e-15 seen
        assert entropy(logits).tolist() == pytest.approx([math.log(classes)] * 3, rel=0, abs=1e-13)
        assert piece_entropy(logits).tolist() == pytest.approx([math.log(classes - 1)] * 3, rel=0, abs=1e-13)
        assert blank_mass(logits).tolist() == pytest.approx([1 / classes] * 3, abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("others", [-INF, -1000.0])
def test_one_certain_class_has_an_entropy_of_exactly_zero(dtype, others):
    logits = torch.full((5, 5), others, dtype=dtype).fill_diagonal_(0.0)
    assert entropy(logits).tolist() == [0.0] * 5
    assert blank_mass(logits).tolist() == [0.0] * 4 + [1.0]
    assert piece_entropy(logits)[:4].tolist() == [0.0] * 4


def test_classes_at_minus_infinity_do_not_count():
    logits = torch.tensor([[0.0, 0.0, -INF, 0.0], [-INF, -INF, -INF, 2.0]])
    assert entropy(logits).tolist() == pytest.approx([math.log(3), 0.0], abs=1e-15)
    assert piece_entropy(logits).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-15)
    assert piece_probabilities(logits).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert blank_mass(logits).tolist() == pytest.approx([1 / 3, 1.0])


def test_half_precision_is_measured_in_double():
    logits = torch.randn(20, 33).half()
    assert torch.equal(entropy(logits), entropy(logits.double()))
    assert torch.equal(blank_mass(logits), blank_mass(logits.double()))
    kl = divergence(student_logits=logits, teacher_logits=logits.flip(0))
    assert torch.equal(kl, divergence(student_logits=logits.double(), teacher_logits=logits.flip(0).double()))


def test_the_entropy_is_that_of_blank_or_not_plus_that_among_the_pieces():
    logits = 4 * torch.randn(50, 12)
    blank = blank_mass(logits)
    binary = entropy(torch.stack([blank, 1 - blank], dim=-1).log())
    torch.testing.assert_close(entropy(logits), binary + (1 - blank) * piece_entropy(logits), rtol=1e-12, atol=1e-12)


def test_the_divergence_of_training_is_measured():
    student, teacher = 3 * torch.randn(2, 1, 7, 9).double()
    expected = encoder_distillation_loss(
        student_logits=student, teacher_logits=teacher, lengths=torch.tensor([7]), reduction="per_utterance"
    )
    kl = divergence(student_logits=student, teacher_logits=teacher)
    assert kl.shape == (1, 7)
    assert float(kl.sum()) == pytest.approx(float(expected), rel=1e-12)


def test_the_divergence_is_zero_at_equality_and_infinite_where_the_student_rules_out_a_class():
    logits = torch.tensor([0.3, -INF, 2.0, -1.0]).double()
    assert float(divergence(student_logits=logits + 5, teacher_logits=logits)) == pytest.approx(0.0, abs=1e-15)
    wider = torch.tensor([0.3, 0.0, 2.0, -1.0])
    assert float(divergence(student_logits=logits, teacher_logits=wider)) == INF
    assert 0.0 < float(divergence(student_logits=wider, teacher_logits=logits)) < INF


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-8, 1e-3, 1.0, 30.0]))
def test_measures_stay_within_their_bounds(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    first, second = scale * torch.randn(2, 8, 17, generator=generator)
    assert (divergence(student_logits=first, teacher_logits=second) >= 0).all()
    assert (entropy(first) >= 0).all() and (entropy(first) <= math.log(17) + 1e-12).all()
    assert (piece_entropy(first) >= 0).all() and (piece_entropy(first) <= math.log(16) + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 3), st.sampled_from([0.0, 1e30, INF, None]))
def test_padding_never_matters(sizes, extra, garbage):
    lengths, rows = torch.tensor(sizes), max(sizes) + extra
    logits = torch.randn(len(sizes), rows, 5, generator=torch.Generator().manual_seed(7))
    valid = valid_frames(lengths, rows)
    padded = logits.masked_fill(~valid[..., None], math.nan if garbage is None else garbage)
    for i, own in enumerate(readings(padded, valid)):
        alone = logits[i, : sizes[i]]
        assert torch.equal(own.entropy, entropy(alone)) and torch.equal(own.blank, blank_mass(alone))
        assert torch.equal(own.pieces, piece_entropy(alone))
    both = {
        "student_logits": padded,
        "teacher_logits": padded.flip(-1),
        "student_len": lengths,
        "teacher_len": lengths,
    }
    measured = agreement(**both, teacher_frames_per_student_frame=1)
    parts = [logits[i, :size] for i, size in enumerate(sizes)]
    flat = torch.cat(parts) if rows else logits.reshape(-1, 5)
    assert measured.frames == sum(sizes)
    assert measured.same == int((flat.argmax(-1) == flat.flip(-1).argmax(-1)).sum())
    expected = float(divergence(student_logits=flat, teacher_logits=flat.flip(-1)).sum())
    assert measured.total_divergence == pytest.approx(expected, rel=1e-12)


def test_a_model_agrees_with_itself_and_sums_add_up():
    logits, lengths = torch.randn(2, 6, 9), torch.tensor([6, 4])
    own = {"student_logits": logits, "teacher_logits": logits, "student_len": lengths, "teacher_len": lengths}
    measured = agreement(**own, teacher_frames_per_student_frame=1)
    assert (measured.frames, measured.same, measured.top1) == (10, 10, 1.0)
    assert measured.divergence == pytest.approx(0.0, abs=1e-14)
    total = Agreement(4, 1, 2.0) + Agreement(6, 3, 3.0)
    assert (total.top1, total.divergence) == (0.4, 0.5)
    assert (Agreement().top1, Agreement().divergence) == (0.0, 0.0)


def test_teacher_frames_are_grouped_as_in_training():
    student, teacher = torch.randn(2, 3, 9), torch.randn(2, 7, 9)  # 2 teacher frames to each, and a group too many
    student_len, teacher_len = torch.tensor([3, 2]), torch.tensor([7, 3])
    measured = agreement(
        student_logits=student,
        teacher_logits=teacher,
        student_len=student_len,
        teacher_len=teacher_len,
        teacher_frames_per_student_frame=2,
    )
    grouped, grouped_len = group_frames(teacher.double(), teacher_len, 2)
    assert grouped_len.tolist() == [4, 2] and measured.frames == 5
    expected = encoder_distillation_loss(
        student_logits=student.double(), teacher_logits=grouped[:, :3], lengths=student_len, reduction="per_frame"
    )
    assert measured.divergence == pytest.approx(float(expected), rel=1e-12)
    by_hand = (teacher[1, :2].softmax(-1).mean(0)).argmax() == student[1, 0].argmax()
    one = agreement(
        student_logits=student[1:, :1],
        teacher_logits=teacher[1:, :2],
        student_len=torch.tensor([1]),
        teacher_len=torch.tensor([2]),
        teacher_frames_per_student_frame=2,
    )
    assert one.same == int(by_hand)


def test_confusions_are_averaged_for_each_reference_piece():
    logits = torch.tensor([[0.3, 0.1, 0.1, 0.5], [0.0, 0.4, 0.1, 0.5], [0.2, 0.3, 0.5, 0.0]]).log()
    confusions = Confusions()
    confusions.add(logits[:2], torch.tensor([1, 1]), torch.tensor([True, False]))
    confusions.add(logits, torch.tensor([1, 0, 1]), torch.tensor([True, True, True]))
    first, second = confusions.most_frequent(2)
    assert (first.token, first.count, first.first) == (1, 4, 0.75)
    assert first.blank == pytest.approx(1.5 / 4)
    assert first.own == pytest.approx((0.2 + 0.8 + 0.2 + 0.3) / 4)
    assert [piece for piece, _ in first.pieces] == [1, 0]
    assert first.pieces[1][1] == pytest.approx((0.6 + 0.0 + 0.6 + 0.2) / 4)
    assert (second.token, second.count, second.own) == (0, 1, 0.0)
    assert [len(row.pieces) for row in confusions.most_frequent(9)] == [3, 3]
    assert Confusions().most_frequent(5) == []


def test_a_shift_is_that_of_the_classes_and_not_of_their_common_constant():
    teacher, student = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = shift(teacher + 5.0, student - 7.0)
    assert found.apart == pytest.approx(float((teacher - student).std(correction=0)))
    assert (found.teacher, found.student) == pytest.approx([float(t.std(correction=0)) for t in (teacher, student)])
    assert shift(teacher, teacher + 1.0).apart == pytest.approx(0.0, abs=1e-12)
