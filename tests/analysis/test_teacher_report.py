"""The report on a teacher: known entropies and agreements on rigged joints, warnings, and nothing left changed."""

import json
import math
import random

import numpy as np
import pytest
import torch
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding
from omegaconf import OmegaConf

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report
from nemo_codert.evaluation.word_errors import total_word_errors
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.training.run import describe
from tests.conftest import SENTENCES, conformer
from tests.models.teacher_files import pair_config, save_teacher
from tests.models.training_runs import equal_states, train

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"
CLASSES = 33  # 32 word pieces and the blank


@torch.no_grad()
def zero(*layers):
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def test_the_report_has_all_figures_and_reads_as_text(shared_pair, batch):
    report = teacher_report(shared_pair("tandem_kd"), iter([batch]))
    assert report.keys() == {
        "metric",
        "wer",
        "words",
        "encoder_logits",
        "encoder_entropy",
        "joint_entropy",
        "encoder_joint_top1_agreement",
        "encoder_entropy_with_prior",
        "encoder_joint_top1_agreement_with_prior",
        "encoder_largest_class",
        "encoder_largest_share",
        "mode",
        "dropout",
        "batch_norm_statistics",
        "spec_augment",
        "term_gradients",
        "warnings",
    }
    assert report["words"] == 18  # of the four sentences in the batch
    assert 0.0 < report["encoder_entropy"] <= math.log(CLASSES) and 0.0 < report["joint_entropy"] <= math.log(CLASSES)
    assert 0.0 <= report["encoder_joint_top1_agreement"] <= 1.0
    assert 0.0 < report["encoder_entropy_with_prior"] <= math.log(CLASSES)
    assert 1 / CLASSES < report["encoder_largest_share"] < 0.5
    assert report["term_gradients"]["encoder"] > 1e-6 and report["warnings"] == []
    text = format_teacher_report({**report, "source": "teacher.nemo", "tensors": 7, "parameters": 1234})
    assert "teacher.nemo: 7 tensors, 1,234 parameters" in text and "over 18 words" in text
    assert (
        f"with the mean prediction as prior: entropy {report['encoder_entropy_with_prior']:.3f} nats a frame" in text
    )
    assert f"class with most of the probability: {report['encoder_largest_class']!r}, " in text


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_uniform_logits_have_the_entropy_of_all_classes(shared_pair, batch, joint):
    pair = shared_pair("tandem_kd", joint)
    zero(*([pair.joint.enc, pair.joint.pred] if joint == ADDITIVE else [pair.joint.joint_net[-1]]))
    report = teacher_report(pair, iter([batch]))
    # mean of some 100 frames of float32 sums over 33 classes
    assert report["encoder_entropy"] == pytest.approx(math.log(CLASSES), abs=1e-5)
    assert report["joint_entropy"] == pytest.approx(math.log(CLASSES), abs=1e-5)


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_without_a_prediction_projection_the_encoder_says_what_the_joint_says(shared_pair, batch, joint):
    pair = shared_pair("tandem_kd", joint)
    assert teacher_report(pair, iter([batch]))["encoder_joint_top1_agreement"] < 1.0
    zero(pair.joint.pred)
    report = teacher_report(pair, iter([batch]))
    assert report["encoder_joint_top1_agreement"] == 1.0
    assert report["encoder_entropy"] == pytest.approx(report["joint_entropy"], abs=1e-5)


def test_the_first_loader_counts(shared_pair, batch):
    pair = shared_pair("tandem_kd")
    once = teacher_report(pair, iter([batch]))
    assert teacher_report(pair, [[batch], ["another loader"]]) == once
    assert teacher_report(pair, iter([batch, batch]))["words"] == 2 * once["words"]


def test_max_batches_bounds_the_frames_and_not_the_word_errors(shared_pair, batch):
    pair = shared_pair("tandem_kd")
    half = [part[:2] for part in batch]
    first, whole = (teacher_report(pair, iter(batches)) for batches in ([half], [half, batch]))
    bounded = teacher_report(pair, iter([half, batch]), max_batches=1)
    for key in ("encoder_entropy", "joint_entropy", "encoder_joint_top1_agreement"):
        assert bounded[key] == first[key]
    assert first["encoder_entropy"] != whole["encoder_entropy"]
    assert (bounded["words"], bounded["wer"]) == (whole["words"], whole["wer"])
    assert bounded["words"] > first["words"]


def shift(joint, constant) -> None:
    """Move a constant for each class from the prediction logits of an additive joint to its encoder logits."""
    joint.enc.bias.data += constant
    joint.pred.bias.data -= constant


def one_class(index: int, size: float) -> torch.Tensor:
    return size * torch.eye(CLASSES)[index]


