"""Train a teacher and its student together, or either of them alone.

    python scripts/train.py --config-name=fsdd strategy=shared_kd \\
        model.train_ds.manifest_filepath=data/fsdd/train.json \\
        model.validation_ds.manifest_filepath=data/fsdd/dev.json \\
        model.tokenizer.dir=data/fsdd/tokenizer exp_manager.exp_dir=runs/fsdd

Strategies (conf/strategy): student, static, tandem, tandem_kd, shared, shared_kd, static_shared; and teacher, which
makes the checkpoint that the static ones take as model.codert.teacher_checkpoint=....

Everything goes into one folder, exp_manager.exp_dir/NAME/DATE: checkpoints (the best student by val_wer), curves,
the list of dropped utterances, `NAME.nemo` (the pair, for more training or as a teacher) and `student.nemo`, a stock
NeMo model (with strategy=teacher: `teacher.nemo`).
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_codert.console import quieten_libraries

quieten_libraries()

import lightning.pytorch as pl  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
from nemo.collections.asr.models import EncDecRNNTBPEModel  # noqa: E402
from nemo.core.config import hydra_runner  # noqa: E402
from nemo.utils.exp_manager import exp_manager  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report  # noqa: E402
from nemo_codert.config import checked_config, encoder_stride  # noqa: E402
from nemo_codert.data.manifest import screen_dataset  # noqa: E402
from nemo_codert.export import save_model, stock_of  # noqa: E402
from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config  # noqa: E402
from nemo_codert.nemo_compat import seed_augmentation  # noqa: E402
from nemo_codert.progress import StepProgress  # noqa: E402

logger = logging.getLogger("nemo_codert.train")


@hydra_runner(config_path="../conf", config_name="fsdd")
def main(cfg: DictConfig) -> None:
    check_run(cfg)
    os.environ.pop("NEMO_EXPM_VERSION", None)  # a second run in one process would share the first one's folder
    pl.seed_everything(cfg.seed, verbose=False)
    trainer = make_trainer(cfg)
    folder = Path(exp_manager(trainer, cfg.exp_manager))
    logger.info("Run folder: %s", folder)
    screen_data(cfg, folder)
    model = build_model(cfg, trainer)
    seed_augmentation(model, cfg.seed)
    describe(model, folder, is_writer=trainer.is_global_zero)
    pl.seed_everything(cfg.seed, verbose=False)  # same data order whatever was built before
    trainer.fit(model)
    if trainer.is_global_zero:
        finish(cfg, trainer, folder)


def make_trainer(cfg: DictConfig) -> pl.Trainer:
    """Lightning's trainer; its progress bar is replaced by one that counts optimizer steps."""
    settings = dict(cfg.trainer)
    callbacks = [StepProgress()] if settings.pop("enable_progress_bar", True) else []
    return pl.Trainer(**settings, enable_progress_bar=False, callbacks=callbacks)


def check_run(cfg: DictConfig) -> None:
    """Faults that can be known before anything is built or written, each with its key.

    Raises:
        ValueError: faults of the model config (listed together), a missing manifest or tokenizer, contradictions.
    """
    problems = []
    if cfg.train not in ("pair", "student", "teacher"):
        problems.append(f"train is {cfg.train!r}, wanted pair, student or teacher (set by strategy=...)")
    if cfg.train != "pair" and cfg.model.codert.distillation.weight:
        problems.append(
            f"model.codert.distillation.weight is {cfg.model.codert.distillation.weight} but train is {cfg.train}: "
            "there is no pair to distil in. Set the weight to 0 or choose a strategy with a teacher"
        )
    if cfg.train == "pair" and cfg.model.codert.teacher == "frozen" and not cfg.model.codert.teacher_checkpoint:
        problems.append(
            "model.codert.teacher is frozen but model.codert.teacher_checkpoint is null: give a trained RNN-T"
        )
    for key in ("model.train_ds.manifest_filepath", "model.validation_ds.manifest_filepath", "model.tokenizer.dir"):
        problems += _missing_path(cfg, key)
    if OmegaConf.is_missing(cfg.exp_manager, "exp_dir"):
        problems.append("exp_manager.exp_dir is ???: give the folder for this run")
    for key in cfg:
        if str(key).startswith("init_from_"):
            problems.append(f"{key} is not supported: use model.codert.teacher_checkpoint and model.student.init_from")
    if problems:
        raise ValueError("This run cannot start:\n  - " + "\n  - ".join(problems))
    checked_config(OmegaConf.create(OmegaConf.to_container(cfg.model, resolve=True)))


