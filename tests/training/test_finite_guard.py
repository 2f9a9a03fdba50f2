"""A loss or gradient that is not finite, injected: the run stops or the step is dropped, and nothing has moved."""

import json
import re
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Callback
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.data.manifest import write_manifest
from nemo_codert.models import student_config
from nemo_codert.modules.student_hears import StudentHears, StudentHearsConfig
from nemo_codert.modules.transducer import Batch
from nemo_codert.training.finite_guard import SKIPPED_STEPS, FiniteGuard
from tests.conftest import conformer
from tests.models.training_runs import equal_states
from tests.training.guarded_runs import (
    BAD_STEP,
    INF,
    NAN,
    always_broken,
    check_skip,
    check_stop,
    infinite_gradient,
    nan_loss_part,
    nan_signal,
    run,
    state_of,
)


@pytest.fixture
def fit(tmp_path, batch):
    """Trains a model under the guard with a fault: the trainer and what was seen of every batch."""
    return partial(run, tmp_path, batch)


@pytest.fixture
def guarded_pair(make_model):
    """A pair whose config says what to do about numbers that are not finite."""
    return lambda action="stop", **overrides: make_model(codert={"non_finite": {"action": action}}, **overrides)


# All faults in both precisions: tests/reliability/test_injected_numbers.py.
CASES = pytest.mark.parametrize(
    "fault, precision",
    [(nan_signal, "32-true"), (infinite_gradient, "32-true"), (nan_loss_part, "bf16-mixed")],
    ids=lambda value: getattr(value, "__name__", value),
)


@CASES
def test_the_run_stops_before_the_optimizer_moves(guarded_pair, fit, fault, precision):
    check_stop(guarded_pair(), fit, fault, precision)


@CASES
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(guarded_pair, fit, fault, precision, tmp_path):
    check_skip(guarded_pair("skip"), fit, fault, precision, tmp_path)


def test_gradients_set_to_zero_as_nemo_does_would_still_move_the_weights(make_model, fit):
    """Why a skipped step has no gradients at all: AdamW decays weights and goes on with its momentum."""

    class ZeroGradients(FiniteGuard):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            if trainer.global_step == BAD_STEP:
                optimizer.zero_grad(set_to_none=False)

    _, watch = fit(make_model(), guard=ZeroGradients())
    assert not equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])


def test_a_run_without_faults_is_the_same_to_the_bit_with_and_without_the_guard(make_model, guarded_pair, fit):
    ends = []
    for model, guard in (
        (make_model(), Callback()),
        (guarded_pair(), None),
        (guarded_pair("skip"), FiniteGuard("skip")),
    ):
        _, watch = fit(model, guard=guard, gradient_clip_val=1.0, steps=2)
        ends.append(watch.after[-1])
    assert equal_states(ends[0], ends[1]) and equal_states(ends[0], ends[2])


def test_one_more_than_the_limit_stops_with_the_counts(guarded_pair, fit, tmp_path):
    trainer, watch = fit(guarded_pair("skip"), "skip", always_broken, steps=4, max_skips=3)
    assert "step 3: the training loss is not finite" in watch.error
    assert "3 steps were skipped before it, 3 of them just before" in watch.error
    assert "model.codert.non_finite.max_skips is 3" in watch.error
    assert equal_states(watch.before[0], state_of(trainer, trainer.lightning_module))
    lines = [json.loads(line) for line in (tmp_path / SKIPPED_STEPS).read_text().splitlines()]
    assert [(line["step"], line["in_a_row"]) for line in lines] == [(0, 1), (1, 2), (2, 3)]


def test_the_limit_holds_across_a_resume(guarded_pair, fit, tmp_path):
    trainer, watch = fit(guarded_pair("skip"), "skip", always_broken, steps=2, max_skips=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    guard = FiniteGuard("skip", max_skips=3)
    _, watch = fit(guarded_pair("skip"), "skip", always_broken, 9, guard=guard, ckpt_path=tmp_path / "last.ckpt")
    assert guard.skipped == 3 and "3 steps were skipped before it, 3 of them just before" in watch.error


def test_of_accumulated_batches_one_that_is_not_finite_drops_the_whole_step(guarded_pair, fit, tmp_path):
    def third_of_six(model, batches):
        batches[2] = (batches[2][0] * NAN, *batches[2][1:])  # the first batch of the second step
        return batches

    trainer, watch = fit(guarded_pair("skip"), "skip", third_of_six, steps=3, accumulate_grad_batches=2)
    assert trainer.global_step == 3
    assert equal_states(watch.before[2], watch.after[3])
    assert not equal_states(watch.before[4], watch.after[5])
    (found,) = map(json.loads, (tmp_path / SKIPPED_STEPS).read_text().splitlines())
    assert found["batches"] == [2, 3] and len(found["utterances"]) == 8
    assert sorted(found["suspects"]) == ["u2a", "u2b", "u2c", "u2d"]


def test_the_statistics_of_batch_norm_stay_finite_in_a_skipped_step(guarded_pair, fit):
    student = {**conformer(), "conv_norm_type": "batch_norm"}
    trainer, watch = fit(guarded_pair("skip", student=student), "skip", nan_signal)
    moving = [name for name in watch.before[0] if name.endswith(("running_mean", "num_batches_tracked"))]
    assert moving and equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])
    assert all(not torch.equal(watch.before[2][name], watch.after[2][name]) for name in moving)
    assert all(torch.isfinite(value).all() for value in watch.after[-1].values())