def test_a_constant_that_moves_between_the_sides_moves_no_figure_with_the_prior(shared_pair, batch):
    pair = shared_pair("tandem_kd")
    before = teacher_report(pair, iter([batch]))
    shift(pair.joint, 3.0 * torch.randn(CLASSES))
    after = teacher_report(pair, iter([batch]))
    for key in ("encoder_entropy_with_prior", "encoder_joint_top1_agreement_with_prior", "joint_entropy"):
        assert after[key] == pytest.approx(before[key], abs=1e-5)
    assert abs(after["encoder_entropy"] - before["encoder_entropy"]) > 0.1
    assert after["encoder_joint_top1_agreement"] != before["encoder_joint_top1_agreement"]


TERMS = {
    "plain": {"at": "encoder"},
    "with_prior": {"at": "encoder", "prior": "mean_prediction"},
    "lattice": {"at": "joint"},
    "late": {"at": "hidden", "by": "cosine", "layers": {1: 1}, "frame_shift": 1000},
}


@pytest.fixture
def pair_with(make_config):
    """Factory of a pair with some of `TERMS`; of 16 channels the student is as large as the teacher, and equals it."""

    def make(*names: str, width: int = 12):
        cfg = make_config("tandem_kd", teacher=conformer(2, 16), student=conformer(2, width))
        cfg.codert.distillation = {name: TERMS[name] for name in names}
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(cfg)

    return make


def test_a_class_with_all_of_the_probability_is_named_with_the_term_that_it_silences(pair_with, batch):
    pair = pair_with("plain", "with_prior", "lattice")
    for joint in (pair.joint, pair.student_joint):
        shift(joint, one_class(0, 80.0))
    report = teacher_report(pair, iter([batch]))
    assert report["encoder_largest_class"] == "<unk>" and report["encoder_largest_share"] > 0.999
    share, gradient = report["warnings"]
    assert share.startswith(
        "model.codert.distillation.plain compares the teacher's encoder logits, in which one class"
    )
    assert "'<unk>', has 100.0% of the probability" in share
    assert gradient.startswith("model.codert.distillation.plain has no gradient: ")
    assert all("Consider prior: mean_prediction" in text and "or at: joint." in text for text in (share, gradient))
    largest = report["term_gradients"]
    assert largest["plain"] < 1e-25 and largest["with_prior"] > 1e-6 and largest["lattice"] > 1e-6


def test_a_teacher_that_equals_its_student_is_no_reason_to_warn(pair_with, batch):
    pair = pair_with("plain", "lattice", width=16)
    for source, target in zip(pair.teacher_transducer.networks(), pair.student_transducer.networks(), strict=True):
        assert equal_states(source.state_dict(), target.state_dict())
    report = teacher_report(pair, iter([batch]))
    assert report["term_gradients"]["plain"] == 0.0 and report["warnings"] == []
    assert report["term_gradients"]["lattice"] < 1e-8  # rounding
    for joint in (pair.joint, pair.student_joint):
        shift(joint, one_class(0, 80.0))
    warnings = teacher_report(pair, iter([batch]))["warnings"]
    assert [text.split()[0] for text in warnings] == ["model.codert.distillation.plain"] * 2


def test_a_term_that_compares_no_frame_is_named(pair_with, batch):
    (warning,) = teacher_report(pair_with("late"), iter([batch]))["warnings"]
    assert "model.codert.distillation.late has no gradient: its largest element at the student is 0.0e+00" in warning
    assert warning.endswith("Consider another at or a smaller frame_shift.")


@pytest.mark.parametrize(("size", "warns"), [(4.0, False), (80.0, True)])
def test_blank_may_have_most_of_the_probability_but_not_all(pair_with, batch, size, warns):
    pair = pair_with("plain", "with_prior")
    shift(pair.joint, one_class(-1, size))
    report = teacher_report(pair, iter([batch]))
    assert report["encoder_largest_class"] == "blank" and 0.5 < report["encoder_largest_share"]
    assert len(report["warnings"]) == warns and all("plain compares" in text for text in report["warnings"])


def test_terms_that_need_text_are_left_out_where_there_is_none(pair_with, batch):
    silent = [batch[0], batch[1], batch[2][:, :0], torch.zeros_like(batch[3])]
    pair = pair_with("plain", "lattice")
    assert teacher_report(pair, iter([silent]))["term_gradients"].keys() == {"plain"}
    some = [*batch[:3], batch[3] * torch.tensor([0, 1, 1, 1])]
    assert teacher_report(pair, iter([some]))["term_gradients"].keys() == {"plain", "lattice"}


