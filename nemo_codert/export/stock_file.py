"""Export as stock `.nemo` files and as NeMo's ONNX. Nothing half-written is left under a final name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_codert.files.disk_errors import named_when_full
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.stock_models import stock_model
from nemo_codert.models.teacher_weights import HYBRID, restore_rnnt
from nemo_codert.modules.transducer import Transducer
from nemo_codert.modules.unprojected_lstm import replace_projected_lstms

CARD_KEY = "model_card"  # key in a model's config


def load_model(path: str | Path) -> EncDecRNNTBPEModel:
    """Restore a `.nemo` file on the CPU, in eval mode: a pair, or an RNN-T (also a hybrid) of any joint.

    Raises:
        ValueError: no such file, a broken file, or a model of another kind.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file. Give the path of a .nemo file")
    return restore_rnnt(path, str(path), kinds=(HYBRID,))


def stock_of(model: EncDecRNNTBPEModel, *, branch: str = "student", joint: str = "auto") -> EncDecRNNTBPEModel:
    """Return a stock copy of a pair's branch, or of a model trained alone whose joint may be the additive one.

    Args:
        branch: `student` or `teacher` of a pair; a model trained alone is its own `student`.
        joint: form of the stock joint that replaces an additive one, see `nemo_codert.modules.to_stock_joint`.

    Raises:
        ValueError: unknown branch or form, or a branch that the model does not have.
    """
    _check_branch(model, branch)
    if isinstance(model, EncDecCoDERTBPEModel):
        return model.student_model(joint) if branch == "student" else model.teacher_model(joint)
    return stock_model(model, networks_of(model), model.cfg, joint, getattr(model, "ctc_decoder", None))


def networks_of(model: EncDecRNNTBPEModel, branch: str = "student") -> Transducer:
    """Return the networks of a pair's branch or of a model trained alone; branch and errors: see `stock_of`."""
    _check_branch(model, branch)
    if isinstance(model, EncDecCoDERTBPEModel):
        return model.student_transducer if branch == "student" else model.teacher_transducer
    return Transducer(model.encoder, model.decoder, model.joint)


def _check_branch(model: EncDecRNNTBPEModel, branch: str) -> None:
    if branch not in ("student", "teacher"):
        raise ValueError(f"branch is {branch!r}, wanted student or teacher")
    if branch == "teacher" and not isinstance(model, EncDecCoDERTBPEModel):
        raise ValueError("branch is 'teacher', but this model is one RNN-T and no pair: leave the branch out")


def save_model(model: EncDecRNNTBPEModel, path: str | Path) -> Path:
    """Save by `save_to`, leaving either the whole file under `path` or nothing."""
    path = Path(path)
    with moved_when_complete(path.parent, path) as folder:
        model.save_to(str(folder / path.name))
    return path


def save_with_card(model: EncDecRNNTBPEModel, path: str | Path, card: str) -> tuple[Path, Path]:
    """Save with a model card: `NAME.md` beside `NAME.nemo`, and the same text inside as `model_card`."""
    path = Path(path)
    with open_dict(model.cfg):
        model.cfg[CARD_KEY] = card
    with moved_when_complete(path.parent, path) as folder:
        model.save_to(str(folder / path.name))
        (folder / path.name).with_suffix(".md").write_text(card, encoding="utf-8")
    return path, path.with_suffix(".md")


def export_onnx(model: EncDecRNNTBPEModel, path: str | Path) -> tuple[Path, Path]:
    """Export a model, or a pair's student, by NeMo: two ONNX files, `encoder-NAME` and `decoder_joint-NAME`.

    A copy is exported, because NeMo's `export` changes its model. LSTM encoders are rewritten without
    projections first (`nemo_codert.modules.unprojected_lstm`); the joint's output is raw logits.

    Args:
        path: `folder/NAME.onnx`.

    Raises:
        ValueError: `path` does not end in `.onnx`.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path} does not end in .onnx")
    with torch.random.fork_rng(devices=[]), moved_when_complete(path.parent, path) as folder:
        copy = stock_of(model).cpu()
        replace_projected_lstms(copy.encoder)
        copy.export(str(folder / path.name))
    return path.with_name(f"encoder-{path.name}"), path.with_name(f"decoder_joint-{path.name}")


@contextmanager
def moved_when_complete(folder: Path, named: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; its files move up after the block and are removed on an error.

    named: path that the error names if the disk is full (default: the folder).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with named_when_full(named or folder), tempfile.TemporaryDirectory(dir=folder, prefix=".writing_") as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            os.replace(file, folder / file.name)
