"""Opening trained models: `.nemo` files, the Lightning checkpoints that a run leaves, and pretrained names.

A file is read as data: nothing in it is executed (docs/reliability.md).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from nemo.collections.asr.models import ASRModel, EncDecRNNTModel
from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.model_kinds import KINDS, OtherModelKind, is_pair, refuse_other_models
from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.files.nemo_archive import CheckedArchive, check_config
from nemo_codert.models.safe_restoring import model_from_checkpoint
from nemo_codert.modules.transducer import Transducer
from nemo_codert.nemo_compat import forget_failed_restore

SUFFIXES = (".nemo", ".ckpt")
ENCODER_ALONE = "of this pair's teacher no decoder was loaded, for terms at hidden layers or CTC heads"
CACHED = "this pair's teacher is stored targets (model.codert.teacher is cached)"
KEPT = {"global_step": int, "hyper_parameters": Mapping, "state_dict": Mapping}  # what is read of a .ckpt


def open_model(source: str | Path, what: str | None = None, *, kinds: Sequence[str] | None = KINDS) -> EncDecRNNTModel:
    """Restore a pair, or an RNN-T with any joint, as its own class, in eval mode on the CPU.

    The kind of the model is checked before anything is built.

    Args:
        source: path of a `.nemo` file or of a `.ckpt` of training. A string that is neither such a path nor anything
            that exists is a pretrained name; a `Path` never is one.
        what: the source in messages (default: `source`).
        kinds: kinds that will do besides a standard RNN-T: those of `nemo_codert.config.model_kinds.KINDS`, which
            training takes as teachers, unless given; None: any model of NeMo's speech recognition.

    Raises:
        ValueError: no such file or name, a broken file, one that is not safe to open (`nemo_codert.files`), a
            tokenizer that is gone, or a model of another kind.

    Returns:
        The model.

    Example:
        >>> open_model("student.nemo")  # no such file here
        Traceback (most recent call last):
        ...
        ValueError: student.nemo is not a file. Give the path of a .nemo or .ckpt file, or a pretrained name
    """
    what = what or str(source)
    path = _file_of(source, what)
    if path is None:
        model = _restored(ASRModel.from_pretrained, str(source), what, kinds, map_location="cpu")
        # A name may also lead to an unpacked archive, whose config CheckedArchive does not read.
        refuse_other_models(model.cfg, what, kinds)
    elif path.suffix == ".ckpt":
        model = _from_checkpoint(path, what, kinds)
    else:
        model = _restored(ASRModel.restore_from, str(path), what, kinds, map_location="cpu")
    return model.eval()


def restored_config(path: str | Path, what: str | None = None, *, kinds: Sequence[str] | None = KINDS) -> DictConfig:
    """Return the config of the model in a `.nemo` or `.ckpt` file, which is not built.

    Args:
        path: of the file.
        what, kinds: see `open_model`.

    Raises:
        ValueError: as `open_model` does.
    """
    what, path = what or str(path), Path(path)
    _file_of(path, what)
    if path.suffix == ".ckpt":
        return _config_of(_opened(path, what), what, kinds)
    return _restored(ASRModel.restore_from, str(path), what, kinds, return_config=True)


def saved_step(path: str | Path) -> int | None:
    """Return the optimizer step at which a `.ckpt` was saved; None for a `.nemo` file, which does not have it."""
    path = Path(path)
    return int(_opened(path, str(path))["global_step"]) if path.suffix == ".ckpt" else None


def checkpoint_files(folder: str | Path) -> list[Path]:
    """Return the models of a run in the order of training: its `.ckpt` files by step, each step once.

    Args:
        folder: a run's folder, its `checkpoints` folder, or any folder of models. One without a `.ckpt` gives its
            `.nemo` files, in the order of their names.

    Raises:
        ValueError: no such folder, no model in it, or a `.ckpt` that is not a checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give a run's checkpoints folder")
    for place in (folder, folder / "checkpoints"):
        steps: dict[int, Path] = {}
        # Training saves its last step twice where it is among the best; "-last" is then left out.
        for path in sorted(place.glob("*.ckpt"), key=lambda path: (path.stem.endswith("-last"), path.name)):
            steps.setdefault(saved_step(path), path)
        if steps:
            return [steps[step] for step in sorted(steps)]
    files = sorted(folder.glob("*.nemo"))
    if trained := [path for path in files if path.name in ("pair.nemo", "lone_student.nemo")]:
        raise ValueError(f"{folder} is a run without checkpoints, not a sequence of models: give --model {trained[0]}")
    if files:
        return files
    raise ValueError(f"{folder} has no .ckpt or .nemo file. Give a run's checkpoints folder")


