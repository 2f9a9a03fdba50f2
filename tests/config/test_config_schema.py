"""The `model.student` and `model.codert` blocks and the stock keys that a pair refuses or ignores."""

import dataclasses
import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from nemo_codert import __version__
from nemo_codert.config import derived
from nemo_codert.config.checked import checked_config
from nemo_codert.config.criteria import EncoderKLConfig, criteria_specs
from nemo_codert.config.schema import CoDERTConfig, StudentConfig
from nemo_codert.config.stock_checks import ADDITIVE_JOINT

pytestmark = pytest.mark.unit

STOCK = "nemo.collections.asr.modules.RNNTJoint"
CONFORMER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 32,
    "feat_out": -1,
    "n_layers": 1,
    "d_model": 16,
    "subsampling": "striding",
    "subsampling_factor": 4,
}
RNN = {
    "_target_": "nemo.collections.asr.modules.RNNEncoder",
    "feat_in": 32,
    "n_layers": 1,
    "d_model": 24,
    "proj_size": 16,
    "rnn_type": "lstm",
    "bidirectional": False,
    "subsampling": "striding",
    "subsampling_factor": 4,
}
DECODER = {
    "_target_": "nemo.collections.asr.modules.RNNTDecoder",
    "prednet": {"pred_hidden": 20, "pred_rnn_layers": 1},
}


HEAD = {"ctc_loss_weight": 0.3, "decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder"}}


def model_config(**overrides) -> DictConfig:
    """A valid model section; nothing is built from it."""
    cfg = {
        "sample_rate": 16000,
        "model_defaults": {"enc_hidden": 16, "pred_hidden": 20, "joint_hidden": 20},
        "tokenizer": {"dir": "tokenizer", "type": "bpe"},
        "preprocessor": {"features": 32},
        "encoder": CONFORMER,
        "decoder": DECODER,
        "joint": {"_target_": ADDITIVE_JOINT, "jointnet": {"joint_hidden": 20, "activation": "relu"}},
        "decoding": {"strategy": "greedy_batch"},
        "student": {"encoder": CONFORMER},
        "codert": {},
    }
    return OmegaConf.create({**cfg, **overrides})


def faults(cfg: DictConfig) -> list[str]:
    """The faults that the one error lists."""
    with pytest.raises(ValueError) as caught:
        checked_config(cfg)
    first, *lines = str(caught.value).split("\n  - ")
    assert first == "The model config cannot be used:"
    return lines


def set_to(key: str, value: object) -> DictConfig:
    """A valid config but for one key, which may name blocks that are not there yet."""
    cfg = model_config()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def test_defaults_are_filled_in_from_the_dataclasses_and_the_given_config_is_left_alone():
    cfg = model_config()
    before = OmegaConf.to_container(cfg)
    checked = checked_config(cfg).model
    assert OmegaConf.to_container(cfg) == before
    filled = OmegaConf.to_container(checked.codert)
    assert filled.pop("distillation") == {"encoder": dataclasses.asdict(EncoderKLConfig())}
    assert {**filled, "distillation": {"encoder": {}}} == dataclasses.asdict(CoDERTConfig())
    assert checked.student.decoder is None and checked.student.init_from is None
    assert checked.nemo_codert_version == __version__
    assert checked_config(checked).model == checked  # a restored model's config passes again


def test_the_defaults_are_those_that_the_design_fixes():
    assert dataclasses.asdict(CoDERTConfig()) == {
        "teacher": "co_trained",
        "teacher_checkpoint": None,
        "teacher_cache": None,
        "ema_decay": 0.999,
        "teacher_logits": "joint",
        "share_decoder": True,
        "teacher_loss_weight": 1.0,
        "student_loss_weight": 1.0,
        "rnnt_loss": "auto",
        "student_loss_from_step": 0,
        "distillation": {"encoder": {}},
        "student_hears": None,
        "bad_utterances": "drop",
        "audio_check": "auto",
        "non_finite": {"action": "stop", "max_skips": 10},
        "activation_checkpointing": False,
    }
    assert dataclasses.asdict(StudentConfig()) == {
        "encoder": None,
        "decoder": None,
        "joint": None,
        "durations": None,
        "init_from": None,
        "init_from_teacher": False,
        "aux_ctc": None,
    }


