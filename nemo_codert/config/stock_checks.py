"""Keys of a stock RNN-T config that a pair cannot honour, each refused by name (docs/configuration.md lists them).

May import omegaconf only.
"""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.derived import encoder_width, encoders
from nemo_codert.config.tdt import ADDITIVE_JOINT, TDT_LOSSES, is_tdt, tdt_problems
from nemo_codert.config.values import is_count, is_number, sub_block

STOCK_JOINT = "nemo.collections.asr.modules.RNNTJoint"
OPTIONAL_BLOCKS = ("loss", "aux_ctc", "optim_param_groups", "variational_noise", "freeze_updates")
RNNT_LOSSES = ("default", "warprnnt_numba")
# NeMo's losses, each with a block of arguments of its name; standard RNN-T reads warprnnt_numba's alone.
OTHER_LOSSES = "warprnnt pytorch multiblank_rnnt multiblank_rnnt_pytorch graph_rnnt graph_w_transducer".split()
LOSS_BLOCKS = tuple(f"{name}_kwargs" for name in (*RNNT_LOSSES, *OTHER_LOSSES, *TDT_LOSSES))
RNNT_REDUCTIONS = ("mean_batch", "mean", "mean_volume", "sum")
PARAMETER_GROUPS = ("encoder", "decoder", "joint", "student_encoder", "student_decoder", "student_joint")


def unsupported_options(cfg: DictConfig, *, trains_tdt: bool) -> Iterator[str]:
    """Yield faults of stock keys that a pair cannot honour.

    Args:
        trains_tdt: where the config describes a TDT model, a TDT loss trains the teacher or the student.
    """
    if sub_block(cfg, "joint"):
        yield from joint_problems("model.joint", cfg.joint)
    yield from _loss_problems(sub_block(cfg, "loss"))
    multi_blank = _multi_blank_problem(cfg)
    if multi_blank:
        yield multi_blank
    if is_tdt(cfg):
        yield from tdt_problems(cfg, trained=trains_tdt)
    elif not multi_blank:
        yield from _tdt_refusals(cfg)
    reduction = cfg.get("rnnt_reduction", "mean_batch")
    if reduction not in RNNT_REDUCTIONS:
        yield f"model.rnnt_reduction is {reduction!r}, wanted one of {', '.join(RNNT_REDUCTIONS)}"
    tokenizer, decoding = sub_block(cfg, "tokenizer"), sub_block(cfg, "decoding")
    if tokenizer and str(tokenizer.get("type")).lower() != "bpe":
        yield f"model.tokenizer.type is {tokenizer.get('type')!r}, wanted bpe (a SentencePiece tokenizer)"
    if tokenizer.get("custom_tokenizer") is not None:
        yield "model.tokenizer.custom_tokenizer is set: only a plain SentencePiece tokenizer is supported, remove it"
    size, own = decoding.get("fused_batch_size"), sub_block(sub_block(cfg, "student"), "joint")
    joints = {"model.joint": sub_block(cfg, "joint")}
    joints |= {"model.student.joint": own} if own.get("_target_") == STOCK_JOINT else {}
    for path, joint in joints.items():
        if is_number(size) and size > 0 and not joint.get("fuse_loss_wer"):
            yield f"model.decoding.fused_batch_size is {size} but {path}.fuse_loss_wer is false: remove it"
    if cfg.get("adapters"):
        yield "model.adapters is set: adapters act on the joint's sum and are not supported, remove the block"
    if sub_block(cfg, "preprocessor").get("frame_splicing", 1) not in (None, 1):
        yield f"model.preprocessor.frame_splicing is {cfg.preprocessor.frame_splicing!r}: not supported, set it to 1"


def joint_problems(path: str, joint: DictConfig) -> Iterator[str]:
    """Yield the faults of a joint's block."""
    target = joint.get("_target_")
    if target not in (ADDITIVE_JOINT, STOCK_JOINT):
        yield f"{path}._target_ is {target!r}, wanted {ADDITIVE_JOINT} or {STOCK_JOINT}"
    masking = joint.get("masking_prob", -1.0)
    if not is_number(masking) or masking > 0:
        yield f"{path}.masking_prob is {masking!r} (a HAINAN model): not supported, remove the key"
    if joint.get("experimental_fuse_loss_wer") is not None:
        yield f"{path}.experimental_fuse_loss_wer is an old name: use {path}.fuse_loss_wer"
    size = joint.get("fused_batch_size")
    if joint.get("fuse_loss_wer") and not is_count(size):
        yield (
            f"{path}.fused_batch_size is {size!r} but fuse_loss_wer is true: give the number of utterances that "
            "share one lattice, or set fuse_loss_wer to false"
        )
    if target == STOCK_JOINT and sub_block(joint, "jointnet"):
        for key in ("joint_hidden", "activation"):
            if joint.jointnet.get(key) is None:
                yield f"{path}.jointnet.{key} is missing: NeMo's RNNTJoint needs it"


