"""Report of `codert quickstart`: whether the teacher helped, what the curves show, how the student stands.

Imports neither torch nor NeMo before it is called.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_codert.evaluation.bootstrap import Reduction
    from nemo_codert.evaluation.learning_curves import Curves
    from nemo_codert.evaluation.robustness import Recording

BRANCHES = {"alone": "student alone", "student": "student with its teacher", "teacher": "its teacher"}
PLATEAU = 0.1  # a student that lowers its word error rate by a larger share between two validations is still learning


@dataclass(frozen=True)
class StockTexts:
    """Classes of the model and its joint in stock NeMo, and references with NeMo's transcripts."""

    model: str
    joint: str
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """Trainings, transcripts and checks of a quickstart.

    Args:
        runs: folders of the trainings: `alone`, `teacher` and `pair`.
        stock: transcripts of stock NeMo.
        recordings: the test set recorded otherwise.
        minutes: of everything.
    """

    runs: dict[str, Path]
    stock: StockTexts
    recordings: "list[Recording]"
    minutes: float

    def predictions(self, branch: str) -> Path:
        """Return the file of a branch's transcripts of the test set; `alone` is the student trained alone."""
        run, name = ("alone", "student") if branch == "alone" else ("pair", branch)
        return self.runs[run] / "predictions" / name / "test.json"


def write_quickstart_report(folder: Path, findings: Findings, codert: str) -> str:
    """Write report.md and learning_curves.png; return what is to be printed.

    Args:
        folder: of the quickstart. codert: the way to call the command.
    """
    from nemo_codert.evaluation.learning_curves import plot_curves, read_curves
    from nemo_codert.evaluation.robustness import recordings_report

    curves, alone, teacher = (read_curves(findings.runs[name]) for name in ("pair", "alone", "teacher"))
    curves |= {"val_wer_alone": alone["val_wer"], "val_wer_teacher": teacher["val_wer"]}
    plot_curves(curves, folder / "learning_curves.png")
    sentence = f"{did_it_help(reduction_of(findings), findings)} {still_learning(curves['val_wer_alone'])}".strip()
    results = table(findings)
    recordings = recordings_report(findings.recordings, "WER")
    commands = next_commands(folder, findings, codert)
    (folder / "report.md").write_text(
        "\n\n".join(
            [
                "# Quickstart: a student alone, and with its teacher",
                sentence,
                results,
                about(findings),
                "![Learning curves](learning_curves.png)",
                about_curves(curves),
                f"## Recorded otherwise\n\n{recordings.strip()}",
                f"## In stock NeMo\n\n{stock_section(findings.stock)}",
                f"## Next\n\n```bash\n{commands}\n```",
            ]
        )
        + "\n"
    )
    files = "\n".join(f"{what:12} {folder / name}" for what, name in FILES.items())
    return f"{results}\n\n{recordings}\n{sentence}\n\n{files}\n\nNext:\n\n{commands}"


FILES = {"Student": "student.nemo", "Model card": "student.md", "Report": "report.md"}


def reduction_of(findings: Findings) -> "Reduction":
    """Return the relative reduction of word errors by the teacher, with its interval over voices and utterances."""
    import numpy as np

    from nemo_codert.evaluation.bootstrap import PairedErrors, relative_reduction
    from nemo_codert.evaluation.word_errors import word_errors

    lines = {name: _lines(findings.predictions(name)) for name in ("student", "alone")}
    errors = {name: [word_errors(line["text"], line["pred_text"]) for line in found] for name, found in lines.items()}
    counts = {name: np.array([[found.errors for found in rows]]) for name, rows in errors.items()}
    words = np.array([found.words for found in errors["alone"]])
    speakers = [line["speaker"] for line in lines["alone"]]
    return relative_reduction([PairedErrors(counts["student"], counts["alone"], words, speakers)])


