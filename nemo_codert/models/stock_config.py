"""Configs of the stock `EncDecRNNTBPEModel`s that a pair's config contains: the lone student and the lone teacher.

The same two functions make the baselines that are trained alone and the models that leave a trained pair.
"""

import copy

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config.checked import CheckedConfig, checked_config
from nemo_codert.config.model_kinds import is_pair
from nemo_codert.config.stock_checks import ADDITIVE_JOINT
from nemo_codert.config.tdt import TDT_LOSSES, is_tdt, student_is_tdt
from nemo_codert.modules.encoder_geometry import encoder_geometry

# NeMo evaluates the word errors of a fused step in sub-batches of this many utterances; the exact loss has none.
WER_BATCH_SIZE = 1024

NETWORK_BLOCKS = ("encoder", "decoder", "joint", "preprocessor")  # that describe an RNN-T's networks and features

# What only a TDT model has, by block.
DURATION_KEYS = {
    "joint": ("num_extra_outputs",),
    "decoding": ("durations", "model_type"),
    "model_defaults": ("tdt_durations", "num_tdt_durations"),
    "loss": ("loss_name", *(f"{name}_kwargs" for name in TDT_LOSSES)),
}


def student_config(cfg: DictConfig | CheckedConfig) -> DictConfig:
    """Return the stock config of the student alone, from the `model` section of a pair's config.

    NeMo's own class trained from it is the `student` baseline. With an additive joint the loss follows
    `codert.rnnt_loss`: exact (through NeMo's fused step) unless the value is `nemo`.

    Args:
        cfg: the `model` section, or one that is checked already (`nemo_codert.config.checked`). It is not changed.

    Returns:
        A config for `EncDecRNNTBPEModel`, or for NeMo's hybrid model where `student.aux_ctc` is set.

    Raises:
        ValueError: the pair's config has faults (all are listed).

    Example:
        >>> import tempfile
        >>> from hydra import compose, initialize_config_dir
        >>> from nemo_codert.config.shipped import conf_folder
        >>> from nemo_codert.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["put the small lamp to the bed"], tempfile.mkdtemp(), vocab_size=24)
        >>> with initialize_config_dir(str(conf_folder()), version_base=None):
        ...     cfg = compose("quickstart", [f"model.tokenizer.dir={tokenizer}"]).model
        >>> cfg.train_ds = cfg.validation_ds = None  # no data yet
        >>> alone = student_config(cfg)
        >>> alone.encoder.d_model, "student" in alone, "codert" in alone
        (64, False, False)
    """
    cfg = _checked(cfg, "student")
    return stock_branch_config(cfg, "student", _built_width(cfg.student.encoder, cfg))


def teacher_config(cfg: DictConfig | CheckedConfig) -> DictConfig:
    """Return the stock config of the teacher alone, from the `model` section of a pair's config.

    Args:
        cfg: see `student_config`.

    Returns:
        A config for `EncDecRNNTBPEModel`.

    Raises:
        ValueError: the pair's config has faults (all are listed).

    Example:
        With the `cfg` of `student_config`'s example, `teacher_config(cfg).encoder.d_model` is 96. Faults are listed:

        >>> from omegaconf import OmegaConf
        >>> teacher_config(OmegaConf.create({"codert": {}}))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: The model config cannot be used:
          - model.student is missing: add the block ...
    """
    cfg = _checked(cfg, "teacher")
    return stock_branch_config(cfg, "teacher", _built_width(cfg.encoder, cfg))


def _checked(cfg: DictConfig | CheckedConfig, alone: str) -> DictConfig:
    return (cfg if isinstance(cfg, CheckedConfig) else checked_config(cfg, alone=alone)).model


def _built_width(encoder: DictConfig, cfg: DictConfig) -> int:
    with torch.random.fork_rng(devices=[]):
        module = EncDecRNNTBPEModel.from_config_dict(copy.deepcopy(encoder))
    return encoder_geometry(module, cfg.preprocessor.features).width


