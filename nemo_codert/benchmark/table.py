"""Output of a benchmark: rows of seconds and memory, findings compared with targets, CSV and plots.

Imports `measure`, and matplotlib for the plots.
"""

import csv
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_codert.benchmark.machine import installed, processor
from nemo_codert.benchmark.measure import Growth, PeakMemory, growth
from nemo_codert.evaluation.figures import draw_curves, new_figure, save_figure

PACKAGES = ("torch", "nemo_toolkit", "numba", "numpy")
MEGABYTE = 1e6
HEADER = ("implementation", "median s", "fastest", "slowest", "rounds", "x", "peak MB", "resident MB", "held MB")
WIDTHS = (43, 10, 10, 10, 6, 9, 9, 11, 8)


@dataclass(frozen=True)
class CostRow:
    """One line of the table.

    part: of the benchmark. setting: title of a group of rows. sizes: the batch's, by name. seconds: one per round.
    ratio: to `ratio_to`, round by round. memory: see `PeakMemory`. held_bytes: size of inputs held by the caller, not
    in `memory`.
    """

    part: str
    setting: str
    name: str
    sizes: dict[str, int]
    seconds: list[float]
    ratio: float | None = None
    ratio_to: str | None = None
    memory: PeakMemory | None = None
    held_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Finding:
    """A number computed from the rows, with its target, if any: `at_most` or `at_least`."""

    text: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """True or False where there is a target, else None."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "NOT MET"}[self.met]
        wanted = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least or 0:g}"
        return f"{self.value:10.3g}  {self.text}" + (f": wanted {wanted}, {verdict}" if verdict else "")


# ---- printed -------------------------------------------------------------------------------------------------------


def format_table(rows: Sequence[CostRow]) -> str:
    """Format the rows as aligned text, grouped by part and setting."""
    lines, group = [], None
    for row in rows:
        if (row.part, row.setting) != group:
            group = row.part, row.setting
            to = f"   (x: of {row.ratio_to})" if row.ratio_to else ""
            lines += ["", f"{row.part}: {row.setting}{to}", _line(HEADER)]
        lines.append(_line(_cells(row)))
    return "\n".join(lines)


def _cells(row: CostRow) -> tuple[str, ...]:
    memory = row.memory or PeakMemory(None)
    times = (f"{value:.4g}" for value in (row.median, min(row.seconds), max(row.seconds)))
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    return (row.name, *times, str(len(row.seconds)), ratio, *map(_mb, (*_bytes(memory), row.held_bytes)))


def _bytes(memory: PeakMemory) -> tuple[int | None, int | None]:
    return memory.allocator, memory.resident


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / MEGABYTE:.1f}"


def _line(cells: Sequence[str]) -> str:
    texts = [f"{cell:>{width}}" for cell, width in zip(cells[1:], WIDTHS[1:], strict=True)]
    return f"  {cells[0]:{WIDTHS[0]}}" + " ".join(texts)


def describe_machine(device: str, threads: int) -> str:
    """Return processor, cores, threads, GPU and versions, on which the seconds depend."""
    lines = [f"{processor()}, {os.cpu_count()} cores, {threads} torch threads, {platform.system()}"]
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(0)
        lines.append(f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    versions = [f"{name} {installed(name, 'unknown')}" for name in PACKAGES]
    lines.append(", ".join([*versions, f"python {platform.python_version()}"]))
    return "\n".join(lines)


# ---- written -------------------------------------------------------------------------------------------------------


def write_csv(rows: Sequence[CostRow], path: Path, device: str, threads: int) -> Path:
    """Write one line per row: sizes, seconds, ratio, bytes. An empty field was not measured or does not apply."""
    sizes = list(dict.fromkeys(name for row in rows for name in row.sizes))
    columns = ["part", "setting", "implementation", *sizes, "device", "threads", "rounds", "seconds_median"]
    columns += ["seconds_min", "seconds_max", "ratio", "ratio_to", "peak_bytes", "resident_bytes", "held_bytes"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            seconds = row.median, min(row.seconds), max(row.seconds)
            memory = _bytes(row.memory or PeakMemory(None))
            named = [row.sizes.get(name) for name in sizes]
            own = [row.part, row.setting, row.name, *named, device, threads, len(row.seconds)]
            writer.writerow([*own, *seconds, row.ratio, row.ratio_to, *memory, row.held_bytes])
    return path


@dataclass(frozen=True)
class Curve:
    """Cost of one implementation over sizes (in the plot's unit): seconds, and peak bytes where all are known."""

    name: str
    sizes: list[int]
    seconds: list[float]
    peak_bytes: list[int] | None = None


def curves(rows: Sequence[CostRow], size: str) -> list[Curve]:
    """Return one curve per implementation, over `size`: a name in `sizes`, or `cells` (batch * frames * tokens)."""
    by_name: dict[str, list[CostRow]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    found = []
    for name, own in by_name.items():
        own = sorted(own, key=lambda row: _size(row, size))
        peaks = [row.memory.peak if row.memory else None for row in own]
        known = None if None in peaks else peaks
        found.append(Curve(name, [_size(row, size) for row in own], [row.median for row in own], known))
    return found


def _size(row: CostRow, size: str) -> int:
    if size == "cells":
        return row.sizes["batch"] * row.sizes["frames"] * row.sizes["tokens"]
    return row.sizes[size]


def format_growth(found: Sequence[Curve], unit: str) -> str:
    """Format the growth of seconds and peak bytes of each curve with three sizes or more; empty without one."""
    blocks = []
    for cost, sign in (("seconds", "s"), ("peak_bytes", "B")):
        lines = [
            f"  {curve.name:{WIDTHS[0]}}{_growth_text(growth(curve.sizes, costs), sign)}"
            for curve in found
            if (costs := getattr(curve, cost)) and len(set(curve.sizes)) >= 3 and min(costs) > 0
        ]
        blocks += [f"{cost.replace('_', ' ')} against {unit}", *lines] if lines else []
    return "\n".join(blocks)


def _growth_text(fit: Growth, sign: str) -> str:
    power = f"~ size^{fit.exponent:.2f} (R2 {fit.exponent_r2:.4f})"
    return f"{power};  {fit.constant:.3g} {sign} + {fit.slope:.3g} {sign} x size (R2 {fit.linear_r2:.4f})"


def plot_costs(found: Sequence[Curve], unit: str, path: Path) -> Path:
    """Plot seconds, and peak memory where measured, against `unit` on log axes, as a PNG."""
    with_memory = any(curve.peak_bytes for curve in found)
    figure, axes = new_figure(6.0, 4.2, 1 + with_memory)
    measured = [curve for curve in found if curve.peak_bytes]
    memory = {curve.name: (curve.sizes, [peak / MEGABYTE for peak in curve.peak_bytes]) for curve in measured}
    costs = {
        "seconds (loss and gradient)": {curve.name: (curve.sizes, curve.seconds) for curve in found},
        "peak memory beyond the logits, MB": memory,
    }
    for axis, (cost, curves) in zip(axes, costs.items(), strict=False):
        draw_curves(axis, curves, markers=True)
        axis.set(xscale="log", yscale="log", xlabel=unit, ylabel=cost)
    return save_figure(figure, path)
