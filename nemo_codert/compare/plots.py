"""Plots of a comparison: word error rates of every run, reductions with their intervals, dev WER over the updates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_codert.compare.results import Run
from nemo_codert.compare.tables import Score, label
from nemo_codert.evaluation.figures import POINTS, STUDENT, TEACHER, draw_curves, new_figure, save_figure

PANEL_WIDTH = 5.2  # inches
ROW_HEIGHT = 0.42
FOLD_COLOR = "0.45"  # grey of 4.8:1 on white


def plot_wers(found: Sequence[Score], path: Path) -> Path | None:
    """Plot the WER of every seed (dots) and its mean (bar) for each student and teacher, all folds together, as a PNG.

    Returns None while no seed is finished in all folds.
    """
    together = [score for score in found if score.fold is None]
    if not together:
        return None
    figure, panels = _panels(together, rows=len({label(score) for score in together}))
    for axis, (test_set, own) in panels:
        for row, score in enumerate(own):
            color, marker = (STUDENT, "o") if score.branch == "student" else (TEACHER, "s")
            axis.plot(100 * np.array(score.wers), [row] * len(score.wers), marker, color=color, ms=4, alpha=0.6)
            axis.plot([100 * score.wer] * 2, [row - 0.3, row + 0.3], color=color, lw=2.5)
        axis.set(title=test_set, xlabel="WER, % (a dot a seed, a bar their mean)")
        axis.set_yticks(range(len(own)), [label(score) for score in own])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
    panels[0][0].set_xlim(left=0)  # shared by all panels, hence after the last is drawn
    return save_figure(figure, path)


def plot_reductions(found: Sequence[Score], against: str, path: Path) -> Path | None:
    """Plot relative reductions with their intervals, all folds together in black, each in grey; None without any."""
    compared = [score for score in found if score.reduction and np.isfinite(score.reduction.low)]
    strategies = list(dict.fromkeys(score.strategy for score in compared))
    if not compared:
        return None
    folds = list(dict.fromkeys(score.fold for score in compared))
    figure, panels = _panels(compared, rows=len(strategies) * (1 + 0.4 * (len(folds) - 1)))
    for axis, (test_set, own) in panels:
        for score in own:
            together, reduction = score.fold is None, score.reduction
            row = strategies.index(score.strategy) + 0.7 * folds.index(score.fold) / len(folds)
            low, high = 100 * reduction.low, 100 * reduction.high
            color, width = ("black", 2.2) if together else (FOLD_COLOR, 1.0)
            axis.plot([low, high], [row, row], color=color, lw=width)
            axis.plot(100 * reduction.value, row, "o", color=color, ms=6 if together else 3)
            if not together:
                place = {"textcoords": "offset points", "va": "center", "fontsize": POINTS - 2, "color": FOLD_COLOR}
                axis.annotate(score.fold, (high, row), (4, 0), **place)
        axis.axvline(0, color=TEACHER, lw=1.2, ls="--")
        axis.set(title=test_set, xlabel=f"fewer errors than {against}, %  (95% interval)")
        axis.set_yticks(range(len(strategies)), strategies)
        axis.margins(x=0.2)  # room for the names of folds
        axis.set_ylim(len(strategies) - 0.1, -0.4)
        axis.grid(visible=False, axis="y")
    return save_figure(figure, path)


def plot_dev_wers(runs: Sequence[Run], path: Path) -> Path | None:
    """Plot the students' dev WER over the updates, the mean of a strategy's trainings; None where none is known."""
    trainings: dict[str, list[list[tuple[int, float]]]] = {}
    for run in runs:
        if points := run.dev_wers.get("student"):
            trainings.setdefault(run.cell.strategy, []).append(points)
    if not trainings:
        return None
    curves = {}
    for strategy, own in trainings.items():
        steps = sorted(set.intersection(*({step for step, _ in points} for points in own)))
        curves[strategy] = steps, [100 * np.mean([dict(points)[step] for points in own]) for step in steps]
    figure, (axis,) = new_figure(1.6 * PANEL_WIDTH, PANEL_WIDTH)
    draw_curves(axis, curves)
    axis.set(xlabel="updates", ylabel="WER of the student on dev, %", ylim=(0, None))
    return save_figure(figure, path)


def _panels(found: Sequence[Score], rows: float) -> tuple:
    """Return a figure and, for each test set, its axis and its scores."""
    sets: dict[str, list[Score]] = {}
    for score in found:
        sets.setdefault(score.test_set, []).append(score)
    figure, axes = new_figure(PANEL_WIDTH, 1.3 + ROW_HEIGHT * rows, len(sets), sharex=True)
    for axis in axes:
        axis.tick_params(labelbottom=True)
    return figure, list(zip(axes, sets.items(), strict=True))
