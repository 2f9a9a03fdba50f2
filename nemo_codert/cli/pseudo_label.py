"""`codert pseudo-label`: a model's transcripts as labels. The work is `nemo_codert.evaluation.pseudo_labels`."""

import argparse
import sys
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.cli.tables import print_table
from nemo_codert.evaluation.pseudo_labels import PseudoLabelSettings, pseudo_label

DESCRIPTION = """
Transcribes audio without text by a trained model, and writes a manifest to train a student on.

--model is any CTC, RNN-T, TDT or hybrid model of NeMo's, or a pair (--branch selects a half). It decodes greedily, on
the GPU if there is one. Each line gets `text`, `confidence` (the mean of NeMo's confidences of the words, from 0 to 1)
and `source` (name and hash of the model's file). Two filters, both off by default:

--min-confidence drops labels below it. The scale depends on the model: NAME_summary.json has the least, the quartiles
and the largest of all labels (`confidences`), and another value needs no further decoding.
--agree-with names a second model: labels from which its transcript differs by more than --max-disagreement, a word
error rate, are dropped.

--output NAME.json gets the labels that are kept, NAME_dropped.json the other lines with the reason, NAME_summary.json
the counts. NAME_MODEL_HASH.jsonl keeps all transcripts: a command that was killed resumes from there, and other
filters need no further decoding. Train on both kinds of labels with
model.train_ds.manifest_filepath=[labelled.json,NAME.json].

Exit status 2: bad options, files or data; the message names the remedy.
"""
EXAMPLES = r"""
codert pseudo-label --model teacher.nemo --manifest unlabelled.json --output labels.json
codert pseudo-label --model teacher.nemo --manifest unlabelled.json --output labels.json --min-confidence 0.25 \
    --agree-with second.nemo --max-disagreement 0.1
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, metavar="M.nemo")
    parser.add_argument("--manifest", type=Path, required=True, metavar="AUDIO.json")
    parser.add_argument("--output", type=Path, required=True, metavar="LABELS.json")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--min-confidence", type=float, default=0.0, metavar="C", help="0 to 1 (0: no filter)")
    parser.add_argument("--agree-with", type=Path, metavar="M.nemo", help="a second model")
    parser.add_argument("--max-disagreement", type=float, default=0.1, metavar="WER", help="with --agree-with (0.1)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    return parser


def run(options: argparse.Namespace) -> None:
    """Label, and print what was kept and dropped."""
    settings = PseudoLabelSettings(**vars(options))
    settings.check()
    console.quieten_libraries()
    labels = pseudo_label(settings)
    rows = [("kept", str(labels.kept)), *((f"dropped: {why}", str(count)) for why, count in labels.dropped.items())]
    print_table(f"Labels by {options.model.name}, {labels.hours:.2f} hours", ("labels", "utterances"), rows)
    for path in labels.files:
        print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
