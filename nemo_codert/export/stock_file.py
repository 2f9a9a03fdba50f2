"""Export as stock `.nemo` files and as NeMo's ONNX. Nothing half-written is left under a final name."""

from pathlib import Path

import torch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_codert.config.model_kinds import is_pair
from nemo_codert.export.audio_limit import check_positions
from nemo_codert.files.atomic import whole_folder
from nemo_codert.models.open_model import networks_of
from nemo_codert.models.stock_models import stock_model
from nemo_codert.modules.unprojected_lstm import replace_projected_lstms

CARD_KEY = "model_card"  # key in a model's config


def stock_of(model: EncDecRNNTBPEModel, *, branch: str = "student", joint: str = "auto") -> EncDecRNNTBPEModel:
    """Return a stock copy of a pair's branch, or of a model trained alone whose joint may be the additive one.

    Args:
        branch: `student` or `teacher` of a pair; a model trained alone is its own `student`.
        joint: form of the stock joint that replaces an additive one, see `nemo_codert.modules.to_stock_joint`.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError: unknown branch or form, or a branch that the model does not have.
    """
    networks = networks_of(model, branch)
    if is_pair(model.cfg):
        return model.student_model(joint) if branch == "student" else model.teacher_model(joint)
    return stock_model(model, networks, model.cfg, joint, getattr(model, "ctc_decoder", None))


def transcribing(model: ASRModel, *, branch: str = "student") -> ASRModel:
    """Return the stock model that transcribes in place of an opened one.

    Args:
        model: a pair, an RNN-T, TDT or hybrid model, or a model with a CTC head or characters, which is returned as it
            is.
        branch: see `stock_of`.

    Raises:
        ValueError: see `stock_of`.
    """
    if is_pair(model.cfg) or isinstance(model, EncDecRNNTBPEModel | EncDecHybridRNNTCTCBPEModel):
        return stock_of(model, branch=branch)
    if branch != "student":
        raise ValueError(f"branch is {branch!r}, but this model is a {type(model).__name__}: leave the branch out")
    if not model.cfg.get("validation_ds"):
        with open_dict(model.cfg):  # NeMo's transcription of files reads the block
            model.cfg.validation_ds = {"manifest_filepath": None, "shuffle": False}
    return model


def save_model(model: EncDecRNNTBPEModel, path: str | Path) -> Path:
    """Save by `save_to`, leaving either the whole file under `path` or nothing.

    Args:
        model: any NeMo model.
        path: `NAME.nemo`.

    Returns:
        `path` as a Path.

    Raises:
        OSError: the folder cannot be made, or the disk is full.
    """
    path = Path(path)
    with whole_folder(path.parent, named=path) as folder:
        model.save_to(str(folder / path.name))
    return path


def save_with_card(model: EncDecRNNTBPEModel, path: str | Path, card: str) -> tuple[Path, Path]:
    """Save with a model card: `NAME.md` beside `NAME.nemo`, and the same text inside as `model_card`.

    Args:
        model: a stock model.
        path: `NAME.nemo`.
        card: Markdown, see `nemo_codert.export.model_card`.

    Returns:
        The paths of the model and of the card.

    Raises:
        OSError: the folder cannot be made, or the disk is full.
    """
    path = Path(path)
    with open_dict(model.cfg):
        model.cfg[CARD_KEY] = card
    with whole_folder(path.parent, named=path) as folder:
        model.save_to(str(folder / path.name))
        (folder / path.name).with_suffix(".md").write_text(card, encoding="utf-8")
    return path, path.with_suffix(".md")


def export_onnx(model: EncDecRNNTBPEModel, path: str | Path) -> tuple[Path, Path]:
    """Export a model, or a pair's student, by NeMo: two ONNX files, `encoder-NAME` and `decoder_joint-NAME`.

    A copy is exported, because NeMo's `export` changes its model. LSTM encoders are rewritten without
    projections first (`nemo_codert.modules.unprojected_lstm`); the joint's output is raw logits.

    Args:
        model: a stock model or a pair.
        path: `folder/NAME.onnx`.

    Returns:
        The paths of encoder and decoder.

    Raises:
        ValueError: `path` does not end in `.onnx`, or an encoder with too few positions.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path} does not end in .onnx")
    with torch.random.fork_rng(devices=[]), whole_folder(path.parent, named=path) as folder:
        copy = stock_of(model).cpu()
        check_positions(copy.encoder)
        replace_projected_lstms(copy.encoder)
        copy.export(str(folder / path.name))
    return path.with_name(f"encoder-{path.name}"), path.with_name(f"decoder_joint-{path.name}")
