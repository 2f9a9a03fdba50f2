"""What training and decoding cost: the loss, whole training steps and the exported student, each against stock NeMo.

    python scripts/benchmark.py --output-dir runs/benchmark
    python scripts/benchmark.py --output-dir runs/benchmark --device cuda
    python scripts/benchmark.py --output-dir runs/benchmark --only loss --skip-memory

loss: the RNN-T loss of an additive joint with its gradient: ours, NeMo's on the expanded lattice, any other one that
is installed (k2, fast_rnnt, torchaudio, warp_rnnt), and the floor: the two exponentials and three matrix products that
no exact one can avoid. Over V at one lattice, over T x U at one V, and at the shapes that the targets name.
joint: the RNN-T loss of a stock joint (H = --joint-hidden) with all gradients, in chunks that are computed again in
the backward pass, against NeMo's on the whole lattice.
step: whole training steps on noise: a stock teacher and a stock student (NeMo's class, joint and loss), the pair that
trains both in tandem, and the pair's networks alone (features, encoders, prediction network and projections, forward
and backward, no loss). Clipping and AdamW are counted in every whole step, and are a row of their own.
decoding: greedy_batch on random encoder output with the exported student in each form of its joint against a student
with a stock joint. All emit at the same frames; the run stops if they do not.

Printed: the machine, a table, how the loss grows with V and with B x T x U, and the ratios with their targets. Written
to --output-dir, and nowhere else: benchmark.csv, cost_against_vocabulary.png, cost_against_lattice.png.

What is compared runs in turns in one process, after one call each that is not counted; on the CPU that process
keeps the memory that it frees, as scripts/train.py does where there is no GPU. Seconds are medians, and a ratio is
the median of the rounds' ratios (of the first --slow-rounds where NeMo's CPU loss is in it). Read the ratios: seconds
depend on the machine and on what else it does. Peak memory is measured in a fresh process for every row, as bytes on
top of what is held before the call (logits; model and optimizer): `peak` is that of torch's allocator, `resident` that
of the process. Rows with NeMo's CPU loss have the second only. `-`: not measured, or the process ran out of memory.

Exit status 2: bad options; the message says what to change. A target that is not met is printed and changes nothing.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from nemo_codert.cli.console import exit_status, folder_to_fill, quieten_libraries
from nemo_codert.training.memory import keep_freed_memory

PARTS = ("loss", "joint", "step", "decoding")
ABOVE_ZERO = ("rounds", "slow_rounds", "threads", "batch_size", "seconds", "tokens", "vocabulary")
ABOVE_ZERO += ("pred_hidden", "joint_hidden", "decoding_batch_size", "decoding_frames")


def sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    """Parser of sizes joined by x, such as 8x150x40x1024."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split("x"))
        except ValueError:
            values = ()
        if len(values) != count or min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: wanted {count} numbers above 0 joined by x")
        return values

    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="of torch (default: its own choice)")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each row")
    parser.add_argument("--slow-rounds", type=int, default=2, help="the same, where NeMo's loss runs on the CPU")
    parser.add_argument("--skip-memory", action="store_true", help="time only")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--shapes", nargs="+", type=sizes(4), metavar="BxTxUxV", help="(those that the targets name)")
    loss.add_argument("--vocabularies", nargs="+", type=int, default=[256, 1024, 4096, 16384], metavar="V")
    loss.add_argument("--lattice", type=sizes(3), default=(8, 150, 40), metavar="BxTxU", help="at which V grows")
    loss.add_argument("--lattices", nargs="+", type=sizes(3), metavar="BxTxU", help="that grow at one V")
    loss.add_argument("--lattices-vocabulary", type=int, default=1024, metavar="V", help="that V")
    loss.add_argument(
        "--largest-lattice",
        type=float,
        metavar="GB",
        help="of rows that make a lattice (1; on a GPU a quarter of it, 8.6 at most)",
    )
    joint = parser.add_argument_group("joint")
    joint.add_argument(
        "--joint-shapes", nargs="+", type=sizes(4), metavar="BxTxUxV", help="of a stock joint's lattice"
    )
    step = parser.add_argument_group("step, and the student of decoding")
    step.add_argument("--batch-size", type=int, default=8, help="utterances")
    step.add_argument("--seconds", type=float, default=12.0, help="of noise per utterance")
    step.add_argument("--tokens", type=int, default=40, help="per utterance")
    step.add_argument("--vocabulary", type=int, default=1024, help="word pieces")
    step.add_argument("--teacher", type=sizes(2), default=(8, 256), metavar="LAYERSxCHANNELS")
    step.add_argument("--student", type=sizes(2), default=(4, 144), metavar="LAYERSxCHANNELS")
    step.add_argument("--pred-hidden", type=int, default=640, help="channels of the prediction network")
    step.add_argument("--joint-hidden", type=int, default=640, help="channels of the stock joints")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--decoding-batch-size", type=int, default=16, help="utterances")
    decoding.add_argument("--decoding-frames", type=int, default=150, help="encoder frames per utterance")
    parser.set_defaults(joint_shapes=[(4, 100, 20, 1024), (4, 400, 100, 4096)])
    parser.set_defaults(lattices=[(8, 37, 20), (8, 75, 40), (8, 150, 80), (8, 300, 160)])
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before anything is measured.

    Raises:
        ValueError: a number that is not above 0 or is endless, an output folder that is a file.
    """
    for name in ABOVE_ZERO:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted a number above 0")
    if min(*options.vocabularies, options.lattices_vocabulary) < 1:
        raise ValueError("--vocabularies and --lattices-vocabulary want numbers above 0")
    if options.largest_lattice is not None and not options.largest_lattice >= 0:
        raise ValueError(f"--largest-lattice is {options.largest_lattice}, wanted a number of GB, 0 or more")
    if options.output_dir.is_file():
        raise ValueError(f"--output-dir is {options.output_dir}: that is a file")


def check_steps(options: argparse.Namespace) -> None:
    """The same of the training steps: sizes that their encoders and their tokenizer cannot have.

    Raises:
        ValueError: channels that the heads do not divide, too little audio, too few or many word pieces.
    """
    from nemo_codert.benchmark.training_step import FRAME_SECONDS, HEADS, made_up_tokenizer

    for name in ("teacher", "student"):
        layers, channels = getattr(options, name)
        if channels % HEADS:
            raise ValueError(
                f"--{name} is {layers}x{channels}: the encoder has {HEADS} attention heads, which share its channels. "
                f"Give {layers}x{channels + -channels % HEADS}"
            )
    shortest = 2 * FRAME_SECONDS
    if options.seconds < shortest:
        raise ValueError(f"--seconds is {options.seconds:g}: batch norm needs two frames. Give {shortest:g} or more")
    try:
        made_up_tokenizer(options.vocabulary)
    except ValueError as error:
        raise ValueError(f"--vocabulary is {options.vocabulary}: {error}") from error


def benchmark(options: argparse.Namespace) -> None:
    """Check the options, then measure into the output folder."""
    check_options(options)
    quieten_libraries()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no GPU here: leave the option out")
    if "step" in options.only:
        check_steps(options)
    with folder_to_fill(options.output_dir, "--output-dir"):
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure, print and write what the options ask for."""
    from nemo_codert.benchmark.measure import MeasureSettings
    from nemo_codert.benchmark.table import describe_machine, format_table, write_csv

    threads = set_threads(options.threads)
    print(describe_machine(options.device, threads), flush=True)
    settings = MeasureSettings(options.rounds, options.slow_rounds, options.threads, not options.skip_memory)
    rows, findings = [], []
    for part in PARTS:
        if part in options.only:
            run = {"loss": run_loss, "joint": run_joint, "step": run_step, "decoding": run_decoding}[part]
            part_rows, part_findings = run(options, settings)
            rows += part_rows
            findings += part_findings
            print(format_table(part_rows), flush=True)
            # Written after every part: a long run that is stopped leaves what it had.
            write_csv(rows, options.output_dir / "benchmark.csv", options.device, threads)
    print("\nratios of this run")
    print("\n".join(map(str, findings)))
    print(f"\nWritten to {options.output_dir}")