def test_interpolations_are_resolved_and_broken_ones_named():
    root = OmegaConf.create({"size": 32, "model": model_config(preprocessor={"features": "${size}"})})
    assert checked_config(root.model).model.preprocessor.features == 32
    root.model.codert.rnnt_loss = "${model.no_such_key}"
    with pytest.raises(ValueError, match="interpolation that cannot be resolved.*no_such_key"):
        checked_config(root.model)


def test_all_faults_are_reported_together():
    cfg = model_config(
        student={"encoder": CONFORMER, "enconder": 1},
        codert={"teachr": 1, "distillation": {"weigth": 1, "temperature": "hot"}, "rnnt_loss": "exakt"},
        rnnt_reduction="median",
    )
    assert [fault.split()[0] for fault in faults(cfg)] == [
        "model.student.enconder",
        "model.codert.distillation.weigth",
        "model.codert.distillation.temperature",
        "model.codert.teachr",
        "model.codert.rnnt_loss",
        "model.rnnt_reduction",
    ]


REFUSED = [
    # unknown keys
    ("student.heads", 4, "model.student.heads is not a key of this version, known are encoder, decoder, joint"),
    ("codert.alpha", 1, "model.codert.alpha is not a key of this version"),
    ("codert.distillation.alpha", 1, "known are at, by, weight, from_step, until_step, ramp_steps, temperature"),
    # wrong types
    ("codert", 5, "model.codert is 5, wanted a block of keys"),
    ("codert", None, "model.codert is missing: add the block"),
    ("student", [1], r"model.student is \[1\], wanted a block"),
    ("codert.distillation", "off", "model.codert.distillation is 'off', wanted a block of keys"),
    ("codert.distillation.weight", "lots", "weight is 'lots', wanted float"),
    ("codert.distillation.weight", None, "weight is None, wanted float"),
    ("codert.distillation.weight", [0.1], r"weight is \[0.1\], wanted float"),
    ("codert.distillation.start_step", 1.5, "from_step is 1.5, wanted int"),
    ("codert.share_decoder", "maybe", "share_decoder is 'maybe', wanted bool"),
    ("codert.rnnt_loss", None, "rnnt_loss is None, wanted str"),
    ("codert.teacher_checkpoint", {"path": "a"}, r"teacher_checkpoint is {'path': 'a'}, wanted str \| None"),
    ("student.encoder", 5, "model.student.encoder has no _target_"),
    ("student.encoder", {"d_model": 5}, "model.student.encoder has no _target_"),
    ("student.encoder", None, "model.student.encoder is missing"),
    ("encoder", "conformer", "model.encoder is 'conformer', wanted a block of keys"),
    # values nobody gave
    ("student.encoder", "???", r"model.student.encoder is \?\?\?: it has no default, give it a value"),
    ("student.encoder.d_model", "???", r"model.student.encoder.d_model is \?\?\?"),
    ("model_defaults.enc_hidden", "???", r"model.model_defaults.enc_hidden is \?\?\?: give it a value"),
    ("codert.distillation.weight", "???", r"model.codert.distillation.weight is \?\?\?"),
    ("decoding", None, "model.decoding is missing: a pair starts from a complete stock RNN-T config"),
    # ranges
    ("codert.teacher", "pretrained", "'pretrained', wanted one of co_trained, frozen"),
    ("codert.rnnt_loss", "k2", "'k2', wanted one of auto, exact, nemo"),
    ("codert.bad_utterances", "skip", "'skip', wanted one of drop, refuse"),
    ("codert.distillation.reduction", "mean", "'mean', wanted one of per_utterance, per_frame"),
    ("codert.distillation.temperature", 0, "temperature is 0, wanted a number above 0"),
    ("codert.distillation.temperature", math.inf, "temperature is inf, wanted a number above 0"),
    ("codert.distillation.weight", -0.1, "weight is -0.1, wanted a number that is 0 or above"),
    ("codert.distillation.weight", math.nan, "weight is nan, wanted a number"),
    ("codert.distillation.start_step", -1, "from_step is -1, wanted a number that is 0 or above"),
    ("codert.distillation.ramp_steps", -1, "ramp_steps is -1"),
    ("codert.distillation.frame_shift", -1, "frame_shift is -1, wanted a number that is 0 or above"),
    ("codert.distillation.frame_shift", 1.5, "frame_shift is 1.5, wanted int"),
    ("codert.teacher_loss_weight", -1, "teacher_loss_weight is -1.0"),
    ("codert.student_loss_weight", math.inf, "student_loss_weight is inf"),
    # contradictions
    ("student.decoder", DECODER, "model.student.decoder is set but model.codert.share_decoder is true"),
    ("codert.teacher_loss_weight", 0, "teacher_loss_weight is 0 but model.codert.teacher is co_trained"),
    ("codert", {"student_loss_weight": 0, "distillation": {"weight": 0}}, "student_loss_weight is 0: nothing would"),
    ("codert", {"student_loss_weight": 0, "share_decoder": False}, "student_loss_weight is 0: nothing would"),
    ("student", {"encoder": {**CONFORMER, "subsampling_factor": 2}}, "teacher frames cannot be grouped"),
    ("encoder.subsampling_factor", 6, "one frame of 6 feature frames, model.student.encoder one of 4"),
    ("student.encoder.feat_in", 80, "feat_in is 80 but model.preprocessor.features is 32"),
    ("model_defaults.enc_hidden", 99, "enc_hidden is 99 but model.encoder's output width is 16"),
    ("model_defaults.pred_hidden", 99, "pred_hidden is 99 but model.decoder.prednet.pred_hidden is 20"),
    ("encoder.feat_out", 24, "enc_hidden is 16 but model.encoder's output width is 24"),
    ("decoder.prednet.pred_hidden", None, "model.decoder.prednet.pred_hidden is None, wanted the number of channels"),
    ("optim_param_groups", {"student_decoder": {"lr": 1e-3}}, "the shared prediction network has one learning rate"),
    # stock options that a pair cannot honour
    ("joint._target_", "nemo.collections.asr.modules.SampledRNNTJoint", "SampledRNNTJoint', wanted nemo_codert"),
    ("joint.num_extra_outputs", 5, "TDT"),
    ("joint.masking_prob", 0.5, "HAINAN"),
    ("joint.experimental_fuse_loss_wer", True, "use model.joint.fuse_loss_wer"),
    ("joint.fuse_loss_wer", True, "fused_batch_size is None but fuse_loss_wer is true"),
    ("joint.jointnet", None, "model.joint.jointnet is missing"),
    ("joint", {"_target_": STOCK, "jointnet": {"activation": "relu"}}, "jointnet.joint_hidden is missing"),
    ("loss.loss_name", "tdt", "model.decoding.durations is None, wanted the list of durations"),
    ("loss.loss_name", "multiblank_rnnt", "multi-blank model can be neither .* set model.loss.loss_name to default"),
    ("loss.loss_name", "pytorch", "'pytorch', wanted one of"),
    ("loss.warprnnt_numba_kwargs", {"clamp": 1.0}, "clamp is 1.0: clamped gradients are not exact"),
    ("loss.warprnnt_numba_kwargs", {"clamp": None}, "clamp is None"),
    ("loss.warprnnt_numba_kwargs", {"fastemit_lambda": 1.0}, r"fastemit_lambda is 1.0, wanted a number in \[0, 1\)"),
    ("loss.warprnnt_numba_kwargs", {"fastemit_lambda": "some"}, "fastemit_lambda is 'some'"),
    (
        "loss.loss_nam",
        "default",
        "model.loss.loss_nam is not a key of an RNN-T loss, known are loss_name, warprnnt_numba",
    ),
    ("loss.warprnnt_numba_kwargs", {"sigma": 0.1}, "warprnnt_numba_kwargs.sigma is not supported"),
    ("rnnt_reduction", "none", "model.rnnt_reduction is 'none', wanted one of mean_batch"),
    ("rnnt_reduction", None, "model.rnnt_reduction is None"),
    ("aux_ctc", 5, "model.aux_ctc is 5, wanted a block of keys"),
    ("codert.teacher_logits", "decoder", "'decoder', wanted one of joint, ctc"),
    ("codert", {"teacher": "frozen", "teacher_logits": "ctc"}, "aux_ctc.decoder._target_ is None: take the teacher"),
    ("codert.teacher_logits", "ctc", "teacher is co_trained: a pair has no CTC loss for the teacher's CTC head"),
    ("student", {"encoder": CONFORMER, "init_from_teacher": True}, "teacher_checkpoint is null: there are no trained"),
    (
        "student",
        {"encoder": CONFORMER, "init_from_teacher": True, "init_from": "small.nemo"},
        "init_from and init_from_teacher are both set",
    ),
    ("student", {"encoder": CONFORMER, "aux_ctc": "yes"}, "model.student.aux_ctc is 'yes', wanted a block of keys"),
    ("student", {"encoder": CONFORMER, "aux_ctc": {}}, "aux_ctc.ctc_loss_weight is None, wanted the CTC loss's share"),
    ("student", {"encoder": CONFORMER, "aux_ctc": {**HEAD, "ctc_loss_weight": 1}}, "ctc_loss_weight is 1, wanted"),
    ("student", {"encoder": CONFORMER, "aux_ctc": {**HEAD, "decoder": {}}}, "aux_ctc.decoder._target_ is None"),
    ("student", {"encoder": CONFORMER, "aux_ctc": {**HEAD, "ctc_reduction": "none"}}, "ctc_reduction is 'none'"),
    ("student", {"encoder": CONFORMER, "init_from_teacher": "all"}, "init_from_teacher is 'all', wanted bool"),
    ("adapters", {"adapter": {}}, "adapters act on the joint's sum"),
    ("normalize_joint_txu", True, "model.normalize_joint_txu is true: it would act on the teacher alone"),
    ("normalize_encoder_norm", True, "model.normalize_encoder_norm is true"),
    ("normalize_decoder_norm", True, "model.normalize_decoder_norm is true"),
    ("normalize_joint_norm", True, "model.normalize_joint_norm is true"),
    ("variational_noise", {"std": 0.1}, "model.variational_noise.std is above 0"),
    ("freeze_updates", {"enabled": True}, "a frozen teacher is model.codert.teacher: frozen"),
    ("optim_param_groups", {"encodr": {"lr": 1e-3}}, "optim_param_groups.encodr is not a part of a pair"),
    ("tokenizer.type", "wpe", "model.tokenizer.type is 'wpe', wanted bpe"),
    ("tokenizer.type", "agg", "model.tokenizer.type is 'agg', wanted bpe"),
    ("tokenizer.custom_tokenizer", {"_target_": "x"}, "only a plain SentencePiece tokenizer"),
    ("decoding.durations", [0, 1], "set it to tdt, with tdt_kwargs.durations"),
    ("decoding.big_blank_durations", [2], "a multi-blank model"),
    ("decoding.model_type", "tdt", "wanted rnnt"),
    ("decoding.fused_batch_size", 4, "fused_batch_size is 4 but model.joint.fuse_loss_wer is false"),
    ("decoder.normalization_mode", "layer", "normalization_mode is 'layer': NeMo cannot run it"),
    ("preprocessor.frame_splicing", 3, "frame_splicing is 3: not supported"),
    ("preprocessor", {"_target_": "x"}, "model.preprocessor.features is None, wanted the number of mel bins"),
    # NeMo's RNNEncoder
    ("student.encoder", {**RNN, "rnn_type": "gru"}, "rnn_type is 'gru': NeMo's RNNEncoder can only build lstm"),
    ("student.encoder", {**RNN, "bidirectional": True}, "model.student.encoder.bidirectional is true"),
    ("encoder", {k: v for k, v in RNN.items() if k != "bidirectional"}, "model.encoder.bidirectional is true"),
    ("student.encoder", {**RNN, "subsampling": "stacking"}, "subsampling is 'stacking': its lengths vary"),
    ("student.encoder", {**RNN, "subsampling": "vggnet"}, "subsampling is 'vggnet'"),
    (
        "student.encoder",
        {**RNN, "proj_size": 24},
        r"proj_size is 24, wanted .* below d_model \(24\)",
    ),
    ("student.encoder", {**RNN, "proj_size": "half"}, "proj_size is 'half'"),
    ("student.encoder", {**RNN, "feat_out": -1}, "feat_out is not a key of RNNEncoder"),
    # activation checkpointing of encoders that have no Conformer layers
    ("codert.activation_checkpointing", "layers", "activation_checkpointing is 'layers', wanted bool"),
]