def test_a_run_logs_the_warnings_and_writes_them(pair_with, batch, tmp_path, monkeypatch, caplog):
    pair = pair_with("plain")
    shift(pair.joint, one_class(0, 80.0))
    pair.loaded = {"teacher": {"source": "teacher.nemo", "tensors": 7, "parameters": 1234}}
    monkeypatch.setattr(pair, "val_dataloader", lambda: [[batch]])
    describe(pair, tmp_path, is_writer=True)
    (warning,) = json.loads((tmp_path / "teacher_report.json").read_text())["warnings"]
    assert warning in [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [path.name for path in tmp_path.iterdir()] == ["teacher_report.json"]


def random_states() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_a_run_after_the_report_is_the_run_without_it_bit_for_bit(make_config, batch):
    found = []
    for reported in (False, True):
        noisy = {"conv_norm_type": "batch_norm", "dropout": 0.1, "dropout_att": 0.1}
        masks = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 1, "freq_width": 4}
        cfg = make_config("tandem_kd", teacher=conformer(2, 16) | noisy, spec_augment=masks)
        cfg.codert.distillation = {name: TERMS[name] for name in ("plain", "with_prior", "lattice")}
        torch.manual_seed(0)
        pair = EncDecCoDERTBPEModel(cfg).train()
        states = random_states()
        if reported:
            teacher_report(pair, iter([batch]))
        assert random_states() == states
        random.seed(0)
        pair.spec_augmentation.spec_augment._rng.seed(0)
        train(pair, [batch, batch])
        found.append(pair.state_dict())
    assert equal_states(*found)


@pytest.mark.parametrize("strategy", ["shared_kd", "static"])
def test_mode_weights_and_metric_are_as_before(shared_pair, batch, strategy):
    pair = shared_pair(strategy).train()
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


@pytest.fixture(scope="module")
def saved_teachers(make_config, tmp_path_factory):
    """Files of teachers, and the models themselves, by kind."""
    made = {}

    def get(kind: str):
        if kind not in made:
            made[kind] = save_teacher(make_config, tmp_path_factory.mktemp("teacher"), kind)
        return made[kind]

    return get


@pytest.fixture
def report_on(make_config, batch, saved_teachers):
    """The report on a frozen teacher of some kind, and the original model."""

    def make(kind: str, logits: str):
        path, original = saved_teachers(kind)
        pair = EncDecCoDERTBPEModel(pair_config(make_config, kind, path, {"teacher_logits": logits}))
        return teacher_report(pair, iter([batch])), original

    return make


def frames_of(original, batch) -> tuple[torch.Tensor, torch.Tensor]:
    features, features_len = original.preprocessor(input_signal=batch[0], length=batch[1])
    return original.encoder(audio_signal=features, length=features_len)


def word_error_rate(hypotheses: list) -> float:
    return total_word_errors(SENTENCES[:4], [hypothesis.text for hypothesis in hypotheses]).wer


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hybrid", "tdt", "hybrid_tdt"])
def test_the_words_of_a_teacher_of_another_kind_are_the_originals(report_on, batch, kind):
    report, original = report_on(kind, "joint")
    said = original.decoding.rnnt_decoder_predictions_tensor(*frames_of(original, batch))
    assert report["wer"] == pytest.approx(word_error_rate(said))
    assert report["encoder_logits"] == ("joint" if kind == "hybrid" else "TDT joint")
    assert 0.0 < report["encoder_entropy"] <= math.log(CLASSES) + 1e-5
    assert 0.0 < report["joint_entropy"] <= math.log(CLASSES) + 1e-5
    assert "ctc_wer" not in report and "CTC" not in format_teacher_report(report)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hybrid", "hybrid_tdt"])
def test_the_report_on_a_ctc_head_has_its_entropy_and_its_words(report_on, batch, kind):
    report, original = report_on(kind, "ctc")
    encoded, lengths = frames_of(original, batch)
    log_probs = original.ctc_decoder(encoder_output=encoded)
    valid = torch.arange(log_probs.shape[1]) < lengths[:, None]
    expected = -(log_probs.exp() * log_probs).sum(-1)[valid].mean()
    assert report["encoder_entropy"] == pytest.approx(float(expected), rel=1e-5)
    decoding = CTCBPEDecoding(OmegaConf.create({"strategy": "greedy"}), tokenizer=original.tokenizer)
    said = decoding.ctc_decoder_predictions_tensor(log_probs, decoder_lengths=lengths)
    assert report["ctc_wer"] == pytest.approx(word_error_rate(said))
    text = format_teacher_report(report)
    assert f"of its CTC head's greedy text {report['ctc_wer']:.2%} over 18 words" in text
    assert "encoder logits of its CTC head: entropy" in text
