"""Emission delays of trained students against a teacher on manifests, in one call: `measure_latency`.

Imports torch and NeMo when called, so that bad settings are refused first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_codert.config.arguments import require_at_least, require_file

if TYPE_CHECKING:
    from nemo_codert.analysis.branches import Branch
    from nemo_codert.analysis.emission_delay import DelaySummary


@dataclass(frozen=True)
class LatencySettings:
    """Students, their teacher and manifests.

    Args:
        models: `.nemo` or `.ckpt` files of pairs, or with a `teacher` of RNN-Ts trained alone.
        manifests: the utterances, with transcripts.
        teacher: file of the teacher of models that were trained alone; of a pair, its teacher is taken.
        batch_size: utterances.
    """

    models: Sequence[str | Path]
    manifests: Sequence[str | Path]
    teacher: str | Path | None = None
    batch_size: int = 8

    def check(self) -> None:
        """Check all that can be known without opening a model.

        Raises:
            ValueError: a file that is missing, a manifest that cannot be read, numbers out of range.
        """
        from nemo_codert.data.manifest import read_manifest

        if not (self.models and self.manifests):
            raise ValueError("`model` and `manifest`: give one or more of each")
        for name, path in [*(("model", path) for path in self.models), ("teacher", self.teacher)]:
            require_file(name, path, "Give the path of a .nemo or .ckpt file")
        require_at_least("batch_size", self.batch_size, 1)
        for manifest in self.manifests:
            read_manifest(manifest)


@dataclass(frozen=True)
class ModelDelays:
    """Delays of one student.

    student_seconds, teacher_seconds: of one encoder frame. manifests: path -> delays of its reference tokens.
    transcript_faults: path -> how many of its transcripts cannot be aligned, by reason.
    """

    model: str
    student_seconds: float
    teacher_seconds: float
    manifests: dict[str, "DelaySummary"]
    transcript_faults: dict[str, dict[str, int]]


def measure_latency(settings: LatencySettings) -> Iterator[ModelDelays]:
    """Measure how much later than the teacher each student emits the reference tokens, on the GPU if there is one.

    Args:
        settings: students, teacher and manifests.

    Returns:
        An iterator that measures one student at each step.

    Raises:
        ValueError: settings, files or data that cannot be used, or models that cannot be compared.

    Example:
        >>> next(measure_latency(LatencySettings(["pair.nemo"], ["test.json"])))  # no such model here
        Traceback (most recent call last):
        ...
        ValueError: `model` is pair.nemo: no such file. Give the path of a .nemo or .ckpt file
    """
    settings.check()
    import torch

    from nemo_codert.analysis.readings import utterances
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import open_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {str(manifest): utterances(usable_entries(manifest)) for manifest in settings.manifests}
    teacher = None if settings.teacher is None else open_model(settings.teacher).to(device)
    return (_delays(path, teacher, found, settings.batch_size, device) for path in settings.models)


def _delays(path: str | Path, teacher: Any, found: dict[str, list], batch_size: int, device: str) -> ModelDelays:
    from nemo_codert.analysis.emission_delay import emission_delays, summarise
    from nemo_codert.analysis.readings import transcript_faults
    from nemo_codert.models.open_model import open_model

    student, measure = _student_and_teacher(path, open_model(path).to(device), teacher)
    delays = {
        manifest: summarise(
            emission_delays(
                student, measure, own, batch_size=batch_size, title=f"{Path(path).name}, {Path(manifest).name}"
            )
        )
        for manifest, own in found.items()
    }
    faults = {manifest: transcript_faults([student, measure], own) for manifest, own in found.items()}
    return ModelDelays(str(path), student.seconds_per_frame, measure.seconds_per_frame, delays, faults)


def _student_and_teacher(path: str | Path, model: Any, teacher: Any) -> "list[Branch]":
    """Return the two branches of a pair, or of a model trained alone beside a teacher."""
    from nemo_codert.analysis.branches import measured_branches

    try:
        branches = measured_branches(model, "both", teacher)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(branches) < 2:
        raise ValueError(
            f"{path} is a single RNN-T, not a pair: name the teacher to measure it against with `teacher`"
        )
    return branches
