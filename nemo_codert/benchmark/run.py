"""The benchmark in one call: losses, joint, KL at the joint, training steps, stored targets and decoding.

Imports torch, NeMo and matplotlib when called, so that bad settings are refused first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.config.arguments import require_choice
from nemo_codert.files.atomic import folder_to_fill

if TYPE_CHECKING:
    from nemo_codert.benchmark.additive_loss import LossShape
    from nemo_codert.benchmark.measure import MeasureSettings
    from nemo_codert.benchmark.table import CostRow, Finding
    from nemo_codert.benchmark.training_step import StepSettings

    Found = tuple[list[CostRow], list[Finding]]

PARTS = ("loss", "joint", "lattice", "tdt", "step", "terms", "cache", "decoding")
DEVICES = ("cpu", "cuda")
ABOVE_ZERO = ("rounds", "slow_rounds", "threads", "batch_size", "seconds", "tokens", "vocabulary")
ABOVE_ZERO += ("pred_hidden", "joint_hidden", "decoding_batch_size", "decoding_frames")


@dataclass(frozen=True)
class BenchmarkSettings:
    """Parts of the benchmark and their sizes. Shapes are numbers in the order (B, T, U, V), V without blank.

    Args:
        only: parts to run: `loss`, `joint`, `lattice` (KL at the joint), `tdt` (TDT loss), `step`, `terms` (steps
            with each kind of distillation), `cache` (stored targets), `decoding`.
        device: `cpu` or `cuda`.
        threads: of torch; None leaves them as they are.
        rounds: timed calls of each row.
        slow_rounds: the same, where NeMo's loss runs on the CPU.
        memory: measure peak memory, in a fresh process for each row.
        shapes: of the loss, of the KL at the joint and of the TDT loss, (B, T, U, V); without any, those that the
            targets are stated for.
        vocabularies: V of the loss at one `lattice` (B, T, U).
        lattice: see `vocabularies`.
        lattices: of the loss, (B, T, U), at one V, `lattices_vocabulary`.
        lattices_vocabulary: see `lattices`.
        largest_lattice: GB of the largest lattice that is made; None: 1, on a GPU a quarter of it, 8.6 at most.
        joint_shapes: of the stock joint's loss, (B, T, U, V).
        batch_size: utterances of a training step.
        seconds: of noise per utterance.
        tokens: per utterance.
        vocabulary: word pieces, of the step and of decoding.
        teacher: layers and channels of the teacher's encoder.
        student: layers and channels of the student's encoder.
        pred_hidden: channels of the prediction network.
        joint_hidden: channels of the stock joints.
        decoding_batch_size: utterances that are decoded.
        decoding_frames: encoder frames per utterance.
    """

    only: Sequence[str] = PARTS
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 15
    slow_rounds: int = 2
    memory: bool = True
    shapes: Sequence[tuple[int, int, int, int]] = ()
    vocabularies: Sequence[int] = (256, 1024, 4096, 16384)
    lattice: tuple[int, int, int] = (8, 150, 40)
    lattices: Sequence[tuple[int, int, int]] = ((8, 37, 20), (8, 75, 40), (8, 150, 80), (8, 300, 160))
    lattices_vocabulary: int = 1024
    largest_lattice: float | None = None
    joint_shapes: Sequence[tuple[int, int, int, int]] = ((4, 100, 20, 1024), (4, 400, 100, 4096))
    batch_size: int = 8
    seconds: float = 12.0
    tokens: int = 40
    vocabulary: int = 1024
    teacher: tuple[int, int] = (8, 256)
    student: tuple[int, int] = (4, 144)
    pred_hidden: int = 640
    joint_hidden: int = 640
    decoding_batch_size: int = 16
    decoding_frames: int = 150

    def check(self) -> None:
        """Check all that can be known before torch is imported.

        Raises:
            ValueError: an unknown part or device, a number that is not above 0 or is infinite.
        """
        for part in self.only:
            require_choice("only", part, PARTS)
        require_choice("device", self.device, DEVICES)
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value}, wanted a number above 0")
        if min(*self.vocabularies, self.lattices_vocabulary) < 1:
            raise ValueError("`vocabularies` and `lattices_vocabulary`: wanted numbers above 0")
        if self.largest_lattice is not None and not self.largest_lattice >= 0:
            raise ValueError(f"`largest_lattice` is {self.largest_lattice}, wanted a number of GB, 0 or more")


@dataclass
class BenchmarkResult:
    """Result of a benchmark: the machine in words, rows of the table, and ratios held against their targets."""

    machine: str
    rows: list["CostRow"] = field(default_factory=list)
    findings: list["Finding"] = field(default_factory=list)


def run_benchmark(
    settings: BenchmarkSettings, output_dir: str | Path, report: Callable[[str], None] = lambda text: None
) -> BenchmarkResult:
    """Measure the selected parts, and write `benchmark.csv` and plots.

    Args:
        settings: parts and sizes.
        output_dir: folder of the files; made where it is missing. The CSV is written after every part: a long run
            that is stopped leaves what it had.
        report: called with the machine, and with the table and the growth of each part as soon as it is measured.

    Returns:
        The machine, all rows and all findings.

    Raises:
        ValueError: settings that cannot be used, a device that is not there, a folder that cannot be written to.

    Example:
        >>> import tempfile
        >>> settings = BenchmarkSettings(only=("joint",), joint_shapes=[(1, 4, 2, 3)], rounds=1, memory=False)
        >>> [row.name for row in run_benchmark(settings, tempfile.mkdtemp()).rows][0]
        'chunked_joint_rnnt_loss'
    """
    settings.check()
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is cuda, but torch finds no GPU here: leave the option out")
    if {"step", "terms", "cache"} & set(settings.only):
        _check_steps(settings)
    with folder_to_fill(output_dir, "output_dir") as folder:
        return _measured(settings, folder, report)


def _check_steps(settings: BenchmarkSettings) -> None:
    """Check sizes that the encoders and the tokenizer of the training steps cannot have."""
    from nemo_codert.benchmark.training_step import FRAME_SECONDS, HEADS, made_up_tokenizer

    for name in ("teacher", "student"):
        layers, channels = getattr(settings, name)
        if channels % HEADS:
            raise ValueError(
                f"`{name}` is {layers}x{channels}: the encoder has {HEADS} attention heads, which share its channels. "
                f"Give {layers}x{channels + -channels % HEADS}"
            )
    shortest = 2 * FRAME_SECONDS
    if settings.seconds < shortest:
        raise ValueError(f"`seconds` is {settings.seconds:g}: batch norm needs two frames. Give {shortest:g} or more")
    try:
        made_up_tokenizer(settings.vocabulary)
    except ValueError as error:
        raise ValueError(f"`vocabulary` is {settings.vocabulary}: {error}") from error


def _measured(settings: BenchmarkSettings, output_dir: Path, report: Callable[[str], None]) -> BenchmarkResult:
    from nemo_codert.benchmark.measure import MeasureSettings
    from nemo_codert.benchmark.table import describe_machine, format_table, write_csv

    threads = set_threads(settings.threads)
    result = BenchmarkResult(describe_machine(settings.device, threads))
    report(result.machine)
    measuring = MeasureSettings(settings.rounds, settings.slow_rounds, settings.threads, settings.memory)
    for part in PARTS:
        if part not in settings.only:
            continue
        if part == "loss":
            rows, findings = _loss(settings, measuring, output_dir, report)
        else:
            measures = {
                "joint": _joint,
                "lattice": _lattice,
                "tdt": _tdt,
                "step": _step,
                "terms": _terms,
                "cache": _cache,
                "decoding": _decoding,
            }
            rows, findings = measures[part](settings, measuring)
        result.rows += rows
        result.findings += findings
        report(format_table(rows))
        write_csv(result.rows, output_dir / "benchmark.csv", settings.device, threads)
    return result


def set_threads(threads: int | None) -> int:
    """Set the number of torch's threads, unless it is None, and return it."""
    import torch

    # Not Numba: compiled functions here run on torch's threads, and `numba.set_num_threads` resets their number.
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _loss(
    settings: BenchmarkSettings, measuring: "MeasureSettings", output_dir: Path, report: Callable[[str], None]
) -> "Found":
    """Measure the loss at all shapes; growth is reported and drawn."""
    from nemo_codert.benchmark.additive_loss import LossShape, loss_cases, loss_rows, named_shapes

    over_vocabulary = [LossShape(*settings.lattice, size) for size in settings.vocabularies]
    over_lattice = [LossShape(*lattice, settings.lattices_vocabulary) for lattice in settings.lattices]
    named = [LossShape(*shape) for shape in settings.shapes] or named_shapes(settings.device)
    by_shape, findings = {}, []
    for shape in dict.fromkeys([*over_vocabulary, *over_lattice, *named]):
        cases = loss_cases(shape, settings.device, _lattice_limit(settings))
        by_shape[shape], more = loss_rows(cases, measuring)
        findings += more
    unit = f"V, at (B, T, U) = {settings.lattice}"
    _growth(by_shape, over_vocabulary, "vocabulary", unit, output_dir / "cost_against_vocabulary.png", report)
    unit = f"B x T x U, at V = {settings.lattices_vocabulary}"
    _growth(by_shape, over_lattice, "cells", unit, output_dir / "cost_against_lattice.png", report)
    return [row for rows in by_shape.values() for row in rows], findings