@pytest.mark.parametrize("key, value, message", REFUSED, ids=[f"{key}-{value}"[:60] for key, value, _ in REFUSED])
def test_a_value_that_cannot_be_used_is_refused_by_name(key, value, message):
    lines = faults(set_to(key, value))
    assert any(re.search(message, line) for line in lines), lines


@pytest.mark.parametrize(
    "key, value",
    [
        ("codert", {"student_loss_weight": 0}),  # shared decoder, distilled encoder
        ("codert", {"teacher": "frozen", "teacher_loss_weight": 0}),
        ("codert", {"teacher": "frozen"}),  # built without a checkpoint, not fitted
        ("codert.distillation.weight", 0),
        ("codert.distillation.weight", "0.5"),
        ("encoder.subsampling_factor", 2),
        ("student.encoder", RNN),
        ("joint._target_", STOCK),
        ("joint.masking_prob", -1.0),
        ("joint.num_extra_outputs", 0),
        (
            "joint",
            {
                "_target_": STOCK,
                "fuse_loss_wer": True,
                "fused_batch_size": 2,
                "jointnet": dict(DECODER) | {"joint_hidden": 4, "activation": "tanh"},
            },
        ),
        ("loss", {"loss_name": "warprnnt_numba", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.01, "clamp": -1.0}}),
        ("loss", None),
        ("rnnt_reduction", "mean_volume"),
        ("adapters", {}),
        ("aux_ctc", None),
        ("aux_ctc", {"decoder": {}}),  # a hybrid's YAML; its RNN-T is the teacher
        ("student", {"encoder": CONFORMER, "aux_ctc": HEAD}),
        ("student", {"encoder": CONFORMER, "init_from_teacher": False, "init_from": "small.nemo"}),
        ("variational_noise", {"std": 0.0, "start_step": 0}),
        ("freeze_updates", {"enabled": False}),
        ("normalize_joint_txu", False),
        ("optim_param_groups", {"encoder": {"lr": 1e-4}, "student_encoder": {"lr": 1e-3}}),
        ("tokenizer.type", "BPE"),
        ("decoding", {"strategy": "beam", "durations": [], "big_blank_durations": [], "model_type": "rnnt"}),
        ("preprocessor.frame_splicing", 1),
    ],
    ids=str,
)
def test_a_value_that_can_be_used_is_accepted(key, value):
    assert checked_config(set_to(key, value)).model.nemo_codert_version  # written last, when no fault was found