def branches(model: EncDecRNNTModel) -> dict[str, Transducer]:
    """Return the networks of a model by branch: `student` and `teacher` of a pair, `model` of one trained alone."""
    if is_pair(model.cfg):
        return {"student": model.student_transducer, "teacher": model.teacher_transducer}
    return {"model": Transducer(model.encoder, model.decoder, model.joint)}


def networks_of(model: EncDecRNNTModel, branch: str = "student") -> Transducer:
    """Return the networks of one branch; a model trained alone is its own student.

    Args:
        branch: `student` or `teacher`.

    Raises:
        ValueError: unknown branch, the teacher of a model trained alone, or a teacher that does not transcribe.
    """
    if branch not in ("student", "teacher"):
        raise ValueError(f"branch is {branch!r}, wanted student or teacher")
    found = branches(model)
    if branch == "teacher" and branch not in found:
        raise ValueError("branch is 'teacher', but this model is a single RNN-T, not a pair: leave the branch out")
    if branch == "teacher" and not model.teacher_transcribes:
        raise ValueError(f"branch is 'teacher', but {absent_teacher(model.cfg.codert)}: take the branch student")
    return found.get(branch) or found["model"]


def absent_teacher(codert: DictConfig) -> str:
    """Return why a pair has no teacher that transcribes, given its block `codert`."""
    return CACHED if codert.teacher == "cached" else ENCODER_ALONE


def _file_of(source: str | Path, what: str) -> Path | None:
    """Return the path of a model file; None for a pretrained name."""
    path, remedy = Path(source), "Give the path of a .nemo or .ckpt file"
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{what} is not a .nemo or .ckpt file. Give the path of a trained model")
        return path
    if isinstance(source, Path):
        raise ValueError(f"{what} is not a file. {remedy}")
    if path.suffix in SUFFIXES or path.exists():
        raise ValueError(f"{what} is not a file. {remedy}, or a pretrained name")
    return None


def _restored(restore: Callable[..., Any], name: str, what: str, kinds: Sequence[str] | None, **options: Any) -> Any:
    """Restore by NeMo's function, with one error for whatever keeps it from restoring."""
    archive = CheckedArchive(accept=partial(_accept, what=what, kinds=kinds))
    try:
        return restore(name, save_restore_connector=archive, **options)
    except OtherModelKind:
        forget_failed_restore()
        raise
    except Exception as error:
        forget_failed_restore()
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):  # names a file in a temporary folder, gone by now
            reason = f"the archive has no {Path(error.filename or 'model_config.yaml').name}"
        raise ValueError(f"{what} cannot be restored as a NeMo model: {reason}") from error


def _accept(config: dict[str, Any], what: str, kinds: Sequence[str] | None) -> None:
    refuse_other_models(OmegaConf.create(config), what, kinds)


def _from_checkpoint(path: Path, what: str, kinds: Sequence[str] | None) -> EncDecRNNTModel:
    checkpoint = _opened(path, what)
    cfg = _config_of(checkpoint, what, kinds)
    folder = OmegaConf.select(cfg, "tokenizer.dir")
    if folder and not Path(folder).is_dir():
        raise ValueError(
            f"{what}: model.tokenizer.dir is {folder!r}, which is gone, and a .ckpt does not hold the tokenizer. "
            "Put the folder back or give .nemo files, which do"
        )
    try:
        return model_from_checkpoint(get_class(cfg.target), checkpoint, what)
    except Exception as error:
        forget_failed_restore()
        raise ValueError(f"{what} cannot be restored as a checkpoint: {' '.join(str(error).split())}") from error


def _config_of(checkpoint: Mapping[str, Any], what: str, kinds: Sequence[str] | None) -> DictConfig:
    cfg = checkpoint["hyper_parameters"].get("cfg")
    cfg = cfg if isinstance(cfg, Mapping) else {}
    check_config(cfg, what)
    cfg = OmegaConf.create(cfg)
    refuse_other_models(cfg, what, kinds)
    return cfg


def _opened(path: Path, what: str) -> dict[str, Any]:
    """Return the contents of a Lightning checkpoint; its tensors stay on disk."""
    content = read_checkpoint(path, mmap=True)
    if not all(isinstance(content.get(key), kind) for key, kind in KEPT.items()):
        raise ValueError(f"{what} is not a Lightning checkpoint of a NeMo model. Give a .ckpt that training left")
    return content
