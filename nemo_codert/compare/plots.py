"""Plots of a comparison: word error rates of every run, and reductions with their intervals. Imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_codert.compare.results import Run
from nemo_codert.compare.tables import Score, label

PANEL_WIDTH = 5.2  # inches
ROW_HEIGHT = 0.42
DOTS_PER_INCH = 110


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
            color = "tab:blue" if score.branch == "student" else "tab:orange"
            axis.plot(100 * np.array(score.wers), [row] * len(score.wers), "o", color=color, ms=4, alpha=0.6)
            axis.plot([100 * score.wer] * 2, [row - 0.3, row + 0.3], color=color, lw=2.5)
        axis.set(title=test_set, xlabel="WER, % (a dot a seed, a bar their mean)")
        axis.set_yticks(range(len(own)), [label(score) for score in own])
        axis.set_xlim(left=0)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


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
            color, width = ("black", 2.2) if together else ("grey", 1.0)
            axis.plot([low, high], [row, row], color=color, lw=width)
            axis.plot(100 * reduction.value, row, "o", color=color, ms=6 if together else 3)
            if not together:
                axis.annotate(
                    score.fold, (high, row), (4, 0), textcoords="offset points", va="center", fontsize=7, color="grey"
                )
        axis.axvline(0, color="tab:red", lw=1)
        axis.set(title=test_set, xlabel=f"fewer errors than {against}, %  (95% interval)")
        axis.set_yticks(range(len(strategies)), strategies)
        axis.margins(x=0.2)  # room for the names of folds
        axis.set_ylim(len(strategies) - 0.1, -0.4)
        axis.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def plot_dev_wers(runs: Sequence[Run], path: Path) -> Path | None:
    """Plot the students' dev WER over the updates, the mean of a strategy's trainings; None where none is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for run in runs:
        if points := run.dev_wers.get("student"):
            curves.setdefault(run.cell.strategy, []).append(points)
    if not curves:
        return None
    figure, axis = pyplot.subplots(figsize=(1.6 * PANEL_WIDTH, PANEL_WIDTH), constrained_layout=True)
    for number, (strategy, own) in enumerate(curves.items()):
        steps = sorted(set.intersection(*({step for step, _ in points} for points in own)))
        means = [100 * np.mean([dict(points)[step] for points in own]) for step in steps]
        axis.plot(steps, means, label=strategy, ls=("-", "--", ":", "-.")[number % 4], lw=1.6)
    axis.set(title="dev", xlabel="updates", ylabel="WER of the student, %", ylim=(0, None))
    axis.legend()
    axis.grid(alpha=0.3)
    return _saved(figure, path)


def _panels(found: Sequence[Score], rows: float) -> tuple:
    """Return a figure and, for each test set, its axis and its scores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets: dict[str, list[Score]] = {}
    for score in found:
        sets.setdefault(score.test_set, []).append(score)
    size = PANEL_WIDTH * len(sets), 1.3 + ROW_HEIGHT * rows
    figure, axes = pyplot.subplots(1, len(sets), figsize=size, constrained_layout=True, squeeze=False)
    return figure, list(zip(axes[0], sets.items(), strict=True))


def _saved(figure: object, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    pyplot.close(figure)
    return path
