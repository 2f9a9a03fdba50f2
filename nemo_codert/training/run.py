"""A training run, from a config to files: what `codert train` does, as a library.

`prepare` makes everything up to the first step, `train` a whole run. Faults are exceptions; the commands turn them
into messages and exit codes.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.utils.exp_manager import StatelessTimer, exp_manager
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report
from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.data_sections import keep_order_of_buckets
from nemo_codert.config.stock_checks import ADDITIVE_JOINT
from nemo_codert.config.tdt import is_tdt, student_is_tdt
from nemo_codert.evaluation.transcribe import evaluate, write_predictions
from nemo_codert.evaluation.word_errors import CER, metric_of, score_text
from nemo_codert.export.model_card import model_card, read_error_rates
from nemo_codert.export.stock_file import save_model, save_with_card, stock_of
from nemo_codert.export.training_record import RECORD_KEY, recorded_training, training_record
from nemo_codert.files.atomic import whole_file
from nemo_codert.files.checkpoint_step import checkpoint_step
from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config
from nemo_codert.models.build_faults import build_error, try_networks
from nemo_codert.models.open_model import branches
from nemo_codert.models.stock_models import stock_class
from nemo_codert.models.teacher_weights import load_lone_checkpoint
from nemo_codert.nemo_compat import checkpoint_folder, seed_augmentation
from nemo_codert.training.early_checks import test_manifests, with_run_defaults
from nemo_codert.training.ending import TRAINED_FILES, ending
from nemo_codert.training.last_checkpoint import prepare_resume
from nemo_codert.training.run_checks import check_epochs, check_run, test_batch_size, test_reading
from nemo_codert.training.run_folders import FINISHED, continue_run, link_latest, runs_folder, unlink_latest
from nemo_codert.training.stored_targets import check_stored_targets
from nemo_codert.training.trainer import make_trainer
from nemo_codert.training.usable_data import own_folder, screen_data
from nemo_codert.training.wandb_run import ended_wandb_run, name_wandb_run, start_wandb_run

__all__ = ["Run", "prepare", "train"]

logger = logging.getLogger("nemo_codert.train")

VERSION_KEY = "NEMO_EXPM_VERSION"  # environment variable in which NeMo keeps the date that names a run's folder
versions_made: set[str] = set()  # its values that runs of this process have made
RANK_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        config: the root config as it is used: a copy of the one passed in, with `train`, `seed` and the manifests of
            usable utterances filled in.
        trainer: Lightning's trainer with the callbacks of this package.
        model: an `EncDecCoDERTBPEModel`, or a stock model where the student or the teacher is trained alone.
        folder: the run's folder; everything that the run writes lies in it.
    """

    config: DictConfig
    trainer: pl.Trainer
    model: EncDecRNNTBPEModel
    folder: Path


