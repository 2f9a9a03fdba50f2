"""`codert verify`: an export in every program that serves it. The work is `nemo_codert.export.deployment`."""

import argparse
import sys
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.export.deployment import CHECKS, DeploymentSettings, check_deployment

DESCRIPTION = """
Is my export right, and does the student stand other recordings? Two checks, both by default (--checks):

programs: exports a student in every format and transcribes a manifest with the programs that serve them.
recordings: transcribes the manifest in NeMo as it is, with a second of digital silence and of room noise before and
after, at -20 and +6 dB, and in NeMo's streaming pipeline, and warns of each that moves the word error rate by more
than 3 points. It needs nothing but NeMo: --checks recordings.

--model is a pair (--branch selects a half, the student by default) or one RNN-T. --output-dir gets student.nemo,
and of the programs onnx/ (NeMo's layout) and sherpa-onnx/ (float and int8), as `codert export` writes them, and
deployment.md: a table of the formats (word error rate, utterances with NeMo's text, size), the texts of the first
--show utterances, and a table of the recordings. The programs need pip install "nemo_codert[deploy]".

The four programs: NeMo's `transcribe`; onnxruntime with a greedy loop, on NeMo's features; sherpa-onnx, which computes
its own features, with the float and with the int8 files (its online recognizer where the encoder is cache-aware, its
offline one else). All get the same samples, at the model's sample rate, and decode greedily. --limit N takes the first
N utterances only. Utterances that are longer than the exported files take are named, and nothing is written.

Exit status 2: bad options, files or data, or a model that sherpa-onnx cannot serve; the message names the remedy.
"""
EXAMPLES = r"""
codert verify --model runs/fsdd/latest/pair.nemo --manifest data/fsdd/test_unseen.json --output-dir runs/served
codert verify --model student.nemo --manifest data/fsdd/test_unseen.json --output-dir runs/recordings \
    --checks recordings
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, metavar="PAIR.nemo")
    parser.add_argument("--manifest", type=Path, required=True, metavar="TEST.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--limit", type=int, metavar="N", help="utterances (all)")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="utterances in the second table (10)")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, help="(both)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Export, transcribe, and print the report."""
    settings = DeploymentSettings(
        options.model, options.manifest, options.branch, options.limit, options.show, options.checks
    )
    settings.check()
    console.quieten_libraries()
    deployment = check_deployment(settings, options.output_dir)
    print(deployment.report)
    print(f"wrote {deployment.path}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
