"""Trained models of any stage of training: `.nemo` files, and the Lightning checkpoints that a run leaves.

Either is read as data: nothing in it is executed (docs/reliability.md).
May import models; nothing but scripts and analysis imports this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.files.nemo_archive import check_config
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.safe_restoring import model_from_checkpoint
from nemo_codert.models.stock_models import stock_class
from nemo_codert.models.teacher_weights import HYBRID, refuse_other_models, restore_rnnt
from nemo_codert.nemo_compat import forget_failed_restore

SUFFIXES = (".nemo", ".ckpt")
KEPT = {"global_step": int, "hyper_parameters": Mapping, "state_dict": Mapping}  # what is read of a .ckpt


@dataclass(frozen=True)
class Trained:
    """A model in eval mode on the CPU, and the optimizer step it was saved at, where its file says so."""

    path: Path
    step: int | None
    model: EncDecRNNTBPEModel


def load_trained(path: str | Path) -> Trained:
    """Restore a pair, or an RNN-T (also a hybrid) of any joint, from a `.nemo` or `.ckpt` file.

    Raises:
        ValueError: no such file, a broken file, a tokenizer that is gone, or a model of another kind.
    """
    path = Path(path)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no .nemo or .ckpt file. Give the path of a trained model")
    if path.suffix == ".nemo":
        return Trained(path, None, restore_rnnt(path, str(path), (HYBRID,)))
    checkpoint = _opened(path)
    cfg = checkpoint["hyper_parameters"].get("cfg")
    cfg = cfg if isinstance(cfg, Mapping) else {}
    check_config(cfg, str(path))
    cfg = OmegaConf.create(cfg)
    refuse_other_models(cfg, str(path), (HYBRID,))
    folder = OmegaConf.select(cfg, "tokenizer.dir")
    if folder and not Path(folder).is_dir():
        raise ValueError(
            f"{path}: model.tokenizer.dir is {folder!r}, which is gone, and a .ckpt does not hold the tokenizer. "
            "Put the folder back or give .nemo files, which do"
        )
    model_class = EncDecCoDERTBPEModel if "codert" in cfg else stock_class(cfg)
    try:
        model = model_from_checkpoint(model_class, checkpoint, str(path))
    except Exception as error:
        forget_failed_restore()
        raise ValueError(f"{path} cannot be restored as a checkpoint: {' '.join(str(error).split())}") from error
    return Trained(path, int(checkpoint["global_step"]), model.eval())


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The models of a run in the order of training: its `.ckpt` files by step, each step once.

    Args:
        folder: a run's folder, its `checkpoints` folder, or any folder of models. One without a `.ckpt` gives its
            `.nemo` files, in the order of their names.

    Raises:
        ValueError: no such folder, no model in it, or a `.ckpt` that is no checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give a run's checkpoints folder")
    for place in (folder, folder / "checkpoints"):
        steps: dict[int, Path] = {}
        # Training saves its last step twice where it is among the best; "-last" is then left out.
        for path in sorted(place.glob("*.ckpt"), key=lambda path: (path.stem.endswith("-last"), path.name)):
            steps.setdefault(int(_opened(path)["global_step"]), path)
        if steps:
            return [steps[step] for step in sorted(steps)]
    files = sorted(folder.glob("*.nemo"))
    if trained := [path for path in files if path.name in ("pair.nemo", "lone_student.nemo")]:
        raise ValueError(f"{folder} is a run without checkpoints, not a sequence of models: give --model {trained[0]}")
    if files:
        return files
    raise ValueError(f"{folder} has no .ckpt or .nemo file. Give a run's checkpoints folder")


def _opened(path: Path) -> dict[str, Any]:
    """The contents of a Lightning checkpoint; its tensors stay on disk."""
    content = read_checkpoint(path, mmap=True)
    if not all(isinstance(content.get(key), kind) for key, kind in KEPT.items()):
        raise ValueError(f"{path} is no Lightning checkpoint of a NeMo model. Give a .ckpt that training left")
    return content