def _missing_path(cfg: DictConfig, key: str) -> Iterator[str]:
    section, name = key.rsplit(".", 1)
    block = OmegaConf.select(cfg, section)
    if block is None or (name not in block and not OmegaConf.is_missing(block, name)):
        return  # other kinds of data (tarred shards, lhotse input_cfg) have no such key
    if OmegaConf.is_missing(block, name) or block[name] is None:
        yield f"{key} is missing: scripts/prepare_data.py makes manifests and a tokenizer"
        return
    for path in manifest_paths(block[name]):
        if not Path(path).exists():
            yield f"{key} is {path!r}: no such file or folder"


def manifest_paths(value: object) -> list[str]:
    """NeMo takes one path, several separated by commas, or a list."""
    return value.split(",") if isinstance(value, str) else [str(path) for path in value]


def screen_data(cfg: DictConfig, folder: Path) -> None:
    """Drop or refuse utterances that cannot be used; the manifests in `cfg` become the usable ones."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(cfg.model.tokenizer.dir) / "tokenizer.model"))
    strides = [encoder_stride(encoder) for encoder in (cfg.model.encoder, cfg.model.student.encoder)]
    stride = max((stride for stride in strides if stride), default=None)
    for name in ("train_ds", "validation_ds"):
        block = cfg.model[name]
        if block.get("manifest_filepath") is None or block.get("is_tarred") or block.get("tarred_audio_filepaths"):
            logger.warning("model.%s is not a plain manifest: its utterances are not checked.", name)
            continue
        usable = [
            str(
                screen_dataset(
                    path,
                    policy=cfg.model.codert.bad_utterances,
                    output_dir=folder,
                    name=f"{name}_{i}" if i else name,
                    sample_rate=cfg.model.sample_rate,
                    tokenize=processor.encode,
                    seconds_per_frame=stride * cfg.model.preprocessor.window_stride if stride else None,
                )
            )
            for i, path in enumerate(manifest_paths(block.manifest_filepath))
        ]
        block.manifest_filepath = usable[0] if len(usable) == 1 else usable


def build_model(cfg: DictConfig, trainer: pl.Trainer) -> EncDecRNNTBPEModel:
    """The pair, or NeMo's own class for the student or the teacher alone."""
    if cfg.train == "pair":
        return EncDecCoDERTBPEModel(cfg.model, trainer=trainer)
    make_config = student_config if cfg.train == "student" else teacher_config
    stock_cfg = make_config(cfg.model)
    pl.seed_everything(cfg.seed, verbose=False)
    return EncDecRNNTBPEModel(stock_cfg, trainer=trainer)


def describe(model: EncDecRNNTBPEModel, folder: Path, *, is_writer: bool) -> None:
    """Say what is about to be trained; for a loaded teacher, how good it is before the first step."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s, %.2f M parameters", type(model).__name__, millions)
    if not (is_writer and isinstance(model, EncDecCoDERTBPEModel) and model.loaded.get("teacher")):
        return
    report = teacher_report(model, model.val_dataloader())
    logger.info("%s", format_teacher_report(report))
    (folder / "teacher_report.json").write_text(json.dumps(report, indent=1) + "\n")


def finish(cfg: DictConfig, trainer: pl.Trainer, folder: Path) -> None:
    """Write `NAME.nemo` and the stock `student.nemo` (or `teacher.nemo`) of the best checkpoint."""
    model = trainer.lightning_module
    best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
    if best and Path(best).is_file():
        model.load_state_dict(torch.load(best, map_location="cpu", weights_only=False)["state_dict"])
    model = model.cpu().eval()
    name = OmegaConf.select(cfg, "exp_manager.name") or cfg.name
    save_model(model, folder / f"{name}.nemo")
    if cfg.train == "teacher":
        save_model(model, folder / "teacher.nemo")
    else:
        save_model(stock_of(model), folder / "student.nemo")
    with open_dict(cfg):
        OmegaConf.save(cfg, folder / "config.yaml")
    score = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None
    logger.info("Best val_wer %s; wrote %s", "unknown" if score is None else f"{float(score):.4f}", folder)


if __name__ == "__main__":
    main()
