"""Train a teacher and its student together, or either of them alone.

    python scripts/train.py --config-name=fsdd strategy=shared_kd \\
        model.train_ds.manifest_filepath=data/fsdd/train.json \\
        model.validation_ds.manifest_filepath=data/fsdd/dev.json \\
        model.tokenizer.dir=data/fsdd/tokenizer exp_manager.exp_dir=runs/fsdd

Strategies (conf/strategy): student, static, tandem, tandem_kd, shared, shared_kd, static_shared; and teacher, which
makes the checkpoint that the static ones take as model.codert.teacher_checkpoint=....

Everything goes into one folder, exp_manager.exp_dir/NAME/DATE: checkpoints (the best student by val_wer), curves,
the list of dropped utterances, `pair.nemo` (for more training, evaluation of both branches, export) and
`student.nemo`, a stock NeMo model, with its model card `student.md`. strategy=student leaves `lone_student.nemo` in
place of the pair, strategy=teacher `teacher.nemo` alone. With model.test_ds.manifest_filepath (a path or a list) the
trained models then transcribe these manifests: `predictions/{student,teacher}/MANIFEST.json` and
`MANIFEST_summary.json`, as scripts/evaluate.py writes.
"""

import atexit
import copy
import json
import logging
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from nemo_codert.cli.console import fault, keep_freed_memory, quieten_libraries

quieten_libraries()

import lightning.pytorch as pl  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
from hydra.errors import InstantiationException  # noqa: E402
from lhotse.audio.utils import AudioLoadingError  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException  # noqa: E402
from nemo.collections.asr.models import EncDecRNNTBPEModel  # noqa: E402
from nemo.core.config import hydra_runner  # noqa: E402
from nemo.utils.exp_manager import exp_manager  # noqa: E402
from nemo.utils.get_rank import is_global_rank_zero  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from nemo_codert.analysis.teacher_report import format_teacher_report, teacher_report  # noqa: E402
from nemo_codert.config.checked import checked_config  # noqa: E402
from nemo_codert.config.derived import encoder_stride, lone_branch  # noqa: E402
from nemo_codert.data import DataReport, Loader, screen_dataset  # noqa: E402
from nemo_codert.evaluation.transcribe import evaluate, write_predictions  # noqa: E402
from nemo_codert.export.model_card import model_card, read_error_rates  # noqa: E402
from nemo_codert.export.stock_file import save_model, save_with_card, stock_of  # noqa: E402
from nemo_codert.export.training_record import RECORD_KEY, DataRecord, data_records, recorded_training, training_record  # noqa: E402
from nemo_codert.files.checkpoints import RefusedCheckpoint, read_checkpoint  # noqa: E402
from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config  # noqa: E402
from nemo_codert.models.build_faults import build_error, try_networks  # noqa: E402
from nemo_codert.models.stock_models import stock_class  # noqa: E402
from nemo_codert.models.teacher_weights import load_lone_checkpoint  # noqa: E402
from nemo_codert.nemo_compat import checkpoint_folder, seed_augmentation  # noqa: E402
from nemo_codert.training.checkpoint_files import CheckpointFiles  # noqa: E402
from nemo_codert.training.finite_guard import FiniteGuard  # noqa: E402
from nemo_codert.training.last_checkpoint import prepare_resume  # noqa: E402
from nemo_codert.training.load_watch import LoadWatch  # noqa: E402
from nemo_codert.training.progress import StepProgress  # noqa: E402
from nemo_codert.training.resume import ResumeState  # noqa: E402
from nemo_codert.training.run_checks import check_run, is_tarred, manifest_paths, test_manifests  # noqa: E402

logger = logging.getLogger("nemo_codert.train")

# What NeMo, Lightning, Hydra and we raise for settings that cannot be used; OSError is of the paths among them.
LIBRARY_ERRORS = (OmegaConfBaseException, InstantiationException, MisconfigurationException)
USER_ERRORS = (ValueError, TypeError, OSError, *LIBRARY_ERRORS)
# What ends a training that has started: a full disk, a file to resume from, numbers that are not finite, lost audio.
FATAL_ERRORS = (OSError, RefusedCheckpoint, FloatingPointError, AudioLoadingError)
RANK_SEED_STEP = 1_000_003
TEST_BATCH_SIZE = 16  # utterances, where model.test_ds says nothing
# The model as it was trained, additive joint and all. `student.nemo` is the stock student beside it.
TRAINED_FILES = {"pair": "pair.nemo", "student": "lone_student.nemo", "teacher": "teacher.nemo"}


