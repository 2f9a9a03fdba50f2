"""Keys that mean nothing in the present mode: one warning each, by name; what a model trained alone may have."""

import logging

import pytest
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from tests.config.test_config_schema import CONFORMER, DECODER, faults, model_config, set_to

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("codert", {"teacher": "frozen", "teacher_loss_weight": 0.5}, "codert.teacher_loss_weight has no effect"),
        ("codert.distillation", {"weight": 0, "ramp_steps": 5}, "distillation.encoder has no effect"),
        ("codert.distillation", {"weight": 0, "start_step": 5}, "distillation.encoder has no effect"),
        ("codert.distillation", {"weight": 0, "frame_shift": 2}, "distillation.encoder has no effect"),
        ("codert.distillation", {"weight": 0, "temperature": 2.0}, "distillation.encoder has no effect"),
        ("codert.distillation", {"weight": 0, "reduction": "per_frame"}, "distillation.encoder has no effect"),
        (
            "codert.distillation",
            {"durations_weight": 0.5},
            "encoder.durations_weight has no effect: no durations",
        ),
        (
            "codert",
            {"teacher": "frozen", "share_decoder": False, "distillation": {"weight": 0}},
            "model.codert.teacher has no effect on the student",
        ),
        ("joint.preserve_memory", True, "joint.preserve_memory has no effect"),
        ("joint.log_softmax", False, "joint.log_softmax has no effect in training"),
        ("loss.default_kwargs", {"fastemit_lambda": 0.1}, "model.loss.default_kwargs has no effect"),
        ("loss.tdt_kwargs", {"sigma": 0.1}, "model.loss.tdt_kwargs has no effect"),
        ("ipl", {"m_updates": 1, "manifest_filepath": "???"}, "model.ipl has no effect: a run makes no pseudo-labels"),
        ("aux_ctc", {"ctc_loss_weight": 0.3}, "model.aux_ctc has no effect: nothing trains a CTC head"),
    ],
)
def test_a_key_without_effect_is_warned_about(key, value, words, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)  # a script may have switched it off
    checked_config(model_config())
    assert not caplog.text
    checked_config(set_to(key, value))
    assert words in caplog.text


def test_the_ctc_head_of_a_teacher_has_no_effect_without_distillation(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    head = {"decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder"}}
    for weight, warned in ((0.1, False), (0, True)):
        codert = {"teacher": "frozen", "teacher_logits": "ctc", "distillation": {"weight": weight}}
        checked_config(model_config(aux_ctc=head, codert=codert))
        assert ("model.codert.teacher_logits has no effect" in caplog.text) is warned
    assert "aux_ctc has no effect" not in caplog.text


@pytest.mark.parametrize("alone", ["student", "teacher"])
def test_a_model_trained_alone_takes_nothing_from_a_teacher_and_says_so(alone, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    cfg = model_config(student={"encoder": CONFORMER, "init_from_teacher": True}, codert={"teacher_logits": "ctc"})
    cfg.codert.student_hears = {"spec_augment": {"freq_masks": 1}}
    cfg.aux_ctc = {"ctc_loss_weight": 0.3}
    assert len(faults(cfg)) == 3
    checked_config(cfg, alone=alone)
    assert f"model.student.init_from_teacher has no effect: the {alone} is trained alone" in caplog.text
    assert f"model.codert.student_hears has no effect: the {alone} is trained alone" in caplog.text
    assert "model.aux_ctc has no effect" in caplog.text


def test_a_student_alone_may_have_its_own_decoder_whatever_is_said_of_sharing():
    cfg = model_config(student={"encoder": CONFORMER, "decoder": DECODER})
    cfg.optim_param_groups = {"student_decoder": {"lr": 1e-3}}
    assert len(faults(cfg)) == 2
    assert checked_config(cfg, alone="student").student.decoder == OmegaConf.create(DECODER)


PLAIN = {"at": "encoder", "weight": 0.3}


@pytest.mark.parametrize(
    "codert, doubted",
    [
        ({"distillation": {"a": PLAIN, "b": PLAIN}}, ["a", "b"]),
        ({"distillation": {"weight": 0.3}}, ["encoder"]),
        ({"distillation": {"a": {**PLAIN, "prior": "mean_prediction"}, "b": {"at": "joint"}}}, []),
        ({"distillation": {"a": {**PLAIN, "weight": 0.0}}}, []),
        ({"distillation": {"a": PLAIN}, "share_decoder": True}, []),
    ],
)
def test_two_decoders_of_their_own_are_doubted_by_the_name_of_each_term(codert, doubted, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    checked_config(model_config(codert={"share_decoder": False, **codert}))
    told = [record.getMessage() for record in caplog.records if "two decoders of their own" in record.getMessage()]
    assert [text.split()[0] for text in told] == [f"model.codert.distillation.{name}" for name in doubted]
