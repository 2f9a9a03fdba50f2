"""Look of all figures: a palette for colour-blind readers, dashes, sizes. Imports matplotlib when called."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
STUDENT, TEACHER = PALETTE[:2]
DASHES = ("-", "--", "-.", ":")
MARKERS = "os^Dv"
DOTS_PER_INCH = 144
POINTS = 10  # size of texts: 20 pixels of the picture, 13 on a page that shows it at 96 dots an inch


def new_figure(width: float, height: float, panels: int = 1, **shared: bool) -> tuple["Figure", Sequence["Axes"]]:
    """Make a figure with panels, at most two in a row, so that texts stay readable on a narrow page.

    Args:
        width, height: inches, of a panel.
        panels: number of axes.
        shared: matplotlib's `sharex`, `sharey`.

    Returns:
        The figure and its axes.

    Example:
        >>> figure, (axis,) = new_figure(6, 4)
        >>> axis.get_facecolor()
        (1.0, 1.0, 1.0, 1.0)
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": POINTS, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}):
        columns, rows = min(panels, 2), (panels + 1) // 2
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False, **shared).flat
    for unused in axes[panels:]:
        unused.remove()
    return figure, list(axes[:panels])


def draw_curves(
    axis: "Axes", curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, markers: bool = False
) -> None:
    """Draw named curves, each with a colour and a dash of its own, and a legend.

    Args:
        axis: where to draw.
        curves: name -> (x, y), of equal length.
        markers: whether every point is marked, for curves of few points.
    """
    for number, (name, (x, y)) in enumerate(curves.items()):
        dash = DASHES[number % len(DASHES)]  # seven colours and four dashes: 28 curves before a look repeats
        marker = MARKERS[number % len(MARKERS)] if markers else None
        axis.plot(x, y, label=name, color=PALETTE[number % len(PALETTE)], ls=dash, lw=1.8, marker=marker, ms=4)
    if curves:
        axis.legend(fontsize=POINTS - 1)


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as a PNG without the date and version that make equal figures differ; return the path."""
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Path(path)