@pytest.mark.parametrize(
    "teacher, encoder, student, refused",
    [
        ("co_trained", CONFORMER, CONFORMER, []),
        ("co_trained", RNN, RNN, ["model.encoder", "model.student.encoder"]),
        ("co_trained", CONFORMER, RNN, ["model.student.encoder"]),
        ("co_trained", RNN, CONFORMER, ["model.encoder"]),
        ("frozen", RNN, CONFORMER, []),
        ("frozen", RNN, RNN, ["model.student.encoder"]),
    ],
)
def test_a_trained_encoder_without_conformer_layers_cannot_be_checkpointed(teacher, encoder, student, refused):
    codert = {"teacher": teacher, "activation_checkpointing": True}
    cfg = model_config(encoder=encoder, student={"encoder": student}, codert=codert)
    key = "model.codert.activation_checkpointing is true"
    expected = [
        f"{key} but {name}._target_ is '{RNN['_target_']}': only the layers of a ConformerEncoder can be computed "
        "again. Set activation_checkpointing to false"
        for name in refused
    ]
    assert (faults(cfg) if refused else []) == expected
    if not refused:
        assert checked_config(cfg).codert.activation_checkpointing is True


TDT = {
    "joint": {"_target_": STOCK, "num_extra_outputs": 2, "jointnet": {"joint_hidden": 4, "activation": "relu"}},
    "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1], "sigma": 0.02}},
    "decoding": {"strategy": "greedy_batch", "model_type": "tdt", "durations": [0, 1]},
}