def _growth(
    by_shape: "dict[LossShape, list[CostRow]]",
    shapes: "Sequence[LossShape]",
    size: str,
    unit: str,
    path: Path,
    report: Callable[[str], None],
) -> None:
    from nemo_codert.benchmark.table import curves, format_growth, plot_costs

    found = curves([row for shape in dict.fromkeys(shapes) for row in by_shape[shape]], size)
    plot_costs(found, unit, path)
    if text := format_growth(found, unit):
        report(f"\n{text}")


def _lattice_limit(settings: BenchmarkSettings) -> float:
    """Return the bytes of the largest lattice that is made."""
    from nemo_codert.benchmark.additive_loss import largest_lattice

    given = settings.largest_lattice
    return largest_lattice(settings.device) if given is None else 1e9 * given


def _joint(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.additive_loss import LossShape
    from nemo_codert.benchmark.joint_loss import joint_rows

    shapes = [LossShape(*shape) for shape in settings.joint_shapes]
    return joint_rows(shapes, settings.joint_hidden, settings.device, _lattice_limit(settings), measuring)


def _lattice(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.additive_loss import SPEED_SHAPE, LossShape
    from nemo_codert.benchmark.lattice_kl import lattice_rows

    shapes = [LossShape(*shape) for shape in settings.shapes or (SPEED_SHAPE,)]
    return lattice_rows(shapes, settings.device, _lattice_limit(settings), measuring)


def _tdt(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.additive_loss import LossShape
    from nemo_codert.benchmark.tdt_loss import named_shapes, tdt_rows

    shapes = [LossShape(*shape) for shape in settings.shapes] or named_shapes(settings.device)
    return tdt_rows(shapes, settings.device, _lattice_limit(settings), measuring)


def _step(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.training_step import step_rows

    return step_rows(_step_settings(settings), settings.device, measuring)


def _terms(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.distillation_steps import term_rows

    return term_rows(_step_settings(settings), settings.device, measuring)


def _cache(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.cached_targets import target_rows

    return target_rows(_step_settings(settings), settings.device, measuring)


def _step_settings(settings: BenchmarkSettings) -> "StepSettings":
    from nemo_codert.benchmark.training_step import StepSettings

    return StepSettings(
        batch=settings.batch_size,
        seconds=settings.seconds,
        tokens=settings.tokens,
        vocabulary=settings.vocabulary,
        teacher=settings.teacher,
        student=settings.student,
        pred_hidden=settings.pred_hidden,
        joint_hidden=settings.joint_hidden,
    )


def _decoding(settings: BenchmarkSettings, measuring: "MeasureSettings") -> "Found":
    from nemo_codert.benchmark.decoding import DecodingSettings, decoding_rows

    decoding = DecodingSettings(
        batch=settings.decoding_batch_size,
        frames=settings.decoding_frames,
        enc_hidden=settings.student[1],
        vocabulary=settings.vocabulary,
        pred_hidden=settings.pred_hidden,
        joint_hidden=settings.joint_hidden,
    )
    return decoding_rows(decoding, settings.device, measuring)