def _multi_blank_problem(cfg: DictConfig) -> str | None:
    """Return the one fault of a multi-blank model, with the keys that make it one; None of another model."""
    loss, decoding = sub_block(cfg, "loss"), sub_block(cfg, "decoding")
    found = [
        ("model.loss.loss_name", loss.get("loss_name"), "to default"),
        ("model.decoding.model_type", decoding.get("model_type"), "to rnnt"),
    ]
    found = [(key, value, remedy) for key, value, remedy in found if str(value).startswith("multiblank")]
    if durations := decoding.get("big_blank_durations"):
        found.append(("model.decoding.big_blank_durations", durations, "to null"))
    if not found:
        return None
    if extra := sub_block(cfg, "joint").get("num_extra_outputs"):
        found.append(("model.joint.num_extra_outputs", extra, "to 0"))
    values = ", ".join(f"{key} is {value!r}" for key, value, _ in found)
    remedies = ", ".join(f"{key} {remedy}" for key, _, remedy in found)
    return (
        f"{values}: a multi-blank model can be neither teacher nor student. For a standard RNN-T of the same networks "
        f"set {remedies}"
    )


def _tdt_refusals(cfg: DictConfig) -> Iterator[str]:
    """Yield keys that only a TDT model has, of a config without durations."""
    tdt = "a TDT model needs decoding.durations, joint.num_extra_outputs and loss.loss_name: tdt"
    if sub_block(cfg, "joint").get("num_extra_outputs"):
        yield f"model.joint.num_extra_outputs is above 0 but there are no durations: set it to 0; {tdt}"
    loss_name = sub_block(cfg, "loss").get("loss_name", "default")
    if loss_name not in RNNT_LOSSES:
        yield f"model.loss.loss_name is {loss_name!r}, wanted one of {', '.join((*RNNT_LOSSES, *TDT_LOSSES))}"
    model_type = sub_block(cfg, "decoding").get("model_type", "rnnt")
    if model_type != "rnnt":
        yield f"model.decoding.model_type is {model_type!r}, wanted rnnt; {tdt}"


def _loss_problems(loss: DictConfig | dict) -> Iterator[str]:
    for key in loss:
        if key not in ("loss_name", *LOSS_BLOCKS):
            known = "loss_name, warprnnt_numba_kwargs"
            yield f"model.loss.{key} is not a key of an RNN-T loss, known are {known}: remove it"
    for key, value in sub_block(loss, "warprnnt_numba_kwargs").items():
        path = f"model.loss.warprnnt_numba_kwargs.{key}"
        if key == "fastemit_lambda":
            if not is_number(value) or not 0.0 <= value < 1.0:
                yield f"{path} is {value!r}, wanted a number in [0, 1)"
        elif key == "clamp":
            if not is_number(value) or value > 0:
                yield f"{path} is {value!r}: clamped gradients are not exact, set it to -1 and clip with the trainer"
        else:
            yield f"{path} is not supported, known are fastemit_lambda and clamp"


def optimisation_problems(cfg: DictConfig, shares_decoder: bool) -> Iterator[str]:
    """Yield settings of the optimisation that would act on one branch alone, or on absent parts."""
    for key in ("normalize_joint_txu", "normalize_encoder_norm", "normalize_decoder_norm", "normalize_joint_norm"):
        if cfg.get(key):
            yield f"model.{key} is true: it would act on the teacher alone, set it to false"
    if sub_block(cfg, "variational_noise").get("std"):
        yield "model.variational_noise.std is above 0: it would act on the teacher alone, set it to 0"
    if sub_block(cfg, "freeze_updates").get("enabled"):
        yield (
            "model.freeze_updates.enabled is true: NeMo leaves dropout and batch-norm statistics of such modules "
            "live. Set it to false; a frozen teacher is model.codert.teacher: frozen"
        )
    for name in sub_block(cfg, "optim_param_groups"):
        if name not in PARAMETER_GROUPS:
            yield f"model.optim_param_groups.{name} is not a part of a pair, known are {', '.join(PARAMETER_GROUPS)}"
        elif name == "student_decoder" and shares_decoder:
            yield (
                "model.optim_param_groups.student_decoder is set but model.codert.share_decoder is true: the shared "
                "prediction network has one learning rate, set it under decoder"
            )