def did_it_help(found: "Reduction", findings: Findings) -> str:
    """Return one sentence: how many errors fewer or more with the teacher, the interval, and what that shows."""
    alone, student = (_figures(findings.predictions(name))["wer"] for name in ("alone", "student"))
    change = f"{abs(found.value):.1%} {'fewer' if found.value >= 0 else 'more'} word errors"
    return (
        f"**Did it help? With its teacher the student makes {change} than alone: {student:.1%} against {alone:.1%} "
        f"WER of {found.words} words by {found.speakers} unseen voices, a reduction with the 95% interval "
        f"{found.low:+.0%} to {found.high:+.0%}: {found.verdict}.** One training of each, with equal updates: another "
        "seed gives other figures."
    )


def table(findings: Findings) -> str:
    """Return the results as a Markdown table, which also reads well in a terminal."""
    lines = [
        "| model                    | parameters | test WER |",
        "|--------------------------|-----------:|---------:|",
    ]
    for branch, name in BRANCHES.items():
        path = findings.predictions(branch)
        parameters, figures = _summary(path)["parameters"], _figures(path)
        lines.append(f"| {name:24} | {parameters:>10,} | {figures['wer']:>8.1%} |")
    return "\n".join(lines)


def about(findings: Findings) -> str:
    """Return how the figures came about."""
    figures = _figures(findings.predictions("student"))
    return f"""Corpus, three trainings and checks took {findings.minutes:.1f} minutes. The speech is synthetic; the
test set has {figures["utterances"]} utterances by voices that are not in the training set."""


def about_curves(curves: "Curves") -> str:
    """Return what the picture shows, with the figures of the run."""
    divergence = curves["train_distillation_loss"]
    first, last = divergence[0][1], divergence[-1][1]
    student, alone, teacher = (curves[name][-1][1] for name in ("val_wer", "val_wer_alone", "val_wer_teacher"))
    return f"""The word error rates on dev end at {student:.1%} (student with its teacher), {alone:.1%} (alone) and
{teacher:.1%} (teacher, at the end of its own training). The distillation loss, KL(teacher || student) of the encoder
logits, goes from {first:.3g} to {last:.3g} nats an utterance. The loss does not reach zero: the student is smaller,
and has a prediction network of its own. What counts is the student's word error rate."""


def still_learning(alone: list[tuple[int, float]]) -> str:
    """Return a sentence about a lone student that has not finished learning, or nothing.

    Args:
        alone: its word error rates on dev, after numbers of updates.

    Example:
        >>> print(still_learning([(600, 0.2), (900, 0.15)]))
        Alone, the student is still learning (20.0% to 15.0% WER on dev in the last 300 updates): more updates may ...
        >>> still_learning([(600, 0.2), (900, 0.19)])
        ''
    """
    if len(alone) < 2 or alone[-1][1] >= (1 - PLATEAU) * alone[-2][1]:
        return ""
    (before, first), (end, last) = alone[-2:]
    return (
        f"Alone, the student is still learning ({first:.1%} to {last:.1%} WER on dev in the last {end - before} "
        "updates): more updates may change the difference, and codert compare --max-steps measures it."
    )


def stock_section(stock: StockTexts) -> str:
    """Return the transcripts of stock NeMo as Markdown."""
    texts = "\n".join(f"| {reference} | {text} |" for reference, text in stock.pairs)
    return f"""`student.nemo` restored as `{stock.model}` with `{stock.joint}`, in a process where `nemo_codert` cannot
be imported:

| reference | transcript |
|-----------|------------|
{texts}"""


def next_commands(folder: Path, findings: Findings, codert: str) -> str:
    """Return the three commands to try next: export, compare, analyze."""
    corpus, pair = folder / "corpus", findings.runs["pair"] / "pair.nemo"
    return f"""{codert} export --model {pair} --output {folder / "sherpa"} --format sherpa-onnx
{codert} analyze --model {pair} --manifest {corpus / "test.json"} --output-dir {folder / "logits"}
{codert} compare --config-name quickstart --data-dir {corpus} --output-dir {folder / "comparison"} \\
    --strategies student static shared_kd --seeds 0-2 --max-steps 1800 --jobs 2"""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _summary(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.stem}_summary.json").read_text())


def _figures(path: Path) -> dict[str, Any]:
    return _summary(path)["sets"][0]
