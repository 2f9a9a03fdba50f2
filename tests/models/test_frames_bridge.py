"""Teachers with other frame rates: grouped where that works, refused where it does not."""

import pytest
import torch

from nemo_codert.losses import encoder_distillation_loss
from nemo_codert.modules import encoder_logits
from tests.conftest import ADDITIVE, STOCK, conformer, lstm
from tests.models.training_runs import branch_losses, train

CAUSAL = {"causal_downsampling": True}


def lengths_of(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of the teacher and of the student."""
    features, features_len = model.extract_features(*batch[:2])
    teacher = model.encoder(audio_signal=features, length=features_len)[1]
    return teacher, model.student_encoder(audio_signal=features, length=features_len)[1]


@pytest.mark.parametrize(
    "strategy, joint",
    [("static", STOCK), ("tandem_kd", STOCK), ("shared_kd", ADDITIVE), ("static_shared", ADDITIVE)],
)
def test_a_teacher_of_twice_the_frame_rate_is_grouped(shared_pair, batch, strategy, joint):
    model = shared_pair(strategy=strategy, joint=joint, student=conformer(subsampling=8))
    assert model.teacher_frames_per_student_frame == 2
    teacher, student = lengths_of(model, batch)
    assert torch.all((teacher - 2 * student).abs() <= 1)
    losses = train(model, [batch] * 4, lr=3e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "teacher, student, factor",
    [
        (conformer(layers=2, channels=24), {**conformer(), **CAUSAL}, 1),
        ({**conformer(layers=2, channels=24), **CAUSAL}, conformer(), 1),
        (conformer(layers=2, channels=24), {**conformer(subsampling=8), **CAUSAL}, 2),
        (conformer(layers=2, channels=24), lstm(subsampling=8), 2),
        (lstm(layers=2), conformer(subsampling=8), 2),
    ],
    ids=["causal student", "causal teacher", "causal student of half the rate", "lstm student", "lstm teacher"],
)
def test_lengths_that_differ_by_one_are_bridged(shared_pair, batch, teacher, student, factor):
    model = shared_pair(strategy="shared_kd", teacher=teacher, student=student)
    assert model.teacher_frames_per_student_frame == factor
    losses = train(model, [batch] * 3, lr=3e-3)
    assert losses[-1] < losses[0]


def test_a_causal_student_really_has_another_number_of_frames(shared_pair, batch):
    teacher, student = lengths_of(shared_pair(student={**conformer(), **CAUSAL}), batch)
    assert 1 in (student - teacher)


def test_the_distillation_term_is_that_of_the_common_frames(shared_pair, batch):
    model = shared_pair(student={**conformer(), **CAUSAL})
    features = model.extract_features(*batch[:2])
    student, student_len = model.student_encoder(audio_signal=features[0], length=features[1])
    teacher, teacher_len = model.encoder(audio_signal=features[0], length=features[1])
    frames = min(student.shape[2], teacher.shape[2])
    expected = encoder_distillation_loss(
        student_logits=encoder_logits(model.student_joint, student[:, :, :frames]),
        teacher_logits=encoder_logits(model.joint, teacher[:, :, :frames]),
        lengths=torch.minimum(student_len, teacher_len),
    )
    loss = branch_losses(model, batch)["train_distillation_loss"]
    # The two projections are multiplied over one frame more or less: float32 rounding.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("teacher_stride, student_stride", [(8, 4), (4, 2)])
def test_a_coarser_teacher_is_refused(make_model, teacher_stride, student_stride):
    with pytest.raises(
        ValueError, match=f"one frame of {teacher_stride} .* of {student_stride}: teacher frames cannot"
    ):
        make_model(
            teacher=conformer(layers=1, channels=24, subsampling=teacher_stride),
            student=conformer(subsampling=student_stride),
        )


def test_a_coarser_teacher_is_refused_where_only_the_built_encoder_shows_it(make_model, monkeypatch):
    # The config of an encoder need not name its factor: the built one is measured.
    monkeypatch.setattr("nemo_codert.config.pair_checks.encoder_stride", lambda encoder: None)
    with pytest.raises(ValueError, match="one frame of 8 feature frames.*one of 4"):
        make_model(teacher=conformer(layers=1, channels=24, subsampling=8), student=conformer())
