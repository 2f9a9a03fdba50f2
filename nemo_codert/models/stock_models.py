"""Stock models that leave a pair: plain NeMo class, plain joint, own tokenizer files, no paths."""

import tempfile
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel, EncDecRNNTModel
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from nemo_codert import __version__
from nemo_codert.config.derived import encoder_stride
from nemo_codert.config.stock_checks import STOCK_JOINT
from nemo_codert.data.tokenizer import without_paths
from nemo_codert.modules import AdditiveRNNTJoint, to_stock_joint
from nemo_codert.modules.output_range import output_range
from nemo_codert.modules.transducer import Transducer


def stock_class(cfg: DictConfig) -> type[EncDecRNNTModel]:
    """NeMo's class for a stock config: a hybrid where it has an auxiliary CTC head."""
    return EncDecRNNTBPEModel if cfg.get("aux_ctc") is None else EncDecHybridRNNTCTCBPEModel


def stock_model(
    model: EncDecRNNTModel, branch: Transducer, cfg: DictConfig, joint: str, ctc_head: nn.Module | None = None
) -> EncDecRNNTModel:
    """A new stock model with copies of one branch's weights, in eval mode on the CPU or device of the branch.

    Args:
        model: the model that owns the branch: gives the feature front end and the tokenizer.
        branch: the networks to copy.
        cfg: stock config that describes them.
        joint: `auto`, `exact`, `compact` or `narrow`, see `to_stock_joint`.
        ctc_head: of a hybrid branch, whose config has `aux_ctc`.
    """
    ranges = {"encoder_range": output_range(branch.encoder), "prediction_range": output_range(branch.decoder)}
    stock_joint = to_stock_joint(branch.joint, joint, **ranges)
    cfg = shareable_config(cfg)
    folder = tempfile.TemporaryDirectory(prefix="nemo_codert_tokenizer_")
    with open_dict(cfg):
        cfg.tokenizer = write_tokenizer(model.tokenizer.tokenizer, Path(folder.name))
        if isinstance(branch.joint, AdditiveRNNTJoint):
            cfg.joint._target_ = STOCK_JOINT
            cfg.joint.fuse_loss_wer, cfg.joint.fused_batch_size = False, None
            cfg.joint.jointnet = {"joint_hidden": stock_joint.joint_hidden, "activation": "relu", "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        stock = stock_class(cfg)(cfg=cfg)
    # Timestamps need it; NeMo's RNNEncoder does not keep it, nor would a file: docs/deployment.md.
    stock.encoder.subsampling_factor = getattr(stock.encoder, "subsampling_factor", encoder_stride(cfg.encoder))
    stock._tokenizer_folder = folder  # the files are packed by save_to, so they live as long as the model
    stock.load_state_dict(_stock_state(model, branch, stock_joint, ctc_head))
    return stock.to(next(branch.joint.parameters()).device).eval()


def shareable_config(cfg: DictConfig) -> DictConfig:
    """A stock config without data sets and without any path of the machine it was trained on."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain = {key: value for key, value in plain.items() if key not in ("train_ds", "test_ds", "target", "tokenizer")}
    plain = _without_paths(plain)
    plain["nemo_codert_version"] = __version__
    # Stock transcription of files reads validation_ds; deferred, so that building the model opens no manifest.
    plain["validation_ds"] = {
        "manifest_filepath": None,
        "sample_rate": plain["preprocessor"].get("sample_rate", plain.get("sample_rate")),
        "shuffle": False,
        "defer_setup": True,
    }
    return OmegaConf.create(plain)


def write_tokenizer(sentencepiece: object, folder: Path) -> dict[str, str]:
    """Write a tokenizer's files from memory and return the `tokenizer` block that names them."""
    pieces = [sentencepiece.id_to_piece(i) for i in range(sentencepiece.get_piece_size())]
    scores = [sentencepiece.get_score(i) for i in range(len(pieces))]
    (folder / "tokenizer.model").write_bytes(without_paths(sentencepiece.serialized_model_proto()))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    scored = "".join(f"{piece}\t{score}\n" for piece, score in zip(pieces, scores, strict=True))
    (folder / "tokenizer.vocab").write_text(scored, encoding="utf-8")
    return {
        "dir": "",
        "type": "bpe",
        "model_path": str(folder / "tokenizer.model"),
        "vocab_path": str(folder / "vocab.txt"),
        "spe_tokenizer_vocab": str(folder / "tokenizer.vocab"),
    }


def _without_paths(node: object) -> object:
    if isinstance(node, dict):
        # A word piece may look like a path ("/"), so the two lists of pieces stay as they are.
        return {key: v if key in ("labels", "vocabulary") else _without_paths(v) for key, v in node.items()}
    if isinstance(node, list):
        return [_without_paths(value) for value in node]
    return None if isinstance(node, str) and Path(node).is_absolute() else node


def _stock_state(
    model: EncDecRNNTModel, branch: Transducer, joint: nn.Module, ctc_head: nn.Module | None
) -> dict[str, torch.Tensor]:
    parts = {
        "preprocessor": model.preprocessor,
        "encoder": branch.encoder,
        "decoder": branch.decoder,
        "joint": joint,
    }
    if ctc_head is not None:
        parts["ctc_decoder"] = ctc_head
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
