"""Report of the logit analysis: CSV tables, PNG pictures and one HTML page that holds everything."""

import base64
import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from markupsafe import Markup
from matplotlib.figure import Figure

from nemo_codert.analysis.figures import (
    BLANK,
    DPI,
    UtterancePage,
    agreement_figure,
    entropy_figure,
    utterance_figures,
)
from nemo_codert.analysis.measures import Agreement, Shift
from nemo_codert.analysis.page import render
from nemo_codert.analysis.readings import FRAME_SOURCES, SOURCES, VIEWS, WITH_PRIOR, Analysis, BranchReadings
from nemo_codert.evaluation.word_errors import aligned, word_errors
from nemo_codert.files.atomic import whole_folder

SCREEN_DPI = 100  # dots per inch at which text in a picture has its intended size in the page
CONFUSIONS_SHOWN = 60


@dataclass(frozen=True)
class MeasureRow:
    """One source of one branch in one view: number of rows and their mean measures, None without a row.

    Entropies in nats: mean, median, ninetieth percentile, and mean among word pieces; `blank` is the mean blank mass.
    """

    branch: str
    source: str
    view: str
    count: int
    mean: float | None
    median: float | None
    ninetieth: float | None
    pieces: float | None
    blank: float | None


@dataclass(frozen=True)
class MeasuredModel:
    """Figures of one model of a sequence. step: optimizer step, None if unknown. The last three: see `Analysis`."""

    name: str
    path: str
    step: int | None
    rows: list[MeasureRow]
    agreement: Agreement | None
    agreement_with_prior: Agreement | None = None
    shift: Shift | None = None


@dataclass(frozen=True)
class LogitReport:
    """Contents of a report: models in the order of training, and the last one in full with its shown utterances.

    transcript_faults: number of transcripts for each fault.
    """

    manifest: str
    utterances: int
    audio_seconds: float
    top_k: int
    models: list[MeasuredModel]
    last: Analysis
    pages: list[UtterancePage]
    transcript_faults: dict[str, int] = field(default_factory=dict)

    @property
    def warning(self) -> str | None:
        """Warning of transcripts whose alignments mean little; None if there is none."""
        if not self.transcript_faults:
            return None
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.transcript_faults.items())
        return (
            f"{sum(self.transcript_faults.values())} of {self.utterances} transcripts in {self.manifest} cannot be "
            f"aligned as they were spoken ({reasons}), and are measured like all others. Mend or remove these lines"
        )


def measure_rows(branches: dict[str, BranchReadings]) -> list[MeasureRow]:
    """Return the table of one model."""
    rows = []
    for name, own in branches.items():
        for source in SOURCES:
            for view in VIEWS:
                seen, values = own.readings[source, view], [None] * 5
                if len(seen.entropy):
                    tenths = np.quantile(seen.entropy, (0.5, 0.9))
                    values = [float(x) for x in (seen.entropy.mean(), *tenths, seen.pieces.mean(), seen.blank.mean())]
                rows.append(MeasureRow(name, source, view, len(seen.entropy), *values))
    return rows


def headline(model: MeasuredModel) -> str:
    """Return the sentences that the page begins with: agreement of the two models, entropies of encoder and joint."""
    parts = []
    if (own := model.agreement) is not None:
        prior = model.agreement_with_prior
        parts.append(
            f"Student and teacher name the same class in {own.top1:.1%} of {own.frames} encoder frames"
            + (f", with the prior in {prior.top1:.1%}" if prior else "")
        )
    by_key = {(row.branch, row.source): row for row in model.rows if row.view == "all"}
    for branch in dict.fromkeys(row.branch for row in model.rows):
        encoder, joint = by_key[branch, "encoder"], by_key[branch, "joint"]
        if encoder.count and joint.count:
            owner = "The" if branch == "model" else f"The {branch}'s"
            parts.append(f"{owner} encoder logits have an entropy of {_beside(encoder.mean, joint.mean)}")
    return " ".join(f"{part}." for part in parts)


