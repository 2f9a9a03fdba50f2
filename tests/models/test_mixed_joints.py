"""Pairs whose student has a joint of another class than the teacher: additive beside stock, and the reverse."""

import pytest
import torch
from nemo.collections.asr.modules import RNNTJoint
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.export.stock_file import save_model
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.open_model import open_model
from nemo_codert.models.stock_models import stock_class
from nemo_codert.modules import AdditiveRNNTJoint
from tests.conftest import ADDITIVE, STOCK, conformer
from tests.models.teacher_files import TDT, pair_config, save_teacher
from tests.models.training_runs import branch_losses, equal_states, moved_groups, train

JOINTS = {
    "additive": {"_target_": ADDITIVE, "jointnet": {}},
    "stock": {"_target_": STOCK, "jointnet": {"joint_hidden": 12, "activation": "tanh"}},
}
CLASSES = {"additive": AdditiveRNNTJoint, "stock": RNNTJoint}
TERMS = {
    "encoder": {},
    "with_prior": {"prior": "mean_prediction", "temperature": "adaptive"},
    "nodes": {"at": "joint"},
    "occupied": {"at": "joint", "nodes": "occupied", "classes": "target_blank_rest"},
    "sequence": {"at": "sequence", "by": "l2"},
}
BOTH = pytest.mark.parametrize("joint", JOINTS)


def mixed_config(make_config, joint: str, strategy: str = "tandem_kd", **codert):
    """A pair whose student has the joint of that name, and whose teacher has the other."""
    cfg = make_config(strategy, STOCK if joint == "additive" else ADDITIVE)
    return OmegaConf.merge(cfg, {"student": {"joint": JOINTS[joint]}, "codert": {"distillation": None, **codert}})


@pytest.fixture(scope="module")
def pairs(make_config):
    """A pair for each joint of the student, with terms at encoder, joint and sequence, built once."""
    built = {}
    for joint in JOINTS:
        cfg = mixed_config(make_config, joint)
        cfg.codert.distillation = TERMS
        torch.manual_seed(0)
        built[joint] = EncDecCoDERTBPEModel(cfg)
    return built


@BOTH
def test_every_term_trains_the_student(pairs, batch, joint):
    model = pairs[joint]
    assert type(model.student_joint) is CLASSES[joint] and type(model.joint) is not CLASSES[joint]
    losses = branch_losses(model, batch)
    for name in TERMS:
        term = losses["train_distillation_loss" if name == "encoder" else f"train_distillation_loss_{name}"]
        model.zero_grad()
        term.backward(retain_graph=True)
        assert torch.isfinite(term) and {"student_encoder", "student_joint.enc"} <= moved_groups(model)
        assert not [group for group in moved_groups(model) if not group.startswith("student_")]
    before = [parameter.clone() for parameter in model.student_joint.parameters()]
    assert all(value > 0 for value in train(model, [batch] * 2))
    moved = zip(before, model.student_joint.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)


