"""`codert cache`: targets of trained teachers, stored. The work is `nemo_codert.evaluation.target_caching`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console
from nemo_codert.cli.tables import print_table

if TYPE_CHECKING:
    from nemo_codert.data.target_header import TargetHeader

DESCRIPTION = """
Run one or several trained teachers over a manifest and store their targets for training with `teacher: cached`.

--teachers takes .nemo or .ckpt files, or pretrained names: any NeMo model with an RNN-T or a CTC head; with --keep
encoder also an encoder alone, such as a self-supervised one. Of a pair its teacher is taken.

--keep top_k=N stores the N most likely classes of each frame and their probabilities (top_k=all: all of them), at the
encoder or at the CTC head (--at); training compares these classes, and the rest as one class. --temperature and
--prior mean_prediction are fixed when the targets are made: a term of the loss has to name the same. --keep encoder
stores the output of the encoder, and every term can be trained with it.

Several teachers with one tokenizer are mixed into one target: --combine mean gives them equal weights, wer the softmax
of minus their word error rate in percent on the utterance, best the teacher with the fewest errors on it. The mixture
of encoder logits needs --prior mean_prediction; CTC heads need nothing more.

Targets are joined by utterance id: the field id, utt_id or utterance_id of a manifest's line, else the end of its
audio path. The manifest given here is what the teachers get: it may name other audio (clean speech, a single talker,
another microphone or sample rate) under the ids of the training manifest.

Finished parts are kept when the command is interrupted; the same command resumes. --jobs uses several processes, on
several GPUs or on the cores of the CPU. The table printed at the end has the teachers' word error rates where these
were measured: with --wer, --combine wer or best, or --at ctc.

Exit status 2: bad options, files or data; the message names the remedy.
"""
EXAMPLES = r"""
codert cache --teachers teacher.nemo --manifest data/fsdd/train.json --keep encoder --output targets
codert cache --teachers a.nemo b.nemo c.nemo --combine wer --prior mean_prediction --manifest data/fsdd/train.json \
    --keep top_k=8 --output mixed_targets
codert cache --teachers ctc.nemo --at ctc --manifest data/fsdd/train.json --output ctc_targets --jobs 2
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--teachers", nargs="+", required=True, metavar="T.nemo")
    parser.add_argument("--manifest", type=Path, required=True, metavar="TRAIN.json")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--keep", default="top_k=8", metavar="top_k=N|encoder", help="what is stored (top_k=8)")
    parser.add_argument("--at", choices=["encoder", "ctc"], default="encoder", help="where the classes come from")
    parser.add_argument("--combine", choices=["mean", "wer", "best"], default="mean")
    parser.add_argument("--prior", choices=["none", "mean_prediction"], default="none")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="TAU")
    parser.add_argument("--group", type=int, default=1, metavar="N", help="teacher frames that make one target frame")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--wer", action="store_true", help="measure the teachers' word error rates in any case")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    return parser


def run(options: argparse.Namespace) -> None:
    """Store the targets, and print what they are."""
    console.quieten_libraries()
    from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets

    header = cache_targets(
        CacheSettings(
            teachers=tuple(options.teachers),
            manifest=options.manifest,
            output=options.output,
            keep=options.keep,
            at=options.at,
            dtype=options.dtype,
            temperature=options.temperature,
            prior=options.prior,
            combine=options.combine,
            group=options.group,
            measure_wer=options.wer,
            batch_size=options.batch_size,
            jobs=options.jobs,
        )
    )
    print_header(header, options.output)


def print_header(header: "TargetHeader", folder: Path) -> None:
    """Print the teachers and the size of stored targets."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows = [
        (teacher.name, "n/a" if teacher.wer is None else f"{teacher.wer:.2%}", f"{teacher.share:.3f}")
        for teacher in header.teachers
    ]
    title = (
        f"{folder}: {header.utterances:,} utterances, {header.frames:,} frames of {1000 * header.frame_seconds:g} ms, "
        f"{size / 1e6:.1f} MB"
    )
    print_table(title, ("teacher", "WER", "weight"), rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
