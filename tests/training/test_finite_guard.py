"""A loss or gradient that is not finite, injected: the run stops or the step is dropped, and nothing has moved."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.models import student_config
from nemo_codert.training.finite_guard import SKIPPED_STEPS, FiniteGuard
from tests.conftest import conformer
from tests.models.training_runs import equal_states

NAN, INF = float("nan"), float("inf")
BAD_STEP = 1
PRECISIONS = ("32-true", "bf16-mixed")


class NamedBatches:
    """A loader that says which utterances are in the batch it gave last."""

    def __init__(self, batches: list, named: bool = True) -> None:
        self.batches = batches
        if named:
            self.current_utterances: list[str] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if hasattr(self, "current_utterances"):
                self.current_utterances = [f"u{number}{letter}" for letter in "abcd"]
            yield batch


class Watch(Callback):
    """State of weights and optimizer when a batch begins and when it has ended, and what was logged."""

    def __init__(self) -> None:
        self.before: list = []
        self.after: list = []
        self.logged: list[dict] = []

    def on_train_batch_start(self, trainer, model, batch, batch_idx) -> None:
        self.before.append(state_of(trainer, model))

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        self.after.append(state_of(trainer, model))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def state_of(trainer, model) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, values in trainer.optimizers[0].state.items():
        for key, value in values.items():
            state[f"{names[id(parameter)]}.{key}"] = value.clone()
    return state


def nan_signal(model, batches: list) -> list:
    """One utterance of the bad step holds a sample that is not a number."""
    signal = batches[BAD_STEP][0].clone()
    signal[2, 1000] = NAN
    return [(signal, *batch[1:]) if number == BAD_STEP else batch for number, batch in enumerate(batches)]


def infinite_gradient(model, batches: list) -> list:
    """The gradient of one of the student's weights is infinite in the bad step's backward pass."""
    weight, calls = dict(model.named_parameters())["student_encoder.pre_encode.out.weight"], iter(range(99))
    weight.register_hook(lambda gradient: gradient * INF if next(calls) == BAD_STEP else gradient)
    return batches


def nan_loss_part(model, batches: list) -> list:
    """The teacher's part of the loss is not a number at the bad step, whatever the utterances."""
    original = model.codert_losses

    def broken(*args):
        losses = original(*args)
        if args[-1] == BAD_STEP:
            losses["train_rnnt_loss_teacher"] = losses["train_rnnt_loss_teacher"] * NAN
            losses["train_loss"] = losses["train_loss"] + losses["train_rnnt_loss_teacher"]
        return losses

    model.codert_losses = broken
    return batches


FAULTS = {
    nan_signal: [
        "the training loss is not finite: train_rnnt_loss_student = nan (student), train_rnnt_loss_teacher = nan "
        "(teacher), train_distillation_loss = nan (student), train_loss = nan",
        "at fault in batch 1: u1c (its signal is not finite); with u1a, u1b, u1d",
    ],
    infinite_gradient: [
        "the gradient is not finite: student_encoder (student) 1 of",
        "first student_encoder.pre_encode.out.weight",
        "utterances of batch 1: u1a, u1b, u1c, u1d",
    ],
    nan_loss_part: [
        "the training loss is not finite: train_rnnt_loss_teacher = nan (teacher), train_loss = nan",
        "the gradient is not finite: encoder (teacher)",
        "at fault in batch 1: u1a (its train_rnnt_loss_teacher is not finite)",
    ],
}


@pytest.fixture
def fit(tmp_path, batch):
    """Trains a model under the guard with a fault: the model, the trainer and what was seen of every batch."""

    def run(
        model, action="stop", fault=None, steps=4, max_skips=10, named=True, guard=None, ckpt_path=None, **settings
    ):
        watch, batches = Watch(), [batch] * (steps * settings.get("accumulate_grad_batches", 1))
        batches = fault(model, batches) if fault else batches
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[guard or FiniteGuard(action, max_skips), watch],
            **quiet | settings,
        )
        model.set_trainer(trainer)
        try:
            trainer.fit(model, NamedBatches(batches, named), ckpt_path=ckpt_path)
        except FloatingPointError as error:
            watch.error = str(error)
        return trainer, watch

    return run


@pytest.fixture
def guarded_pair(make_model):
    """A pair whose config says what to do about numbers that are not finite."""
    return lambda action="stop", **overrides: make_model(codert={"non_finite": {"action": action}}, **overrides)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_run_stops_before_the_optimizer_moves(guarded_pair, fit, fault, precision):
    model = guarded_pair()
    trainer, watch = fit(model, "stop", fault, precision=precision)
    assert watch.error.startswith(f"step {BAD_STEP}: ")
    for words in FAULTS[fault]:
        assert words in watch.error
    assert "set model.codert.non_finite.action to skip" in watch.error
    assert trainer.global_step == BAD_STEP and len(watch.after) == BAD_STEP
    assert equal_states(state_of(trainer, model), watch.before[BAD_STEP])
    assert not equal_states(watch.before[0], watch.before[BAD_STEP])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(guarded_pair, fit, fault, precision, tmp_path):
    trainer, watch = fit(guarded_pair("skip"), "skip", fault, precision=precision)
    assert trainer.global_step == 4 and not hasattr(watch, "error")
    assert equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])
    for step in (0, 2, 3):
        assert not equal_states(watch.before[step], watch.after[step])
    assert all(torch.isfinite(value).all() for value in watch.after[-1].values())
    assert [logged["train_skipped_steps"] for logged in watch.logged] == [0.0, 1.0, 1.0, 1.0]
    (line,) = (tmp_path / SKIPPED_STEPS).read_text().splitlines()
    found = json.loads(line)
    assert (found["step"], found["batches"], found["in_a_row"]) == (BAD_STEP, [BAD_STEP], 1)
    assert found["utterances"] == ["u1a", "u1b", "u1c", "u1d"]
    assert bool(found["losses"]) is (fault is not infinite_gradient)
    if fault is nan_signal:
        assert found["suspects"] == {"u1c": "its signal is not finite"}


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
        _, watch = fit(model, guard=guard, gradient_clip_val=1.0)
        ends.append(watch.after[-1])
    assert equal_states(ends[0], ends[1]) and equal_states(ends[0], ends[2])


def always_broken(model, batches: list) -> list:
    return [(batch[0] * NAN, *batch[1:]) for batch in batches]


def test_one_more_than_the_limit_stops_with_the_counts(guarded_pair, fit, tmp_path):
    trainer, watch = fit(guarded_pair("skip"), "skip", always_broken, steps=6, max_skips=3)
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
        assert trainer.global_step == 4 and equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])
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
        fit(model, "skip", fault)
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
