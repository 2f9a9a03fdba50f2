"""`teacher: ema` in a config: the teacher's blocks become the student's, and what cannot be with it is refused."""

import logging
import math

import pytest
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.config.criteria import criteria_specs
from tests.config.test_config_schema import CONFORMER, DECODER, HEAD, RNN, faults, model_config

pytestmark = pytest.mark.unit

EMA = {"teacher": "ema", "share_decoder": False}


def averaged(student: dict | None = None, codert: dict | None = None, **overrides):
    student = {"encoder": {**CONFORMER, "n_layers": 3}, **(student or {})}
    return model_config(student=student, codert={**EMA, **(codert or {})}, **overrides)


def test_the_teachers_blocks_are_the_students():
    cfg = averaged({"encoder": {**RNN, "proj_size": 12}}, encoder={**CONFORMER, "d_model": 64})
    before = OmegaConf.to_container(cfg)
    checked = checked_config(cfg).model
    assert OmegaConf.to_container(cfg) == before
    assert checked.encoder == checked.student.encoder and checked.decoder == before["decoder"]
    assert checked.model_defaults == {"enc_hidden": 12, "pred_hidden": 20, "joint_hidden": 20}
    assert checked_config(checked).model == checked  # a restored model's config passes again


def test_so_is_a_prediction_network_of_the_students_own():
    own = {**DECODER, "prednet": {"pred_hidden": 7, "pred_rnn_layers": 2}}
    checked = checked_config(averaged({"decoder": own})).model
    assert checked.decoder == own and checked.model_defaults.pred_hidden == 7


def test_a_config_need_not_describe_a_teacher():
    cfg = averaged()
    cfg.encoder = "???"
    assert checked_config(cfg).model.encoder.n_layers == 3
    del cfg["encoder"]
    assert checked_config(cfg).model.encoder.n_layers == 3


@pytest.mark.parametrize("alone", ["student", "teacher"])
def test_a_branch_that_is_trained_alone_keeps_its_blocks(alone):
    cfg = averaged(
        codert={"share_decoder": True, "teacher_checkpoint": "a.nemo"}, encoder={**CONFORMER, "n_layers": 5}
    )
    assert checked_config(cfg, alone=alone).model.encoder.n_layers == 5


def test_a_missing_student_is_the_one_fault():
    assert faults(model_config(student={}, codert=EMA)) == [
        "model.student.encoder is missing: give it any NeMo encoder block (with its _target_)"
    ]


def test_the_teacher_has_no_loss_of_its_own():
    terms = {"views": {"at": "joint", "nodes": "occupied", "weight": 0.2}}
    specs = criteria_specs(checked_config(averaged(codert={"distillation": terms})).model)
    assert [spec.name for spec in specs] == ["rnnt_student", "views"]


@pytest.mark.parametrize(
    "codert, words",
    [
        ({"share_decoder": True}, ["share_decoder is true but model.codert.teacher is ema", "share_decoder to false"]),
        ({"teacher_checkpoint": "a.nemo"}, ["teacher_checkpoint is 'a.nemo'", "Set it to null", "student.init_from"]),
        ({"teacher_logits": "ctc"}, ["aux_ctc", "teacher_logits is ctc but model.codert.teacher is ema"]),
        ({"distillation": {"encoder": {"both_ways": True}}}, ["both_ways is true but model.codert.teacher is ema"]),
        ({"distillation": {"last": {"at": "ctc"}}}, ["compares CTC heads but model.codert.teacher_logits is joint"]),
        *(({"ema_decay": d}, [f"ema_decay is {d}, wanted a number from 0 to"]) for d in (-0.1, 1.0, math.nan)),
    ],
)
def test_what_cannot_be_with_an_average_is_refused_by_name(codert, words):
    message = "\n".join(faults(averaged({"aux_ctc": HEAD}, codert)))
    assert all(word in message for word in words), message
    assert len(faults(averaged({"aux_ctc": HEAD}, codert))) <= 2


def test_nothing_can_be_copied_from_such_a_teacher():
    (fault,) = faults(averaged({"init_from_teacher": True}))
    assert fault.startswith("model.student.init_from_teacher is true but model.codert.teacher is ema")


def test_keys_without_effect_are_warned_about(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    checked_config(averaged())
    assert not caplog.text
    groups = {"encoder": {"lr": 1e-4}, "student_encoder": {"lr": 1e-3}}
    checked_config(averaged(codert={"teacher_loss_weight": 0.5, "distillation": None}, optim_param_groups=groups))
    assert "model.codert.teacher_loss_weight has no effect: the teacher is ema" in caplog.text
    assert "Add a term or take strategy=student" in caplog.text
    assert "model.optim_param_groups.encoder has no effect" in caplog.text
    assert "student_encoder has no effect" not in caplog.text
    checked_config(model_config(codert={"ema_decay": 0.5}))
    assert "model.codert.ema_decay has no effect: the teacher is co_trained" in caplog.text