@pytest.mark.parametrize("durations", [None, [0, 1]])
@pytest.mark.parametrize("teacher, alone", [("frozen", None), ("co_trained", None), ("frozen", "student")])
def test_a_tdt_teacher_is_taken_with_a_student_of_either_kind(durations, teacher, alone):
    student = {"encoder": CONFORMER, "durations": durations}
    cfg = model_config(**TDT, student=student, codert={"teacher": teacher})
    assert checked_config(cfg, alone=alone).student.durations == durations


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("joint.num_extra_outputs", 3, "num_extra_outputs is 3 but model.decoding.durations has 2 durations"),
        ("joint.num_extra_outputs", None, "num_extra_outputs is None but model.decoding.durations has 2"),
        ("joint.masking_prob", 0.5, "HAINAN"),
        ("decoding.durations", [0, 2], r"tdt_kwargs.durations is \[0, 1\] but model.decoding.durations is \[0, 2\]"),
        ("decoding.durations", None, "model.decoding.durations is None, wanted the list of durations"),
        ("decoding.big_blank_durations", [2], "a multi-blank model"),
        ("loss.loss_name", "pytorch", "'pytorch', wanted one of tdt, tdt_pytorch"),
    ],
)
def test_a_description_of_a_tdt_model_that_contradicts_itself_is_refused(key, value, message):
    cfg = model_config(**TDT, codert={"teacher": "frozen"})
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    assert any(re.search(message, line) for line in faults(cfg)), faults(cfg)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"student": {"durations": [0, 1, 2]}}, r"durations is \[0, 1, 2\] but model.decoding.durations is \[0, 1\]"),
        ({"student": {"durations": [1, 0]}}, "in the same order"),
        ({"student": {"durations": 2}}, "durations is 2, wanted a list"),
        (
            {"student": {"joint": {**TDT["joint"], "num_extra_outputs": 3}}},
            "extra_outputs is 3 but .* has 2 durations",
        ),
        ({"decoding": {"durations": [0, 2]}}, "without 1"),
        ({"decoding": {"durations": [0, 1, 1]}}, "wanted different whole numbers"),
        ({"loss": {"loss_name": "default"}}, "set it to tdt, with tdt_kwargs.durations"),
        ({"loss": {"tdt_kwargs": {"sigma": -0.1}}}, "tdt_kwargs.sigma is -0.1, wanted a number, 0 or more"),
        ({"loss": {"tdt_kwargs": {"omega": 1.5}}}, r"tdt_kwargs.omega is 1.5, wanted a number in \[0, 1\]"),
        ({"loss": {"tdt_kwargs": {"fastemit_lambda": 1}}}, "fastemit_lambda is 1, wanted"),
        ({"loss": {"tdt_kwargs": {"clamp": 2}}}, "tdt_kwargs.clamp is 2, wanted -1"),
        ({"loss": {"tdt_kwargs": {"rho": 2}}}, "tdt_kwargs.rho is not supported"),
        ({"codert": {"rnnt_loss": "nemo"}}, "rnnt_loss is nemo but a TDT model is trained"),
        ({"codert": {"teacher": "ema", "share_decoder": False}, "student": {"durations": None}}, "teacher is ema"),
        (
            {"codert": {"teacher": "ema", "share_decoder": False}, "student": {"durations": 5, "joint": TDT["joint"]}},
            "a list",
        ),
        (
            {"codert": {"student_loss_weight": 0, "distillation": {"encoder": {"durations_weight": 0}}}},
            "student_loss_weight is 0 but no term with a durations_weight above 0",
        ),
        (
            {"joint": {"_target_": ADDITIVE_JOINT}, "student": {"durations": None}},
            "share_decoder is true with additive",
        ),
    ],
)
def test_a_tdt_student_that_does_not_fit_its_teacher_is_refused_by_name(changes, message):
    cfg = model_config(**TDT, student={"encoder": CONFORMER, "durations": [0, 1]})
    assert any(re.search(message, line) for line in faults(OmegaConf.merge(cfg, changes))), message


