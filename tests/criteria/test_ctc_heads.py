"""Terms at CTC heads: the last one, heads in the middle with their own CTC loss, and NeMo's InterCTC beside it."""

import copy

import pytest
import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCModel, EncDecRNNTModel
from nemo.collections.asr.parts.mixins import InterCTCMixin
from nemo.core.classes.mixins import AccessMixin
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.losses import encoder_distillation_loss, softmax_l2_loss
from nemo_codert.models import EncDecCoDERTBPEModel, teacher_config
from nemo_codert.models.open_model import open_model
from nemo_codert.modules.transducer import Batch
from tests.conftest import conformer
from tests.models.teacher_files import CHARACTERS, CTC, KINDS, NO_DATA, save_of_characters, save_teacher
from tests.models.training_runs import branch_losses, equal_states, train

MIDDLE = {"at": "ctc", "by": "l2", "layers": [1, 2], "ctc_weight": 0.3, "weight": 0.25}
LAST = {"at": "ctc", "by": "l2", "weight": 0.25}
STUDENT = conformer(layers=3, channels=16)


@pytest.fixture(scope="module")
def hybrid(make_config, tmp_path_factory) -> str:
    """Path of a hybrid teacher."""
    return save_teacher(make_config, tmp_path_factory.mktemp("hybrid"), "hybrid")[0]


@pytest.fixture
def pair_cfg(make_config, hybrid):
    """Factory of the config of a frozen hybrid teacher with a student of three layers and the given terms."""

    def make(hybrid_student: bool = False, teacher_logits: str = "ctc", **terms):
        cfg = make_config("static", joint="nemo.collections.asr.modules.RNNTJoint", student=STUDENT)
        cfg.codert.distillation = terms
        codert = {"teacher_checkpoint": hybrid, "teacher_logits": teacher_logits}
        return OmegaConf.merge(cfg, KINDS["hybrid"], {"codert": codert, "student": CTC if hybrid_student else {}})

    return make


def built(cfg) -> EncDecCoDERTBPEModel:
    torch.manual_seed(0)
    return EncDecCoDERTBPEModel(cfg)


def outputs(model, batch):
    batch, (of_student, of_teacher) = Batch.of(batch), model.criteria.layers(0)
    features = model.extract_features(batch.signal, batch.signal_len)
    student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len, layers=of_student)
    return student, model.teacher.output(*features, batch, student, of_teacher), batch


@pytest.mark.parametrize("by, loss", [("kl", encoder_distillation_loss), ("l2", softmax_l2_loss)])
def test_heads_are_compared_with_the_teachers_head_by_the_mean_over_heads(pair_cfg, batch, by, loss):
    model = built(pair_cfg(True, last={**LAST, "by": by, "temperature": 2.0}, middle={**MIDDLE, "by": by}))
    student, teacher, named = outputs(model, batch)
    heads = [
        ([model.student_ctc_decoder], [student.encoded], "last", 2.0),
        (model.criteria["middle"].heads.values(), [student.layers[1], student.layers[2]], "middle", 1.0),
    ]
    target = model.ctc_decoder(encoder_output=teacher.encoded)  # log-probabilities of NeMo's own forward
    for modules, features, name, temperature in heads:
        expected = [
            loss(
                student_logits=module(encoder_output=each), teacher_logits=target, lengths=student.encoded_len,
                temperature=temperature,
            )
            for module, each in zip(modules, features, strict=True)
        ]  # fmt: skip
        value = model.criteria[name](student, teacher, named)
        torch.testing.assert_close(value, torch.stack(expected).mean(), rtol=1e-5, atol=0)


class WithInterCTC(InterCTCMixin, torch.nn.Module):
    """NeMo's losses in the middle of an encoder, with one decoder for all heads."""

    def __init__(self, encoder, decoder) -> None:
        super().__init__()
        self.cfg = OmegaConf.create({"interctc": {"apply_at_layers": [1], "loss_weights": [0.3]}})
        self.encoder, self.decoder = encoder, decoder
        self.ctc_loss = CTCLoss(num_classes=decoder.num_classes_with_blank - 1, zero_infinity=True)
        self.setup_interctc(decoder_name="decoder", loss_name="ctc_loss", wer_name="ctc_wer")


