"""`codert latency`: emission delays of students. The work is `nemo_codert.analysis.latency`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.analysis.latency import LatencySettings, measure_latency
from nemo_codert.cli import console
from nemo_codert.cli.tables import print_table

if TYPE_CHECKING:
    from nemo_codert.analysis.emission_delay import DelaySummary

DESCRIPTION = """
How much later than its teacher a student emits each word piece: mean, median and 90th percentile in milliseconds.

Of every reference token, the delay is the time of the frame in which the student most likely emits it, less that of
the frame in which the teacher does; each of them by its own lattice of the reference. Negative: the student is
earlier.

--model takes a pair, whose teacher is the measure, or with --teacher an RNN-T trained alone (a `.nemo`, or a Lightning
`.ckpt`), with a stock or an additive joint; a hybrid or TDT model is read by its joint's outputs for tokens. Students
that are to be compared need one and the same --teacher; of a pair given there, the teacher is taken. Tokenizers must
be equal, and the student's frame the teacher's or a whole multiple of it.

Not in these figures: the frames that a streaming encoder waits for to fill a chunk (att_context_size), the time of
computing, and the teacher's own distance from the sound. Tokens that a model does not recognise have a place in its
alignment, too: of models with many errors look at the median.

Exit status 2: bad options, files or data; the message names the remedy.
"""
EXAMPLES = r"""
codert latency --model runs/fsdd/latest/pair.nemo --manifest data/fsdd/test_seen.json
codert latency --model student.nemo --model other_student.nemo --teacher teacher.nemo \
    --manifest data/fsdd/test_seen.json --manifest data/fsdd/test_unseen.json
"""
COLUMNS = ("manifest", "tokens", "mean ms", "median ms", "p90 ms")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, action="append", metavar="M.nemo")
    parser.add_argument("--teacher", type=Path, metavar="T.nemo")
    parser.add_argument("--manifest", type=Path, required=True, action="append", metavar="TEST.json")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table of each model."""
    settings = LatencySettings(options.model, options.manifest, options.teacher, options.batch_size)
    settings.check()
    console.quieten_libraries()
    for delays in measure_latency(settings):
        for manifest, faults in delays.transcript_faults.items():
            if faults:
                reasons = ", ".join(f"{reason}: {count}" for reason, count in faults.items())
                print(f"warning: {manifest} has transcripts that cannot be aligned ({reasons})", file=sys.stderr)
        print_table(
            f"{delays.model}: delay against {options.teacher or 'its teacher'}, frames of "
            f"{1000 * delays.student_seconds:g} ms (student) and {1000 * delays.teacher_seconds:g} ms (teacher)",
            COLUMNS,
            [table_row(Path(manifest), summary) for manifest, summary in delays.manifests.items()],
        )


def table_row(manifest: Path, summary: "DelaySummary") -> tuple[str, ...]:
    """Return the cells of one manifest."""
    figures = (f"{x:.0f}" if summary.tokens else "n/a" for x in (summary.mean, summary.median, summary.p90))
    return manifest.name, str(summary.tokens), *figures


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