@pytest.mark.parametrize("alone", ["student", "teacher"])
def test_nemos_loss_is_refused_for_an_additive_tdt_model_alone(alone):
    cfg = model_config(**TDT, student={"encoder": CONFORMER, "durations": [0, 1]}, codert={"rnnt_loss": "nemo"})
    checked_config(cfg, alone=alone)  # a stock joint: NeMo's own class and loss
    cfg.joint._target_ = ADDITIVE_JOINT
    with pytest.raises(ValueError, match="rnnt_loss is nemo but a TDT model is trained"):
        checked_config(cfg, alone=alone)


@pytest.mark.parametrize("alone", [None, "student"])
def test_the_arguments_of_a_loss_that_trains_nothing_are_not_checked(alone):
    cfg = model_config(**TDT, codert={"teacher": "frozen"})
    cfg.loss.tdt_kwargs.update(clamp=1.0, rho=2)
    checked_config(cfg, alone=alone)


def test_a_tdt_student_of_a_standard_teacher_is_refused():
    (fault,) = faults(model_config(student={"encoder": CONFORMER, "durations": [0, 1]}))
    assert "model.student.durations is [0, 1] but the stock keys describe no TDT model" in fault
    joint = {"_target_": ADDITIVE_JOINT, "num_extra_outputs": 2, "jointnet": {}}
    (fault,) = faults(model_config(student={"encoder": CONFORMER, "joint": joint}))
    assert "model.student.joint.num_extra_outputs is 2 but model.student.durations is null" in fault


