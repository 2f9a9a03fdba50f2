"""Terms at hidden layers in a pair: layers, projections, frames, and teachers with another tokenizer."""

import pytest
import torch
from nemo.collections.asr.models import (
    EncDecCTCModel,
    EncDecCTCModelBPE,
    EncDecHybridRNNTCTCModel,
    EncDecRNNTModel,
    SpeechEncDecSelfSupervisedModel,
)
from omegaconf import OmegaConf

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report
from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.losses import feature_distance, group_features
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.open_model import networks_of, open_model
from tests.conftest import SENTENCES, STOCK, conformer, lstm
from tests.models.teacher_files import CTC, NO_DATA, save_of_characters, save_teacher, saved
from tests.models.training_runs import branch_losses, equal_states, train

MEASURES = ("mse", "cosine", "correlation", "energy", "gram")


@pytest.fixture
def pair(make_config):
    """Factory of a pair with one term at hidden layers."""

    def make(by: str = "mse", layers=None, strategy: str = "tandem_kd", encoders=None, **term):
        teacher, student = encoders or (conformer(layers=3, channels=24), conformer(layers=2, channels=16))
        cfg = make_config(strategy, teacher=teacher, student=student)
        cfg.codert.distillation = {"near": {"at": "hidden", "by": by, "layers": layers or {1: 2, 2: 3}, **term}}
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(cfg)

    return make


def outputs(model, batch, of_student=(), of_teacher=()):
    from nemo_codert.modules.transducer import Batch

    batch = Batch.of(batch)
    features = model.extract_features(batch.signal, batch.signal_len)
    student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len, layers=of_student)
    return student, model.teacher.output(*features, batch, student, of_teacher), batch


@pytest.mark.parametrize("by", MEASURES)
def test_it_is_the_mean_over_the_pairs_of_layers_through_projections(pair, batch, by):
    model = pair(by)
    term = model.criteria["near"]
    assert set(term.projections) == (set() if by in ("energy", "gram") else {"1", "2"})
    student, teacher, named = outputs(model, batch, (1, 2), (2, 3))
    expected = []
    for own, other in ((1, 2), (2, 3)):
        features = student.layers[own].transpose(1, 2)
        features = term.projections[str(own)](features) if term.projections else features
        given = {"student": features, "teacher": teacher.layers[other].transpose(1, 2), "lengths": student.encoded_len}
        expected.append(feature_distance(**given, by=by))
    torch.testing.assert_close(term(student, teacher, named), torch.stack(expected).mean(), rtol=1e-6, atol=0)


def test_the_gradient_stops_at_the_layer_and_never_reaches_the_teacher(pair, batch):
    model = pair(layers={1: 3}, encoders=(conformer(layers=3, channels=24), conformer(layers=2, channels=16)))
    student, teacher, named = outputs(model, batch, (1,), (3,))
    model.criteria["near"](student, teacher, named).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved and all(
        name.startswith(("student_encoder.layers.0.", "student_encoder.pre_encode.", "criteria.near."))
        for name in moved
    )


def test_equal_widths_need_no_projection_and_a_copy_is_at_zero(pair, batch):
    encoder = conformer(layers=2, channels=16)
    model = pair(encoders=(encoder, encoder), layers={1: 1, 2: 2})
    assert not model.criteria["near"].projections
    model.student_encoder.load_state_dict(model.encoder.state_dict())
    assert branch_losses(model, batch)["train_distillation_loss_near"] == 0


def test_frames_of_a_faster_teacher_are_grouped_and_a_lag_is_kept(pair, batch):
    encoders = conformer(layers=1, channels=16, subsampling=4), conformer(layers=1, channels=16, subsampling=8)
    model = pair(encoders=encoders, layers={1: 1}, frame_shift=1)
    student, teacher, named = outputs(model, batch, (1,), (1,))
    grouped, lengths = group_features(teacher.layers[1].transpose(1, 2), teacher.encoded_len, 2)
    frames = torch.minimum(student.encoded_len - 1, lengths)
    shifted = student.layers[1].transpose(1, 2)[:, 1:]
    width = min(shifted.shape[1], grouped.shape[1])
    expected = feature_distance(student=shifted[:, :width], teacher=grouped[:, :width], lengths=frames)
    torch.testing.assert_close(model.criteria["near"](student, teacher, named), expected, rtol=1e-6, atol=0)