def prepare(cfg: DictConfig) -> Run:
    """Prepare a run up to its first step: checks, run folder, usable data, model, report on a loaded teacher.

    Args:
        cfg: root config with `model`, `trainer` and `exp_manager`, as Hydra composes it from `conf/`. It is not
            changed.

    Returns:
        The run, whose `trainer.fit(model)` would be the next call. `train` makes this call and writes the files.

    Raises:
        ValueError: faults of the config, of a manifest or of a checkpoint, each with its key, value and remedy. The
            folder that this call made is removed.
        OSError: a path that cannot be read or written.

    Example:
        >>> from omegaconf import OmegaConf
        >>> prepare(OmegaConf.create({"trainer": {"max_steps": 10}}))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: This run cannot start:
          - model is missing: a config needs the model section of a stock RNN-T plus student and codert
        ...
    """
    cfg, checked = checked_run(cfg)
    cfg = continue_run(cfg)
    # A second run in one process would share the first one's folder, while further ranks get rank 0's folder by this
    # variable. LOCAL_RANK is also there where Lightning's strategy ddp has run in this process.
    if "LOCAL_RANK" not in os.environ or os.environ.get(VERSION_KEY) in versions_made:
        os.environ.pop(VERSION_KEY, None)
    pl.seed_everything(cfg.seed, verbose=False)
    trainer = make_trainer(cfg, checked)
    check_lone_tdt(checked, on_cpu=isinstance(trainer.accelerator, CPUAccelerator))
    name_wandb_run(cfg, checked)
    try:
        resumed = None
        if cfg.exp_manager.get("resume_if_exists"):
            load = trainer.strategy.checkpoint_io.load_checkpoint
            place = checkpoint_folder(trainer, cfg.exp_manager)
            resumed = prepare_resume(place, load, is_writer=is_global_rank_zero())
        folder = Path(exp_manager(trainer, cfg.exp_manager))
        if is_global_rank_zero() and os.environ.get(VERSION_KEY):
            versions_made.add(os.environ[VERSION_KEY])
        if resumed is not None:
            logger.info("Resume: continuing at step %s of %s", checkpoint_step(resumed), folder)
        else:
            logger.info("Run folder: %s", folder)
        data = screen_data(cfg, checked, folder if is_global_rank_zero() else own_folder())
        check_stored_targets(cfg, checked)
        check_epochs(cfg, data["train"], trainer.world_size)
        model = tried_model(cfg, checked, trainer)
        # Ranks must not mask alike; NeMo's own generators start from the operating system.
        seed_augmentation(model, cfg.seed + trainer.global_rank * RANK_SEED_STEP)
        if getattr(model, "student_hears", None):
            model.student_hears.seed = cfg.seed + trainer.global_rank * RANK_SEED_STEP
        with open_dict(model.cfg):
            model.cfg[RECORD_KEY] = training_record(cfg, checked, data).plain
        describe(model, folder, is_writer=trainer.is_global_zero)
        if is_global_rank_zero() and folder.parent == runs_folder(cfg):
            link_latest(folder)
        start_wandb_run(trainer)
    except BaseException:
        forget_run(cfg)
        raise
    pl.seed_everything(cfg.seed, verbose=False)  # same data order, independent of the model's size
    return Run(cfg, trainer, model, folder)


def checked_run(cfg: DictConfig) -> tuple[DictConfig, CheckedConfig]:
    """Return a copy of a root config with the keys that a stock one lacks, and its checked model section.

    Raises:
        ValueError: see `check_run`.
    """
    cfg = with_run_defaults(cfg)
    keep_order_of_buckets(cfg)
    return cfg, check_run(cfg)


def train(cfg: DictConfig) -> Run:
    """Train from a config and write the trained models.

    The run's folder then holds checkpoints, `pair.nemo` and `student.nemo` with its card `student.md` (of a model
    that is trained alone `lone_student.nemo` or `teacher.nemo`), `config.yaml`, and the transcripts of the manifests
    in `model.test_ds`. Further ranks of a distributed run write nothing.

    Args:
        cfg: see `prepare`.

    Returns:
        The run. Its model has the weights of the best checkpoint and is on the CPU, in evaluation mode.

    Raises:
        ValueError: see `prepare`.
        OSError: a path that cannot be read or written, or a full disk.
        FloatingPointError: a loss or gradient that is not finite, where `model.codert.non_finite.action` is stop.
        SIGTERMException: SIGTERM ended the training; `resume.unfinished=continue` continues it.
        KeyboardInterrupt: Ctrl-C did.

    Example:
        >>> from hydra import compose, initialize_config_dir
        >>> from nemo_codert.config.shipped import conf_folder
        >>> with initialize_config_dir(str(conf_folder()), version_base=None):
        ...     cfg = compose("fsdd", ["strategy=tandem_kd", "exp_manager.exp_dir=runs"])
        >>> train(cfg)  # no data are named yet  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: This run cannot start:
          - model.train_ds.manifest_filepath is missing: ...
    """
    run = prepare(cfg)
    complete(run)
    return run


def complete(run: Run) -> None:
    """Train a prepared run and write its files; see `train`.

    Raises:
        OSError, FloatingPointError, SIGTERMException, KeyboardInterrupt: see `train`. Where no step was made the run's
            folder is removed, if this run made it.
    """
    try:
        with ended_wandb_run(run.trainer):
            run.trainer.fit(run.model)
    except SIGTERMException:
        raise
    except BaseException as error:
        if run.trainer.global_step == 0:
            forget_run(run.config)
        if isinstance(error, SystemExit) and run.trainer.interrupted:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        raise
    if run.trainer.is_global_zero:
        finish(run)