@pytest.mark.parametrize("loss", [None, {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.01}}])
def test_the_loss_beside_a_tdt_teacher_may_be_the_students(loss):
    checked_config(model_config(**{**TDT, "loss": loss}, codert={"teacher": "frozen"}))


def test_an_own_student_decoder_is_accepted_when_nothing_is_shared():
    cfg = model_config(student={"encoder": CONFORMER, "decoder": DECODER}, codert={"share_decoder": False})
    assert checked_config(cfg).student.decoder == OmegaConf.create(DECODER)


@pytest.mark.parametrize("value", [5, "lstm", {"prednet": {"pred_hidden": 4}}, {"_target_": "x", "prednet": None}])
def test_a_student_decoder_that_is_no_prediction_network_is_refused(value):
    cfg = model_config(student={"encoder": CONFORMER, "decoder": value}, codert={"share_decoder": False})
    assert all(line.startswith("model.student.decoder") for line in faults(cfg))


@given(
    weight=st.floats(0, 100, allow_subnormal=False),
    start=st.integers(0, 50),
    ramp=st.integers(0, 50),
    step=st.integers(0, 150),
)
def test_the_distillation_weight_starts_late_never_falls_and_ends_at_its_value(weight, start, ramp, step):
    block = OmegaConf.create({"weight": weight, "start_step": start, "ramp_steps": ramp})
    codert = {"teacher": "frozen", "student_loss_weight": 1.0, "distillation": block}
    (_, schedule) = criteria_specs(OmegaConf.create({"student": {"aux_ctc": None}, "codert": codert}))
    now, later = schedule.weight_at(step), schedule.weight_at(step + 1)
    assert 0 <= now <= later <= weight
    if step < start:
        assert now == 0
    elif step >= start + ramp - 1:
        assert now == weight
    else:
        assert now == pytest.approx(weight * (step - start + 1) / ramp)  # the first step already distils


