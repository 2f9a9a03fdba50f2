"""The usable utterances of a run: its manifests are screened before anything is built."""

import atexit
import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path

import sentencepiece
from omegaconf import DictConfig

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.derived import encoder_stride
from nemo_codert.data import DataReport, Loader, screen_dataset
from nemo_codert.export.training_record import DataRecord, data_records
from nemo_codert.training.run_checks import is_tarred, manifest_paths

logger = logging.getLogger("nemo_codert.train")


def screen_data(cfg: DictConfig, checked: CheckedConfig, folder: Path) -> dict[str, list[DataRecord]]:
    """Drop or refuse utterances that cannot be used.

    Args:
        cfg: root config; the manifests in it are replaced by those of the usable utterances.
        checked: its model section, as `check_run` returns it.
        folder: for these manifests, the lists of dropped utterances and `data_report.json`.

    Returns:
        The data to train on and to validate with, under `train` and `validation`.

    Raises:
        ValueError: a manifest without a usable utterance or, where `bad_utterances` is refuse, with an unusable one.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(cfg.model.tokenizer.dir) / "tokenizer.model"))
    codert, report = checked.codert, DataReport()
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
            for i, path in enumerate(names)
        ]
        block.manifest_filepath = usable[0] if len(usable) == 1 else usable
        records[name.removesuffix("_ds")] = data_records(names, usable)
    logger.info("Data (%s):\n%s", report.write(folder), report.table())
    return records


def own_folder() -> Path:
    """Make a folder for this process, removed when it ends: only rank 0 writes into the run's folder."""
    folder = tempfile.mkdtemp(prefix="nemo_codert_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