def test_the_heads_own_loss_is_nemos_interctc(pair_cfg, batch):
    model = built(pair_cfg(middle={**MIDDLE, "layers": [2], "weight": 0.0}))
    assert list(model.criteria) == ["rnnt_student", "middle_heads"]  # weight 0: intermediate CTC alone
    encoder = copy.deepcopy(model.student_encoder)
    encoder.model_guid = "reference"
    reference = WithInterCTC(encoder, model.criteria["middle_heads"].heads["2"])
    AccessMixin.update_access_cfg({"interctc": {"capture_layers": [1]}}, "reference")
    AccessMixin.set_access_enabled(True, "reference")
    named = Batch.of(batch)
    features = model.extract_features(named.signal, named.signal_len)
    reference.model_guid = "reference"
    encoder(audio_signal=features[0], length=features[1])
    main = torch.tensor(5.0)
    total, logs = reference.add_interctc_losses(
        main.clone(), named.transcript, named.transcript_len, compute_wer=False
    )
    parts = branch_losses(model, batch)
    torch.testing.assert_close(parts["train_ctc_loss_middle_heads"], logs["inter_ctc_loss_l1"], rtol=1e-6, atol=0)
    expected = parts["train_rnnt_loss_student"] + (total - 0.7 * main)  # NeMo scales its main loss, a term adds
    torch.testing.assert_close(parts["train_loss"], expected, rtol=1e-6, atol=0)


