"""The report on a teacher: known entropies and agreements on rigged joints, and nothing left changed."""

import math

import pytest
import torch

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"
CLASSES = 33  # 32 word pieces and the blank


@torch.no_grad()
def zero(*layers):
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def test_the_report_has_all_figures_and_reads_as_text(make_model, batch):
    report = teacher_report(make_model("tandem_kd"), iter([batch]))
    assert report.keys() == {
        "wer",
        "words",
        "encoder_entropy",
        "joint_entropy",
        "encoder_joint_top1_agreement",
        "mode",
        "dropout",
        "batch_norm_statistics",
        "spec_augment",
    }
    assert report["words"] == 18  # of the four sentences in the batch
    assert 0.0 < report["encoder_entropy"] <= math.log(CLASSES) and 0.0 < report["joint_entropy"] <= math.log(CLASSES)
    assert 0.0 <= report["encoder_joint_top1_agreement"] <= 1.0
    text = format_teacher_report({**report, "source": "teacher.nemo", "tensors": 7, "parameters": 1234})
    assert "teacher.nemo: 7 tensors, 1,234 parameters" in text and "over 18 words" in text


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_uniform_logits_have_the_entropy_of_all_classes(make_model, batch, joint):
    pair = make_model("tandem_kd", joint)
    zero(*([pair.joint.enc, pair.joint.pred] if joint == ADDITIVE else [pair.joint.joint_net[-1]]))
    report = teacher_report(pair, iter([batch]))
    # mean of some 100 frames of float32 sums over 33 classes
    assert report["encoder_entropy"] == pytest.approx(math.log(CLASSES), abs=1e-5)
    assert report["joint_entropy"] == pytest.approx(math.log(CLASSES), abs=1e-5)


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_without_a_prediction_projection_the_encoder_says_what_the_joint_says(make_model, batch, joint):
    pair = make_model("tandem_kd", joint)
    assert teacher_report(pair, iter([batch]))["encoder_joint_top1_agreement"] < 1.0
    zero(pair.joint.pred)
    report = teacher_report(pair, iter([batch]))
    assert report["encoder_joint_top1_agreement"] == 1.0
    assert report["encoder_entropy"] == pytest.approx(report["joint_entropy"], abs=1e-5)


def test_the_first_loader_counts(make_model, batch):
    pair = make_model("tandem_kd")
    once = teacher_report(pair, iter([batch]))
    assert teacher_report(pair, [[batch], ["another loader"]]) == once
    assert teacher_report(pair, iter([batch, batch]))["words"] == 2 * once["words"]


def test_max_batches_bounds_the_frames_and_not_the_word_errors(make_model, batch):
    pair = make_model("tandem_kd")
    half = [part[:2] for part in batch]
    first, whole = (teacher_report(pair, iter(batches)) for batches in ([half], [half, batch]))
    bounded = teacher_report(pair, iter([half, batch]), max_batches=1)
    for key in ("encoder_entropy", "joint_entropy", "encoder_joint_top1_agreement"):
        assert bounded[key] == first[key]
    assert first["encoder_entropy"] != whole["encoder_entropy"]
    assert (bounded["words"], bounded["wer"]) == (whole["words"], whole["wer"])
    assert bounded["words"] > first["words"]


@pytest.mark.parametrize("strategy", ["shared_kd", "static"])
def test_mode_weights_and_metric_are_as_before(make_model, batch, strategy):
    pair = make_model(strategy).train()
    modes = [module.training for module in pair.modules()]
    state = {name: value.clone() for name, value in pair.state_dict().items()}
    report = teacher_report(pair, iter([batch]))
    frozen = strategy == "static"
    assert report["mode"].startswith("eval" if frozen else "training")
    assert report["dropout"] == ("off" if frozen else "on")
    assert [module.training for module in pair.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert float(pair.wer.words) == 0.0
    assert all(parameter.grad is None for parameter in pair.parameters())
