"""Why distilling encoder logits works: what encoder, prediction network and joint of a trained model say, measured.

    python scripts/analyze_logits.py --model runs/fsdd/fsdd/DATE/pair.nemo --manifest data/fsdd/test_unseen.json \\
        --output-dir runs/logits
    python scripts/analyze_logits.py --checkpoints runs/fsdd/fsdd/DATE --manifest data/fsdd/dev.json \\
        --output-dir runs/logits_over_training --utterances dev_000003 dev_000017
    python scripts/analyze_logits.py --model student.nemo --teacher teacher.nemo --manifest test.json --output-dir out

The paper (arXiv:2106.07734) says that encoder logits have a higher entropy than the joint's, and so more to teach.
Measured along the most likely alignment of every reference, over all frames and over those that emit a token:
entropy (nats, over all classes and among word pieces alone) and blank mass of encoder, prediction and joint logits;
which word pieces the encoder confuses; and how often teacher and student agree (likeliest class, KL). The page's last
section defines each of them.

--model takes a pair (--branch says which half, both by default) or an RNN-T trained alone, with a stock or an additive
joint; a `.nemo` or a Lightning `.ckpt`. Given more than once, in the order of training, agreement is drawn over them.
--checkpoints takes the folder of a run, or its `checkpoints`, and puts the `.ckpt` files in the order of their steps;
opening a `.ckpt` can run code, so open only those you trust. The last model is the one reported in full; measures.csv
has all. --teacher is for models trained alone: another such model, or a pair, whose teacher is taken. Tokenizers must
be equal, and the student's frame the teacher's or a whole multiple of it.

--utterances takes a number (of the first ones to draw, 3 by default, 0 for none) or ids: names of audio files, with or
without their suffix, `@OFFSET` added where the manifest has an offset. --max-utterances measures the first so many.

Transcripts that are empty, have characters unknown to the tokenizer, or more tokens than the audio has encoder frames
are measured too; a warning, also on the page, counts them.

Written to --output-dir, which has to be new or empty: report.html (one page with all pictures in it), measures.csv,
confusions.csv, agreement.csv (with a teacher), frames.csv (of the drawn utterances), entropy.png, agreement.png (of
two models or more), utterance_*.png.

Exit status 2: bad options, files or data; the message says what to change, and nothing is left behind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console

if TYPE_CHECKING:
    from nemo_codert.analysis.figures import UtterancePage
    from nemo_codert.analysis.readings import Analysis, Utterance
    from nemo_codert.analysis.report import LogitReport, MeasureRow

MOST_PIECES = 20  # a row of the utterance pictures each


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=Path, action="append", metavar="M.nemo")
    models.add_argument("--checkpoints", type=Path, metavar="FOLDER")
    parser.add_argument("--teacher", type=Path, metavar="T.nemo")
    parser.add_argument("--branch", choices=["student", "teacher", "both"], default="both")
    parser.add_argument("--manifest", type=Path, required=True, metavar="TEST.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="word pieces listed (5)")
    parser.add_argument("--utterances", nargs="+", default=["3"], metavar="N|ID", help="to draw, see above")
    parser.add_argument("--max-utterances", type=int, metavar="N", help="to measure (all)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a file that is missing, a manifest that cannot be read, numbers out of range, options at odds.
    """
    from nemo_codert.data.manifest import read_manifest

    for key, path in [("--model", path) for path in options.model or []] + [("--teacher", options.teacher)]:
        if path is not None and not path.is_file():
            raise ValueError(f"{key} is {path}: no such file. Give the path of a .nemo or .ckpt file")
    for name in ("max_utterances", "batch_size", "top_k"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted 1 or more")
    if options.top_k > MOST_PIECES:
        raise ValueError(f"--top-k is {options.top_k}, wanted {MOST_PIECES} or fewer")
    if options.teacher is not None and options.branch != "both":
        raise ValueError(f"--branch is {options.branch}, but --teacher asks for both: leave one of them out")
    read_manifest(options.manifest)


def run(options: argparse.Namespace) -> None:
    """Measure the models one after the other, write the report, print the last model's table."""
    check_options(options)
    console.quieten_libraries()
    from nemo_codert.analysis.report import findings, new_folder, write_report

    with new_folder(options.output_dir) as folder:
        report = measure(options)
        write_report(folder, report)
    print_table(report.models[-1].name, report.models[-1].rows)
    print("\n".join(findings(report.models[-1].rows)))
    for model in report.models:
        if model.agreement is not None:
            print(
                f"{model.name}: teacher and student name the same class in {model.agreement.top1:.1%} of "
                f"{model.agreement.frames} frames, KL {model.agreement.divergence:.3f} nats a frame"
            )
    if report.warning:
        print(f"warning: {report.warning}", file=sys.stderr)
    print(f"Written to {options.output_dir / 'report.html'}")


def measure(options: argparse.Namespace) -> "LogitReport":
    """Everything that the report shows.

    Raises:
        ValueError: models, manifest or audio that cannot be used.
    """
    import torch

    from nemo_codert.analysis.branches import branches_of
    from nemo_codert.analysis.readings import analyze, chosen, transcript_faults, utterances
    from nemo_codert.analysis.report import LogitReport, MeasuredModel, measure_rows
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import checkpoint_files, load_trained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = options.model or checkpoint_files(options.checkpoints)
    found = utterances(usable_entries(options.manifest))[: options.max_utterances]
    shown = chosen(found, options.utterances)
    teacher = None if options.teacher is None else load_trained(options.teacher).model.to(device)
    models = []
    for path, name in zip(paths, short_names(paths), strict=True):
        trained = load_trained(path)
        branches = branches_of(trained.model.to(device), options.branch, teacher)
        last = analyze(
            branches,
            found,
            batch_size=options.batch_size,
            top_k=options.top_k,
            shown=shown if path == paths[-1] else (),
            title=name,
        )
        models.append(MeasuredModel(name, str(path), trained.step, measure_rows(last.branches), last.agreement))
    return LogitReport(
        manifest=str(options.manifest),
        utterances=len(found),
        audio_seconds=sum(utterance.duration for utterance in found),
        top_k=options.top_k,
        models=models,
        last=last,
        pages=utterance_pages(last, found, shown, branches[0].sample_rate),
        transcript_faults=transcript_faults(branches, found),
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names where they tell the models apart, else whole paths."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def utterance_pages(
    analysis: "Analysis", found: Sequence["Utterance"], shown: Sequence[int], sample_rate: int
) -> list["UtterancePage"]:
    """The drawn utterances of the last model."""
    from nemo_codert.analysis.figures import UtterancePage

    branches = analysis.branches
    return [
        UtterancePage(
            id=found[place].id,
            text=found[place].text,
            signal=found[place].signal(sample_rate),
            sample_rate=sample_rate,
            branches={name: own.shown[place] for name, own in branches.items()},
            seconds_per_frame={name: own.seconds_per_frame for name, own in branches.items()},
            pieces={name: own.pieces for name, own in branches.items()},
        )
        for place in shown
    ]


def print_table(title: str, rows: Sequence["MeasureRow"]) -> None:
    """Mean entropies (over all classes, among word pieces) in nats and blank masses of one model."""
    print(f"{title}\n{'branch':8} {'logits':10} {'frames':>10} {'rows':>8} {'entropy':>9} {'pieces':>9} {'blank':>9}")
    for row in rows:
        figures = "".join("        - " if x is None else f"{x:9.3f} " for x in (row.mean, row.pieces, row.blank))
        print(f"{row.branch:8} {row.source:10} {row.view:>10} {row.count:8} {figures.rstrip()}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: run(options))
