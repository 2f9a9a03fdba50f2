"""Terms at CTC heads: the last one, heads in the middle with their own CTC loss, and NeMo's InterCTC beside it."""

import copy

import pytest
import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.parts.mixins import InterCTCMixin
from nemo.core.classes.mixins import AccessMixin
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.losses import encoder_distillation_loss, softmax_l2_loss
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch
from tests.conftest import conformer
from tests.models.teacher_files import CTC, KINDS, save_teacher
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
