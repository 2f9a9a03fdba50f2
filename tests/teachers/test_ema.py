"""`teacher: ema`: where it starts, when and by how much it moves, and what never happens to it."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from tests.conftest import SENTENCES, conformer
from tests.models.training_runs import branch_losses, equal_states, shortest
from tests.training.guarded_runs import NAN, NamedBatches, run

BATCH_NORM = {**conformer(layers=1, channels=16), "conv_norm_type": "batch_norm"}
VIEWS = {"views": {"at": "joint", "nodes": "occupied", "weight": 0.2}}
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
QUIET |= {"limit_val_batches": 0}


@pytest.fixture
def averaged(make_config):
    """Factory of a pair whose teacher is an average."""

    def make(decay: float = 0.9, terms: dict = VIEWS, **overrides) -> EncDecCoDERTBPEModel:
        cfg = make_config("tandem_kd", student=BATCH_NORM, **overrides)
        own = {"teacher": "ema", "ema_decay": decay, "share_decoder": False, "distillation": terms}
        cfg.codert = {**cfg.codert, **own}
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(cfg)

    return make


@pytest.fixture
def two(batch):
    return shortest(batch)


def state_of(networks) -> dict[str, torch.Tensor]:
    """Weights and buffers of a branch, as copies."""
    parts = zip(("encoder", "decoder", "joint"), networks.networks(), strict=True)
    return {f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()}


def states(model) -> tuple[dict, dict]:
    return state_of(model.teacher_transducer), state_of(model.student_transducer)


class States(Callback):
    """States of teacher and student before the first batch and after each batch."""

    def on_train_start(self, trainer, model) -> None:
        self.seen = [states(model)]

    def on_train_batch_end(self, trainer, model, *_) -> None:
        self.seen.append(states(model))


def fit(model, batch, steps: int = 3, callbacks=(), **settings) -> list[tuple[dict, dict]]:
    """Train by Lightning; the states of teacher and student before the first batch and after each."""
    batch = tuple(part.clone() for part in batch)
    watch = States()
    callbacks = [watch, *callbacks]
    trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=callbacks, **QUIET | settings)
    model.set_trainer(trainer)
    batches = [batch] * (steps * settings.get("accumulate_grad_batches", 1))
    trainer.fit(model, NamedBatches(batches, named=False), NamedBatches([batch], named=False))
    return watch.seen


def is_statistic(name: str) -> bool:
    return "running_" in name or "num_batches" in name


def expected_average(before: dict, student: dict, decay: float) -> dict[str, torch.Tensor]:
    """By the formula, in float64."""
    return {
        name: student[name] if is_statistic(name) else decay * value.double() + (1 - decay) * student[name].double()
        for name, value in before.items()
    }


def check_average(found: dict, before: dict, student: dict, decay: float = 0.9) -> None:
    for name, value in expected_average(before, student, decay).items():
        # One rounding to float32 of the difference and one of the sum.
        torch.testing.assert_close(found[name].double(), value.double(), rtol=3e-7, atol=1e-9, msg=name)


def test_it_starts_as_a_copy_of_the_student_as_it_was_loaded(averaged, make_config, tmp_path):
    cfg = make_config("tandem_kd", student=BATCH_NORM)
    torch.manual_seed(9)
    EncDecRNNTBPEModel(student_config(cfg)).save_to(str(tmp_path / "lone.nemo"))
    fresh = averaged()
    cfg = OmegaConf.create(OmegaConf.to_container(fresh.cfg))
    cfg.student.init_from = str(tmp_path / "lone.nemo")
    model = EncDecCoDERTBPEModel(cfg)
    assert equal_states(*states(fresh)) and equal_states(*states(model))
    assert not equal_states(states(model)[0], states(fresh)[0])
    model.on_fit_start()  # needs no checkpoint


def test_the_student_starts_as_in_any_pair(averaged, make_config):
    torch.manual_seed(0)
    other = EncDecCoDERTBPEModel(make_config("tandem_kd", student=BATCH_NORM))
    assert equal_states(states(averaged())[1], states(other)[1])


def test_with_decay_0_it_is_the_student_after_each_step(averaged, two):
    seen = fit(averaged(0.0), two)
    assert len(seen) == 4 and all(equal_states(*both) for both in seen)
    assert not any(equal_states(first[1], second[1]) for first, second in zip(seen, seen[1:], strict=False))


def test_it_follows_the_formula_and_copies_batch_norm(averaged, two):
    seen = fit(averaged(0.9), two)
    for (before, _), (after, student) in zip(seen, seen[1:], strict=False):
        check_average(after, before, student)
    assert any(is_statistic(name) for name in seen[0][0])
    teacher, student = seen[-1]
    assert not torch.equal(teacher["joint.pred.weight"], student["joint.pred.weight"])


def test_batches_that_are_accumulated_move_it_once(averaged, two):
    seen = fit(averaged(0.9), two, steps=2, accumulate_grad_batches=2)
    assert len(seen) == 5
    for before, middle, after in (seen[0:3], seen[2:5]):
        assert equal_states(before[0], middle[0])
        check_average(after[0], middle[0], after[1])


def test_a_step_that_is_dropped_does_not_move_it(averaged, two, tmp_path):
    model = averaged(0.5, codert={"non_finite": {"action": "skip"}})

    def broken(model, batches):
        return [(batch[0] * NAN, *batch[1:]) if number == 1 else batch for number, batch in enumerate(batches)]

    _, watch = run(tmp_path, two, model, "skip", broken)
    moved = [not equal_states(*both) for both in zip(watch.before, watch.after, strict=True)]
    assert moved == [True, False, True]
    name = "encoder.pre_encode.out.weight"
    assert torch.equal(watch.before[1][name], watch.after[1][name])
    assert not torch.equal(watch.before[1][name], watch.before[1][f"student_{name}"])  # there was a way to go


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_does_not_move_it(averaged, fused):
    model = averaged(0.5, optim={"name": "adamw", "lr": 1e-3, "fused": fused})
    model.setup_optimization()
    scaler, optimizer, weight = torch.amp.GradScaler("cpu"), model._optimizer, model.student_joint.enc.weight
    seen = [states(model)]
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append(states(model))
    assert [equal_states(a[0], b[0]) for a, b in zip(seen, seen[1:], strict=False)] == [False, True, False]
    check_average(seen[1][0], seen[0][0], seen[1][1], 0.5)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_it_is_float32_beside_a_student_in_half_precision(averaged, two, precision):
    model = averaged(0.999)
    seen = fit(model, two, steps=2, precision=precision, limit_val_batches=1)  # validates the average too
    assert "val_wer_teacher" in model.trainer.callback_metrics
    floating = [{value.dtype for value in state.values() if value.is_floating_point()} for state in seen[-1]]
    assert floating == [{torch.float32}, {torch.bfloat16 if precision == "bf16-true" else torch.float32}]
    for (before, _), (after, student) in zip(seen, seen[1:], strict=False):
        check_average(after, before, student, 0.999)
        assert not torch.equal(after["joint.enc.weight"], before["joint.enc.weight"])


def test_no_conversion_makes_it_narrower_and_any_moves_it(averaged):
    model = averaged()
    before = states(model)[0]
    assert equal_states(states(model.half())[0], before) and model.student_joint.pred.weight.dtype == torch.float16
    wide = states(model.double())[0].values()
    assert {value.dtype for value in wide if value.is_floating_point()} == {torch.float64}
    assert {value.device.type for value in states(model.to("meta"))[0].values()} == {"meta"}


def test_no_gradient_and_no_mode_reaches_it(averaged, two):
    model = averaged().train()
    model.unfreeze()
    teacher, student = model.teacher_transducer, model.student_transducer
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for network in teacher.networks() for module in network.modules())
    assert all(network.training for network in student.networks())
    model.training_step(two, 0)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert list(model.criteria) == ["rnnt_student", "views"]


@pytest.mark.parametrize("groups", [None, {"encoder": {"lr": 1e-4}, "student_encoder": {"lr": 1e-4}}])
def test_the_optimizer_has_the_students_parameters_alone(averaged, groups):
    model = averaged(**({"optim_param_groups": groups} if groups else {}))
    model.setup_optimization()
    given = [id(parameter) for group in model._optimizer.param_groups for parameter in group["params"]]
    assert sorted(given) == sorted(map(id, model.student_transducer.parameters()))


PLACES = {
    "encoder": {"at": "encoder", "weight": 0.1},
    "hidden": {"at": "hidden", "by": "mse", "layers": {1: 1}},
    **VIEWS,
    "sequence": {"at": "sequence", "by": "l2"},
}


def test_its_terms_and_their_gradients_are_0_where_it_is_the_student(averaged, two):
    model = averaged(0.0, PLACES).eval()
    fit(model, two, steps=1)
    model.eval()  # batch-norm statistics as the teacher uses them
    losses = branch_losses(model, two)
    distillation = [losses[term.spec.log_name] for term in model.criteria.values() if term.spec.is_distillation]
    model.zero_grad()
    sum(distillation).backward()
    assert len(distillation) == 4 and all(value == 0 for value in distillation)
    assert not any(p.grad is not None and p.grad.any() for p in model.student_transducer.parameters())
    assert not model.criteria.parameters_of("student")  # layers of one width need no projection


def test_masks_of_the_students_own_make_two_views(averaged, two):
    masks = {"freq_masks": 2, "freq_width": 8, "time_masks": 1, "time_width": 0.2}
    model = averaged(0.0, codert={"student_hears": {"spec_augment": masks}}).train()
    model.training_step(two, 0)
    assert model.step_losses["train_distillation_loss_views"] > 0


def test_it_is_in_the_pairs_file_and_not_in_the_students(averaged, two, tmp_path):
    model = averaged(0.5)
    fit(model, two, steps=1)
    teacher, student = states(model)
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(states(restored)[0], teacher) and equal_states(states(restored)[1], student)
    assert not equal_states(teacher, student)
    assert restored.cfg.encoder == restored.cfg.student.encoder
    assert not any(parameter.requires_grad for parameter in restored.teacher_transducer.parameters())
    restored.on_fit_start()
    stock = restored.student_model()
    kept = {name.split(".")[0] for name in stock.state_dict()}
    assert type(stock) is EncDecRNNTBPEModel and kept == {"preprocessor", "encoder", "decoder", "joint"}
    assert torch.equal(stock.encoder.pre_encode.out.weight, student["encoder.pre_encode.out.weight"])
    averages = restored.teacher_model().encoder.pre_encode.out.weight
    assert torch.equal(averages, teacher["encoder.pre_encode.out.weight"])


def test_a_new_vocabulary_starts_it_again(averaged, two, tmp_path):
    model = averaged(0.5)
    fit(model, two, steps=1)
    train_tokenizer(SENTENCES, tmp_path, vocab_size=40)
    model.change_vocabulary(str(tmp_path), "bpe")
    assert equal_states(*states(model)) and model.joint.num_classes_with_blank == 41
    assert not any(parameter.requires_grad for parameter in model.teacher_transducer.parameters())
    assert len(fit(model, two, steps=1)) == 2
