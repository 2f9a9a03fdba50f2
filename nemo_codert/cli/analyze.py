"""`codert analyze`: the logits of trained models, measured. The work is `nemo_codert.analysis.logits`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.analysis.logits import BRANCHES, LogitSettings, analyze_logits
from nemo_codert.cli import console
from nemo_codert.cli.tables import print_table
from nemo_codert.config.arguments import require_installed

if TYPE_CHECKING:
    from nemo_codert.analysis.report import MeasureRow

DESCRIPTION = """
Why distilling encoder logits works: the logits of encoder, prediction network and joint of a trained model, measured.

The paper (arXiv:2106.07734) finds that encoder logits have a higher entropy than the joint's, and so more to teach.
Measured along the most likely alignment of every reference, over all frames and over those that emit a token:
entropy (nats, over all classes and among word pieces alone) and blank mass of encoder, prediction and joint logits,
and of the encoder's with the utterance's mean prediction logits added (encoder+prior: what a distillation term with
prior: mean_prediction compares; two decoders of their own leave a constant for each class open in the others);
which word pieces the encoder confuses; and how often teacher and student agree (likeliest class, KL), with and without
the prior. The page's last section defines each of them.

--model takes a pair (--branch selects a half, both by default) or an RNN-T trained alone, with a stock or an additive
joint, or a hybrid or TDT model, of which the joint's outputs for tokens are measured; a `.nemo` or a Lightning
`.ckpt`. Given more than once, in the order of training, agreement is drawn over them. --checkpoints takes the folder
of a run, or its `checkpoints`, and puts the `.ckpt` files in the order of their steps. The last model is the one
reported in full; measures.csv has all. --teacher is for models trained alone: another such model, or a pair, whose
teacher is taken. Tokenizers must be equal, and the student's frame the teacher's or a whole multiple of it.

--utterances takes a number (of the first ones to draw, 3 by default, 0 for none) or ids: names of audio files, with or
without their suffix, `@OFFSET` added where the manifest has an offset. --max-utterances measures the first so many.

Transcripts that are empty, have characters unknown to the tokenizer, or more tokens than the audio has encoder frames
are measured too; a warning, also on the page, counts them.

Written to --output-dir, which has to be new or empty: report.html (one page with all pictures in it), measures.csv,
confusions.csv, agreement.csv (with a teacher), frames.csv (of the drawn utterances), entropy.png, agreement.png (of
two models or more), utterance_*.png.

Exit status 2: bad options, files or data; the message names the remedy, and nothing is left behind.
"""
EXAMPLES = r"""
codert analyze --model runs/fsdd/latest/pair.nemo --manifest data/fsdd/test_unseen.json --output-dir runs/logits
codert analyze --checkpoints runs/fsdd/latest --manifest data/fsdd/dev.json \
    --output-dir runs/logits_over_training --utterances dev_000003 dev_000017
codert analyze --model student.nemo --teacher teacher.nemo --manifest test.json --output-dir out
"""
COLUMNS = ("branch", "logits", "frames", "rows", "entropy", "pieces", "blank")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=Path, action="append", metavar="M.nemo")
    models.add_argument("--checkpoints", type=Path, metavar="FOLDER")
    parser.add_argument("--teacher", type=Path, metavar="T.nemo")
    parser.add_argument("--branch", choices=BRANCHES, default="both")
    parser.add_argument("--manifest", type=Path, required=True, metavar="TEST.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="word pieces listed (5)")
    parser.add_argument("--utterances", nargs="+", default=["3"], metavar="N|ID", help="to draw, see above")
    parser.add_argument("--max-utterances", type=int, metavar="N", help="to measure (all)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure, then print the last model's table and the findings."""
    require_installed("scripts", "matplotlib", "jinja2")
    settings = LogitSettings(
        manifest=options.manifest,
        models=options.model or (),
        checkpoints=options.checkpoints,
        teacher=options.teacher,
        branch=options.branch,
        top_k=options.top_k,
        utterances=options.utterances,
        max_utterances=options.max_utterances,
        batch_size=options.batch_size,
    )
    settings.check()
    console.quieten_libraries()
    report = analyze_logits(settings, options.output_dir)
    from nemo_codert.analysis.report import findings

    print_table(report.models[-1].name, COLUMNS, table_rows(report.models[-1].rows), left=(0, 1))
    print("\n".join(findings(report.models[-1].rows)))
    for model in report.models:
        if (own := model.agreement) is not None:
            prior = model.agreement_with_prior
            print(
                f"{model.name}: teacher and student name the same class in {own.top1:.1%} of {own.frames} frames, "
                f"KL {own.divergence:.3f} nats a frame"
                + (f"; with the prior in {prior.top1:.1%}, KL {prior.divergence:.3f}" if prior else "")
            )
    if report.warning:
        print(f"warning: {report.warning}", file=sys.stderr)
    print(f"Written to {options.output_dir / 'report.html'}")


def table_rows(rows: Sequence["MeasureRow"]) -> list[tuple[str, ...]]:
    """Return cells: mean entropies (over all classes, among word pieces) in nats, and blank masses, of one model."""
    return [
        (
            row.branch,
            row.source,
            row.view,
            str(row.count),
            *("-" if x is None else f"{x:.3f}" for x in (row.mean, row.pieces, row.blank)),
        )
        for row in rows
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
