"""Real Lightning runs of a few steps on CPU: what is logged, in which precision, with which loader and which loss."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from nemo_codert.config.stock_checks import RNNT_REDUCTIONS
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch, BranchOutput
from tests.conftest import ADDITIVE, STOCK
from tests.models.teacher_files import pair_config
from tests.models.training_runs import branch_losses, shortest

LHOTSE = {"use_lhotse": True, "sample_rate": 16000, "batch_size": 4, "shuffle": True, "num_workers": 0, "seed": 0}
LHOTSE.update(shard_seed=0, pretokenize=False)
CLASSIC = {"sample_rate": 16000, "batch_size": 4, "shuffle": True, "num_workers": 0}
EVALUATED = {"sample_rate": 16000, "batch_size": 3, "shuffle": False, "num_workers": 0}
TRAINED = ("train_loss", "train_rnnt_loss_teacher", "train_rnnt_loss_student", "train_distillation_loss")


@pytest.fixture
def sets(manifest, tmp_path) -> dict[str, Path]:
    """Manifests under names that NeMo accepts for validation: `train`, `dev` (all), `other` (the last three)."""
    lines = manifest.read_text().splitlines(keepends=True)
    chosen = {"train": lines, "dev": lines, "other": lines[-3:]}
    for name, rows in chosen.items():
        (tmp_path / f"{name}.json").write_text("".join(rows))
    return {name: tmp_path / f"{name}.json" for name in chosen}


class History(Callback):
    """Everything logged after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def make_trainer(max_steps: int = 4, **settings) -> tuple[Trainer, History]:
    history = History()
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", num_sanity_val_steps=0, callbacks=[history], **quiet | settings
    )
    return trainer, history


def fit(cfg, batches=None, model_class=EncDecCoDERTBPEModel, **settings):
    """Train a new model from a config: with its own data blocks, or with the batches given."""
    trainer, history = make_trainer(**settings)
    torch.manual_seed(0)
    model = model_class(cfg, trainer=trainer)
    trainer.fit(model, DataLoader(batches, batch_size=None) if batches else None)
    return model, trainer, history


def data_blocks(sets, train: dict, *evaluated: str) -> dict:
    dev = [str(sets[name]) for name in evaluated]
    return {
        "train_ds": {**train, "manifest_filepath": str(sets["train"])},
        "validation_ds": {**EVALUATED, "manifest_filepath": dev if len(dev) > 1 else dev[0]},
        "test_ds": {**EVALUATED, "manifest_filepath": dev if len(dev) > 1 else dev[0]},
    }


def check_run(model, trainer, history) -> dict[str, torch.Tensor]:
    """Four steps logged every part of the loss; what the validation after them said."""
    assert trainer.global_step == 4 and len(history.steps) == 4
    for logged in history.steps:
        assert all(math.isfinite(logged[name]) and logged[name] > 0 for name in TRAINED)
        assert logged["train_distillation_weight"] == pytest.approx(0.1)
        total = logged["train_rnnt_loss_teacher"] + logged["train_rnnt_loss_student"]
        assert logged["train_loss"] == pytest.approx(total + 0.1 * logged["train_distillation_loss"], rel=1e-5)
    validated = dict(trainer.callback_metrics)
    trainer.test(model, verbose=False)
    return validated


