"""The report on a teacher: known entropies and agreements on rigged joints, and nothing left changed."""

import math

import pytest
import torch
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding
from omegaconf import OmegaConf

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report
from nemo_codert.evaluation.word_errors import total_word_errors
from nemo_codert.models import EncDecCoDERTBPEModel
from tests.conftest import SENTENCES
from tests.models.teacher_files import pair_config, save_teacher

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
        "wer",
        "words",
        "encoder_logits",
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
