"""How much later than its teacher a student says each word piece: mean, median and 90th percentile in milliseconds.

    python scripts/measure_latency.py --model runs/fsdd/fsdd_streaming/DATE/pair.nemo \\
        --manifest data/fsdd/test_seen.json
    python scripts/measure_latency.py --model student.nemo --model other_student.nemo --teacher teacher.nemo \\
        --manifest data/fsdd/test_seen.json --manifest data/fsdd/test_unseen.json

Of every reference token, the delay is the time of the frame in which the student most likely emits it, less that of
the frame in which the teacher does; each of them by its own lattice of the reference. Negative: the student is
earlier.

--model takes a pair, whose teacher is the measure, or with --teacher an RNN-T trained alone (a `.nemo`, or a Lightning
`.ckpt`, which can run code when it is opened), with a stock or an additive joint. Students that are to be compared
need one and the same --teacher; of a pair given there, the teacher is taken. Tokenizers must be equal, and the
student's frame the teacher's or a whole multiple of it.

No part of these figures: the frames that a streaming encoder waits for to fill a chunk (att_context_size), the time of
computing, and the teacher's own distance from the sound. Tokens that a model does not recognise have a place in its
alignment, too: of models with many errors look at the median.

Exit status 2: bad options, files or data; the message says what to change.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console

if TYPE_CHECKING:
    from nemo_codert.analysis.branches import Branch
    from nemo_codert.analysis.emission_delay import DelaySummary

COLUMNS = ("manifest", "tokens", "mean ms", "median ms", "p90 ms")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append", metavar="M.nemo")
    parser.add_argument("--teacher", type=Path, metavar="T.nemo")
    parser.add_argument("--manifest", type=Path, required=True, action="append", metavar="TEST.json")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a file that is missing, a manifest that cannot be read, numbers out of range.
    """
    from nemo_codert.data.manifest import read_manifest

    for key, path in [("--model", path) for path in options.model] + [("--teacher", options.teacher)]:
        if path is not None and not path.is_file():
            raise ValueError(f"{key} is {path}: no such file. Give the path of a .nemo or .ckpt file")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}, wanted 1 or more")
    for manifest in options.manifest:
        read_manifest(manifest)


def run(options: argparse.Namespace) -> None:
    """Measure the models one after the other, each on all manifests, and print a table of each."""
    check_options(options)
    console.quieten_libraries()
    import torch

    from nemo_codert.analysis.emission_delay import emission_delays, summarise
    from nemo_codert.analysis.readings import transcript_faults, utterances
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import load_trained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {manifest: utterances(usable_entries(manifest)) for manifest in options.manifest}
    teacher = None if options.teacher is None else load_trained(options.teacher).model.to(device)
    for path in options.model:
        student, measure = student_and_teacher(path, load_trained(path).model.to(device), teacher)
        rows = []
        for manifest, of_manifest in found.items():
            if faults := transcript_faults([student, measure], of_manifest):
                reasons = ", ".join(f"{reason}: {count}" for reason, count in faults.items())
                print(f"warning: {manifest} has transcripts that cannot be aligned ({reasons})", file=sys.stderr)
            delays = emission_delays(
                student, measure, of_manifest, batch_size=options.batch_size, title=f"{path.name}, {manifest.name}"
            )
            rows.append(table_row(manifest, summarise(delays)))
        print_table(
            f"{path}: delay against {options.teacher or 'its teacher'}, frames of "
            f"{1000 * student.seconds_per_frame:g} ms (student) and {1000 * measure.seconds_per_frame:g} ms (teacher)",
            rows,
        )


def student_and_teacher(path: Path, model: object, teacher: object | None) -> "list[Branch]":
    """The two branches of a pair, or of a model trained alone beside a teacher.

    Raises:
        ValueError: a model trained alone without a teacher, a pair with one, or two that cannot be compared.
    """
    from nemo_codert.analysis.branches import branches_of

    try:
        branches = branches_of(model, "both", teacher)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(branches) < 2:
        raise ValueError(f"{path} is one RNN-T and no pair: name the teacher to measure it against with --teacher")
    return branches


def table_row(manifest: Path, summary: "DelaySummary") -> tuple[str, ...]:
    """The cells of one manifest."""
    figures = (f"{x:.0f}" if summary.tokens else "n/a" for x in (summary.mean, summary.median, summary.p90))
    return manifest.name, str(summary.tokens), *figures


def print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """In columns: the first to the left, figures to the right."""
    widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    print(title)
    for first, *figures in (COLUMNS, *rows):
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: run(options))