def test_a_run_logs_every_part_and_both_word_error_rates(make_config, sets):
    cfg = make_config(strategy="shared_kd", **data_blocks(sets, LHOTSE, "dev"))
    model, trainer, history = fit(cfg, use_distributed_sampler=False, limit_train_batches=2, max_epochs=-1)
    validated = check_run(model, trainer, history)
    assert {"val_loss", "val_wer", "val_wer_teacher"} <= validated.keys()
    assert {"test_loss", "test_wer", "test_wer_teacher"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["test_wer"] == validated["val_wer"]
    assert trainer.callback_metrics["test_wer_teacher"] == validated["val_wer_teacher"]


def test_with_nemos_own_loader_and_two_validation_sets_each_has_both_word_error_rates(make_config, sets):
    cfg = make_config(strategy="shared_kd", **data_blocks(sets, CLASSIC, "dev", "other"))
    model, trainer, history = fit(cfg, limit_train_batches=2, max_epochs=-1)
    validated = check_run(model, trainer, history)
    names = {f"{stem}val_{metric}" for stem in ("dev_", "other_") for metric in ("loss", "wer", "wer_teacher")}
    assert names | {"val_wer", "val_loss"} <= validated.keys()
    assert validated["val_wer"] == validated["dev_val_wer"]
    tested = {"dev_test_wer", "dev_test_wer_teacher", "other_test_wer_teacher", "other_test_wer"}
    assert tested <= trainer.callback_metrics.keys()
    for name in tested:
        assert trainer.callback_metrics[name] == validated[name.replace("test", "val")]


def test_word_error_rates_are_summed_errors_over_summed_words(make_config, sets, monkeypatch):
    errors = {"student": iter([(1, 4), (0, 2), (5, 1)]), "teacher": iter([(2, 4), (2, 2), (0, 1)])}
    trainer, _ = make_trainer()
    model = EncDecCoDERTBPEModel(make_config(**data_blocks(sets, CLASSIC, "dev")), trainer=trainer)
    for name, metric in (("student", model.student_wer), ("teacher", model.wer)):

        def compute(name=name):
            wrong, words = next(errors[name])
            return torch.tensor(wrong / words), torch.tensor(wrong), torch.tensor(words)

        monkeypatch.setattr(metric, "compute", compute)
    trainer.validate(model, verbose=False)
    assert trainer.callback_metrics["val_wer"] == pytest.approx(6 / 7)
    assert trainer.callback_metrics["val_wer_teacher"] == pytest.approx(4 / 7)


def test_reduction_and_temperature_of_the_config_are_those_of_the_loss(make_model, batch):
    settings = {"weight": 0.1, "reduction": "per_frame"}, {"weight": 0.1, "temperature": 2.0}, {"weight": 0.1}
    models = [make_model(codert={"distillation": setting}).train() for setting in settings]
    losses = [branch_losses(model, batch)["train_distillation_loss"].item() for model in models]
    per_frame, softer, per_utterance = losses
    features, features_len = models[-1].extract_features(*batch[:2])
    _, lengths = models[-1].student_encoder(audio_signal=features, length=features_len)
    assert per_utterance / per_frame == pytest.approx(float(lengths.sum()) / len(lengths), rel=1e-5)
    assert 0 < softer and softer != pytest.approx(per_utterance, rel=1e-3)


def test_parameter_groups_have_their_own_learning_rates(make_config, batch):
    groups = {"encoder": {"lr": 1e-5}, "student_encoder": {"lr": 1e-4}}
    cfg = make_config(optim={"name": "adamw", "lr": 1e-3}, optim_param_groups=groups)
    model, trainer, _ = fit(cfg, [batch], max_steps=1)
    rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for module, rate in ((model.encoder, 1e-5), (model.student_encoder, 1e-4), (model.decoder, 1e-3)):
        assert {rates[id(parameter)] for parameter in module.parameters()} == {rate}


def test_with_use_cer_characters_are_counted(make_config, batch):
    words, characters = (EncDecCoDERTBPEModel(make_config(use_cer=use_cer)).eval() for use_cer in (False, True))
    counts = [model.validation_pass(batch, 0) for model in (words, characters)]
    texts = [words.tokenizer.ids_to_text(ids[:n].tolist()) for ids, n in zip(batch[2], batch[3], strict=True)]
    for suffix in ("", "_teacher"):
        assert counts[0][f"val_wer{suffix}_denom"] == sum(len(text.split()) for text in texts)
        assert counts[1][f"val_wer{suffix}_denom"] == sum(len(text) for text in texts)


def test_with_log_prediction_a_reference_is_printed(make_config, batch, monkeypatch):
    from nemo.utils import logging as nemo_logging

    lines = []
    monkeypatch.setattr(nemo_logging, "info", lambda message, *rest, **options: lines.append(str(message)))
    EncDecCoDERTBPEModel(make_config(log_prediction=True)).eval().validation_pass(batch, 0)
    assert any("reference" in line for line in lines) and any("predicted" in line for line in lines)


@pytest.mark.parametrize("part", ["train_rnnt_loss_student", "train_distillation_loss"])
def test_a_loss_that_is_not_finite_stops_the_run_by_step_and_part(make_config, batch, monkeypatch, part):
    original = EncDecCoDERTBPEModel.codert_losses

    def broken(self, *args):
        losses = original(self, *args)
        if args[-1] == 2:
            losses[part] = losses[part] * float("nan")
            losses["train_loss"] = losses["train_loss"] + losses[part]
        return losses

    monkeypatch.setattr(EncDecCoDERTBPEModel, "codert_losses", broken)
    with pytest.raises(FloatingPointError, match=f"step 2: the training loss is not finite .*'{part}': nan"):
        fit(make_config(), [batch] * 4)


def test_a_step_that_is_not_finite_is_skipped_where_the_config_says_so(make_config, batch, monkeypatch):
    cfg = make_config(skip_nan_grad=True)
    broken = (batch[0] * float("nan"), *batch[1:])
    model, trainer, _ = fit(cfg, [batch, broken, batch], max_steps=3)
    assert trainer.global_step == 3
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("joint, checkpointed", [(ADDITIVE, [False, True]), (STOCK, [False])])
def test_mixed_precision_is_finite_and_near_full_precision(make_config, batch, joint, checkpointed):
    full = fit(make_config(joint=joint), [batch] * 3, max_steps=3, precision="32-true")[2].steps
    for on in checkpointed:  # in full precision to the bit the same: test_activation_checkpointing.py
        cfg = make_config(joint=joint, codert={"activation_checkpointing": on})
        mixed = fit(cfg, [batch] * 3, max_steps=3, precision="bf16-mixed")[2].steps
        for ours, theirs in zip(mixed, full, strict=True):
            for name in ("train_loss", "train_rnnt_loss_teacher", "train_rnnt_loss_student"):
                # bfloat16 has 8 bits of mantissa: 0.4% an operation, averaged over the lattice.
                assert math.isfinite(ours[name]) and ours[name] == pytest.approx(theirs[name], rel=0.02), on


def test_accumulated_gradients_are_those_of_the_whole_batch(make_config, batch):
    halves = [tuple(part[rows] for part in batch) for rows in ([0, 1], [2, 3])]
    optim = {"name": "sgd", "lr": 1e-3}
    whole, _, _ = fit(make_config(optim=optim), [batch], max_steps=1)
    for checkpointed in (False, True):
        cfg = make_config(optim=optim, codert={"activation_checkpointing": checkpointed})
        accumulated, trainer, history = fit(cfg, halves, max_steps=1, accumulate_grad_batches=2)
        assert trainer.global_step == 1 and len(history.steps) == 2
        for (name, ours), theirs in zip(accumulated.named_parameters(), whole.parameters(), strict=True):
            # mean_batch of two halves is the mean of the whole; float32 sums in other groups, a step of 1e-3.
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_the_weight_of_the_distillation_follows_its_ramp(make_config, batch):
    cfg = make_config(codert={"distillation": {"weight": 0.4, "start_step": 2, "ramp_steps": 2}})
    _, _, history = fit(cfg, [batch] * 6, max_steps=6)
    weights = [logged["train_distillation_weight"] for logged in history.steps]
    assert weights == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4, 0.4])
    assert [("train_distillation_loss" in logged) for logged in history.steps] == [False] * 2 + [True] * 4