@BOTH
def test_the_pair_is_saved_and_its_student_leaves_with_its_own_joint(pairs, batch, tmp_path, joint):
    model = pairs[joint]
    restored = open_model(save_model(model, tmp_path / "pair.nemo"))
    assert equal_states(restored.state_dict(), model.state_dict())
    assert restored.cfg.student.joint == OmegaConf.create(JOINTS[joint])
    model.eval()
    features, lengths = model.extract_features(*batch[:2])
    decoded = model.student_decoder(targets=batch[2], target_length=batch[3])[0]
    student, teacher = restored.student_model(), restored.teacher_model()
    encoded = student.encoder(audio_signal=features, length=lengths)[0]
    outputs = [
        network(encoder_outputs=encoded, decoder_outputs=decoded) for network in (student.joint, model.student_joint)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert type(student.joint) is type(teacher.joint) is RNNTJoint
    if joint == "stock":
        assert student.joint.joint_hidden == 12 and student.cfg.joint.jointnet.activation == "tanh"
    else:
        assert teacher.joint.joint_hidden == 20


@BOTH
def test_the_lone_student_starts_as_the_pairs(make_config, joint):
    cfg = mixed_config(make_config, joint, "tandem")
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(cfg)
    stock = student_config(cfg)
    torch.manual_seed(0)
    lone = stock_class(stock)(stock)
    assert type(lone.joint) is CLASSES[joint] and lone.joint.fuse_loss_wer == (joint == "additive")
    start = {name.removeprefix("student_"): v for name, v in pair.state_dict().items() if name.startswith("student_")}
    own = {name: v for name, v in lone.state_dict().items() if name.split(".")[0] in ("encoder", "decoder", "joint")}
    assert equal_states(start, own)


def test_a_stock_files_joint_teaches_an_additive_student_that_starts_from_its_layers(make_config, batch, tmp_path):
    encoders = {"teacher": conformer(layers=2, channels=16), "student": conformer(layers=1, channels=16)}
    path, teacher = save_teacher(make_config, tmp_path, "rnnt", teacher=encoders["teacher"])
    cfg = pair_config(make_config, "rnnt", path, {"distillation": {"weight": 0.1}}, **encoders)
    cfg = OmegaConf.merge(cfg, {"student": {"joint": JOINTS["additive"], "init_from_teacher": True}})
    model = EncDecCoDERTBPEModel(cfg)
    assert equal_states(model.joint.state_dict(), teacher.joint.state_dict())
    assert {"joint.enc", "joint.pred"} <= set(model.loaded["student"]["left"])
    train(model, [batch])
    again = OmegaConf.merge(cfg, {"student": {"init_from_teacher": False, "init_from": str(tmp_path / "pair.nemo")}})
    save_model(model, tmp_path / "pair.nemo")
    warm = EncDecCoDERTBPEModel(again)
    assert equal_states(warm.student_joint.state_dict(), model.student_joint.state_dict())
    with pytest.raises(ValueError, match="model.joint._target_ is '.*RNNTJoint', the checkpoint has '.*AdditiveRNNT"):
        EncDecCoDERTBPEModel(OmegaConf.merge(again, {"student": {"joint": None}}))


def test_a_new_vocabulary_gives_the_students_joint_its_classes(make_config, batch, tmp_path):
    from nemo_codert.data.tokenizer import train_tokenizer
    from tests.conftest import SENTENCES

    model = EncDecCoDERTBPEModel(mixed_config(make_config, "additive", distillation={"weight": 0.1}))
    model.change_vocabulary(str(train_tokenizer(SENTENCES, tmp_path / "larger", vocab_size=40)), "bpe")
    assert type(model.student_joint) is AdditiveRNNTJoint and model.student_joint.num_classes_with_blank == 41
    assert model.student_model().joint.num_classes_with_blank == 41
    assert torch.isfinite(branch_losses(model, batch)["train_loss"])


def test_joints_of_one_class_and_size_share_a_decoder(make_config, batch):
    own = {"_target_": STOCK, "jointnet": {"joint_hidden": 20, "activation": "tanh"}}
    model = EncDecCoDERTBPEModel(OmegaConf.merge(make_config("shared_kd", STOCK), {"student": {"joint": own}}))
    assert model.student_joint.pred is model.joint.pred and model.student_joint.activation == "tanh"
    assert torch.isfinite(model.training_step(batch, 0)["loss"])


SHARED = "and model.codert.share_decoder is true: .* Set share_decoder to false or model.student.joint to null"
FAULTS = {
    "another class": ("shared_kd", JOINTS["additive"], rf"student.joint._target_ is '.*Additive.* but .*{SHARED}"),
    "another size": ("shared_kd", JOINTS["stock"], rf"joint.jointnet.joint_hidden is 12 but .* is 20 {SHARED}"),
    "no block": ("tandem", "additive", "model.student.joint is 'additive', wanted a joint's block or null"),
    "another joint": ("tandem", {"_target_": "x.SampledRNNTJoint", "jointnet": {}}, "joint._target_ is 'x.SampledRNN"),
    "no sizes": ("tandem", {"_target_": STOCK}, "model.student.joint.jointnet is None, wanted a block of keys"),
    "a missing size": ("tandem", {"_target_": STOCK, "jointnet": {"activation": "relu"}}, "joint_hidden is missing"),
    "durations": ("tandem", {**JOINTS["stock"], **TDT["joint"]}, "model.student.joint.num_extra_outputs is 3"),
    "no value": ("tandem", {**JOINTS["stock"], "fuse_loss_wer": "???"}, "student.joint.fuse_loss_wer is \\?\\?\\?"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_joint_that_the_student_cannot_have_is_refused(make_config, name):
    strategy, block, message = FAULTS[name]
    cfg = OmegaConf.merge(make_config(strategy, STOCK), {"student": {"joint": block}})
    with pytest.raises(ValueError, match=message):
        checked_config(cfg)


def test_keys_of_the_students_joint_without_effect_are_warned_about(make_config, caplog):
    own = {**JOINTS["additive"], "log_softmax": True, "preserve_memory": True}
    checked_config(OmegaConf.merge(make_config("tandem", STOCK), {"student": {"joint": own}}))
    assert "model.student.joint.preserve_memory has no effect" in caplog.text
    assert "model.student.joint.log_softmax has no effect" in caplog.text


def test_a_fused_decoding_needs_a_fused_joint_of_the_students_own(make_config):
    fused = {"joint": {"fuse_loss_wer": True, "fused_batch_size": 2}, "decoding": {"fused_batch_size": 2}}
    cfg = OmegaConf.merge(make_config("tandem", STOCK), fused, {"student": {"joint": JOINTS["stock"]}})
    with pytest.raises(ValueError, match="fused_batch_size is 2 but model.student.joint.fuse_loss_wer is false"):
        checked_config(cfg)
    checked_config(OmegaConf.merge(cfg, {"student": {"joint": JOINTS["additive"]}}))
