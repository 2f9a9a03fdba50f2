"""Small `.nemo` files of the kinds of models that teachers come from, saved by NeMo's own classes."""

import copy
from pathlib import Path

import torch
from nemo.collections.asr.models import (
    ASRModel,
    EncDecCTCModel,
    EncDecHybridRNNTCTCBPEModel,
    EncDecHybridRNNTCTCModel,
    EncDecRNNTBPEModel,
)
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.models import teacher_config
from tests.conftest import STOCK

DURATIONS = [0, 1, 2]
TDT = {
    "joint": {"num_extra_outputs": 3},
    "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": DURATIONS, "sigma": 0.02, "omega": 0.1}},
    "decoding": {"model_type": "tdt", "durations": DURATIONS},
    "model_defaults": {"tdt_durations": DURATIONS, "num_tdt_durations": 3},
}
CTC = {
    "aux_ctc": {
        "ctc_loss_weight": 0.3,
        "use_cer": False,
        "ctc_reduction": "mean_batch",
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": -1,
            "vocabulary": [],
        },
        "decoding": {"strategy": "greedy"},
    }
}
# NeMo's transcription of files reads this block.
NO_DATA = {"manifest_filepath": None, "sample_rate": 16000, "shuffle": False, "defer_setup": True}
CHARACTERS = list(" abcdefghijklmnopqrstuvwxyz'")
# What a teacher's YAML says of its kind, beside a standard RNN-T.
KINDS = {"rnnt": {}, "hybrid": CTC, "tdt": TDT, "hybrid_tdt": {**CTC, **TDT}}


def save_teacher(make_config, folder: Path, kind: str, seed: int = 7, **settings) -> tuple[str, EncDecRNNTBPEModel]:
    """Path of a new file of a model of that kind and the model, in eval mode; settings as of `make_config`."""
    cfg = copy.deepcopy(teacher_config(make_config(joint=STOCK, **settings)))
    with open_dict(cfg):
        cfg = OmegaConf.merge(cfg, KINDS[kind], {"validation_ds": NO_DATA})
    return saved(EncDecHybridRNNTCTCBPEModel if "aux_ctc" in cfg else EncDecRNNTBPEModel, cfg, folder / kind, seed)


def saved(kind: type, cfg: DictConfig, path: Path, seed: int = 7) -> tuple[str, ASRModel]:
    """Path, with its suffix, of a new file of a model of that class of NeMo's and the model, in eval mode."""
    torch.manual_seed(seed)
    model = kind(cfg)
    model.save_to(f"{path}.nemo")
    return f"{path}.nemo", model.eval()


def pair_config(make_config, kind: str, path: str, codert: dict | None = None, **settings) -> DictConfig:
    """A pair whose frozen teacher is the model of that file: the YAML of that model, and our two blocks."""
    cfg = make_config(**{"strategy": "static", "joint": STOCK, **settings})
    with open_dict(cfg):
        return OmegaConf.merge(cfg, KINDS[kind], {"codert": {"teacher_checkpoint": path, **(codert or {})}})


def save_of_characters(make_config, folder: Path, kind: type) -> tuple[str, ASRModel]:
    """Path of a new file of a model of `CHARACTERS`, of that class of NeMo's, and the model."""
    cfg = teacher_config(make_config(joint=STOCK))
    with open_dict(cfg):
        del cfg.tokenizer
        cfg = OmegaConf.merge(cfg, CTC, {"labels": CHARACTERS, "validation_ds": NO_DATA})
        cfg.aux_ctc.decoder.update(feat_in=cfg.model_defaults.enc_hidden, vocabulary=CHARACTERS)
        if kind is EncDecCTCModel:
            cfg.decoder = cfg.aux_ctc.decoder
        if kind is not EncDecHybridRNNTCTCModel:
            del cfg.aux_ctc
    return saved(kind, cfg, folder / kind.__name__)
