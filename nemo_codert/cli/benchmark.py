"""`codert benchmark`: cost of training and decoding against stock NeMo. The work is `nemo_codert.benchmark.run`."""

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from nemo_codert.benchmark.run import DEVICES, PARTS, BenchmarkSettings, run_benchmark
from nemo_codert.cli import console
from nemo_codert.training.memory import keep_freed_memory

DESCRIPTION = """
Cost of training and decoding: the loss, whole training steps and the exported student, each against stock NeMo, and
stored targets.

loss: the RNN-T loss of an additive joint with its gradient: ours, NeMo's on the expanded lattice, any other one that
is installed (k2, fast_rnnt, torchaudio, warp_rnnt), and the floor: the two exponentials and three matrix products that
no exact one can avoid. Over V at one lattice, over T x U at one V, and at the shapes that the targets name.
joint: the RNN-T loss of a stock joint (H = --joint-hidden) with all gradients, in chunks that are computed again in
the backward pass, against NeMo's on the whole lattice.
tdt: the TDT loss of an additive joint with its gradient, beside the RNN-T loss of the tokens and NeMo's TDT loss on
the expanded lattice: on a GPU its tdt, on the CPU its tdt_pytorch (its value alone where its gradient would take
hours; --largest-lattice 0.1 leaves out that too, which takes minutes).
step: whole training steps on noise: a stock teacher and a stock student (NeMo's class, joint and loss), the pair that
trains both in tandem, and the pair's networks alone (features, encoders, prediction network and projections, forward
and backward, no loss). Clipping and AdamW are counted in every whole step, and are a row of their own.
terms: a student's step with a frozen teacher and a distillation term of each kind, against the step without.
cache: codert cache of the teacher, from audio files to targets, against its features and encoder alone; a student's
step with such targets against the same student trained alone; size and opening of the targets of 1,000 hours.
decoding: greedy_batch on random encoder output with the exported student in each form of its joint against a student
with a stock joint. All emit at the same frames; the run stops if they do not.

Printed: the machine, a table, how the loss grows with V and with B x T x U, and the ratios with their targets. Written
to --output-dir, and nowhere else: benchmark.csv, cost_against_vocabulary.png, cost_against_lattice.png.

The rows of a group run in turns in one process, after one call each that is not counted; on the CPU that process
keeps the memory that it frees, as training does where there is no GPU. Seconds are medians, and a ratio is
the median of the rounds' ratios (of the first --slow-rounds where NeMo's CPU loss is in it). Read the ratios: seconds
depend on the machine and on its load. Peak memory is measured in a fresh process for every row, as bytes on
top of those held before the call (logits; model and optimizer): `peak` is that of torch's allocator, `resident` that
of the process. Rows with NeMo's CPU loss have the second only. `-`: not measured, or the process ran out of memory.

Exit status 2: bad options; the message names the remedy. A target that is not met is printed and changes nothing.
"""
EXAMPLES = """
codert benchmark --output-dir runs/benchmark
codert benchmark --output-dir runs/benchmark --device cuda
codert benchmark --output-dir runs/benchmark --only loss --skip-memory
"""


def sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of sizes joined by x, such as 8x150x40x1024."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split("x"))
        except ValueError:
            values = ()
        if len(values) != count or min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: wanted {count} numbers above 0 joined by x")
        return values

    return parse


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command; defaults are those of `BenchmarkSettings`."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run (default: all)")
    parser.add_argument("--device", choices=DEVICES)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--rounds", type=int, help="timed calls of each row")
    parser.add_argument("--slow-rounds", type=int, help="the same, where NeMo's loss runs on the CPU")
    parser.add_argument("--skip-memory", dest="memory", action="store_false", help="time only")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--shapes", nargs="+", type=sizes(4), metavar="BxTxUxV", help="(those that the targets name)")
    loss.add_argument("--vocabularies", nargs="+", type=int, metavar="V")
    loss.add_argument("--lattice", type=sizes(3), metavar="BxTxU", help="at which V grows")
    loss.add_argument("--lattices", nargs="+", type=sizes(3), metavar="BxTxU", help="that grow at one V")
    loss.add_argument("--lattices-vocabulary", type=int, metavar="V", help="that V")
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
    step = parser.add_argument_group("step, cache, and the student of decoding")
    step.add_argument("--batch-size", type=int, help="utterances")
    step.add_argument("--seconds", type=float, help="of noise per utterance")
    step.add_argument("--tokens", type=int, help="per utterance")
    step.add_argument("--vocabulary", type=int, help="word pieces")
    step.add_argument("--teacher", type=sizes(2), metavar="LAYERSxCHANNELS")
    step.add_argument("--student", type=sizes(2), metavar="LAYERSxCHANNELS")
    step.add_argument("--pred-hidden", type=int, help="channels of the prediction network")
    step.add_argument("--joint-hidden", type=int, help="channels of the stock joints")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--decoding-batch-size", type=int, help="utterances")
    decoding.add_argument("--decoding-frames", type=int, help="encoder frames per utterance")
    parser.set_defaults(**vars(BenchmarkSettings()))
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure, printing the table of each part as soon as it is there, then the ratios."""
    settings = BenchmarkSettings(**{field.name: getattr(options, field.name) for field in fields(BenchmarkSettings)})
    settings.check()
    if options.output_dir.is_file():
        raise ValueError(f"--output-dir is {options.output_dir}: that is a file")
    console.quieten_libraries()
    result = run_benchmark(settings, options.output_dir, functools.partial(print, flush=True))
    print("\nratios of this run")
    print("\n".join(map(str, result.findings)))
    print(f"\nWritten to {options.output_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    if options.device == "cpu":
        keep_freed_memory()
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
