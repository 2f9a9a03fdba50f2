"""What of a run's config can be known to be at fault before anything is built or written (scripts/train.py).

`check_run` is the one entry. It adds to the model's own checks (`nemo_codert.config`) the files that a run reads.
"""

from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from omegaconf import DictConfig, OmegaConf

from nemo_codert.analysis.evaluation import usable_entries
from nemo_codert.config import STOCK_JOINT, checked_config
from nemo_codert.data.manifest import read_manifest

OTHER_SOURCES = ("input_cfg", "cuts_path", "shar_path")  # lhotse's, in place of a manifest


def check_run(cfg: DictConfig) -> None:
    """Faults that can be known before anything is built or written, each with its key.

    Raises:
        ValueError: one error that lists the faults of the model config, missing or unreadable manifests, a missing
            tokenizer, and settings that contradict each other.
    """
    problems = [*_config_problems(cfg), *_run_problems(cfg)]
    for key in ("model.train_ds.manifest_filepath", "model.validation_ds.manifest_filepath"):
        problems += _manifest_problems(cfg, key)
    problems += _test_problems(cfg)
    problems += _tokenizer_problems(OmegaConf.select(cfg, "model.tokenizer.dir", throw_on_missing=False))
    if problems:
        raise ValueError("This run cannot start:\n  - " + "\n  - ".join(problems))


def _config_problems(cfg: DictConfig) -> Iterator[str]:
    if not OmegaConf.is_dict(cfg.get("model")):
        yield "model is missing: a config needs the model section of a stock RNN-T plus student and codert"
        return
    try:
        checked_config(cfg.model, warn=False)
    except ValueError as error:
        yield from str(error).split("\n  - ")[1:] or [str(error)]


def _run_problems(cfg: DictConfig) -> Iterator[str]:
    codert = OmegaConf.select(cfg, "model.codert")
    train, codert = cfg.get("train"), codert if OmegaConf.is_dict(codert) else {}
    if train not in ("pair", "student", "teacher"):
        yield f"train is {train!r}, wanted pair, student or teacher (set by strategy=...)"
    weight = OmegaConf.select(cfg, "model.codert.distillation.weight") if codert else None
    if train in ("student", "teacher") and weight:
        yield (
            f"model.codert.distillation.weight is {weight} but train is {train}: there is no pair to distil in. "
            "Set the weight to 0 or choose a strategy with a teacher"
        )
    if train == "pair" and codert.get("teacher") == "frozen" and not codert.get("teacher_checkpoint"):
        yield "model.codert.teacher is frozen but model.codert.teacher_checkpoint is null: give a trained RNN-T"
    for key in ("model.codert.teacher_checkpoint", "model.student.init_from"):
        name = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(name, str) and name.endswith(".nemo") and not Path(name).is_file():
            yield f"{key} is {name!r}: no such file. Give the path of a .nemo file or a pretrained name"
    joint = OmegaConf.select(cfg, "model.joint._target_")
    if train in ("student", "teacher") and joint == STOCK_JOINT and codert.get("rnnt_loss") == "exact":
        yield (
            f"model.codert.rnnt_loss is exact but train is {train} with the stock joint: NeMo's own class trains "
            "with NeMo's own loss. Set it to auto or nemo, or take the additive joint"
        )
    manager = cfg.get("exp_manager")
    if not OmegaConf.is_dict(manager) or OmegaConf.is_missing(manager, "exp_dir") or not manager.get("exp_dir"):
        yield "exp_manager.exp_dir is missing: give the folder for this run"
    for key in cfg:
        if str(key).startswith("init_from_"):
            yield f"{key} is not supported: use model.codert.teacher_checkpoint and model.student.init_from"


def _manifest_problems(cfg: DictConfig, key: str) -> Iterator[str]:
    section, name = key.rsplit(".", 1)
    block = OmegaConf.select(cfg, section)
    if not OmegaConf.is_dict(block):
        yield f"{section} is missing: give it a manifest_filepath"
        return
    absent = name not in block or block[name] is None  # a value of ??? is not in a block either
    if absent and any(block.get(source) for source in OTHER_SOURCES):
        return
    if absent:
        yield f"{key} is missing: scripts/prepare_data.py makes manifests"
    elif is_tarred(block):
        return  # its manifests may be patterns
    elif not isinstance(block[name], str) and not OmegaConf.is_list(block[name]):
        yield f"{key} is {block[name]!r}, wanted a path or a list of paths"
    else:
        for path in manifest_paths(block[name]):
            try:
                read_manifest(path)
            except ValueError as error:
                yield f"{key}: {error}"


def _test_problems(cfg: DictConfig) -> Iterator[str]:
    key = "model.test_ds.manifest_filepath"
    try:
        paths = test_manifests(cfg)
    except ValueError as error:
        yield str(error)
        return
    stems = [Path(path).stem for path in paths]
    for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
        yield f"{key} names {stems.count(stem)} files {stem!r}: predictions are kept by that name. Rename one"
    for path in paths:
        try:
            usable_entries(path)  # a fault found after the training would come too late
        except ValueError as error:
            yield f"{key}: {error}"


def test_manifests(cfg: DictConfig) -> list[str]:
    """Manifests to transcribe when training has ended; none without model.test_ds or of what is no plain manifest.

    Raises:
        ValueError: neither a path nor a list of paths.
    """
    block = OmegaConf.select(cfg, "model.test_ds")
    if not OmegaConf.is_dict(block) or is_tarred(block) or "manifest_filepath" not in block:
        return []
    value = block.manifest_filepath
    if value is None:
        return []
    if not isinstance(value, str) and not OmegaConf.is_list(value):
        raise ValueError(f"model.test_ds.manifest_filepath is {value!r}, wanted a path or a list of paths")
    return manifest_paths(value)


def _tokenizer_problems(folder: object) -> Iterator[str]:
    if not folder:
        yield "model.tokenizer.dir is missing: scripts/prepare_data.py makes a tokenizer"
        return
    for name in ("tokenizer.model", "vocab.txt"):
        if not (Path(str(folder)) / name).is_file():
            yield f"model.tokenizer.dir is {folder!r}: no {name} in there. scripts/prepare_data.py makes one"
            return
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(Path(str(folder)) / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        yield (
            f"model.tokenizer.dir is {folder!r}: its tokenizer.model is no SentencePiece model ({error}). "
            "scripts/prepare_data.py makes one"
        )


def is_tarred(block: DictConfig) -> bool:
    """Whether a data section is of tarred audio, whose manifests may be patterns."""
    return bool(block.get("is_tarred") or block.get("tarred_audio_filepaths"))


def manifest_paths(value: object) -> list[str]:
    """NeMo takes one path, several separated by commas, or a list."""
    if not isinstance(value, str):
        return [str(path) for path in value]
    return [value] if Path(value).is_file() else [path.strip() for path in value.split(",")]