@hydra_runner(config_path="../conf", config_name="fsdd")
def main(cfg: DictConfig) -> None:
    if not torch.cuda.is_available():
        keep_freed_memory()
    try:
        trainer, model, folder = prepare(cfg)
    except USER_ERRORS as error:  # what a user wrote: one message, no traceback
        sys.exit(f"error: {fault(error)}")
    try:
        try:
            trainer.fit(model)
        except SIGTERMException:  # a SystemExit of status 0, as if the run were complete
            sys.exit(
                "error: SIGTERM ended this run. exp_manager.resume_if_exists=true goes on from its last checkpoint"
            )
        except BaseException:
            if trainer.global_step == 0:
                forget_run(cfg)
            raise
        if trainer.is_global_zero:
            finish(cfg, trainer, folder)
    except FATAL_ERRORS as error:  # one message, no traceback; earlier files are untouched
        sys.exit(f"error: {fault(error)}")


def prepare(cfg: DictConfig) -> tuple[pl.Trainer, EncDecRNNTBPEModel, Path]:
    """Everything before the first step: checks, run folder, usable data, model, report on a loaded teacher.

    Raises:
        ValueError: see `check_run`, `screen_data` and the model's own checks.
    """
    with open_dict(cfg):  # a stock NeMo config has neither
        cfg.train, cfg.seed = cfg.get("train", "pair"), cfg.get("seed", 0)
    check_run(cfg)
    if "LOCAL_RANK" not in os.environ:  # rank 0: a second run in one process would share the first one's folder,
        os.environ.pop("NEMO_EXPM_VERSION", None)  # while further ranks are told rank 0's by this variable
    pl.seed_everything(cfg.seed, verbose=False)
    trainer = make_trainer(cfg)
    try:
        if cfg.exp_manager.get("resume_if_exists"):
            load = trainer.strategy.checkpoint_io.load_checkpoint
            prepare_resume(checkpoint_folder(trainer, cfg.exp_manager), load, is_writer=is_global_rank_zero())
        folder = Path(exp_manager(trainer, cfg.exp_manager))
        logger.info("Run folder: %s", folder)
        data = screen_data(cfg, folder if is_global_rank_zero() else own_folder())
        try:
            model = build_model(cfg, trainer)
            try_networks(model)
        except Exception as error:
            raised = build_error(cfg.model, error)
            raise raised from (None if raised is error else error)
        # Ranks must not mask alike; NeMo's own generators start from the operating system.
        seed_augmentation(model, cfg.seed + trainer.global_rank * RANK_SEED_STEP)
        check_optimiser(model)
        with open_dict(model.cfg):
            model.cfg[RECORD_KEY] = training_record(cfg, data).plain
        describe(model, folder, is_writer=trainer.is_global_zero)
    except BaseException:
        forget_run(cfg)
        raise
    pl.seed_everything(cfg.seed, verbose=False)  # same data order whatever was built before
    return trainer, model, folder


def forget_run(cfg: DictConfig) -> None:
    """Remove the folder of a run that ended before its first step, where this run made it."""
    manager, version = cfg.exp_manager, os.environ.get("NEMO_EXPM_VERSION")  # set when NeMo made up a folder's name
    if manager.get("resume_if_exists") or manager.get("explicit_log_dir") or manager.get("version") or not version:
        return
    folder = Path(manager.exp_dir) / (manager.get("name") or "default") / version
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def make_trainer(cfg: DictConfig) -> pl.Trainer:
    """Lightning's trainer; its progress bar is replaced by one that counts optimizer steps."""
    settings = dict(cfg.trainer)
    codert = checked_config(cfg.model, alone=lone_branch(cfg)).codert
    callbacks = [ResumeState(**(cfg.get("resume") or {}))]  # first: it keeps count for the others
    if settings.pop("enable_progress_bar", True):
        callbacks.append(StepProgress())
    callbacks += [FiniteGuard(**codert.non_finite), LoadWatch(codert.bad_utterances)]
    plugins = [*(settings.pop("plugins", None) or ()), CheckpointFiles()]
    return pl.Trainer(**settings, enable_progress_bar=False, callbacks=callbacks, plugins=plugins)


