"""The analysis of whole models: known answers on rigged joints, batches that do not matter, errors with a remedy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.analysis.branches import measured_branches
from nemo_codert.analysis.readings import SOURCES, VIEWS, WITH_PRIOR, analyze, chosen, transcript_faults, utterances
from nemo_codert.data.manifest import read_manifest
from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config
from tests.conftest import SAMPLE_RATE, conformer, tone
from tests.models.teacher_files import pair_config, save_teacher
from tests.models.training_runs import branch_losses

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"
CLASSES = 33  # 32 word pieces and the blank
TWO_EACH = {"teacher": conformer(layers=1, channels=24, subsampling=4), "student": conformer(subsampling=8)}


@pytest.fixture
def found(manifest):
    return utterances(read_manifest(manifest))


@pytest.fixture
def make_lone(make_config):
    """Factory of stock models trained alone: `make_lone(teacher_config, **settings of make_config)`."""

    def make(config=student_config, **settings):
        torch.manual_seed(1)
        return EncDecRNNTBPEModel(config(make_config("tandem_kd", **settings))).eval()

    return make


@torch.no_grad()
def zero(*layers):
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_equal_logits_are_measured_as_such(shared_pair, found, joint):
    pair = shared_pair("tandem_kd", joint).eval()
    for own in (pair.joint, pair.student_joint):
        zero(*([own.enc, own.pred] if joint == ADDITIVE else [own.joint_net[-1]]))
    measured = analyze(measured_branches(pair), found)
    assert list(measured.branches) == ["student", "teacher"]
    assert (measured.agreement.top1, measured.agreement.divergence) == (1.0, 0.0)
    for branch in measured.branches.values():
        for own in branch.readings.values():
            np.testing.assert_allclose(own.entropy, math.log(CLASSES), rtol=0, atol=1e-13)
            np.testing.assert_allclose(own.pieces, math.log(CLASSES - 1), rtol=0, atol=1e-13)
            np.testing.assert_allclose(own.blank, 1 / CLASSES, rtol=0, atol=1e-15)


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_a_joint_without_prediction_projection_says_what_its_encoder_says(shared_pair, found, joint):
    pair = shared_pair("tandem_kd", joint).eval()
    zero(pair.joint.pred)
    (teacher,) = analyze(measured_branches(pair, "teacher"), found, shown=range(len(found))).branches.values()
    starts = np.cumsum([0] + [len(teacher.shown[place].states) for place in range(len(found))])
    at_tokens = np.concatenate([start + teacher.shown[i].frames for i, start in enumerate(starts[:-1])])
    for view in VIEWS:
        encoder, own = teacher.readings["encoder", view], teacher.readings["joint", view]
        if view == "all":  # every frame of an utterance, then its tokens
            entropies, blanks = (np.concatenate([x, x[at_tokens]]) for x in (encoder.entropy, encoder.blank))
            np.testing.assert_allclose(np.sort(own.entropy), np.sort(entropies), rtol=0, atol=1e-6)
            np.testing.assert_allclose(np.sort(own.blank), np.sort(blanks), rtol=0, atol=1e-6)
            continue
        np.testing.assert_allclose(own.entropy, encoder.entropy, rtol=0, atol=1e-6)  # float32 sums of 24 channels
        np.testing.assert_allclose(own.blank, encoder.blank, rtol=0, atol=1e-6)


def test_rows_are_frames_states_and_frames_that_emit(shared_pair, found):
    pair = shared_pair("tandem_kd").eval()
    branch = analyze(measured_branches(pair, "student"), found, shown=range(8)).branches["student"]
    tokens = [len(pair.tokenizer.text_to_ids(utterance.text)) for utterance in found]
    shown = [branch.shown[place] for place in range(8)]
    assert [len(own.tokens) for own in shown] == tokens
    emitting = [len(set(own.frames.tolist())) for own in shown]
    assert 0 < sum(emitting) < sum(tokens)  # some frames emit several tokens: otherwise this shows little
    counts = {key: len(own.entropy) for key, own in branch.readings.items()}
    frames = sum(len(own.states) for own in shown)
    assert counts == {
        ("encoder", "all"): frames,
        (WITH_PRIOR, "all"): frames,
        ("joint", "all"): frames + sum(tokens),
        ("prediction", "all"): sum(tokens) + 8,
        **{(source, "non-blank"): sum(emitting) for source in SOURCES},
    }
    whole, view = branch.readings["encoder", "all"].entropy, branch.readings["encoder", "non-blank"].entropy
    starts = np.cumsum([0] + [len(own.states) for own in shown])
    at_emissions = [whole[start + own.frames[own.first]] for start, own in zip(starts, shown, strict=False)]
    np.testing.assert_array_equal(np.concatenate(at_emissions), view)
    confusions = branch.confusions.most_frequent(40)
    assert sum(row.count for row in confusions) == sum(tokens)
    assert sum(round(row.first * row.count) for row in confusions) == sum(emitting)
    assert all(sum(p for _, p in row.pieces) == pytest.approx(1.0) for row in confusions)


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_the_size_of_a_batch_does_not_matter(shared_pair, found, joint):
    branches = measured_branches(shared_pair("shared_kd", joint).eval())
    one, all_together = (analyze(branches, found, batch_size=size, shown=[2]) for size in (1, 8))
    for name in one.branches:
        a, b = one.branches[name], all_together.branches[name]
        for key in a.readings:
            for x, y in zip(a.readings[key], b.readings[key], strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)  # float32 networks; 3e-6 seen
        np.testing.assert_array_equal(a.shown[2].frames, b.shown[2].frames)
        np.testing.assert_allclose(a.shown[2].probabilities, b.shown[2].probabilities, atol=2e-5)
    assert one.agreement.frames == all_together.agreement.frames
    assert one.agreement.divergence == pytest.approx(all_together.agreement.divergence, rel=1e-4)


@pytest.mark.parametrize("shape", [{}, TWO_EACH])
@pytest.mark.parametrize("prior", ["none", "mean_prediction"])
def test_the_divergence_is_the_distillation_loss_of_training(shared_pair, found, shape, prior):
    pair = shared_pair("tandem_kd", **shape, codert={"distillation": {"prior": prior}}).eval()
    both = analyze(measured_branches(pair), found)
    measured = both.agreement if prior == "none" else both.agreement_with_prior
    total = 0.0
    with torch.no_grad():
        for utterance in found:
            signal = torch.from_numpy(utterance.signal(SAMPLE_RATE))[None]
            tokens = torch.tensor([pair.tokenizer.text_to_ids(utterance.text)])
            batch = signal, torch.tensor([signal.shape[1]]), tokens, torch.tensor([tokens.shape[1]])
            total += float(branch_losses(pair, batch)["train_distillation_loss"])
    assert measured.frames * measured.divergence == pytest.approx(total, rel=1e-4)
    assert total > 0


def shift(joint, constant: torch.Tensor) -> None:
    """Move a constant for each class from the prediction logits of an additive joint to its encoder logits."""
    joint.enc.bias.data += constant
    joint.pred.bias.data -= constant


def test_a_constant_that_moves_from_one_side_to_the_other_moves_no_figure_with_the_prior(shared_pair, found):
    pair = shared_pair("tandem_kd").eval()
    measured = [analyze(measured_branches(pair), found)]
    shift(pair.joint, 3.0 * torch.randn(CLASSES))
    measured.append(analyze(measured_branches(pair), found))
    before, after = (each.branches["teacher"].readings for each in measured)
    for source in SOURCES:
        for view in VIEWS:
            moved = np.abs(before[source, view].entropy - after[source, view].entropy).max()
            assert moved < 1e-5 if source in (WITH_PRIOR, "joint") else moved > 0.1, (source, view)
    plain, with_prior = ([getattr(each, name) for each in measured] for name in ("agreement", "agreement_with_prior"))
    assert plain[1].divergence > plain[0].divergence + 0.5
    assert with_prior[1].divergence == pytest.approx(with_prior[0].divergence, rel=1e-5)
    assert with_prior[1].same == with_prior[0].same and with_prior[0].divergence > 0.01


def test_the_logits_of_a_ctc_head_have_no_prior(make_config, found, tmp_path):
    path, _ = save_teacher(make_config, tmp_path, "hybrid")
    pair = EncDecCoDERTBPEModel(pair_config(make_config, "hybrid", path, {"teacher_logits": "ctc"})).eval()
    measured = analyze(measured_branches(pair), found[:2])
    assert measured.agreement.frames > 0 and measured.agreement_with_prior is None
    counts = {name: len(own.readings[WITH_PRIOR, "all"].entropy) for name, own in measured.branches.items()}
    assert counts == {"student": measured.agreement.frames, "teacher": 0}


def test_a_lone_model_and_its_exact_stock_copy_say_the_same(make_lone, found):
    from nemo_codert.export.stock_file import stock_of

    lone = make_lone()
    stock = stock_of(lone, joint="exact")
    readings = [analyze(measured_branches(model), found).branches["model"].readings for model in (lone, stock)]
    for key in readings[0]:
        np.testing.assert_allclose(readings[0][key].entropy, readings[1][key].entropy, rtol=0, atol=1e-5)


def test_two_models_trained_alone_are_compared_as_the_pair_they_came_from(shared_pair, found):
    pair = shared_pair("tandem_kd", **TWO_EACH).eval()
    together = analyze(measured_branches(pair), found)
    apart = analyze(measured_branches(pair.student_model(), teacher=pair.teacher_model()), found)
    assert list(apart.branches) == ["student", "teacher"] and apart.agreement.frames == together.agreement.frames
    assert apart.agreement.divergence == pytest.approx(together.agreement.divergence, rel=1e-4)
    with_pair = analyze(measured_branches(pair.student_model(), teacher=pair), found)
    assert with_pair.agreement.divergence == pytest.approx(together.agreement.divergence, rel=1e-4)


def test_branches_that_a_model_does_not_have_are_refused(shared_pair, make_lone):
    pair, lone = shared_pair("tandem_kd"), make_lone()
    assert [branch.name for branch in measured_branches(pair, "teacher")] == ["teacher"]
    assert [branch.name for branch in measured_branches(lone, "student")] == ["model"]
    with pytest.raises(ValueError, match="this model is a single RNN-T, not a pair: leave the branch out"):
        measured_branches(lone, "teacher")
    with pytest.raises(ValueError, match="the model is a pair and has its own: leave the teacher out"):
        measured_branches(pair, teacher=lone)


def test_teacher_and_student_that_cannot_be_compared_are_refused_with_all_reasons(make_lone):
    student = make_lone(student=conformer(subsampling=4))
    teacher = make_lone(teacher_config, teacher=conformer(subsampling=8), student=conformer(subsampling=8))
    teacher.joint.vocabulary = [*teacher.joint.vocabulary[:5], "other", *teacher.joint.vocabulary[6:]]
    teacher.cfg.preprocessor.sample_rate = 8000
    with pytest.raises(ValueError) as error:
        measured_branches(student, teacher=teacher)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "model.tokenizer: the teacher has 32 word pieces, the student 32, and they differ from id 5 on" in lines[1]
    assert "model.preprocessor.sample_rate: 8000 Hz for the teacher, 16000 Hz for the student" in lines[2]
    assert "model.encoder: one frame of the teacher is 80 ms, one of the student 40 ms" in lines[3]


def test_frames_of_two_front_ends_are_compared_in_seconds(make_lone):
    student = make_lone(student=conformer(subsampling=8))
    teacher = make_lone(teacher_config, teacher=conformer(subsampling=4))
    assert [b.seconds_per_frame for b in measured_branches(student, teacher=teacher)] == pytest.approx([0.08, 0.04])
    teacher.cfg.preprocessor.window_stride = 0.0125
    with pytest.raises(ValueError, match="one frame of the teacher is 50 ms, one of the student 80 ms"):
        measured_branches(student, teacher=teacher)


def write_manifest(folder, *lines):
    path = folder / "manifest.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_utterances_without_a_transcript_have_no_emission(shared_pair, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, seed=3), SAMPLE_RATE)
    lines = [{"audio_filepath": "a.wav", "duration": 1.0, "text": ""}]
    found = utterances(read_manifest(write_manifest(tmp_path, *lines)))
    branch = analyze(measured_branches(shared_pair("tandem_kd").eval(), "student"), found, shown=[0]).branches[
        "student"
    ]
    counts = {key: len(own.entropy) for key, own in branch.readings.items()}
    assert counts["encoder", "all"] == counts["joint", "all"] == 25 and counts["prediction", "all"] == 1
    assert all(counts[source, "non-blank"] == 0 for source in SOURCES)
    assert branch.confusions.most_frequent(5) == [] and len(branch.shown[0].emitting) == 0


def test_transcripts_are_held_against_the_frames_of_the_coarsest_encoder(shared_pair, found):
    branches = measured_branches(shared_pair("tandem_kd", **TWO_EACH).eval())  # 40 ms, and 80 ms of the student
    tokens = len(branches[0].model.tokenizer.text_to_ids(found[0].text))
    enough, less = (replace(found[0], duration=tokens * 0.08 * share) for share in (1.01, 0.99))
    assert transcript_faults(branches, [enough, less]) == {"more tokens than encoder frames": 1}
    assert transcript_faults(branches[1:], [enough, less]) == {}  # the teacher's frames are half as long


def test_audio_that_is_too_short_or_broken_is_named(shared_pair, tmp_path):
    soundfile.write(tmp_path / "short.wav", tone(0.005, seed=3), SAMPLE_RATE)
    soundfile.write(tmp_path / "whole.flac", tone(2.0, seed=3), SAMPLE_RATE)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    branches = measured_branches(shared_pair("tandem_kd").eval(), "student")
    for name, seconds, message in (
        ("short.wav", 0.005, "short: shorter than one encoder frame"),
        ("half.flac", 2.0, r"half\.flac: audio breaks off"),
    ):
        line = {"audio_filepath": name, "duration": seconds, "text": "a"}
        with pytest.raises(ValueError, match=message):
            analyze(branches, utterances(read_manifest(write_manifest(tmp_path, line))))


def test_a_diverged_model_is_refused(shared_pair, found):
    pair = shared_pair("tandem_kd").eval()
    pair.student_joint.enc.bias.data[3] = math.nan
    with pytest.raises(ValueError, match="student: the logits on 0 are not finite"):
        analyze(measured_branches(pair), found)


def test_signals_are_cut_resampled_and_made_mono(tmp_path):
    stereo = np.stack([tone(2.0, seed=1), tone(2.0, seed=2)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, SAMPLE_RATE)
    line = {"audio_filepath": "a.wav", "duration": 0.5, "offset": 1.0, "text": "a"}
    (utterance,) = utterances(read_manifest(write_manifest(tmp_path, line)))
    assert utterance.id == "a@1"
    expected = stereo.mean(1)[SAMPLE_RATE : SAMPLE_RATE + SAMPLE_RATE // 2]
    np.testing.assert_allclose(utterance.signal(SAMPLE_RATE), expected, atol=2**-15)  # one step of 16-bit audio
    assert len(utterance.signal(8000)) == 4000


def test_utterances_are_chosen_by_number_or_by_name(found):
    assert chosen(found, ["3"]) == [0, 1, 2]
    assert chosen(found, ["0"]) == [] and chosen(found, ["99"]) == list(range(8))
    assert chosen(found, ["3.wav"]) == [3]
    assert chosen(found, ["6", "1.wav"]) == [1, 6]
    with pytest.raises(ValueError, match="no utterance is called x.wav, 9: the 8 utterances at hand run from 0 to 7"):
        chosen(found, ["x.wav", "3", "9"])
