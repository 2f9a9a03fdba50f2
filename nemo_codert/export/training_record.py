"""Record of a training in a model file: data by name and hours, strategy, teacher, versions; no machine path.

`nemo_codert.training.run` puts the record into a model's config as `nemo_codert_training`; model cards show it.
Does not import NeMo.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_codert import __version__
from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.criteria import ONE_TERM, distillation_terms
from nemo_codert.config.model_kinds import is_pair
from nemo_codert.config.teachers import WITHOUT_GRADIENT
from nemo_codert.data.manifest import read_manifest

RECORD_KEY = "nemo_codert_training"
PACKAGES = ("nemo_toolkit", "torch", "lightning")


@dataclass
class DataRecord:
    """One manifest by the name of its file; utterances and hours after screening, None if unknown."""

    manifest: str
    utterances: int | None = None
    hours: float | None = None


@dataclass
class TrainingRecord:
    """teacher: origin of the teacher, None without one. started_from: checkpoints of trained networks, by branch."""

    strategy: str
    teacher: str | None = None
    started_from: dict[str, str] = field(default_factory=dict)
    train: list[DataRecord] = field(default_factory=list)
    validation: list[DataRecord] = field(default_factory=list)
    updates: int | None = None
    best_val_wer: float | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """Plain dict for a config."""
        return asdict(self)


def recorded_training(cfg: DictConfig) -> TrainingRecord | None:
    """Return the record in a model's config; for a pair without one, a record of its settings; else None."""
    if not OmegaConf.is_dict(cfg.get(RECORD_KEY)):
        return _settings_of_a_pair(cfg) if is_pair(cfg) else None
    plain = OmegaConf.to_container(cfg[RECORD_KEY])
    known = {key: value for key, value in plain.items() if key in TrainingRecord.__dataclass_fields__}
    for name in ("train", "validation"):
        known[name] = [DataRecord(**entry) for entry in known.get(name, [])]
    return TrainingRecord(**known)


def _settings_of_a_pair(cfg: DictConfig) -> TrainingRecord:
    versions = {"nemo_codert": cfg.nemo_codert_version} if cfg.get("nemo_codert_version") else {}
    return TrainingRecord(strategy_name("pair", cfg.codert), _teacher(cfg.codert), versions=versions)


def _teacher(codert: DictConfig) -> str:
    if codert.teacher == "frozen":
        return f"trained before, kept frozen: {_name(codert.teacher_checkpoint)}"
    if codert.teacher == "cached":
        return f"stored targets: {Path(codert.teacher_cache).name if codert.teacher_cache else 'unknown'}"
    if codert.teacher == "ema":
        return f"running average of the student's weights, decay {codert.ema_decay:g}"
    return "trained in the same run"


def training_record(cfg: DictConfig, checked: CheckedConfig, data: dict[str, list[DataRecord]]) -> TrainingRecord:
    """Return the record of a run about to start.

    Args:
        cfg: the root config. checked: its model section. data: records of `train` and `validation`.
    """
    codert = checked.codert
    started = {"student": OmegaConf.select(cfg, "model.student.init_from")}
    if cfg.train == "pair" and OmegaConf.select(cfg, "model.student.init_from_teacher"):
        started["student"] = f"evenly spaced layers of {_name(codert.teacher_checkpoint)}"
    if cfg.train == "teacher" or codert.teacher == "co_trained":
        started["teacher"] = codert.teacher_checkpoint
    return TrainingRecord(
        strategy=strategy_name(cfg.train, codert),
        teacher=_teacher(codert) if cfg.train == "pair" else None,
        started_from={branch: _name(source) for branch, source in started.items() if source},
        seed=cfg.get("seed"),
        versions=package_versions(),
        **data,
    )


def strategy_name(train: str, codert: DictConfig) -> str:
    """Return the name of the strategy that these keys amount to, with additions for keys that no strategy sets."""
    if train != "pair":
        return train
    terms = [name for name, term in distillation_terms(codert.distillation).items() if term["weight"] > 0]
    if codert.teacher in WITHOUT_GRADIENT:
        kinds = {"frozen": "static", "cached": "cached", "ema": "ema" if codert.get("ema_decay", 1) else "two_views"}
        name = f"{kinds[codert.teacher]}_shared" if codert.share_decoder else kinds[codert.teacher]
        name = name if terms else f"{name} without distillation"
    else:
        name = ("shared" if codert.share_decoder else "tandem") + ("_kd" if terms else "")
    return name if terms in ([], [ONE_TERM]) else f"{name} by {', '.join(terms)}"


def data_records(names: Sequence[str], usable: Sequence[str] | None) -> list[DataRecord]:
    """Return records of the manifests `names` with their screened forms `usable`, None if these cannot be read."""
    if usable is None:
        return [DataRecord(Path(name).name) for name in names]
    records = []
    for name, path in zip(names, usable, strict=True):
        durations = [entry["duration"] for entry in read_manifest(path, unlabelled=True)]
        records.append(DataRecord(Path(name).name, len(durations), round(sum(durations) / 3600, 4)))
    return records


def package_versions() -> dict[str, str]:
    """Return the installed versions of this package and of the packages that compute with it."""
    versions = {"nemo_codert": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _name(source: str | None) -> str:
    """Return a checkpoint's name for a card: a pretrained name, or a file's name without its folder."""
    if not source:
        return "unknown"
    return Path(source).name if source.endswith((".nemo", ".ckpt")) or Path(source).is_absolute() else source
