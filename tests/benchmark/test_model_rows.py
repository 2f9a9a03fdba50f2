"""Training steps and decoding in the benchmark, at tiny sizes; decoding speed is compared over equal steps."""

import pytest
import torch

from nemo_codert.benchmark import training_step as step_costs
from nemo_codert.benchmark.decoding import (
    ADDITIVE,
    FORMS,
    STOCK,
    DecodingSettings,
    _joint,
    check_same_steps,
    decoding_cases,
    decoding_rows,
    make_encoded,
)
from nemo_codert.benchmark.measure import Measured, MeasureSettings
from nemo_codert.benchmark.training_step import (
    AT_JOINT,
    NETWORKS,
    OPTIMIZER,
    STOCK_STUDENT,
    STOCK_TEACHER,
    TANDEM,
    StepCase,
    StepSettings,
    make_step_batch,
    pair_config,
    step_cases,
    step_rows,
)

# ---- training steps -------------------------------------------------------------------------------------------------

TINY_STEP = StepSettings(
    batch=2,
    seconds=0.5,
    tokens=3,
    vocabulary=64,
    teacher=(2, 32),
    student=(1, 16),
    pred_hidden=20,
    joint_hidden=24,
)


@pytest.fixture
def built(monkeypatch):
    """Models that the cases build, in order."""
    models = []
    for name in ("stock_model", "_pair"):
        build = getattr(step_costs, name)
        monkeypatch.setattr(step_costs, name, lambda *sizes, build=build: models.append(build(*sizes)) or models[-1])
    return models


def test_the_batch_is_noise_of_full_length():
    signal, signal_len, transcript, transcript_len = make_step_batch(TINY_STEP, "cpu")
    assert signal.shape == (2, 8000) and signal_len.tolist() == [8000] * 2
    assert transcript.shape == (2, 3) and transcript_len.tolist() == [3, 3] and transcript.max() < 64


@pytest.mark.parametrize("name, layers, channels", [(STOCK_TEACHER, 2, 32), (STOCK_STUDENT, 1, 16)])
def test_a_stock_step_trains_nemos_model_with_its_own_joint_and_loss(built, name, layers, channels):
    step = StepCase(name, TINY_STEP).prepare()
    (model,) = built
    assert type(model).__name__ == "EncDecRNNTBPEModel" and type(model.joint).__name__ == "RNNTJoint"
    assert not model.joint.fuse_loss_wer and model.joint.joint_hidden == 24 and model.training
    assert (len(model.encoder.layers), model.encoder.d_model) == (layers, channels)
    assert model.joint.num_classes_with_blank == 65 and model.decoder.pred_hidden == 20
    assert "RNNTLossNumba" in type(model.loss._loss).__name__
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    assert step() > 0
    assert sum(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True)) > len(weights) / 2
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing is held between steps


@pytest.mark.parametrize("name, place", [(TANDEM, "encoder"), (AT_JOINT, "joint")])
def test_the_tandem_step_trains_a_pair_with_an_additive_joint_and_a_shared_prediction_network(built, name, place):
    step = StepCase(name, TINY_STEP).prepare()
    assert list(built[0].criteria)[-1] == place
    (pair,) = built
    assert type(pair.joint).__name__ == "AdditiveRNNTJoint" and pair.student_decoder is pair.decoder
    assert pair.criteria[place].spec.weight == 0.1 and pair.training
    assert step() > 0
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_the_networks_alone_reach_every_weight_that_the_step_trains(built, monkeypatch):
    run = StepCase(NETWORKS, TINY_STEP).prepare()
    (pair,) = built
    reached = []
    zero_grad = pair.zero_grad
    monkeypatch.setattr(
        pair,
        "zero_grad",
        lambda: reached.extend(n for n, p in pair.named_parameters() if p.grad is not None) or zero_grad(),
    )
    run()
    assert set(reached) == {name for name, _ in pair.named_parameters()}
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_the_optimizer_alone_moves_the_weights(built):
    run = StepCase(OPTIMIZER, TINY_STEP).prepare()
    before = [parameter.detach().clone() for parameter in built[0].parameters()]
    run()
    run()
    assert all(not torch.equal(a, b) for a, b in zip(before, built[0].parameters(), strict=True))


def test_only_the_stock_steps_are_slow_and_only_on_the_cpu():
    assert [case.slow for case in step_cases(TINY_STEP, "cpu")] == [True, True, False, False, False, False]
    assert not any(case.slow for case in step_cases(TINY_STEP, "cuda"))


def test_the_config_is_that_of_a_pair():
    from nemo_codert.config.checked import checked_config
    from nemo_codert.config.stock_checks import ADDITIVE_JOINT

    cfg = checked_config(pair_config(TINY_STEP, ADDITIVE_JOINT, rnnt_loss="auto")).model
    assert cfg.encoder.subsampling_factor == cfg.student.encoder.subsampling_factor == 8
    assert cfg.codert.teacher == "co_trained" and cfg.codert.share_decoder


