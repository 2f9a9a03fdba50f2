"""All that a training run checks before its first step, without a run folder and without training."""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from nemo.utils.exp_manager import ExpManagerConfig
from omegaconf import DictConfig, OmegaConf

from nemo_codert.data.data_report import FILE
from nemo_codert.export.training_record import strategy_name
from nemo_codert.models.open_model import branches
from nemo_codert.training.run import checked_run, make_trainer, tried_model
from nemo_codert.training.run_checks import check_epochs
from nemo_codert.training.stored_targets import check_stored_targets
from nemo_codert.training.usable_data import screen_data


@dataclass(frozen=True)
class Readiness:
    """A run that could start.

    Attributes:
        strategy: its name in `conf/strategy`.
        parameters: branch -> parameters of its networks, as built; a shared network counts for both.
        terms: name -> weight of each term of the training loss, schedules left out.
        manifests: the entries of `data_report.json`: utterances, usable ones, and why others are not.
        loaded: branch -> source of its weights, for branches that do not start from scratch.
    """

    strategy: str
    parameters: dict[str, int]
    terms: dict[str, float]
    manifests: list[dict[str, Any]]
    loaded: dict[str, str]

    def summary(self) -> str:
        """Return what would be trained, a line each for strategy, branches, data and loss."""
        lines = [f"strategy  {self.strategy}"]
        for branch, count in self.parameters.items():
            source = f", starts from {self.loaded[branch]}" if branch in self.loaded else ""
            lines.append(f"{branch:<8}  {count:,} parameters{source}")
        for each in self.manifests:
            section = each["section"].removesuffix("_ds")
            if each["manifest"] is None:
                lines.append(f"data      {section}: not a plain manifest, its utterances are not checked")
                continue
            unused = [group for kind in ("dropped", "left_out") for group in each[kind]]
            reasons = "".join(f"; {group['count']} not: {group['reason']}" for group in unused)
            lines.append(f"data      {section}: {each['usable']} of {each['utterances']} utterances used{reasons}")
        lines.append("loss      " + " + ".join(f"{weight:g} {name}" for name, weight in self.terms.items()))
        return "\n".join(lines)


def check_training(cfg: DictConfig) -> Readiness:
    """Check a run as `nemo_codert.training.run.prepare` does, and leave no file.

    The config, its files and manifests, every utterance, the checkpoints that it names, building the model and the
    optimizer, and a second of noise through the front end and the encoders.

    Args:
        cfg: root config with `model`, `trainer` and `exp_manager`, as Hydra composes it. It is not changed.

    Returns:
        What would be trained.

    Raises:
        ValueError: faults of the config, a manifest or a checkpoint, each with its key, value and remedy.
        OSError: a file that cannot be read.
    """
    cfg, checked = checked_run(cfg)
    OmegaConf.merge(OmegaConf.structured(ExpManagerConfig), cfg.exp_manager)  # raises for a key or value of no use
    pl.seed_everything(cfg.seed, verbose=False)
    trainer = make_trainer(cfg, checked)
    with tempfile.TemporaryDirectory(prefix="nemo_codert_") as folder:
        with _without_files():
            data = screen_data(cfg, checked, Path(folder))
            check_stored_targets(cfg, checked)
        check_epochs(cfg, data["train"], trainer.world_size)
        manifests = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))["manifests"]
        model = tried_model(cfg, checked, trainer)
    loaded = getattr(model, "loaded", {})  # a stock model has none
    return Readiness(
        strategy=strategy_name(cfg.train, checked.codert),
        parameters={cfg.train if name == "model" else name: own.size() for name, own in branches(model).items()},
        terms={spec.name: spec.weight for spec in checked.criteria} or {f"rnnt_{cfg.train}": 1.0},
        manifests=manifests,
        loaded={branch: each["source"] for branch, each in loaded.items() if "source" in each},
    )


@contextmanager
def _without_files() -> Iterator[None]:
    """Log warnings alone, without the files that they name: the folder of these is removed at the end."""
    log, screening = logging.getLogger("nemo_codert.train"), logging.getLogger("nemo_codert.data.screening")
    level = log.level
    log.setLevel(logging.WARNING)
    screening.addFilter(_without_listing)
    try:
        yield
    finally:
        log.setLevel(level)
        screening.removeFilter(_without_listing)


def _without_listing(record: logging.LogRecord) -> bool:
    record.msg, record.args = re.sub(r" \(listed in .*\)$", "", record.getMessage()), ()
    return True