def test_without_distillation_no_distillation_loss_is_logged(make_config, batch):
    _, _, history = fit(make_config(strategy="tandem"), [batch], max_steps=1)
    assert "train_distillation_loss" not in history.steps[0]
    assert history.steps[0]["train_distillation_weight"] == 0.0


def rnnt_parts(model, batch, rnnt_loss: str, fastemit: float = 0.0) -> dict[str, torch.Tensor]:
    """The parts of a pair's loss, with these settings in its config: the losses are set up as when it was built."""
    model.cfg.codert.rnnt_loss = rnnt_loss
    model.cfg.loss.warprnnt_numba_kwargs.fastemit_lambda = fastemit
    model._setup_losses()
    # With gradients: without them NeMo's kernels leave FastEmit's factor out of the value they report.
    return {name: value.detach() for name, value in branch_losses(model, batch).items()}


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_the_exact_loss_is_nemos(make_model, batch, joint):
    model, batch = make_model(joint=joint), shortest(batch)
    for fastemit in (0.0, 0.01):
        exact, nemo, auto = (rnnt_parts(model, batch, choice, fastemit) for choice in ("exact", "nemo", "auto"))
        for name in ("train_rnnt_loss_teacher", "train_rnnt_loss_student"):
            # NeMo's recursion is float32: 6e-6 relative at logits of standard deviation 1.
            torch.testing.assert_close(exact[name], nemo[name], rtol=1e-4, atol=0)
            assert torch.equal(auto[name], exact[name])


