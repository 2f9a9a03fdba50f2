"""The usable utterances of a run: its manifests are screened before anything is built."""

import atexit
import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
from omegaconf import DictConfig, open_dict

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.criteria import trains_without_text
from nemo_codert.config.data_sections import manifest_paths
from nemo_codert.config.derived import encoder_stride
from nemo_codert.config.student_hears import PATH
from nemo_codert.config.tdt import is_tdt, tdt_settings, trains_tdt
from nemo_codert.data import DataReport, Loader, Reason, screen_dataset, screen_manifest
from nemo_codert.data.normalisation import normaliser
from nemo_codert.data.screening import REPORTED_UTTERANCES, name_of
from nemo_codert.export.training_record import DataRecord, data_records
from nemo_codert.training.logged_names import validation_names
from nemo_codert.training.run_checks import plain_sources, text_fields

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
    codert, report = checked.codert, DataReport()
    _keep_names(cfg)
    how = {"policy": codert.bad_utterances, "audio_check": codert.audio_check, **_text_checks(cfg, checked)}
    records: dict[str, list[DataRecord]] = {}
    for name in ("train_ds", "validation_ds"):
        block = cfg.model[name]
        sources, names, usable = plain_sources(block), [], []
        for source, text_field in zip(sources, text_fields(block), strict=True):
            paths = manifest_paths(source.manifest_filepath)
            for path in paths:
                found = screen_dataset(
                    path,
                    output_dir=folder,
                    name=f"{name}_{len(usable)}" if usable else name,
                    loader=Loader.of(block, f"model.{name}"),
                    unlabelled=name == "train_ds" and trains_without_text(checked.criteria),
                    text_field=text_field,
                    report=partial(report.add, name, path),
                    **how,
                )
                usable.append(str(found))
            names += paths
            source.manifest_filepath = _setting(source, usable[-len(paths) :])
        if not sources:
            logger.warning("model.%s is not a plain manifest: its utterances are not checked.", name)
            report.add_unchecked(name)
            names = manifest_paths(block.get("manifest_filepath") or [])
        records[name.removesuffix("_ds")] = data_records(names, usable if sources else None)
    _check_noise(checked, report)
    logger.info("Data (%s):\n%s", report.write(folder), report.table())
    return records


def _keep_names(cfg: DictConfig) -> None:
    """Keep the names of several validation sets, by which NeMo logs them: screened manifests have other names."""
    names = validation_names(cfg)
    if names:
        with open_dict(cfg.model.validation_ds):
            cfg.model.validation_ds.name = names


def _setting(source: DictConfig, paths: list[str]) -> str | list[str]:
    """Return manifests as a setting that means what it did: NeMo's classic loader joins paths between commas."""
    if len(paths) == 1:
        return paths[0]
    return ",".join(paths) if isinstance(source.manifest_filepath, str) and not source.get("use_lhotse") else paths


def _check_noise(checked: CheckedConfig, report: DataReport) -> None:
    """Check the noise of `student_hears`: mono files with a duration, whatever their text."""
    path = None if checked.alone else (checked.codert.student_hears or {}).get("noise")
    if path is None:
        return
    screening = screen_manifest(path, unlabelled=True, audio_check="samples", loader=Loader(mono_only=True))
    faults = [entry for entry in screening.dropped if entry["reason"] not in (Reason.EMPTY_TEXT, Reason.CONTRADICTION)]
    if faults:
        shown = "".join(f"\n  - {name_of(entry)}: {entry['reason']}" for entry in faults[:REPORTED_UTTERANCES])
        raise ValueError(
            f"{PATH}.noise is {path}: {len(faults)} of {screening.total} recordings cannot be used:{shown}\n"
            "Mend these lines or take them out"
        )
    report.add("student_hears", path, screening)


def _text_checks(cfg: DictConfig, checked: CheckedConfig) -> dict[str, Any]:
    """Return the arguments of `screen_dataset` that the tokenizer and the encoders determine."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(cfg.model.tokenizer.dir) / "tokenizer.model"))
    strides = [encoder_stride(encoder) for encoder in (cfg.model.encoder, cfg.model.student.encoder)]
    stride = max((stride for stride in strides if stride), default=None)
    trained = is_tdt(cfg.model) and trains_tdt(checked.codert, checked.student, checked.alone)
    return {
        "sample_rate": cfg.model.sample_rate,
        "tokenize": processor.encode,
        "unk_id": processor.unk_id(),
        "normalise": normaliser(processor),
        "seconds_per_frame": stride * cfg.model.preprocessor.get("window_stride", 0.01) if stride else None,
        # Every token of a TDT model without the duration 0 takes a frame or more, and so does the blank at the end.
        "spare_frames": int(trained and 0 not in tdt_settings(cfg.model).durations),
    }


def own_folder() -> Path:
    """Make a folder for this process, removed when it ends: only rank 0 writes into the run's folder."""
    folder = tempfile.mkdtemp(prefix="nemo_codert_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
