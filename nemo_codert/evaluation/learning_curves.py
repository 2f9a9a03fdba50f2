"""Curves of a run, read from the TensorBoard events in its folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_codert.config.criteria import ONE_TERM, TERM_LOSS
from nemo_codert.evaluation.figures import PALETTE, draw_curves, new_figure, save_figure
from nemo_codert.evaluation.word_errors import is_rate

Curves = dict[str, list[tuple[int, float]]]  # name -> (optimizer step, value) in order

BRANCH_LOSSES = {
    "train_rnnt_loss_student": "student, training",
    "train_rnnt_loss_teacher": "teacher, training",
    "train_ctc_loss_student": "student's CTC, training",
    "val_loss": "student, dev",
}
WERS = {"val_wer": "student", "val_wer_teacher": "teacher", "val_wer_alone": "student, trained alone"}


def read_curves(folder: str | Path) -> Curves:
    """Read the scalars of a run.

    Args:
        folder: of the run, with TensorBoard's event files.

    Returns:
        Name -> (optimizer step, value) in order. NaN of a term of the loss is left out: that is how a term is logged
        that is over.

    Raises:
        ValueError: no event file in the folder.
    """
    # NeMo puts the events of a run that may be resumed into a folder for each start.
    name = "events.out.tfevents.*"
    files = [*sorted(Path(folder).glob(name)), *sorted(Path(folder).glob(f"version_*/{name}"))]
    if not files:
        raise ValueError(f"{folder} has no events.out.tfevents.* file: give the folder of a run")
    curves: Curves = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            is_term = tag.startswith("train_") and tag != "train_loss"
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            curves.setdefault(tag, []).extend(point for point in found if not (is_term and math.isnan(point[1])))
    return {tag: sorted(points) for tag, points in curves.items() if points}


def panels(curves: Curves) -> list[tuple[str, dict[str, str]]]:
    """Return the titles of the pictures of a run, each with the names of its curves and their labels.

    Every term of `codert.distillation` that the run logged has a curve, under the name of the term.

    Example:
        >>> logged = {"train_distillation_loss": [(0, 1.0)], "train_distillation_loss_hidden": [(0, 2.0)]}
        >>> panels(logged)[-1]
        ('Distillation', {'train_distillation_loss': 'encoder', 'train_distillation_loss_hidden': 'hidden'})
    """
    others = {name: name.removeprefix(f"{TERM_LOSS}_") for name in sorted(curves) if name.startswith(f"{TERM_LOSS}_")}
    if others:
        distillation = "Distillation", {TERM_LOSS: ONE_TERM, **others}
    else:
        distillation = "Distillation, nats per utterance", {TERM_LOSS: "KL(teacher || student)"}
    return [("RNN-T loss, nats per utterance", BRANCH_LOSSES), ("WER on dev, %", WERS), distillation]


def plot_curves(curves: Curves, path: str | Path) -> Path:
    """Draw losses, word error rates and the distillation terms as a PNG.

    Args:
        curves: of `read_curves`.
        path: of the PNG.

    Returns:
        `path` as a Path.
    """
    shown = panels(curves)
    figure, axes = new_figure(6.0, 4.0, len(shown))
    for axis, (title, names) in zip(axes, shown, strict=True):
        scale = 100.0 if names is WERS else 1.0
        drawn = {label: curves[name] for name, label in names.items() if curves.get(name)}
        draw_curves(
            axis,
            {label: ([s for s, _ in points], [scale * v for _, v in points]) for label, points in drawn.items()},
            markers=names is WERS,
        )
        axis.set(title=title, xlabel="optimizer step", ylim=(0, _top(curves, names)))
    return save_figure(figure, path)


def largest_difference(reference: Curves, curves: Curves, name: str) -> tuple[int, float, float]:
    """Return the number of common steps of two runs on the curve `name`, and the largest differences there.

    Args:
        reference, curves: of `read_curves`.
        name: of the curve.

    Returns:
        Number of steps, largest absolute difference, largest relative difference; NaN where a curve is.

    Raises:
        ValueError: no step in common.

    Example:
        >>> largest_difference({"loss": [(1, 4.0), (2, 2.0)]}, {"loss": [(2, 2.5), (3, 1.0)]}, "loss")
        (1, 0.5, 0.25)
    """
    values, wanted = dict(curves.get(name, [])), dict(reference.get(name, []))
    steps = sorted(values.keys() & wanted.keys())
    if not steps:
        raise ValueError(f"the runs have no step of {name} in common: they logged {sorted(curves)}")
    apart = [abs(values[step] - wanted[step]) for step in steps]
    relative = [d / abs(wanted[step]) if d else 0.0 for d, step in zip(apart, steps, strict=True)]
    if any(map(math.isnan, apart)):
        return len(steps), math.nan, math.nan
    return len(steps), max(apart), max(relative)


@dataclass(frozen=True)
class Difference:
    """One curve of a run beside the first run's.

    Args:
        curve: its name.
        run: name of the run.
        steps: number of steps that both runs have.
        absolute: the largest difference at these steps.
        relative: the largest difference as a share of the first run's value.
    """

    curve: str
    run: str
    steps: int
    absolute: float
    relative: float

    @property
    def distance(self) -> str:
        """The largest difference as it is printed; that of an error rate in points."""
        return f"{100 * self.absolute:.2f} points of WER" if is_rate(self.curve) else f"{self.absolute:.3g}"


def compare_runs(folders: Mapping[str, str | Path], names: Sequence[str], path: str | Path) -> list[Difference]:
    """Compare the curves of several runs with those of the first, and draw them over each other.

    Args:
        folders: folders of runs, with event files, by the name of the run.
        names: curves, as they are logged.
        path: of the PNG.

    Returns:
        One difference for every further run and curve.

    Raises:
        ValueError: a folder without event files, or runs without a step in common.
    """
    runs = {name: read_curves(folder) for name, folder in folders.items()}
    (_, reference), *others = runs.items()
    differences = [
        Difference(curve, name, *largest_difference(reference, curves, curve))
        for name, curves in others
        for curve in names
    ]
    plot_runs(runs, names, path)
    return differences


def plot_runs(runs: dict[str, Curves], names: Sequence[str], path: str | Path) -> Path:
    """Draw the curves `names` of several runs over each other as a PNG, the later ones thinner."""
    figure, axes = new_figure(6.0, 4.0, len(names))
    for axis, name in zip(axes, names, strict=True):
        for place, (run, curves) in enumerate(runs.items()):
            points = curves.get(name, [])
            width, style = (3.0, "-") if place == 0 else (1.2, "--")
            color = PALETTE[place % len(PALETTE)]
            scale = 100.0 if is_rate(name) else 1.0
            axis.plot([s for s, _ in points], [scale * v for _, v in points], style, label=run, lw=width, color=color)
        axis.set(title=f"{name}, %" if is_rate(name) else name, xlabel="optimizer step")
        axis.legend()
    return save_figure(figure, path)


def _top(curves: Curves, names: dict[str, str]) -> float | None:
    """Return the upper end of the axis: the first steps of a loss tower above the rest and would flatten the curve."""
    if any("wer" in name for name in names):
        return 105.0
    later = [value for name in names for step, value in curves.get(name, []) if step >= 50]
    return 1.05 * max(later) if later else None
