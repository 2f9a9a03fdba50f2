"""Configs of the stock `EncDecRNNTBPEModel`s that a pair's config contains: the lone student and the lone teacher.

The same two functions make the baselines that are trained alone and the models that leave a trained pair.
"""

import copy

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config import ADDITIVE_JOINT, checked_config
from nemo_codert.modules.encoder_geometry import encoder_geometry

# NeMo evaluates the word errors of a fused step in sub-batches of this many utterances; the exact loss has none.
WER_BATCH_SIZE = 1024


def student_config(cfg: DictConfig) -> DictConfig:
    """Stock config of the student alone, from the `model` section of a pair's config.

    NeMo's own class trained from it is the `student` baseline. With an additive joint the loss follows
    `codert.rnnt_loss`: exact (through NeMo's fused step) unless it says `nemo`.

    Raises:
        ValueError: the pair's config has faults (all are listed).
    """
    cfg = checked_config(_plain(cfg))
    decoder = cfg.student.decoder or cfg.decoder
    return stock_branch_config(cfg, cfg.student.encoder, decoder, _built_width(cfg.student.encoder, cfg))


def teacher_config(cfg: DictConfig) -> DictConfig:
    """Stock config of the teacher alone, from the `model` section of a pair's config.

    Raises:
        ValueError: the pair's config has faults (all are listed).
    """
    cfg = checked_config(_plain(cfg))
    return stock_branch_config(cfg, cfg.encoder, cfg.decoder, _built_width(cfg.encoder, cfg))


def _plain(cfg: DictConfig) -> DictConfig:
    """Interpolations resolved (they may point outside the `model` section), `???` kept."""
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def _built_width(encoder: DictConfig, cfg: DictConfig) -> int:
    with torch.random.fork_rng(devices=[]):
        module = EncDecRNNTBPEModel.from_config_dict(copy.deepcopy(encoder))
    return encoder_geometry(module, cfg.preprocessor.features).width


def stock_branch_config(cfg: DictConfig, encoder: DictConfig, decoder: DictConfig, width: int) -> DictConfig:
    """The pair's config with one branch's networks in the stock places and our own blocks left out."""
    stock = copy.deepcopy(cfg)
    with open_dict(stock):
        stock.encoder, stock.decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
        stock.model_defaults.enc_hidden = width
        stock.model_defaults.pred_hidden = decoder.prednet.pred_hidden
        if stock.joint._target_ == ADDITIVE_JOINT:
            stock.joint.fuse_loss_wer = cfg.codert.rnnt_loss != "nemo"
            stock.joint.fused_batch_size = WER_BATCH_SIZE
        for key in ("student", "codert", "target"):
            stock.pop(key, None)
    return stock