def stock_branch_config(cfg: DictConfig, branch: str, width: int) -> DictConfig:
    """Return a pair's config with one branch's networks in the stock places and without our own blocks.

    Args:
        branch: `student` or `teacher`.
        width: output channels of the branch's encoder.
    """
    stock = without_durations(cfg) if branch == "student" else copy.deepcopy(cfg)
    with open_dict(stock):
        if branch == "student":
            stock.encoder = copy.deepcopy(cfg.student.encoder)
            stock.decoder = copy.deepcopy(cfg.student.decoder or cfg.decoder)
            stock.joint = student_block(cfg, "joint")
        stock.model_defaults.enc_hidden = width
        stock.model_defaults.pred_hidden = stock.decoder.prednet.pred_hidden
        if stock.joint._target_ == ADDITIVE_JOINT:
            with open_dict(stock.joint):  # a block that change_vocabulary wrote is closed for itself
                stock.joint.fuse_loss_wer = cfg.codert.rnnt_loss != "nemo"
                stock.joint.fused_batch_size = WER_BATCH_SIZE
            stock.decoding.pop("fused_batch_size", None)  # -1 would switch the fused step off again
            if "tdt_pytorch_kwargs" in stock.get("loss", {}):  # whose loss would lose omega and FastEmit
                stock.loss.loss_name, stock.loss.tdt_kwargs = "tdt", stock.loss.pop("tdt_pytorch_kwargs")
        if stock.get("optim_param_groups"):
            stock.optim_param_groups = _own_groups(stock.optim_param_groups, branch)
        for key in ("student", "codert", "target", "aux_ctc"):
            stock.pop(key, None)
        if branch == "student" and cfg.student.aux_ctc:
            stock.aux_ctc = copy.deepcopy(cfg.student.aux_ctc)
            stock.aux_ctc.decoder.update(feat_in=width, num_classes=-1, vocabulary=[])  # NeMo fills in the classes
            stock.aux_ctc.decoding = ctc_decoding(cfg.student.aux_ctc)
    return stock


def ctc_decoding(aux_ctc: DictConfig) -> DictConfig:
    """Return the decoding of a hybrid model's CTC head as a block that NeMo's class can be built from."""
    block = copy.deepcopy(aux_ctc.get("decoding"))
    if block is None:  # NeMo's own default has types that no checkpoint may hold
        return OmegaConf.create({"strategy": "greedy_batch"})
    if OmegaConf.is_dict(block.get("beam")):
        with open_dict(block):  # NeMo 3.0.0 reads both of any beam search, its recipe has one of them
            block.beam = {"beam_alpha": None, "kenlm_path": None, **block.beam}
    return block


def network_blocks(cfg: DictConfig, branch: str) -> DictConfig:
    """Return a built model's config in which `NETWORK_BLOCKS` and `decoding` are those of one branch.

    Args:
        cfg: config of a pair, or of a model trained alone, which is either branch by itself.
        branch: `student` or `teacher`.
    """
    if branch == "teacher" or not is_pair(cfg):
        return cfg
    own = without_durations(cfg)
    with open_dict(own):
        own.encoder, own.decoder = cfg.student.encoder, cfg.student.decoder or cfg.decoder
        own.joint = student_block(cfg, "joint")
    return own


def without_durations(cfg: DictConfig) -> DictConfig:
    """Return a copy of a pair's config without the keys of a TDT teacher, unless the student is a TDT model too."""
    plain = copy.deepcopy(cfg)
    with open_dict(plain):
        for name in DURATION_KEYS if _drops_durations(cfg) else ():
            _drop_durations(name, plain.get(name))
    return plain


def student_block(cfg: DictConfig, name: str) -> DictConfig | None:
    """Return a copy of one block of the student's config, None if there is none; copies no other part of the config.

    Args:
        cfg: a pair's config.
        name: `joint`, which may be the student's own, or a block of `without_durations`.
    """
    block = copy.deepcopy((name == "joint" and cfg.student.get("joint")) or cfg.get(name))
    if _drops_durations(cfg):
        _drop_durations(name, block)
    elif name == "joint" and student_is_tdt(cfg):
        with open_dict(block):
            block.num_extra_outputs = len(cfg.student.durations)
    return block


def _drops_durations(cfg: DictConfig) -> bool:
    return is_tdt(cfg) and not student_is_tdt(cfg)


def _drop_durations(name: str, block: DictConfig | None) -> None:
    if block:
        with open_dict(block):
            for key in DURATION_KEYS.get(name, ()):
                block.pop(key, None)


def _own_groups(groups: DictConfig, branch: str) -> DictConfig:
    """Return optimiser settings of one branch's networks under stock names: `student_encoder` -> `encoder`."""
    own = {name: group for name, group in groups.items() if name.startswith("student_") == (branch == "student")}
    return OmegaConf.create({name.removeprefix("student_"): group for name, group in own.items()})