@pytest.mark.parametrize(
    "encoder, stride",
    [
        ({"subsampling_factor": 8}, 8),
        ({"subsampling_factor": 4, "subsampling": "striding"}, 4),
        ({"subsampling_factor": 4, "subsampling": None}, 1),
        ({"subsampling_factor": 4, "reduction": "pooling", "reduction_factor": 2}, 8),
        ({"subsampling_factor": 4, "reduction": None, "reduction_factor": 2}, 4),
        ({"subsampling_factor": 4, "reduction": "pooling", "reduction_factor": "two"}, None),
        ({"subsampling_factor": "4"}, None),
        ({"subsampling_factor": True}, None),
        ({"d_model": 4}, None),
    ],
)
def test_the_stride_of_an_encoder_is_what_its_config_says(encoder, stride):
    assert derived.encoder_stride(OmegaConf.create(encoder)) == stride


@given(teacher=st.integers(1, 16), student=st.integers(1, 16))
def test_frame_rates_fit_where_the_student_makes_a_whole_number_of_teacher_frames_into_one(teacher, student):
    fits = any(teacher * k == student for k in range(1, 17))
    assert (derived.rate_problem(teacher, student) is None) == fits


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["???", "co_trained", "frozen", "drop", "exact", "per_frame", "true", "1e3", "nan"]),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_target_", "prednet", "pred_hidden", "weight", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def blocks(schema: type, nested: dict | None = None):
    """Blocks with some of the known keys, sometimes with unknown or odd ones, any value under each."""
    known = {field.name: VALUES for field in dataclasses.fields(schema)} | (nested or {})
    odd = st.dictionaries(st.text("abc_", max_size=4) | st.integers() | st.booleans(), VALUES, max_size=1)
    return st.builds(lambda a, b: {**a, **b}, st.fixed_dictionaries({}, optional=known), odd) | VALUES


@settings(max_examples=60, deadline=None)
@given(
    student=blocks(StudentConfig, {"encoder": st.just(CONFORMER) | st.just(RNN) | VALUES}),
    codert=blocks(CoDERTConfig, {"distillation": blocks(EncoderKLConfig)}),
)
@example(student={}, codert={"distillation": "???"})
def test_any_block_ends_in_a_valid_config_or_a_value_error(student, codert):
    cfg = model_config(student=student, codert=codert)
    try:
        checked = checked_config(cfg).model
    except ValueError as error:
        assert "\n  - model." in str(error)
        return
    assert checked_config(checked).codert.teacher in ("co_trained", "frozen")


STOCK_BLOCKS = ["preprocessor", "encoder", "decoder", "joint", "decoding", "tokenizer", "model_defaults", "loss"]
STOCK_KEYS = ["_target_", "feat_in", "features", "subsampling_factor", "proj_size", "jointnet", "joint_hidden", "type"]
STOCK_KEYS += ["warprnnt_numba_kwargs", "clamp", "fastemit_lambda", "masking_prob", "fused_batch_size", "prednet"]


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from([*STOCK_BLOCKS, "variational_noise", "freeze_updates", "optim_param_groups", "aux_ctc"]),
    value=VALUES | st.dictionaries(st.sampled_from(STOCK_KEYS), VALUES, max_size=4),
    merge=st.booleans(),
)
def test_any_stock_block_ends_in_a_valid_config_or_a_value_error(name, value, merge):
    cfg = model_config()
    if merge and isinstance(value, dict) and name in cfg:
        value = {**OmegaConf.to_container(cfg[name]), **value}
    cfg[name] = value
    try:
        checked_config(cfg)
    except ValueError as error:
        assert "\n  - model." in str(error)


@pytest.mark.nemo
@pytest.mark.parametrize(
    "block, words",
    [
        ({"action": "ignore"}, "model.codert.non_finite.action is 'ignore', wanted one of stop, skip"),
        ({"action": "skip", "max_skips": 0}, "model.codert.non_finite.max_skips is 0, wanted 1 step or more"),
        ({"limit": 3}, "model.codert.non_finite.limit is not a key of this version, known are action, max_skips"),
    ],
)
def test_what_to_do_about_numbers_that_are_not_finite_is_checked(make_config, block, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        checked_config(make_config(codert={"non_finite": block}))


@pytest.mark.nemo
def test_a_limit_of_skips_without_skipping_is_told_to_have_no_effect(make_config, caplog):
    checked_config(make_config(codert={"non_finite": {"max_skips": 3}}))
    assert "model.codert.non_finite.max_skips has no effect: non_finite.action is stop." in caplog.text