def test_each_part_has_its_weight_and_its_log_name_and_the_heads_are_held_once(pair_cfg, batch):
    model = built(pair_cfg(middle={**MIDDLE, "from_step": 1, "ramp_steps": 2}))
    assert [name for name, _ in model.criteria.named_parameters()] == [
        f"middle.heads.{number}.decoder_layers.0.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    ]
    assert model.criteria.weights(1) == {
        "train_distillation_weight_middle": 0.125, "train_ctc_weight_middle_heads": 0.15
    }  # fmt: skip
    assert set(branch_losses(model, batch, step=0)) == {"train_rnnt_loss_student", "train_loss"}
    parts = branch_losses(model, batch, step=2)
    expected = parts["train_rnnt_loss_student"] + 0.25 * parts["train_distillation_loss_middle"]
    expected = expected + 0.3 * parts["train_ctc_loss_middle_heads"]
    torch.testing.assert_close(parts["train_loss"], expected)
    without = built(pair_cfg(middle={**MIDDLE, "ctc_weight": 0.0}))
    assert list(without.criteria) == ["rnnt_student", "middle"] and without.criteria["middle"].heads.keys() == {
        "1",
        "2",
    }


def test_utterances_without_text_train_the_divergence_but_not_the_heads_ctc_loss(pair_cfg, batch):
    signal, signal_len, transcript, transcript_len = batch
    unlabelled = signal, signal_len, transcript, transcript_len * torch.tensor([1, 0, 1, 0])
    model = built(pair_cfg(middle=MIDDLE))
    parts, of_some = branch_losses(model, batch), branch_losses(model, unlabelled)
    some = torch.tensor([0, 2])
    of_labelled = branch_losses(model, [part[some] for part in batch])
    torch.testing.assert_close(of_some["train_distillation_loss_middle"], parts["train_distillation_loss_middle"])
    torch.testing.assert_close(of_some["train_ctc_loss_middle_heads"], of_labelled["train_ctc_loss_middle_heads"])


def test_heads_are_trained_saved_and_never_exported(pair_cfg, batch, tmp_path):
    model = built(pair_cfg(True, last=LAST, middle=MIDDLE))
    head = model.criteria["middle"].heads["1"]
    before = copy.deepcopy(head.state_dict())
    train(model, 2 * [batch])
    assert not equal_states(head.state_dict(), before)
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    names = {name.split(".")[0] for name in model.student_model().state_dict()}
    assert names == {
        "preprocessor",
        "encoder",
        "decoder",
        "joint",
        "ctc_decoder",
    }  # the hybrid student's own head alone


@pytest.mark.parametrize("changes, fault", [
    ({"middle": {**MIDDLE, "layers": [4]}}, "middle.layers has layer 4 of model.student.encoder, whose n_layers is 3"),
    ({"middle": {**MIDDLE, "layers": [1, 1]}}, r"middle.layers is \[1, 1\], wanted different layers of the student"),
    ({"middle": {**MIDDLE, "layers": 2}}, "middle.layers is 2, wanted different layers"),
    ({"middle": {**MIDDLE, "ctc_weight": -1}}, "middle.ctc_weight is -1.0, wanted a number that is 0 or above"),
    ({"middle": MIDDLE, "middle_heads": MIDDLE}, "named middle_heads, as another term is"),
    ({"last": LAST}, "last compares CTC heads but model.student.aux_ctc is null"),
    ({"teacher_logits": "joint", "middle": MIDDLE}, "teacher_logits is joint: set it to ctc"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(pair_cfg, changes, fault):
    with pytest.raises(ValueError, match=fault):
        checked_config(pair_cfg(**changes))


@pytest.mark.parametrize("term, warning", [
    ({**MIDDLE, "weight": 0.0}, None),
    ({**MIDDLE, "weight": 0.0, "ctc_weight": 0.0}, "term has no effect: its weight is 0"),
    ({**LAST, "ctc_weight": 0.5}, "term.ctc_weight has no effect: layers is null"),
])  # fmt: skip
def test_keys_without_effect_are_named(pair_cfg, caplog, term, warning):
    checked_config(pair_cfg(True, term=term))
    found = [message for message in caplog.messages if "distillation.term" in message]
    assert len(found) == (warning is not None) and (warning is None or warning in found[0])


# ---- a teacher of which encoder and CTC head alone are read: other classes, such as characters ----------------------


@pytest.fixture(scope="module")
def of_characters(make_config, tmp_path_factory) -> dict[type, str]:
    """Paths of models of characters, by class."""
    folder = tmp_path_factory.mktemp("characters")
    kinds = (EncDecCTCModel, EncDecHybridRNNTCTCModel, EncDecRNNTModel)
    return {kind: save_of_characters(make_config, folder, kind)[0] for kind in kinds}


@pytest.fixture
def alone_cfg(pair_cfg, of_characters):
    """Factory of the config of a student of word pieces with a frozen teacher of characters and the given terms."""

    def make(kind=EncDecCTCModel, vocabulary=CHARACTERS, codert=None, **terms):
        cfg = pair_cfg(teacher_logits="ctc_alone", **terms)
        settings = {"teacher_checkpoint": of_characters[kind], **(codert or {})}
        return OmegaConf.merge(cfg, {"codert": settings, "aux_ctc": {"decoder": {"vocabulary": vocabulary}}})

    return make


OWN = {"at": "ctc", "by": "kl", "layers": [1, 3], "ctc_weight": 0.0, "weight": 0.5}
NEAR = {"at": "hidden", "by": "cosine", "layers": {2: 1}, "weight": 0.1}


@pytest.mark.parametrize("kind", [EncDecCTCModel, EncDecHybridRNNTCTCModel])
def test_heads_with_a_teachers_characters_learn_from_its_ctc_head(alone_cfg, of_characters, kind, batch, tmp_path):
    model = built(alone_cfg(kind, letters=OWN, near=NEAR))
    trained = open_model(of_characters[kind], kinds=None)
    head = trained.decoder if kind is EncDecCTCModel else trained.ctc_decoder
    assert equal_states(model.ctc_decoder.state_dict(), head.state_dict())
    assert equal_states(model.encoder.state_dict(), trained.encoder.state_dict())
    student, teacher, named = outputs(model, batch)
    target = head(encoder_output=teacher.encoded)
    assert target.shape[-1] == len(CHARACTERS) + 1 != len(model.joint.vocabulary) + 1
    heads = model.criteria["letters"].heads
    expected = [
        encoder_distillation_loss(
            student_logits=heads[str(layer)](encoder_output=student.layers[layer]),
            teacher_logits=target,
            lengths=student.encoded_len,
        )
        for layer in (1, 3)
    ]
    value = model.criteria["letters"](student, teacher, named)
    torch.testing.assert_close(value, torch.stack(expected).mean(), rtol=1e-5, atol=0)
    before = copy.deepcopy(model.state_dict())
    train(model, 2 * [batch])
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    frozen = ("encoder.", "ctc_decoder.")
    assert "criteria.letters.heads.1.decoder_layers.0.weight" in moved
    assert not [name for name in moved if name.startswith(frozen)]
    logs = model.eval().validation_pass(batch, 0)
    assert "val_wer" in logs and not [name for name in logs if "teacher" in name]
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    assert "ctc_decoder" not in {name.split(".")[0] for name in model.student_model().state_dict()}


def test_a_ctc_model_of_the_same_word_pieces_teaches_a_hybrid_students_own_head(
    pair_cfg, make_config, batch, tmp_path
):
    cfg = teacher_config(make_config())
    head = {**CTC["aux_ctc"]["decoder"], "feat_in": 24}
    parts = {key: cfg[key] for key in ("sample_rate", "preprocessor", "encoder", "tokenizer")}
    teacher = EncDecCTCModelBPE(OmegaConf.create({**parts, "decoder": head, "validation_ds": NO_DATA}))
    teacher.save_to(str(tmp_path / "ctc.nemo"))
    cfg = pair_cfg(True, teacher_logits="ctc_alone", last={**LAST, "by": "kl"})
    cfg.codert.teacher_checkpoint = str(tmp_path / "ctc.nemo")
    model = built(cfg)
    assert equal_states(model.ctc_decoder.state_dict(), teacher.decoder.state_dict())
    train(model, 2 * [batch])
    assert model.step_losses["train_distillation_loss_last"] > 0


@pytest.mark.parametrize("changes, fault", [
    ({"codert": {"share_decoder": True}}, "ctc_alone, which reads .* but model.codert.share_decoder is true"),
    ({"codert": {"teacher": "co_trained"}}, "teacher_logits is ctc_alone but model.codert.teacher is co_trained"),
    ({"codert": {"teacher": "ema", "teacher_checkpoint": None}}, "teacher_logits is ctc_alone but .* is ema"),
    ({"codert": {"teacher": "cached", "teacher_cache": "targets"}}, "teacher is cached: set it to frozen"),
    ({"output": {"at": "encoder", "by": "kl"}}, "model.codert.distillation.output.at is encoder: wanted hidden"),
    ({"vocabulary": "abc"}, "model.aux_ctc.decoder.vocabulary is 'abc', wanted the list of the teacher's characters"),
])  # fmt: skip
def test_what_needs_more_than_a_ctc_head_is_refused_by_key(alone_cfg, changes, fault):
    with pytest.raises(ValueError, match=fault):
        checked_config(alone_cfg(**{"letters": OWN, **changes}))


@pytest.mark.parametrize("changes, fault", [
    ({"kind": EncDecRNNTModel}, "is EncDecRNNTModel without a CTC head, but model.codert.teacher_logits is ctc_alone"),
    ({"vocabulary": list("abc")}, r"its CTC head has 28 classes, .* model.aux_ctc.decoder.vocabulary, .* has 3, "),
    ({"letters": {**OWN, "ctc_weight": 0.3}}, r"letters.ctc_weight is 0.3, but its heads have the classes .* to 0"),
])  # fmt: skip
def test_a_head_that_does_not_fit_is_refused_by_key(alone_cfg, changes, fault):
    with pytest.raises(ValueError, match=fault):
        built(alone_cfg(**{"letters": OWN, **changes}))


def test_the_floor_of_an_adaptive_temperature_is_below_the_entropy_of_the_heads_classes(alone_cfg):
    adaptive = {**OWN, "temperature": "adaptive", "temperature_floor": 3.38}  # log(29) = 3.37
    with pytest.raises(ValueError, match="letters.temperature_floor is 3.38"):
        built(alone_cfg(letters=adaptive))
    built(alone_cfg(letters={**adaptive, "temperature_floor": 3.0}))


def test_a_ctc_head_that_no_term_reads_is_named(alone_cfg, caplog):
    checked_config(alone_cfg(near=NEAR))
    assert "teacher_logits has no effect: model.codert.distillation compares hidden layers alone" in caplog.text


def test_a_students_own_head_is_not_compared_with_characters(alone_cfg):
    cfg = OmegaConf.merge(alone_cfg(last={**LAST, "by": "kl"}), {"student": CTC})
    with pytest.raises(ValueError, match=r"last.layers is null, but the teacher's CTC head has other classes \(28\)"):
        built(cfg)