def test_the_diagnosis_gets_the_noise_that_the_student_got(guarded_pair, fit, tmp_path):
    """Noise that is not finite, in some of the utterances: those, and no others, are at fault."""
    soundfile.write(tmp_path / "noise.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    noise = write_manifest(tmp_path / "noise.json", [{"audio_filepath": "noise.wav", "duration": 1.0}])
    model = guarded_pair()
    model.student_hears = StudentHears(StudentHearsConfig(noise=str(noise), probability=0.5), 16000)
    _, watch = fit(model)
    named = set(re.findall(r"u0(.) \(its spectrogram with the student's noise is not finite\)", watch.error))
    model.eval()
    batch = Batch.of(next(iter(model.trainer.train_dataloader)))
    features, heard = model.branch_features(batch, 0, 0)
    assert features[0].isfinite().all()
    assert named == {"abcd"[row] for row in range(4) if not heard[0][row].isfinite().all()} and 0 < len(named) < 4


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_student_trained_alone_is_guarded_too(make_config, fit, action):
    torch.manual_seed(0)
    model = EncDecRNNTBPEModel(student_config(make_config()))
    trainer, watch = fit(model, action, nan_signal)
    if action == "stop":
        assert watch.error.startswith("step 1: the training loss is not finite: train_loss = nan; the gradient is not")
        assert "u1c (its signal is not finite)" in watch.error and "(teacher)" not in watch.error
        assert equal_states(watch.before[BAD_STEP], state_of(trainer, model))
    else:
        assert trainer.global_step == 3 and equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])
        assert not equal_states(watch.before[2], watch.after[2])


def test_without_names_the_batch_is_told(guarded_pair, fit):
    _, watch = fit(guarded_pair(), "stop", infinite_gradient, named=False)
    assert "utterances unknown, batch 1" in watch.error
    _, watch = fit(guarded_pair(), "stop", nan_signal, named=False)
    assert "at fault in batch 1: row 2 of batch 1 (its signal is not finite)" in watch.error


def test_weights_that_are_not_finite_are_named_and_no_utterance_is_blamed(guarded_pair, fit):
    model = guarded_pair()
    with torch.no_grad():
        model.student_joint.enc.weight[0, 0] = INF
    _, watch = fit(model)
    assert "weights were not finite before the step: student_joint.enc.weight" in watch.error
    assert "at fault" not in watch.error


def test_looking_for_the_utterances_changes_neither_generators_nor_modes(guarded_pair, fit, batch):
    ends = []
    for fault in (nan_signal, nan_loss_part):
        model = guarded_pair("skip", student={**conformer(), "dropout": 0.1}, preprocessor={"dither": 1e-5})
        fit(model, "skip", fault, steps=2)
        assert model.student_encoder.training and model.preprocessor.training
        ends.append(torch.rand(1).item())
    assert ends[0] == ends[1]


class ScaledPrecision:
    """What the guard sees of `16-mixed`, which needs a GPU."""

    def __init__(self, scale: float) -> None:
        self.scaler = self
        self.get_scale = lambda: scale


@pytest.mark.parametrize("scale, is_fault", [(65536.0, False), (1.0, True)])
def test_an_overflow_under_a_loss_scale_is_no_fault_until_the_scale_is_down(scale, is_fault):
    from types import SimpleNamespace

    from nemo_codert.training.finite_guard import _is_back_off

    assert _is_back_off(SimpleNamespace(precision_plugin=ScaledPrecision(scale))) is not is_fault


def test_nemos_own_skipping_is_refused_beside_it(make_model, fit):
    with pytest.raises(ValueError, match="model.skip_nan_grad is true.*set model.codert.non_finite.action to skip"):
        fit(make_model(skip_nan_grad=True))


def test_skipping_without_the_guard_is_refused(guarded_pair, fit):
    with pytest.raises(ValueError, match="non_finite.action is skip but the trainer has no FiniteGuard"):
        fit(guarded_pair("skip"), guard=Callback())


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action is 'ignore', wanted one of stop, skip"):
        FiniteGuard("ignore")


def test_a_pair_keeps_no_more_than_the_values_of_its_losses(make_model, batch):
    model = make_model().train()
    loss = model.training_step(batch, 0)["loss"]
    assert model.step_losses.keys() == {
        *("train_rnnt_loss_student", "train_rnnt_loss_teacher", "train_distillation_loss", "train_loss")
    }
    assert not any(value.requires_grad for value in model.step_losses.values()) and loss.requires_grad
    assert torch.equal(model.step_losses["train_loss"], loss.detach())