def own_folder() -> Path:
    """A folder of this process, gone when it ends: only rank 0 writes into the run's."""
    folder = tempfile.mkdtemp(prefix="nemo_codert_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def screen_data(cfg: DictConfig, folder: Path) -> dict[str, list[DataRecord]]:
    """Drop or refuse utterances that cannot be used; the manifests in `cfg` become the usable ones.

    Returns what there is to train on and to validate with, under `train` and `validation`.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(cfg.model.tokenizer.dir) / "tokenizer.model"))
    codert, report = checked_config(cfg.model, alone=lone_branch(cfg)).codert, DataReport()
    strides = [encoder_stride(encoder) for encoder in (cfg.model.encoder, cfg.model.student.encoder)]
    stride = max((stride for stride in strides if stride), default=None)
    records: dict[str, list[DataRecord]] = {}
    for name in ("train_ds", "validation_ds"):
        block = cfg.model[name]
        names = manifest_paths(block.get("manifest_filepath") or [])
        records[name.removesuffix("_ds")] = data_records(names, None)
        if block.get("manifest_filepath") is None or is_tarred(block):
            logger.warning("model.%s is not a plain manifest: its utterances are not checked.", name)
            report.add_unchecked(name)
            continue
        usable = [
            str(
                screen_dataset(
                    path,
                    policy=codert.bad_utterances,
                    output_dir=folder,
                    name=f"{name}_{i}" if i else name,
                    sample_rate=cfg.model.sample_rate,
                    tokenize=processor.encode,
                    seconds_per_frame=stride * cfg.model.preprocessor.get("window_stride", 0.01) if stride else None,
                    unk_id=processor.unk_id(),
                    loader=Loader.of(block, f"model.{name}"),
                    audio_check=codert.audio_check,
                    report=partial(report.add, name, path),
                )
            )
            for i, path in enumerate(manifest_paths(block.manifest_filepath))
        ]
        block.manifest_filepath = usable[0] if len(usable) == 1 else usable
        records[name.removesuffix("_ds")] = data_records(names, usable)
    logger.info("Data (%s):\n%s", report.write(folder), report.table())
    return records


def build_model(cfg: DictConfig, trainer: pl.Trainer) -> EncDecRNNTBPEModel:
    """The pair, or NeMo's own class for the student or the teacher alone. Neither gets the test data."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.model.pop("test_ds", None)
    if cfg.train == "pair":
        return EncDecCoDERTBPEModel(cfg.model, trainer=trainer)
    make_config = student_config if cfg.train == "student" else teacher_config
    stock_cfg = make_config(cfg.model)
    if OmegaConf.select(cfg, "model.codert.activation_checkpointing"):
        logger.warning("model.codert.activation_checkpointing has no effect: train is %s, not pair.", cfg.train)
    pl.seed_everything(cfg.seed, verbose=False)
    model = stock_class(stock_cfg)(stock_cfg, trainer=trainer)
    key = "model.student.init_from" if cfg.train == "student" else "model.codert.teacher_checkpoint"
    if name := OmegaConf.select(cfg, key):
        log_loaded(cfg.train, load_lone_checkpoint(model, name, key, cfg.train))
    return model


def check_optimiser(model: EncDecRNNTBPEModel) -> None:
    """Make the optimiser and its schedule once: Lightning, which makes them anew, would find a fault after the start.

    Raises:
        ValueError: NeMo or PyTorch refuse what model.optim says.
    """
    try:
        model.setup_optimization()
    except Exception as error:
        raise ValueError(
            f"model.optim cannot be used: {error}. Its keys are the arguments of the optimiser that it names, "
            "those of model.optim.sched the arguments of the schedule"
        ) from error


def log_loaded(branch: str, loaded: dict[str, Any]) -> None:
    logger.info("%s starts from %s: %d tensors loaded", branch, loaded["source"], loaded["tensors"])
    if loaded.get("left"):
        logger.info("%s begins anew, because of other shapes, in: %s", branch, ", ".join(loaded["left"]))


def describe(model: EncDecRNNTBPEModel, folder: Path, *, is_writer: bool) -> None:
    """Say what is about to be trained; for a loaded teacher, how good it is before the first step."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s, %.2f M parameters", type(model).__name__, millions)
    if not is_writer or not isinstance(model, EncDecCoDERTBPEModel):
        return
    if "student" in model.loaded:
        log_loaded("student", model.loaded["student"])
    if "teacher" not in model.loaded:
        return
    report = teacher_report(model, model.val_dataloader())
    logger.info("%s", format_teacher_report(report))
    (folder / "teacher_report.json").write_text(json.dumps(report, indent=1) + "\n")


def finish(cfg: DictConfig, trainer: pl.Trainer, folder: Path) -> None:
    """Write the trained model and the stock `student.nemo` of the best checkpoint."""
    model = trainer.lightning_module
    best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
    if best and Path(best).is_file():
        model.load_state_dict(read_checkpoint(best)["state_dict"])
    model = model.cpu().eval()
    score = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None
    with open_dict(model.cfg):
        model.cfg[RECORD_KEY].updates = trainer.global_step
        if score is not None and trainer.checkpoint_callback.monitor == "val_wer":
            model.cfg[RECORD_KEY].best_val_wer = float(score)
    save_model(model, folder / TRAINED_FILES[cfg.train])
    if cfg.train != "teacher":
        save_student(model, folder)
    OmegaConf.save(cfg, folder / "config.yaml")
    logger.info("Best val_wer %s; wrote %s", "unknown" if score is None else f"{float(score):.4f}", folder)
    if test_manifests(cfg):
        for branch in ("student", "teacher") if cfg.train == "pair" else (cfg.train,):
            transcribe_tests(cfg, trainer, branch, folder)
        if cfg.train != "teacher":
            save_student(model, folder)  # its card now has results


def save_student(model: EncDecRNNTBPEModel, folder: Path) -> None:
    """`student.nemo`, a stock model, and `student.md`, its card, with the results of the test sets that are there."""
    stock = stock_of(model)
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    about = {"branch": "student", "parameters": parameters}
    predictions = sorted((folder / "predictions" / "student").glob("*_summary.json"))
    results = [result for path in predictions for result in read_error_rates(path, **about)]
    record = recorded_training(model.cfg)
    card = model_card(stock.cfg, name="student", record=record, results=results, **about)
    save_with_card(stock, folder / "student.nemo", card)


def transcribe_tests(cfg: DictConfig, trainer: pl.Trainer, branch: str, folder: Path) -> None:
    """Transcribe the test manifests with the stock model of a branch and keep what it said, one file a manifest."""
    trained = trainer.lightning_module
    networks = getattr(trained, f"{branch}_transducer", trained)  # of a pair, the branch
    # A shared projection is no submodule of the student's joint, but the student cannot do without it.
    parts = networks.encoder, networks.decoder, networks.joint, networks.joint.pred
    weights = {id(parameter): parameter.numel() for part in parts for parameter in part.parameters()}
    model = stock_of(trained, branch=branch if cfg.train == "pair" else "student").to(trainer.strategy.root_device)
    about = {
        "branch": branch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(weights.values()),
        "updates": trainer.global_step,
        "decoding": model.cfg.decoding.strategy,
        "batch_size": cfg.model.test_ds.get("batch_size") or TEST_BATCH_SIZE,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    for manifest in test_manifests(cfg):
        evaluation = evaluate(model, manifest, batch_size=about["batch_size"])
        write_predictions(folder / "predictions" / branch / f"{Path(manifest).stem}.json", [evaluation], about)
        errors = evaluation.errors
        logger.info("%s: %s WER %.2f%% of %d words", Path(manifest).name, branch, 100 * errors.wer, errors.words)


if __name__ == "__main__":
    main()