def forget_run(cfg: DictConfig) -> None:
    """Remove the folder of a run that ended before its first step, if this run made it."""
    manager, version = cfg.exp_manager, os.environ.get(VERSION_KEY)  # set when NeMo made up a folder's name
    if manager.get("resume_if_exists") or manager.get("explicit_log_dir") or manager.get("version") or not version:
        return
    folder = runs_folder(cfg) / version
    shutil.rmtree(folder, ignore_errors=True)
    unlink_latest(folder)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def tried_model(cfg: DictConfig, checked: CheckedConfig, trainer: pl.Trainer) -> EncDecRNNTBPEModel:
    """Build the model, run its networks on noise and build its optimizer; see `build_model`.

    Raises:
        ValueError: one of these fails; the message names the key.
    """
    try:
        model = build_model(cfg, checked, trainer)
        try_networks(model)
    except Exception as error:
        raised = build_error(cfg.model, error)
        raise raised from (None if raised is error else error)
    check_optimiser(model)
    return model


def build_model(cfg: DictConfig, checked: CheckedConfig, trainer: pl.Trainer) -> EncDecRNNTBPEModel:
    """Build the pair, or NeMo's own class for the student or the teacher alone. Neither gets the test data.

    Args:
        cfg: root config, with the manifests of usable utterances.
        checked: its model section, as `check_run` returns it; it gets these manifests too.
    """
    with open_dict(checked.model):
        checked.model.pop("test_ds", None)
        for name in ("train_ds", "validation_ds"):
            checked.model[name] = OmegaConf.to_container(cfg.model[name], resolve=True)
    if cfg.train == "pair":
        return EncDecCoDERTBPEModel(checked, trainer=trainer)
    make_config = student_config if cfg.train == "student" else teacher_config
    stock_cfg = make_config(checked)
    if checked.codert.activation_checkpointing:
        logger.warning("model.codert.activation_checkpointing has no effect: train is %s, not pair.", cfg.train)
    pl.seed_everything(cfg.seed, verbose=False)
    model = stock_class(stock_cfg)(stock_cfg, trainer=trainer)
    key = "model.student.init_from" if cfg.train == "student" else "model.codert.teacher_checkpoint"
    if name := OmegaConf.select(cfg, key):
        log_loaded(cfg.train, load_lone_checkpoint(model, name, key, cfg.train))
    return model


def check_lone_tdt(checked: CheckedConfig, *, on_cpu: bool) -> None:
    """Check that NeMo has the loss of a TDT model which its own class trains; an additive joint brings its own.

    Raises:
        ValueError: a stock joint with a loss that cannot be computed there.
    """
    branch, cfg = checked.alone, checked.model
    if branch is None or not is_tdt(cfg) or (branch == "student" and not student_is_tdt(cfg)):
        return
    key = "model.student.joint" if branch == "student" and cfg.student.joint else "model.joint"
    if OmegaConf.select(cfg, key.removeprefix("model."))._target_ == ADDITIVE_JOINT:
        return
    additive = f"train the {branch} alone with {key}._target_={ADDITIVE_JOINT}"
    if on_cpu:
        raise ValueError(
            f"model.loss.loss_name is {cfg.loss.loss_name}, and the {branch} alone is trained by NeMo's own class, "
            f"whose TDT loss needs a GPU where the joint is a stock joint: train on one, or {additive}"
        )
    if cfg.loss.loss_name != "tdt":
        raise ValueError(
            f"model.loss.loss_name is {cfg.loss.loss_name}, which NeMo's models give the wrong blank: set it to tdt, "
            f"or {additive}"
        )


def check_optimiser(model: EncDecRNNTBPEModel) -> None:
    """Build the optimizer and its schedule once: Lightning, which builds them again, would find a fault too late.

    Raises:
        ValueError: NeMo or PyTorch refuse the settings of model.optim.
    """
    try:
        model.setup_optimization()
    except Exception as error:
        raise ValueError(
            f"model.optim cannot be used: {error}. Its keys are the arguments of the optimiser that it names, "
            "those of model.optim.sched the arguments of the schedule"
        ) from error


def log_loaded(branch: str, loaded: dict[str, Any]) -> None:
    """Log the source of a branch's weights, and the parts that start from scratch."""
    logger.info("%s starts from %s: %d tensors loaded", branch, loaded["source"], loaded["tensors"])
    if loaded.get("left"):
        logger.info("%s starts from scratch, because of other shapes, in: %s", branch, ", ".join(loaded["left"]))


