"""Pictures of the logit analysis: entropies, agreement over training, one utterance frame by frame.

Colours are those of all figures; every curve also has its own line style.
Imports matplotlib. B batch, T encoder frames, U target tokens, V vocabulary without blank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from matplotlib import mlab
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from nemo_codert.analysis.measures import Agreement, Shift
from nemo_codert.analysis.readings import FRAME_SOURCES, VIEWS, BranchReadings, FrameReadings
from nemo_codert.evaluation.figures import PALETTE, STUDENT, TEACHER

DPI = 120
STYLES = {"encoder": (PALETTE[0], "-"), "joint": (PALETTE[1], "--"), "prediction": (PALETTE[2], ":")}
BLANK = "∅"
FRAMES_PER_STRIP = 50  # frames of the faster branch: a column is then wide enough for an upright word piece
SHOWN_PROBABILITY = 0.01
LONGEST_LABEL = 16  # characters
CHARACTER_INCHES = 0.075  # width of a wide letter in 8 points
WINDOW_SECONDS = 0.025
FLOOR_DB = 80.0  # decibels below the loudest bin


@dataclass(frozen=True)
class UtterancePage:
    """One utterance to draw: samples [S] at `sample_rate` Hz, and readings and transcript of each branch."""

    id: str
    text: str
    signal: np.ndarray
    sample_rate: int
    branches: dict[str, FrameReadings]
    seconds_per_frame: dict[str, float]
    pieces: dict[str, list[str]]
    hypotheses: dict[str, str] = field(default_factory=dict)


def entropy_figure(branches: dict[str, BranchReadings]) -> Figure:
    """Draw the cumulative distributions of the entropies: one row for a branch, one column for a view."""
    figure = Figure(figsize=(12, 3.8 * len(branches)), layout="constrained")
    axes = figure.subplots(len(branches), len(VIEWS), squeeze=False)
    for row, (name, readings) in zip(axes, branches.items(), strict=True):
        uniform = math.log(len(readings.pieces) + 1)
        for axis, view in zip(row, VIEWS, strict=True):
            for source in ("encoder", "joint", "prediction"):
                values = readings.readings[source, view].entropy
                if len(values):
                    colour, style = STYLES[source]
                    label = f"{source}, mean {values.mean():.3f}"
                    axis.ecdf(values, label=label, color=colour, ls=style, lw=2)
            axis.axvline(uniform, color="0.4", lw=1)
            axis.annotate(
                "equal logits ", (uniform, 0.03), rotation=90, ha="right", va="bottom", color="0.3", fontsize=9
            )
            axis.set(xlim=(0, 1.03 * uniform), ylim=(0, 1.02), title=f"{name}: {view} frames")
            axis.set(xlabel="entropy (nats)", ylabel="share with at most this entropy")
            axis.grid(alpha=0.3)
            axis.legend(loc="center right")
    return figure


def agreement_figure(
    agreements: Sequence[Agreement],
    steps: Sequence[int] | None,
    names: Sequence[str],
    shifts: Sequence[Shift] = (),
) -> Figure:
    """Draw top-1 agreement and KL of the encoder logits over training, and the shifts between the two models.

    Drawn by step, or by model if steps are unknown. shifts: one for each model, or none.
    """
    places = range(len(agreements)) if steps is None else steps
    panels = [
        ({"": [100 * one.top1 for one in agreements]}, "same likeliest class (% of frames)", [PALETTE[0]]),
        ({"": [one.divergence for one in agreements]}, "KL(teacher || student) (nats a frame)", [PALETTE[1]]),
    ]
    if shifts:
        curves = {name: [getattr(one, name) for one in shifts] for name in ("teacher", "student", "apart")}
        panels.append((curves, "shift c (nats, rms over classes)", [TEACHER, STUDENT, "black"]))
    figure = Figure(figsize=(6 * len(panels), 3.8), layout="constrained")
    for axis, (curves, label, colours) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for (name, values), colour, marker in zip(curves.items(), colours, "os^", strict=False):
            axis.plot(places, values, color=colour, marker=marker, lw=2, label=name)
        if len(curves) > 1:
            axis.legend()
        highest = max(value for values in curves.values() for value in values)
        axis.set(ylabel=label, xlabel="optimizer step" if steps is not None else "model, in the order given")
        axis.set_ylim(0, 102 if "%" in label else 1.1 * (highest or 1.0))
        if steps is None:
            axis.set_xticks(list(places), names, rotation=30, ha="right")
        axis.grid(alpha=0.3)
    return figure


# ---- one utterance -------------------------------------------------------------------------------------------------


def utterance_figures(page: UtterancePage) -> list[Figure]:
    """Draw an utterance as one or more pictures, each a stretch of time at one scale, with all panels aligned."""
    frame_seconds = page.seconds_per_frame.values()
    seconds = max(len(own.states) * page.seconds_per_frame[name] for name, own in page.branches.items())
    strips = math.ceil(seconds / (FRAMES_PER_STRIP * min(frame_seconds)) - 1e-9)
    longest = max(frame_seconds)
    width = math.ceil(seconds / longest / strips - 1e-9) * longest  # a strip ends between frames of every branch
    spectrogram = _spectrogram(page.signal, page.sample_rate)
    return [_strip(page, spectrogram, i * width, (i + 1) * width) for i in range(strips)]


def _strip(page: UtterancePage, spectrogram: tuple[np.ndarray, tuple], start: float, end: float) -> Figure:
    heights = [0.9, 1.5]
    for name, own in page.branches.items():
        heights += [1.7, own.classes.shape[1] * _rank_height(own, page.pieces[name])]
    columns = (end - start) / min(page.seconds_per_frame.values())
    figure = Figure(figsize=(min(max(0.24 * columns, 6.0), 13.0) + 2.2, sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    times = np.arange(len(page.signal)) / page.sample_rate
    axes[0].plot(times, page.signal, color="0.25", lw=0.6)
    axes[0].set(ylabel="amplitude", ylim=(-1.05 * _loudest(page.signal), 1.05 * _loudest(page.signal)))
    _draw_spectrogram(axes[1], *spectrogram)
    for place, (name, own) in enumerate(page.branches.items()):
        edges = np.arange(len(own.states) + 1) * page.seconds_per_frame[name]
        pieces = [*map(piece_label, page.pieces[name]), BLANK]
        inside = (edges[:-1] >= start - 1e-9) & (edges[:-1] < end - 1e-9)
        _draw_entropies(axes[2 + 2 * place], name, own, edges, pieces, inside)
        _draw_pieces(axes[3 + 2 * place], name, own, edges, pieces, inside)
    axes[-1].set(xlabel="time (s)", xlim=(start, end))
    for axis in axes:
        axis.tick_params(labelsize=9)
    figure.align_ylabels(axes)
    return figure


def _rank_height(own: FrameReadings, pieces: list[str]) -> float:
    """Return the height in inches of the longest upright word piece."""
    written = np.unique(own.classes[own.probabilities >= SHOWN_PROBABILITY])
    longest = max((len(piece_label(pieces[i])) for i in written if i < len(pieces)), default=1)
    return max(0.48, 0.12 + CHARACTER_INCHES * longest)


def _loudest(signal: np.ndarray) -> float:
    return float(np.abs(signal).max()) or 1.0


def _spectrogram(signal: np.ndarray, sample_rate: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return decibels [bins, windows], and the picture's extent in seconds and Hz."""
    window = min(int(WINDOW_SECONDS * sample_rate), len(signal))
    hop = max(window // 2, 1)
    power, frequencies, times = mlab.specgram(signal, window, sample_rate, noverlap=window - hop)
    decibels = 10 * np.log10(np.maximum(power, 1e-20))
    half = hop / sample_rate / 2
    return decibels, (times[0] - half, times[-1] + half, frequencies[0], frequencies[-1])


def _draw_spectrogram(axis: Axes, decibels: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    loudest = decibels.max()
    image = axis.imshow(
        decibels, cmap="magma", aspect="auto", origin="lower", extent=extent, vmin=loudest - FLOOR_DB, vmax=loudest
    )
    axis.set_ylabel("frequency (Hz)")
    _colour_bar(axis, image, "dB")


def _draw_entropies(
    axis: Axes, name: str, own: FrameReadings, edges: np.ndarray, pieces: list[str], inside: np.ndarray
) -> None:
    centres = (edges[:-1] + edges[1:]) / 2
    for source in FRAME_SOURCES:
        colour, style = STYLES[source]
        axis.stairs(own.readings[source].entropy, edges, color=colour, ls=style, lw=1.8, label=source, baseline=None)
    axis.plot(
        centres[own.frames[own.first]],
        own.emitting,
        "D",
        color=STYLES["joint"][0],
        ms=5,
        mec="k",
        mew=0.6,
        label="joint, emitting",
    )
    for frame in np.unique(own.frames):
        axis.axvline(centres[frame], color="0.6", lw=0.8, zorder=0)
        if inside[frame]:
            emitted = " ".join(pieces[token] for token in own.tokens[own.frames == frame])
            axis.text(
                centres[frame], 1.03, emitted, rotation=90, ha="center", va="bottom", fontsize=9,
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
    axis.set(ylabel=f"{name}\nentropy (nats)", ylim=(-0.1, 1.05 * math.log(len(pieces))))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), fontsize=9, frameon=False)


def _draw_pieces(
    axis: Axes, name: str, own: FrameReadings, edges: np.ndarray, pieces: list[str], inside: np.ndarray
) -> None:
    ranks = np.arange(own.classes.shape[1] + 1)
    image = axis.pcolormesh(edges, ranks, own.probabilities.T, cmap="Blues", vmin=0, vmax=1, edgecolors="0.85", lw=0.3)
    centres = (edges[:-1] + edges[1:]) / 2
    for frame in np.flatnonzero(inside):
        for rank, probability in enumerate(own.probabilities[frame]):
            if probability >= SHOWN_PROBABILITY:
                axis.text(
                    centres[frame], rank + 0.5, pieces[own.classes[frame, rank]], rotation=90, ha="center",
                    va="center", fontsize=8, color="white" if probability > 0.55 else "black",
                )  # fmt: skip
    axis.set(ylim=(len(ranks) - 1, 0), yticks=ranks[:-1] + 0.5, yticklabels=[f"{rank + 1}" for rank in ranks[:-1]])
    axis.set_ylabel(f"{name} encoder:\nlikeliest")
    _colour_bar(axis, image, "probability")


def _colour_bar(axis: Axes, image: object, label: str) -> None:
    place = axis.inset_axes((1.01, 0.0, 0.012, 1.0))  # placed beside the axis, so that all axes keep one time scale
    bar = axis.figure.colorbar(image, cax=place)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


@lru_cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def piece_label(piece: str) -> str:
    """Return a word piece for pictures, cut after 16 characters: `_` begins a word, `U+4E2D` is not in the font."""
    piece = piece.replace("▁", "_")  # SentencePiece's mark hangs below the line and is lost beside upright text
    shown = "".join(sign if ord(sign) in _known_characters() else f"U+{ord(sign):04X}" for sign in piece)
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    return shown.replace("$", r"\$")  # matplotlib reads text between dollar signs as a formula