def stock_block_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield blocks of a stock RNN-T config that are absent, of the wrong kind or incomplete."""
    for name in ("preprocessor", "encoder", "decoder", "joint", "decoding", "tokenizer", "model_defaults"):
        block = cfg.get(name)
        if block is None:
            yield f"model.{name} is missing: a pair starts from a complete stock RNN-T config"
        elif not OmegaConf.is_dict(block):
            yield f"model.{name} is {block!r}, wanted a block of keys"
        elif name != "tokenizer":
            yield from missing_values(f"model.{name}", block)
    blocks = {name: cfg.get(name) for name in OPTIONAL_BLOCKS}
    blocks["loss.warprnnt_numba_kwargs"] = sub_block(cfg, "loss").get("warprnnt_numba_kwargs")
    for name, block in blocks.items():
        if block is not None and not OmegaConf.is_dict(block):
            yield f"model.{name} is {block!r}, wanted a block of keys, or leave it out"
    if sub_block(cfg, "decoder"):
        yield from decoder_problems("model.decoder", cfg.decoder)
    if sub_block(cfg, "encoder") and "_target_" not in cfg.encoder:
        yield "model.encoder has no _target_: name the encoder class"
    if sub_block(cfg, "joint") and not sub_block(cfg.joint, "jointnet"):
        yield "model.joint.jointnet is missing: give it joint_hidden, activation and dropout"
    if sub_block(cfg, "preprocessor") and not is_count(cfg.preprocessor.get("features")):
        yield f"model.preprocessor.features is {cfg.preprocessor.get('features')!r}, wanted the number of mel bins"


def missing_values(path: str, block: DictConfig) -> Iterator[str]:
    """Yield a fault for each value of a block that is still `???`."""
    for key in block:
        if OmegaConf.is_missing(block, key):
            yield f"{path}.{key} is ???: give it a value"
        elif OmegaConf.is_dict(block[key]):
            yield from missing_values(f"{path}.{key}", block[key])


def decoder_problems(path: str, decoder: object) -> Iterator[str]:
    """Yield the faults of a prediction network's block."""
    if not OmegaConf.is_dict(decoder):
        yield f"{path} is {decoder!r}, wanted a prediction network's block or null"
        return
    if "_target_" not in decoder:
        yield f"{path} has no _target_: name the class of the prediction network"
    if str(decoder.get("_target_")).endswith(".RNNTDecoder") and decoder.get("normalization_mode") is not None:
        # The states of NeMo's normalised LSTMs do not pass the type check of its own prediction network.
        yield f"{path}.normalization_mode is {decoder.normalization_mode!r}: NeMo cannot run it, set it to null"
    width = sub_block(decoder, "prednet").get("pred_hidden")
    if not is_count(width):
        yield f"{path}.prednet.pred_hidden is {width!r}, wanted the number of channels"


def encoder_problems(name: str, encoder: DictConfig | dict) -> Iterator[str]:
    """Yield settings of NeMo's RNNEncoder that crash or make the output depend on the padding."""
    if not str(encoder.get("_target_")).endswith(".RNNEncoder"):
        return
    if encoder.get("rnn_type", "lstm") != "lstm":
        yield f"{name}.rnn_type is {encoder.rnn_type!r}: NeMo's RNNEncoder can only build lstm"
    if encoder.get("bidirectional", True):
        yield f"{name}.bidirectional is true: its output changes with the padding of a batch, set it to false"
    if encoder.get("subsampling", "striding") not in ("striding", "dw_striding"):
        yield f"{name}.subsampling is {encoder.subsampling!r}: its lengths vary, use striding or dw_striding"
    if "feat_out" in encoder:
        yield f"{name}.feat_out is not a key of RNNEncoder: its output width is proj_size, remove it"
    projection, channels = encoder.get("proj_size", -1), encoder.get("d_model")
    if not (is_count(projection) and is_count(channels) and projection < channels):
        yield f"{name}.proj_size is {projection!r}, wanted a number above 0 and below d_model ({channels!r})"


def width_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    """Yield sizes that a stock config states twice and that differ."""
    features, defaults = sub_block(cfg, "preprocessor").get("features"), sub_block(cfg, "model_defaults")
    for name, encoder in encoders(cfg, student).items():
        feat_in = encoder.get("feat_in")
        if features is not None and feat_in is not None and feat_in != features:
            yield f"{name}.feat_in is {feat_in!r} but model.preprocessor.features is {features!r}: make them equal"
    prediction_network = sub_block(sub_block(cfg, "decoder"), "prednet")
    wanted = {
        "enc_hidden": ("encoder's output width", encoder_width(sub_block(cfg, "encoder"))),
        "pred_hidden": ("decoder.prednet.pred_hidden", prediction_network.get("pred_hidden")),
    }
    for key, (owner, width) in wanted.items():
        if width is not None and defaults and defaults.get(key) != width:
            yield f"model.model_defaults.{key} is {defaults.get(key)!r} but model.{owner} is {width!r}: set both alike"