def test_rows_and_findings_compare_with_the_two_stock_steps_together(monkeypatch):
    seconds = {
        STOCK_TEACHER: [6.0],
        STOCK_STUDENT: [4.0],
        TANDEM: [1.5],
        AT_JOINT: [1.8],
        NETWORKS: [1.2],
        OPTIMIZER: [0.3],
    }
    measured = {name: Measured(own, None) for name, own in seconds.items()}
    monkeypatch.setattr("nemo_codert.benchmark.training_step.measure", lambda cases, settings, title: measured)
    rows, findings = step_rows(TINY_STEP, "cpu", MeasureSettings())
    assert [row.ratio for row in rows] == pytest.approx([0.6, 0.4, 0.15, 0.18, 0.12, 0.03])
    assert [finding.value for finding in findings] == pytest.approx([0.15, 0.25, 1.0, 1.25, 1.2])
    assert [finding.met for finding in findings] == [True, None, True, False, False]


@pytest.mark.parametrize("tandem, met", [(6.0, True), (6.3, False)])
def test_on_a_gpu_the_tandem_step_is_held_against_the_stock_teachers_alone(monkeypatch, tandem, met):
    seconds = {
        STOCK_TEACHER: [6.0],
        STOCK_STUDENT: [4.0],
        TANDEM: [tandem],
        AT_JOINT: [tandem],
        NETWORKS: [1.2],
        OPTIMIZER: [0.3],
    }
    measured = {name: Measured(own, None) for name, own in seconds.items()}
    monkeypatch.setattr("nemo_codert.benchmark.training_step.measure", lambda cases, settings, title: measured)
    _, (both, teacher, *networks) = step_rows(TINY_STEP, "cuda", MeasureSettings())
    assert both.met is None and (teacher.at_most, teacher.met) == (1.0, met)
    assert [finding.met for finding in networks] == [None, None, None]


# ---- decoding -------------------------------------------------------------------------------------------------------

TINY_DECODING = DecodingSettings(batch=3, frames=13, enc_hidden=8, vocabulary=20, pred_hidden=12, joint_hidden=10)


def test_a_quarter_of_the_frames_of_every_utterance_is_flagged():
    encoded, encoded_len = make_encoded(TINY_DECODING)
    assert encoded.shape == (3, 8, 13) and encoded_len.tolist() == [13] * 3
    assert (encoded[:, 0] == 1).sum(1).tolist() == [3] * 3 and (encoded[:, 0].abs() == 1).all()


def test_every_form_emits_one_token_at_every_flagged_frame():
    encoded, _ = make_encoded(TINY_DECODING)
    flagged = [row.nonzero().flatten().tolist() for row in encoded[:, 0] == 1]
    results = {case.name: case.prepare()() for case in decoding_cases(TINY_DECODING, "cpu")}
    assert list(results) == [STOCK, ADDITIVE, "exported, exact", "exported, compact", "exported, narrow"]
    for utterances in results.values():
        assert [frames for _, frames in utterances] == flagged
        assert [len(tokens) for tokens, _ in utterances] == [3] * 3
    assert all(results[name] == results[ADDITIVE] for name in FORMS)
    assert len({token for tokens, _ in results[ADDITIVE] for token in tokens}) > 1
    check_same_steps(results)


@pytest.mark.parametrize(
    "name, result, message",
    [
        (STOCK, [([4, 5], [0, 3])], "other frames"),
        ("exported, exact", [([1, 3], [0, 2])], "other tokens"),
        ("exported, compact", [([1], [0])], "other frames"),
        ("exported, narrow", [([2, 2], [0, 2])], "other tokens"),
    ],
)
def test_other_steps_or_tokens_stop_the_comparison(name, result, message):
    same = [([1, 2], [0, 2])]
    results = {STOCK: [([7, 8], [0, 2])], ADDITIVE: same, **dict.fromkeys(FORMS, same)}
    check_same_steps(results)
    with pytest.raises(RuntimeError, match=message):
        check_same_steps({**results, name: result})


def test_a_comparison_without_any_token_is_refused():
    with pytest.raises(RuntimeError, match="other frames"):
        check_same_steps({name: [([], [])] for name in (STOCK, ADDITIVE)})


def test_speeds_are_held_against_the_stock_student(monkeypatch):
    seconds = {STOCK: [1.0], ADDITIVE: [0.8], **dict(zip(FORMS, ([2.0], [1.6], [1.25]), strict=True))}
    measured = {name: Measured(own, [([1], [0])]) for name, own in seconds.items()}
    monkeypatch.setattr("nemo_codert.benchmark.decoding.measure", lambda cases, settings, title: measured)
    rows, (best, kept) = decoding_rows(TINY_DECODING, "cpu", MeasureSettings())
    assert [row.ratio for row in rows] == [1.0, 0.8, 2.0, 1.6, 1.25]
    assert (best.value, best.met, kept.value, kept.met) == (0.8, False, 1.25, True)
    assert "narrow" in best.text


def test_each_form_is_timed_at_its_own_width():
    widths = {name: _joint(name, TINY_DECODING).joint_hidden for name in FORMS}
    assert list(widths.values()) == [2 * 21, 2 * (8 + 12), 8 + 12]