def findings(rows: Sequence[MeasureRow]) -> list[str]:
    """Return sentences for each branch: the entropies of its encoder logits beside its joint's."""
    by_key = {(row.branch, row.source, row.view): row for row in rows}
    lines = []
    for branch in dict.fromkeys(row.branch for row in rows):
        for view in VIEWS:
            encoder, joint = by_key[branch, "encoder", view], by_key[branch, "joint", view]
            if encoder.count:
                prior = by_key[branch, WITH_PRIOR, view].mean
                lines.append(
                    f"{branch}, {view} frames: mean entropy of the encoder {_beside(encoder.mean, joint.mean)}"
                    f"{'' if prior is None else f', with the prior {prior:.3f}'}; "
                    f"among word pieces alone {_beside(encoder.pieces, joint.pieces)}"
                )
    return lines


def _beside(encoder: float, joint: float) -> str:
    times = f"{encoder / joint:.2f} times " if joint > 0 else ""
    return f"{encoder:.3f} nats, {times}the joint's {joint:.3f}"


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder to write into; its files move to `path` after the block and are removed on an error.

    Raises:
        ValueError: `path` is a file, holds something already, or cannot be made.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} is there already and not empty: nothing is overwritten. Give a new folder")
    with ExitStack() as stack:
        try:
            writing = stack.enter_context(whole_folder(path, last=".html"))
        except OSError as error:
            raise ValueError(f"{path} cannot be made ({error.strerror}). Give another folder") from error
        yield writing


