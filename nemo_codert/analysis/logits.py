"""The logit analysis of trained models on the utterances of a manifest, in one call: `analyze_logits`.

Imports torch, NeMo and matplotlib when called, so that bad settings are refused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.config.arguments import require_at_least, require_choice, require_file

if TYPE_CHECKING:
    from nemo_codert.analysis.branches import Branch
    from nemo_codert.analysis.figures import UtterancePage
    from nemo_codert.analysis.readings import Analysis, ManifestUtterance
    from nemo_codert.analysis.report import LogitReport

BRANCHES = ("student", "teacher", "both")
MOST_PIECES = 20  # a row of the utterance pictures each


@dataclass(frozen=True)
class LogitSettings:
    """Models and utterances of a logit analysis.

    Args:
        manifest: the utterances, with transcripts.
        models: `.nemo` or `.ckpt` files in the order of training; the last one is reported in full.
        checkpoints: in place of `models`, the folder of a run, its `checkpoints` folder, or a folder of models.
        teacher: file of a teacher for models that were trained alone.
        branch: `student`, `teacher` or `both` of a pair.
        top_k: word pieces listed, 1 to 20.
        utterances: those to draw: one whole number, of the first ones, or ids (names of audio files).
        max_utterances: how many to measure, from the first on; None for all.
        batch_size: utterances.
    """

    manifest: str | Path
    models: Sequence[str | Path] = ()
    checkpoints: str | Path | None = None
    teacher: str | Path | None = None
    branch: str = "both"
    top_k: int = 5
    utterances: Sequence[str] = ("3",)
    max_utterances: int | None = None
    batch_size: int = 8

    def check(self) -> None:
        """Check all that can be known without opening a model.

        Raises:
            ValueError: a file that is missing, a manifest that cannot be read, numbers out of range, settings that
                exclude each other.
        """
        from nemo_codert.data.manifest import read_manifest

        if bool(self.models) == (self.checkpoints is not None):
            raise ValueError("give either `model` (one or more) or `checkpoints`")
        for name, path in [*(("model", path) for path in self.models), ("teacher", self.teacher)]:
            require_file(name, path, "Give the path of a .nemo or .ckpt file")
        for name in ("max_utterances", "batch_size", "top_k"):
            require_at_least(name, getattr(self, name), 1)
        if self.top_k > MOST_PIECES:
            raise ValueError(f"`top_k` is {self.top_k}, wanted {MOST_PIECES} or fewer")
        require_choice("branch", self.branch, BRANCHES)
        if self.teacher is not None and self.branch != "both":
            raise ValueError(f"`branch` is {self.branch}, but `teacher` needs both: leave one of them out")
        read_manifest(self.manifest)


def analyze_logits(settings: LogitSettings, output_dir: str | Path) -> "LogitReport":
    """Measure models one after the other and write the report: tables, pictures and `report.html`.

    Args:
        settings: what to measure.
        output_dir: a new or empty folder.

    Returns:
        All figures that the report shows. A GPU is used if there is one.

    Raises:
        ValueError: settings, models, manifest, audio or folder that cannot be used; nothing is left behind.

    Example:
        >>> analyze_logits(LogitSettings("test.json", ["pair.nemo"]), "logits")  # no such model here
        Traceback (most recent call last):
        ...
        ValueError: `model` is pair.nemo: no such file. Give the path of a .nemo or .ckpt file
    """
    settings.check()
    from nemo_codert.analysis.report import new_folder, write_logit_report

    with new_folder(output_dir) as folder:
        report = _measured(settings)
        write_logit_report(folder, report)
    return report


def _measured(settings: LogitSettings) -> "LogitReport":
    import torch

    from nemo_codert.analysis.branches import measured_branches
    from nemo_codert.analysis.readings import analyze, chosen, transcript_faults, utterances
    from nemo_codert.analysis.report import LogitReport, MeasuredModel, measure_rows
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import checkpoint_files, open_model, saved_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = list(settings.models) or checkpoint_files(settings.checkpoints)
    found = utterances(usable_entries(settings.manifest))[: settings.max_utterances]
    shown = chosen(found, settings.utterances)
    teacher = None if settings.teacher is None else open_model(settings.teacher).to(device)
    models = []
    for path, name in zip(paths, short_names(paths), strict=True):
        branches = measured_branches(open_model(path).to(device), settings.branch, teacher)
        last = analyze(
            branches,
            found,
            batch_size=settings.batch_size,
            top_k=settings.top_k,
            shown=shown if path == paths[-1] else (),
            title=name,
        )
        agreements = last.agreement, last.agreement_with_prior, last.shift
        models.append(MeasuredModel(name, str(path), saved_step(path), measure_rows(last.branches), *agreements))
    return LogitReport(
        manifest=str(settings.manifest),
        utterances=len(found),
        audio_seconds=sum(utterance.duration for utterance in found),
        top_k=settings.top_k,
        models=models,
        last=last,
        pages=_utterance_pages(last, found, shown, branches),
        transcript_faults=transcript_faults(branches, found),
    )


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Return the file names where they differ, else the paths.

    Example:
        >>> short_names(["a/pair.nemo", "b/pair.nemo"]), short_names(["a/one.nemo", "a/two.nemo"])
        (['a/pair.nemo', 'b/pair.nemo'], ['one.nemo', 'two.nemo'])
    """
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _utterance_pages(
    analysis: "Analysis", found: Sequence["ManifestUtterance"], shown: Sequence[int], measured: Sequence["Branch"]
) -> list["UtterancePage"]:
    from nemo_codert.analysis.figures import UtterancePage
    from nemo_codert.analysis.readings import transcripts

    branches, sample_rate = analysis.branches, measured[0].sample_rate
    texts = {branch.name: transcripts(branch, [found[place] for place in shown]) for branch in measured}
    return [
        UtterancePage(
            id=found[place].id,
            text=found[place].text,
            signal=found[place].signal(sample_rate),
            sample_rate=sample_rate,
            branches={name: own.shown[place] for name, own in branches.items()},
            seconds_per_frame={name: own.seconds_per_frame for name, own in branches.items()},
            pieces={name: own.pieces for name, own in branches.items()},
            hypotheses={name: own[rank] for name, own in texts.items()},
        )
        for rank, place in enumerate(shown)
    ]
