"""Cost of each kind of distillation: a step with a frozen teacher and one term, over the same student's step without.

The models are those of `training_step`, with an additive joint; audio and labels are made up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.benchmark.training_step import StepSettings, make_step_batch, pair_config, pair_step

ALONE = "student step, no teacher"
HEAD = {"decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder"}}
# Row: its terms, and other keys of the blocks `codert`, `student` and of the model.
TERMS: dict[str, dict[str, Any]] = {
    "encoder": {"at": "encoder"},
    "encoder, prior": {"at": "encoder", "prior": "mean_prediction"},
    "joint, all nodes": {"at": "joint"},
    "joint, occupied nodes": {"at": "joint", "nodes": "occupied"},
    "joint, best path": {"at": "joint", "nodes": "best_path"},
    "joint, three classes": {"at": "joint", "classes": "target_blank_rest"},
    "joint, occupied nodes, adaptive temperature": {"at": "joint", "nodes": "occupied", "temperature": "adaptive"},
    **{f"hidden, {by}": {"at": "hidden", "by": by} for by in ("mse", "correlation", "energy", "gram")},
    "sequence": {"at": "sequence", "by": "l2"},
}
HEADS = "CTC heads, last and middle"
AVERAGE = "ema teacher, joint, occupied nodes"


@dataclass(frozen=True)
class TermCase:
    """One row, by name. See `measure.Case`."""

    name: str
    settings: StepSettings
    device: str = "cpu"
    slow: bool = False  # no row has NeMo's loss

    def prepare(self) -> Callable[[], Any]:
        """Build the pair and return one training step."""
        from nemo_codert.models import EncDecCoDERTBPEModel

        torch.manual_seed(0)
        batch = make_step_batch(self.settings, self.device)
        pair = EncDecCoDERTBPEModel(term_config(self.name, self.settings)).to(self.device).train()
        step = pair_step(pair, batch)
        if self.name != AVERAGE:
            return step

        def step_and_average() -> None:
            step()
            pair.teacher.follow(pair.student_transducer)

        return step_and_average


def term_config(name: str, settings: StepSettings) -> Any:
    """Return the `model` section of the pair of a row, by its name."""
    from nemo_codert.config.stock_checks import ADDITIVE_JOINT

    cfg = pair_config(settings, ADDITIVE_JOINT, rnnt_loss="auto")
    codert = {"teacher": "frozen", "share_decoder": False, "rnnt_loss": "auto", "distillation": {}}
    if name in TERMS:
        term = {**TERMS[name], "weight": 0.1}
        if term["at"] == "hidden":
            term["layers"] = {settings.student[0]: settings.teacher[0]}  # the last ones
        codert["distillation"] = {"term": term}
    elif name == HEADS:
        cfg.aux_ctc, cfg.student.aux_ctc = HEAD, {"ctc_loss_weight": 0.3, **HEAD}
        middle = {"layers": [max(1, settings.student[0] // 2)], "ctc_weight": 0.3}
        term = {"at": "ctc", "by": "l2", "weight": 0.25}
        codert |= {"teacher_logits": "ctc", "distillation": {"last": term, "middle": {**term, **middle}}}
    elif name == AVERAGE:
        codert |= {"teacher": "ema", "distillation": {"views": {"at": "joint", "nodes": "occupied", "weight": 0.2}}}
    cfg.codert = codert
    return cfg


def term_rows(settings: StepSettings, device: str, measuring: MeasureSettings) -> tuple[list[CostRow], list[Finding]]:
    """Measure a step of each row with its ratio to the student's step alone. No target is stated for them."""
    names = ALONE, *TERMS, HEADS, AVERAGE
    measured = measure([TermCase(name, settings, device) for name in names], measuring, "distillation steps")
    alone = measured[ALONE].seconds
    sizes = {"batch": settings.batch, "tokens": settings.tokens, "vocabulary": settings.vocabulary}
    rows = [
        CostRow(
            part="terms",
            setting=str(settings),
            name=name,
            sizes=sizes,
            seconds=result.seconds,
            ratio=paired_ratio([result.seconds], [alone]),
            ratio_to=ALONE,
            memory=result.memory,
        )
        for name, result in measured.items()
    ]
    return rows, []