def write_logit_report(folder: str | Path, report: LogitReport) -> Path:
    """Write tables, pictures and `report.html` into an empty folder and return the page's path."""
    folder = Path(folder)
    _write_measures(folder / "measures.csv", report.models)
    confusions = {name: _confusions(own, report.top_k) for name, own in report.last.branches.items()}
    _write_confusions(folder / "confusions.csv", confusions)
    agreements = [model for model in report.models if model.agreement is not None]
    if agreements:
        _write_agreements(folder / "agreement.csv", agreements)
    if report.pages:
        _write_frames(folder / "frames.csv", report.pages)
    branches = report.last.branches
    classes = len(next(iter(branches.values())).pieces) + 1
    page = render(
        report=report,
        headline=headline(report.models[-1]),
        findings=findings(report.models[-1].rows),
        classes=classes,
        uniform=math.log(classes),
        agreements=agreements,
        confusions={name: rows[:CONFUSIONS_SHOWN] for name, rows in confusions.items()},
        confusions_left_out=any(len(rows) > CONFUSIONS_SHOWN for rows in confusions.values()),
        entropy_png=_saved(entropy_figure(branches), folder / "entropy.png"),
        agreement_png=_drawn_agreements(agreements, folder / "agreement.png"),
        pages=[_drawn_page(page, i, folder) for i, page in enumerate(report.pages)],
        blank=BLANK,
        number=_number,
        image=_image,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# ---- pictures ------------------------------------------------------------------------------------------------------


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    return path


def _drawn_agreements(models: Sequence[MeasuredModel], path: Path) -> Path | None:
    """Draw the curves, if there are at least two models."""
    if len(models) < 2:
        return None
    steps = [model.step for model in models]
    known = steps if None not in steps and len(set(steps)) == len(steps) else None
    shifts = [model.shift for model in models if model.shift]
    shifts = shifts if len(shifts) == len(models) else []
    return _saved(
        agreement_figure([model.agreement for model in models], known, [m.name for m in models], shifts), path
    )


def _drawn_page(page: UtterancePage, place: int, folder: Path) -> dict[str, object]:
    figures = utterance_figures(page)
    stem = f"utterance_{place:03d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', page.id)[:80]}"
    names = [f"{stem}_{i}.png" if len(figures) > 1 else f"{stem}.png" for i in range(len(figures))]
    pngs = [_saved(figure, folder / name) for figure, name in zip(figures, names, strict=True)]
    return {
        "anchor": f"utterance-{place}",
        "id": page.id,
        "text": page.text or "(no transcript)",
        "pngs": pngs,
        "sound": _sound(page),
        "names": list(page.hypotheses),
        "direction": _direction(page.text),
        "columns": aligned(page.text, page.hypotheses),
        "errors": {name: word_errors(page.text, text).errors for name, text in page.hypotheses.items()},
    }


def _direction(text: str) -> str:
    """Return the direction in which a text is read, for HTML: `rtl` if its first letter is of such a script."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    return "rtl" if next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L" else "ltr"


def _sound(page: UtterancePage) -> str:
    """Return the samples as FLAC in base64, which browsers play."""
    content = io.BytesIO()
    soundfile.write(content, np.clip(page.signal, -1.0, 1.0), page.sample_rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(content.getvalue()).decode("ascii")


def _image(path: Path, description: str) -> Markup:
    """Return an `img` element with the picture embedded."""
    content = path.read_bytes()
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))  # fields of PNG's first chunk
    sizes = f'width="{round(width * SCREEN_DPI / DPI)}" height="{round(height * SCREEN_DPI / DPI)}"'
    source = base64.b64encode(content).decode("ascii")
    return Markup('<img alt="{}" {} src="data:image/png;base64,{}">').format(description, Markup(sizes), source)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# ---- tables --------------------------------------------------------------------------------------------------------


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_measures(path: Path, models: Sequence[MeasuredModel]) -> None:
    columns = [
        "model",
        "step",
        "branch",
        "logits",
        "view",
        "rows",
        "entropy_mean",
        "entropy_median",
        "entropy_90",
        "piece_entropy_mean",
    ]
    rows = (
        (m.path, m.step, r.branch, r.source, r.view, r.count, r.mean, r.median, r.ninetieth, r.pieces, r.blank)
        for m in models
        for r in m.rows
    )
    _write(path, [*columns, "blank_mass"], rows)


def _write_agreements(path: Path, models: Sequence[MeasuredModel]) -> None:
    columns = ["top1_agreement", "kl_nats_per_frame", "top1_agreement_with_prior", "kl_nats_per_frame_with_prior"]
    columns += ["teacher_shift", "student_shift", "shift_apart"]
    rows = (
        (m.path, m.step, m.agreement.frames, *_figures(m.agreement), *_figures(m.agreement_with_prior))
        + ((None,) * 3 if m.shift is None else astuple(m.shift))
        for m in models
    )
    _write(path, ["model", "step", "frames", *columns], rows)


def _figures(measured: Agreement | None) -> tuple[float | None, float | None]:
    return (None, None) if measured is None else (measured.top1, measured.divergence)


@dataclass(frozen=True)
class _PieceRow:
    """A `Confusion` with word pieces in place of ids."""

    piece: str
    count: int
    first: float
    blank: float
    own: float
    pieces: list[tuple[str, float]]


def _confusions(own: BranchReadings, top_k: int) -> list[_PieceRow]:
    return [
        _PieceRow(
            own.pieces[row.token],
            row.count,
            row.first,
            row.blank,
            row.own,
            [(own.pieces[i], p) for i, p in row.pieces],
        )
        for row in own.confusions.most_frequent(top_k)
    ]


def _write_confusions(path: Path, confusions: dict[str, list[_PieceRow]]) -> None:
    columns = ["branch", "reference", "emitted", "first", "blank_mass", "own_probability", "rank", "piece"]
    rows = (
        (name, row.piece, row.count, row.first, row.blank, row.own, rank, piece, probability)
        for name, own in confusions.items()
        for row in own
        for rank, (piece, probability) in enumerate(row.pieces, start=1)
    )
    _write(path, [*columns, "probability"], rows)


def _write_frames(path: Path, pages: Sequence[UtterancePage]) -> None:
    """Write one line for each frame and branch of the shown utterances; `top`: the encoder's classes with blank."""
    columns = ["utterance", "branch", "frame", "start_s", "state", "emits"]
    columns += [f"{source}_{what}" for source in FRAME_SOURCES for what in ("entropy", "piece_entropy", "blank_mass")]
    columns.append("top")
    _write(path, columns, (line for page in pages for name in page.branches for line in _frame_lines(page, name)))


def _frame_lines(page: UtterancePage, name: str) -> Iterator[tuple[object, ...]]:
    own, pieces = page.branches[name], [*page.pieces[name], BLANK]
    for t, state in enumerate(own.states):
        emits = " ".join(pieces[token] for token in own.tokens[own.frames == t])
        top = " ".join(f"{pieces[i]}:{p:.4f}" for i, p in zip(own.classes[t], own.probabilities[t], strict=True))
        readings = [values[t] for source in FRAME_SOURCES for values in own.readings[source]]
        yield page.id, name, t, round(t * page.seconds_per_frame[name], 6), state, emits, *readings, top
