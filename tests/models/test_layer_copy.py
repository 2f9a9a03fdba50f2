"""`student.init_from_teacher`: which layers a student starts from, what else is copied, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.layer_copy import spaced_layers
from tests.conftest import ADDITIVE, STOCK, conformer, lstm
from tests.models.teacher_files import pair_config
from tests.models.training_runs import equal_states, train

WIDE = conformer(layers=5, channels=16)
NORM = {"conv_norm_type": "batch_norm"}


@pytest.mark.parametrize(
    "of_teacher, of_student, layers",
    [
        (17, 4, [0, 5, 10, 16]),
        (5, 3, [0, 2, 4]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (24, 2, [0, 23]),
        (3, 1, [2]),
        (1, 1, [0]),
    ],
)
def test_the_layers_are_evenly_spaced(of_teacher, of_student, layers):
    assert spaced_layers(of_teacher, of_student) == layers


@given(st.integers(1, 60).flatmap(lambda teacher: st.tuples(st.just(teacher), st.integers(1, teacher))))
def test_the_layers_are_distinct_in_order_and_end_with_the_last(sizes):
    layers = spaced_layers(*sizes)
    assert len(layers) == sizes[1] and layers == sorted(set(layers)) and layers[-1] == sizes[0] - 1
    assert layers[0] == 0 or sizes[1] == 1


@pytest.fixture
def make_pair(make_config, saved_teacher, tmp_path):
    """Factory of a pair whose student starts from a teacher of some kind."""

    def make(kind="rnnt", student=None, teacher=WIDE, init=True, strategy="static", **settings):
        path, _ = saved_teacher(tmp_path, kind, teacher=teacher)
        student = student or conformer(layers=3, channels=16)
        cfg = pair_config(make_config, kind, path, strategy=strategy, student=student, teacher=teacher, **settings)
        cfg.student.init_from_teacher = init
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(cfg)

    return make


@pytest.mark.parametrize("kind", ["rnnt", "hybrid_tdt"])
def test_the_student_starts_as_an_excerpt_of_its_teacher(make_pair, batch, kind):
    model = make_pair(kind, teacher={**WIDE, **NORM}, student={**conformer(layers=3, channels=16), **NORM})
    teacher, student = model.encoder, model.student_encoder
    for own, source in enumerate([0, 2, 4]):
        assert equal_states(student.layers[own].state_dict(), teacher.layers[source].state_dict())
    assert equal_states(student.pre_encode.state_dict(), teacher.pre_encode.state_dict())
    assert equal_states(model.student_decoder.state_dict(), model.decoder.state_dict())
    assert torch.equal(model.student_joint.enc.weight, model.joint.enc.weight)
    assert torch.equal(model.student_joint.pred.bias, model.joint.pred.bias)
    assert torch.equal(model.student_joint.joint_net[-1].weight, model.joint.joint_net[-1].weight[:33])
    loaded = model.loaded["student"]
    assert loaded["source"] == "encoder layers 0, 2, 4 of its teacher's 5" and loaded["left"] == []
    assert (
        loaded["tensors"]
        == len(loaded["keys"])
        == len(model.student_encoder.state_dict()) + 6 + len(model.student_decoder.state_dict())
    )
    kept = teacher.layers[0].norm_out.weight.clone()
    train(model, [batch])
    assert torch.equal(teacher.layers[0].norm_out.weight, kept)  # copied, not shared
    assert not torch.equal(student.layers[0].norm_out.weight, kept)


def test_a_student_with_the_teachers_layers_and_joint_distils_nothing_at_the_start(make_pair, batch):
    model = make_pair(student=WIDE)
    features = model.extract_features(*batch[:2])
    encoded = [e(audio_signal=features[0], length=features[1])[0] for e in (model.encoder, model.student_encoder)]
    assert torch.equal(*encoded)
    model.training_step(batch, 0)
    # Both sides are the same numbers: what is left of a sum over V+1 classes is rounding.
    assert abs(model.step_losses["train_distillation_loss"]) < 1e-4 < model.step_losses["train_rnnt_loss_student"]


def test_a_streaming_student_may_start_from_a_full_context_teacher(make_pair):
    streaming = {"att_context_style": "chunked_limited", "att_context_size": [4, 1], "conv_context_size": "causal"}
    model = make_pair(student={**conformer(2), **streaming})
    assert equal_states(model.student_encoder.layers[1].state_dict(), model.encoder.layers[4].state_dict())
    assert model.loaded["student"]["left"] == []


def test_what_is_shared_is_left_alone_and_what_does_not_fit_begins_anew(make_pair):
    student = {**conformer(layers=2, channels=16), "subsampling_conv_channels": 4}
    new = make_pair(student=student, strategy="static_shared", init=False)
    model = make_pair(student=student, strategy="static_shared")
    assert model.loaded["student"]["left"] == ["encoder.pre_encode"]
    assert equal_states(model.student_encoder.pre_encode.state_dict(), new.student_encoder.pre_encode.state_dict())
    assert equal_states(model.student_encoder.layers[1].state_dict(), model.encoder.layers[4].state_dict())
    assert model.student_joint.pred is model.joint.pred
    assert not any(key.startswith(("decoder.", "joint.pred.")) for key in model.loaded["student"]["keys"])


def test_a_co_trained_teacher_gives_its_layers_too_and_a_smaller_own_decoder_begins_anew(make_config, make_pair):
    decoder = OmegaConf.to_container(make_config().decoder)
    decoder["prednet"]["pred_hidden"] = 12
    path_student = {"encoder": conformer(layers=2, channels=16), "decoder": decoder}
    model = make_pair(strategy="tandem_kd", student=path_student["encoder"])
    assert model.loaded["student"]["left"] == []
    cfg = OmegaConf.merge(model.cfg, {"student": path_student})
    again = EncDecCoDERTBPEModel(cfg)
    assert again.loaded["student"]["left"] == ["joint.pred", "decoder"]


def test_the_pair_restores_what_it_has_learnt_and_does_not_start_again(make_pair, batch, tmp_path):
    model = make_pair()
    train(model, [batch])
    model.save_to(str(tmp_path / "pair.nemo"))
    (tmp_path / "rnnt.nemo").unlink()
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "teacher, student, words",
    [
        (WIDE, conformer(layers=2, channels=24), r"encoder\.layers\.0\.\S+: \[24\] in the student, \[16\] in the tea"),
        (WIDE, {**conformer(2), "conv_kernel_size": 7}, r"depthwise_conv\.weight: \[16, 1, 7\] .* \[16, 1, 5\]"),
        (WIDE, {**conformer(2), **NORM}, r"conv\.batch_norm\.running_mean: \[16\] in the student, absent in the tea"),
        (
            WIDE,
            conformer(layers=6),
            "model.student.encoder has 6 layers and model.encoder 5: give the student as many",
        ),
        (
            WIDE,
            lstm(),
            r"model.student.encoder._target_ is 'nemo\S+RNNEncoder': only the layers of a ConformerEncoder",
        ),
        (
            lstm(),
            conformer(2),
            r"model.encoder._target_ is 'nemo\S+RNNEncoder': only the layers of a ConformerEncoder",
        ),
    ],
)
def test_layers_that_cannot_be_copied_are_refused_with_their_shapes(make_pair, teacher, student, words):
    with pytest.raises(ValueError, match=rf"(?s)model.student.init_from_teacher is true but.*{words}"):
        make_pair(teacher=teacher, student=student)


def test_the_joints_of_an_additive_pair_are_copied_too(make_config, make_model, tmp_path):
    make_model("tandem_kd", ADDITIVE, teacher=WIDE, student=conformer(2)).save_to(str(tmp_path / "pair.nemo"))
    cfg = make_config("static", ADDITIVE, teacher=WIDE, student=conformer(2))
    cfg.codert.teacher_checkpoint, cfg.student.init_from_teacher = str(tmp_path / "pair.nemo"), True
    model = EncDecCoDERTBPEModel(cfg)
    assert equal_states(model.student_joint.state_dict(), model.joint.state_dict())
    assert model.cfg.joint._target_ != STOCK and model.loaded["student"]["left"] == []