def test_fused_sub_batches_change_no_loss_of_a_stock_joint(make_model, make_config, batch):
    model, batch = make_model(joint=STOCK), shortest(batch, 3)
    plain = {rnnt_loss: rnnt_parts(model, batch, rnnt_loss) for rnnt_loss in ("exact", "nemo")}
    for rnnt_loss, size in (("exact", 1), ("exact", 2), ("nemo", 2)):
        cfg = make_config(joint=STOCK, codert={"rnnt_loss": rnnt_loss})
        cfg.joint.update(fuse_loss_wer=True, fused_batch_size=size)
        torch.manual_seed(0)
        parts = branch_losses(EncDecCoDERTBPEModel(cfg), batch)
        for name in ("train_rnnt_loss_teacher", "train_rnnt_loss_student"):
            # Linear layers over other numbers of rows: float32 rounding; NeMo's own recursion is float32 too.
            torch.testing.assert_close(parts[name], plain[rnnt_loss][name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("joint, rnnt_loss", [(ADDITIVE, "exact"), (STOCK, "exact"), (STOCK, "nemo")])
def test_the_reduction_of_the_config_is_that_of_the_loss(make_model, batch, joint, rnnt_loss):
    model = make_model(joint=joint, codert={"rnnt_loss": rnnt_loss})
    signal, signal_len, transcript, transcript_len = batch
    with torch.no_grad():
        features, features_len = model.extract_features(signal, signal_len)
        encoded, encoded_len = model.encoder(audio_signal=features, length=features_len)

        def loss(reduction, rows=slice(None)):
            model.loss.reduction = reduction
            targets = transcript[rows], transcript_len[rows]
            part = BranchOutput(model.teacher_transducer, encoded[rows], encoded_len[rows], *targets)
            return model.criteria["rnnt_teacher"](None, part, Batch(signal[rows], signal_len[rows], *targets))

        each = torch.stack([loss("sum", slice(i, i + 1)) for i in range(4)])
        expected = {
            "sum": each.sum(),
            "mean_batch": each.mean(),
            "mean": (each / transcript_len).mean(),
            "mean_volume": each.sum() / transcript_len.sum(),
        }
        for reduction in RNNT_REDUCTIONS:
            # One utterance at a time: float32 rounding of the linear layers.
            torch.testing.assert_close(loss(reduction), expected[reduction], rtol=1e-5, atol=0, msg=reduction)


def test_a_pair_trains_under_every_reduction(make_model, batch):
    model = make_model(rnnt_reduction="sum")
    assert model.loss.reduction == "sum"
    for reduction in RNNT_REDUCTIONS:
        model.cfg.rnnt_reduction = reduction
        model.zero_grad()
        model._setup_losses()  # as when it was built
        assert model.loss.reduction == reduction
        branch_losses(model, batch)["train_loss"].backward()
        assert model.student_encoder.pre_encode.out.weight.grad.abs().max() > 0, reduction


def test_spec_augment_acts_once_and_on_both_branches(make_model, batch):
    spec = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 2, "time_masks": 0}
    model = make_model(spec_augment={**spec, "freq_width": 8, "time_width": 1}).train()
    seen = []
    for encoder in (model.encoder, model.student_encoder):
        encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["audio_signal"]), with_kwargs=True
        )
    model.training_step(batch, 0)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], model.eval().extract_features(*batch[:2])[0])


@pytest.mark.parametrize("kind, logits", [("hybrid", "joint"), ("hybrid_tdt", "ctc")])
def test_a_teacher_of_another_kind_is_distilled_and_validated_in_a_run(
    make_config, saved_teacher, sets, tmp_path, kind, logits
):
    path, original = saved_teacher(tmp_path, kind)
    cfg = pair_config(make_config, kind, path, {"teacher_logits": logits}, **data_blocks(sets, CLASSIC, "dev"))
    model, trainer, history = fit(cfg, max_steps=2)
    assert len(history.steps) == 2
    for logged in history.steps:
        assert logged["train_distillation_loss"] > 0 and "train_rnnt_loss_teacher" not in logged
    weights = original.state_dict()
    frozen = {name: value for name, value in model.state_dict().items() if not name.startswith("student_")}
    assert all(torch.equal(value, weights[name]) for name, value in frozen.items())
    assert any(name.startswith("ctc_decoder.") for name in frozen) is (logits == "ctc")
    errors = words = 0.0
    for signal, signal_len, *transcript in model.val_dataloader():
        features, features_len = original.preprocessor(input_signal=signal, length=signal_len)
        frames = original.encoder(audio_signal=features, length=features_len)
        original.wer.update(*frames, *transcript)
        _, wrong, of = original.wer.compute()
        errors, words = errors + float(wrong), words + float(of)
    assert float(trainer.callback_metrics["val_wer_teacher"]) == pytest.approx(errors / words)