def test_the_projection_is_trained_saved_and_never_exported(pair, batch, tmp_path):
    model = pair()
    weight = model.criteria["near"].projections["1"].weight
    before = weight.detach().clone()
    train(model, 2 * [batch])
    assert not torch.equal(weight, before)
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    assert dict(restored.cfg.codert.distillation.near.layers) == {1: 2, 2: 3}
    assert not [name for name in model.student_model().state_dict() if "criteria" in name or "projections" in name]


def test_activation_checkpointing_changes_nothing(pair, batch, make_config):
    losses = []
    for checkpointing in (False, True):
        model = pair()
        cfg = OmegaConf.merge(model.cfg, {"codert": {"activation_checkpointing": checkpointing}})
        torch.manual_seed(0)
        losses.append(train(EncDecCoDERTBPEModel(cfg), 2 * [batch]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("term, fault", [
    ({"layers": {3: 1}}, "near.layers has layer 3 of model.student.encoder, whose n_layers is 2"),
    ({"layers": {1: 4}}, "near.layers has layer 4 of model.encoder, whose n_layers is 3"),
    ({"layers": {0: 1}}, "near.layers is {0: 1}, wanted student layers with the teacher layers that they learn from"),
    ({"layers": [1, 2]}, r"near.layers is \[1, 2\], wanted student layers"),
    ({"layers": "1: 2"}, "near.layers is '1: 2', wanted student layers"),
    ({"frame_shift": -1}, "near.frame_shift is -1, wanted a number that is 0 or above"),
    ({"reduction": "mean"}, "near.reduction is 'mean', wanted one of per_utterance, per_frame"),
    ({"by": "correlation", "self_weight": -1.0}, "near.self_weight is -1.0, wanted a number that is 0 or above"),
    ({"self_weight": 1.0}, "near.self_weight is not a key of this version"),
])  # fmt: skip
def test_bad_values_are_refused_by_name(pair, term, fault):
    with pytest.raises(ValueError, match=fault):
        pair(**term)


def test_layers_of_other_encoders_are_refused_by_name(pair):
    with pytest.raises(
        ValueError, match=r"near.layers needs a ConformerEncoder, model.encoder._target_ is .*RNNEncoder"
    ):
        pair(encoders=(lstm(), conformer()), layers={1: 1})
    reduced = {**conformer(layers=2), "reduction": "pooling", "reduction_position": 1, "reduction_factor": 2}
    with pytest.raises(
        ValueError, match="near.layers needs layers of one frame rate, model.student.encoder.reduction"
    ):
        pair(encoders=(conformer(subsampling=8), reduced), layers={1: 1})


# ---- a teacher of which the encoder alone is read ------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    """Folder of a tokenizer of 40 pieces."""
    folder = tmp_path_factory.mktemp("other_tokenizer")
    train_tokenizer([*SENTENCES, "quite other words jump over foxes"], folder, vocab_size=40)
    return str(folder)


@pytest.fixture(scope="module")
def teachers(make_config, other_tokenizer, tmp_path_factory) -> dict[str, str]:
    """Files with an encoder to learn from: models with another tokenizer or of characters, and an SSL model."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer = {"dir": other_tokenizer, "type": "bpe"}
    files = {"rnnt": save_teacher(make_config, folder, "rnnt", tokenizer=tokenizer)[0]}
    base = make_config("static", STOCK)
    common = {key: base[key] for key in ("sample_rate", "preprocessor", "encoder")}
    ctc = {**common, "tokenizer": tokenizer, "decoder": CTC["aux_ctc"]["decoder"], "validation_ds": NO_DATA}
    masking = {"_target_": "nemo.collections.asr.modules.MaskedPatchAugmentation", "patch_size": 8}
    ssl = {**common, "loss_list": {}, "spec_augment": masking}
    for name, kind, cfg in (("ctc", EncDecCTCModelBPE, ctc), ("ssl", SpeechEncDecSelfSupervisedModel, ssl)):
        files[name] = saved(kind, OmegaConf.create(cfg), folder / name)[0]
    for kind in (EncDecCTCModel, EncDecRNNTModel, EncDecHybridRNNTCTCModel):  # of characters
        files[kind.__name__] = save_of_characters(make_config, folder, kind)[0]
    return files


@pytest.mark.parametrize(
    "kind", ["rnnt", "ctc", "ssl", "EncDecCTCModel", "EncDecRNNTModel", "EncDecHybridRNNTCTCModel"]
)
def test_of_a_teacher_with_another_tokenizer_the_encoder_alone_is_loaded(kind, teachers, make_config, batch, tmp_path):
    cfg = make_config("static", STOCK)
    cfg.codert.distillation = {"near": {"at": "hidden", "by": "mse", "layers": {1: 2}}}
    cfg.codert.teacher_checkpoint = teachers[kind]
    model = EncDecCoDERTBPEModel(cfg)
    trained = open_model(teachers[kind], kinds=None).encoder
    assert equal_states(model.encoder.state_dict(), trained.state_dict())
    assert all(name.startswith("encoder.") for name in model.loaded["teacher"]["keys"])
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    train(model, 2 * [batch])
    assert "train_distillation_loss_near" in model.step_losses and equal_states(model.encoder.state_dict(), before)
    logs = model.eval().validation_pass(batch, 0)
    assert "val_wer" in logs and not [name for name in logs if "teacher" in name]
    assert "val_wer_teacher" not in model.multi_validation_epoch_end([logs])["log"]
    report = teacher_report(model, iter([batch]))
    assert "wer" not in report and "WER and logits cannot be measured" in format_teacher_report(report)
    assert report["term_gradients"]["near"] > 1e-6 and report["warnings"] == []
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    for refused in (model.teacher_model, lambda: networks_of(model, "teacher")):
        with pytest.raises(ValueError, match="of this pair's teacher no decoder was loaded"):
            refused()


@pytest.mark.parametrize("codert, fault", [
    ({"distillation": {"output": {"weight": 0.1}}}, "model.tokenizer has 32 word pieces, the checkpoint's has 40"),
    ({"share_decoder": True}, "model.tokenizer has 32 word pieces, the checkpoint's has 40"),
])  # fmt: skip
def test_another_tokenizer_is_refused_where_more_is_compared(codert, fault, teachers, make_config):
    cfg = make_config("static", STOCK)
    cfg.codert.distillation = {"near": {"at": "hidden", "by": "mse", "layers": {1: 2}}}
    cfg = OmegaConf.merge(cfg, {"codert": {"teacher_checkpoint": teachers["rnnt"], **codert}})
    with pytest.raises(ValueError, match=fault):
        EncDecCoDERTBPEModel(cfg)


def test_the_encoder_is_still_compared_with_the_config(teachers, make_config):
    cfg = make_config("static", STOCK, teacher={**conformer(layers=2, channels=24), "n_heads": 4})
    cfg.codert.distillation = {"near": {"at": "hidden", "by": "mse", "layers": {1: 2}}}
    cfg.codert.teacher_checkpoint = teachers["ctc"]
    with pytest.raises(ValueError, match="model.encoder.n_heads is 4, the checkpoint has 2"):
        EncDecCoDERTBPEModel(cfg)


def test_a_student_that_starts_from_such_a_teacher_takes_encoder_layers_alone(teachers, make_config):
    cfg = make_config("static", STOCK, student=conformer(layers=1, channels=24))
    cfg.codert.distillation = {"near": {"at": "hidden", "by": "mse", "layers": {1: 2}}}
    cfg.codert.teacher_checkpoint, cfg.student.init_from_teacher = teachers["rnnt"], True
    model = EncDecCoDERTBPEModel(cfg)
    assert {name.split(".")[0] for name in model.loaded["student"]["keys"]} == {"encoder"}