def set_threads(threads: int | None) -> int:
    """Give torch that many threads, and return how many it has."""
    import torch

    # Not Numba: compiled functions here run on torch's threads, and `numba.set_num_threads` resets their number.
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def run_loss(options: argparse.Namespace, settings: object) -> tuple[list, list]:
    """Rows and findings at all shapes; growth is printed and drawn."""
    from nemo_codert.benchmark.additive_loss import LossShape, loss_cases, loss_rows, named_shapes
    from nemo_codert.benchmark.table import curves, format_growth, plot_curves

    over_vocabulary = [LossShape(*options.lattice, size) for size in options.vocabularies]
    over_lattice = [LossShape(*lattice, options.lattices_vocabulary) for lattice in options.lattices]
    named = [LossShape(*shape) for shape in options.shapes or ()] or named_shapes(options.device)
    by_shape, findings = {}, []
    for shape in dict.fromkeys([*over_vocabulary, *over_lattice, *named]):
        cases = loss_cases(shape, options.device, lattice_limit(options))
        by_shape[shape], more = loss_rows(cases, settings)
        findings += more
    for shapes, size, unit, file in (
        (over_vocabulary, "vocabulary", f"V, at (B, T, U) = {options.lattice}", "cost_against_vocabulary.png"),
        (over_lattice, "cells", f"B x T x U, at V = {options.lattices_vocabulary}", "cost_against_lattice.png"),
    ):
        found = curves([row for shape in dict.fromkeys(shapes) for row in by_shape[shape]], size)
        plot_curves(found, unit, options.output_dir / file)
        if text := format_growth(found, unit):
            print(f"\n{text}")
    return [row for rows in by_shape.values() for row in rows], findings


