"""Short trainings under the guard with numbers that are not finite, and what must come of them."""

import json

import torch
from lightning.pytorch import Callback, Trainer

from nemo_codert.training.finite_guard import SKIPPED_STEPS, FiniteGuard
from tests.models.training_runs import equal_states

NAN, INF = float("nan"), float("inf")
BAD_STEP = 1


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


def run(
    folder,
    batch,
    model,
    action="stop",
    fault=None,
    steps=3,
    max_skips=10,
    named=True,
    guard=None,
    ckpt_path=None,
    **settings,
):
    """Train a model under the guard with a fault: the trainer and what was seen of every batch."""
    batch = tuple(part.clone() for part in batch)  # all tests share it, and NeMo's dither is added in place
    watch, batches = Watch(), [batch] * (steps * settings.get("accumulate_grad_batches", 1))
    batches = fault(model, batches) if fault else batches
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[guard or FiniteGuard(action, max_skips), watch],
        **quiet | settings,
    )
    model.set_trainer(trainer)
    # Without AVX-512 PyTorch's oneDNN has no LSTM in bfloat16; PyTorch's own has one everywhere.
    has_onednn = settings.get("precision") != "bf16-mixed"
    try:
        with torch.backends.mkldnn.flags(enabled=has_onednn):
            trainer.fit(model, NamedBatches(batches, named), ckpt_path=ckpt_path)
    except FloatingPointError as error:
        watch.error = str(error)
    return trainer, watch


def check_stop(model, fit, fault, precision) -> None:
    """The run ends at the bad step with its weights and optimizer as they were before it, and says why."""
    trainer, watch = fit(model, "stop", fault, precision=precision)
    assert watch.error.startswith(f"step {BAD_STEP}: ")
    for words in FAULTS[fault]:
        assert words in watch.error
    assert "set model.codert.non_finite.action to skip" in watch.error
    assert trainer.global_step == BAD_STEP and len(watch.after) == BAD_STEP
    assert equal_states(state_of(trainer, model), watch.before[BAD_STEP])
    assert not equal_states(watch.before[0], watch.before[BAD_STEP])


def check_skip(model, fit, fault, precision, folder) -> None:
    """The bad step changes nothing to the bit, is logged and listed, and the run goes on to its end."""
    trainer, watch = fit(model, "skip", fault, precision=precision)
    assert trainer.global_step == 3 and not hasattr(watch, "error")
    assert equal_states(watch.before[BAD_STEP], watch.after[BAD_STEP])
    for step in (0, 2):
        assert not equal_states(watch.before[step], watch.after[step])
    assert all(torch.isfinite(value).all() for value in watch.after[-1].values())
    assert [logged["train_skipped_steps"] for logged in watch.logged] == [0.0, 1.0, 1.0]
    (line,) = (folder / SKIPPED_STEPS).read_text().splitlines()
    found = json.loads(line)
    assert (found["step"], found["batches"], found["in_a_row"]) == (BAD_STEP, [BAD_STEP], 1)
    assert found["utterances"] == ["u1a", "u1b", "u1c", "u1d"]
    assert bool(found["losses"]) is (fault is not infinite_gradient)
    if fault is nan_signal:
        assert found["suspects"] == {"u1c": "its signal is not finite"}


def always_broken(model, batches: list) -> list:
    return [(batch[0] * NAN, *batch[1:]) for batch in batches]