def describe(model: EncDecRNNTBPEModel, folder: Path, *, is_writer: bool) -> None:
    """Log what is about to be trained and, for a loaded teacher, how good it is before the first step."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s, %.2f M parameters", type(model).__name__, millions)
    if not is_writer or not isinstance(model, EncDecCoDERTBPEModel):
        return
    if "student" in model.loaded:
        log_loaded("student", model.loaded["student"])
    if "teacher" not in model.loaded or model.cfg.codert.teacher == "cached":
        return
    report = teacher_report(model, model.val_dataloader())
    logger.info("%s", format_teacher_report(report))
    for warning in report["warnings"]:
        logger.warning("%s", warning)
    with whole_file(folder / "teacher_report.json") as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


def finish(run: Run) -> None:
    """Write the trained model and the stock `student.nemo`, both with the weights of the best checkpoint."""
    cfg, trainer, model, folder = run.config, run.trainer, run.model, run.folder
    best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
    if best and Path(best).is_file():
        model.load_state_dict(read_checkpoint(best)["state_dict"])
    elif trainer.checkpoint_callback:
        logger.warning("No checkpoint was saved by a validation: the files have the weights of the last step.")
    model.cpu().eval()
    score = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None
    with open_dict(model.cfg):
        model.cfg[RECORD_KEY].updates = trainer.global_step
        if score is not None and trainer.checkpoint_callback.monitor == "val_wer":
            model.cfg[RECORD_KEY].best_val_wer = float(score)
    save_model(model, folder / TRAINED_FILES[cfg.train])
    if cfg.train != "teacher":
        save_student(model, folder)
    if test_manifests(cfg):
        of_pair = ("student", "teacher") if getattr(model, "teacher_transcribes", True) else ("student",)
        for branch in of_pair if cfg.train == "pair" else (cfg.train,):
            transcribe_tests(run, branch)
        if cfg.train != "teacher":
            save_student(model, folder)  # its card now has results
    if is_out_of_time(trainer):
        logger.info("exp_manager.max_time_per_run is over at step %d: --resume continues the run", trainer.global_step)
    else:
        OmegaConf.save(cfg, folder / FINISHED)  # last: a run without it is unfinished
    monitor = trainer.checkpoint_callback.monitor if score is not None else ""
    found = f"{score_text(monitor, float(score))}{_metric_note(monitor, model)}" if monitor else ""
    logger.info("%s", ending(cfg, folder, best, f"Best {monitor} {found}" if monitor else "No best checkpoint"))


def _metric_note(monitor: str, model: EncDecRNNTBPEModel) -> str:
    is_characters = "wer" in monitor and metric_of(model.cfg) == CER
    return f" ({CER}: model.use_cer is set)" if is_characters else ""


def is_out_of_time(trainer: pl.Trainer) -> bool:
    """Return whether NeMo's timer of one run, of several that make a training, has ended it."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, StatelessTimer)]
    return any(timer.time_remaining() <= 0 for timer in timers)


def save_student(model: EncDecRNNTBPEModel, folder: Path) -> None:
    """Write `student.nemo`, a stock model, and `student.md`, its card, with the results of the test sets so far."""
    stock = stock_of(model)
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    about = {"branch": "student", "parameters": parameters}
    predictions = sorted((folder / "predictions" / "student").glob("*_summary.json"))
    results = [result for path in predictions for result in read_error_rates(path, **about)]
    record = recorded_training(model.cfg)
    card = model_card(stock.cfg, name="student", record=record, results=results, **about)
    save_with_card(stock, folder / "student.nemo", card)


def transcribe_tests(run: Run, branch: str) -> None:
    """Transcribe the test manifests with the stock model of a branch and write the texts, one file a manifest."""
    cfg, trainer, trained = run.config, run.trainer, run.model
    found = branches(trained)
    model = stock_of(trained, branch=branch if cfg.train == "pair" else "student").to(trainer.strategy.root_device)
    about = {
        "branch": branch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": (found.get(branch) or found["model"]).size(),
        "updates": trainer.global_step,
        "decoding": model.cfg.decoding.strategy,
        "batch_size": test_batch_size(cfg),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    for manifest in test_manifests(cfg):
        evaluation = evaluate(model, manifest, batch_size=about["batch_size"], **test_reading(cfg))
        path = run.folder / "predictions" / branch / f"{Path(manifest).stem}.json"
        write_predictions(path, [evaluation], about)
        errors, kind = evaluation.errors, f"{branch} {evaluation.metric}"
        of = f"{errors.words} {evaluation.unit}"
        logger.info("%s: %s %.2f%% of %s", Path(manifest).name, kind, 100 * errors.wer, of)