def lattice_limit(options: argparse.Namespace) -> float:
    """Bytes of the largest lattice that is made."""
    from nemo_codert.benchmark.additive_loss import largest_lattice

    given = options.largest_lattice
    return largest_lattice(options.device) if given is None else 1e9 * given


def run_joint(options: argparse.Namespace, settings: object) -> tuple[list, list]:
    """Rows and findings of the stock joint's loss."""
    from nemo_codert.benchmark.additive_loss import LossShape
    from nemo_codert.benchmark.joint_loss import joint_rows

    shapes = [LossShape(*shape) for shape in options.joint_shapes]
    return joint_rows(shapes, options.joint_hidden, options.device, lattice_limit(options), settings)


def run_step(options: argparse.Namespace, settings: object) -> tuple[list, list]:
    """Rows and findings of the training steps."""
    from nemo_codert.benchmark.training_step import StepSettings, step_rows

    step = StepSettings(
        batch=options.batch_size,
        seconds=options.seconds,
        tokens=options.tokens,
        vocabulary=options.vocabulary,
        teacher=options.teacher,
        student=options.student,
        pred_hidden=options.pred_hidden,
        joint_hidden=options.joint_hidden,
    )
    return step_rows(step, options.device, settings)


def run_decoding(options: argparse.Namespace, settings: object) -> tuple[list, list]:
    """Rows and findings of the exported student."""
    from nemo_codert.benchmark.decoding import DecodingSettings, decoding_rows

    decoding = DecodingSettings(
        batch=options.decoding_batch_size,
        frames=options.decoding_frames,
        enc_hidden=options.student[1],
        vocabulary=options.vocabulary,
        pred_hidden=options.pred_hidden,
        joint_hidden=options.joint_hidden,
    )
    return decoding_rows(decoding, options.device, settings)


def main() -> int:
    """Command line; returns the exit status."""
    options = parse_arguments()
    if options.device == "cpu":
        keep_freed_memory()
    return exit_status(lambda: benchmark(options))


if __name__ == "__main__":
    sys.exit(main())
