"""`codert stream`: a model in NeMo's streaming pipelines. The work is `nemo_codert.evaluation.streamed_files`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console
from nemo_codert.evaluation.streamed_files import PIPELINES, StreamSettings, transcribe_streaming

if TYPE_CHECKING:
    from nemo_codert.evaluation.transcribe import Evaluation

DESCRIPTION = """
Transcribe as a stream, in NeMo's own streaming pipelines (nemo.collections.asr.inference).

--model is a stock RNN-T, TDT or hybrid model. --pipeline: buffered (a Conformer trained with preprocessor.normalize
per_feature: audio in chunks, each encoded again with its surroundings) or cache_aware (one trained for it: no frame is
encoded twice). Their settings are conf/inference/*_rnnt.yaml; --set KEY=VALUE changes them, --config FILE replaces the
file. Sample rate and word pieces a frame are the model's; a GPU is used if there is one.

Prints the texts and, of a manifest with transcripts, errors and WER, beside the real-time factor: seconds of the whole
run (reading files, features, encoder, decoding; not loading the model) per second of audio, the audio coming as fast
as it is taken. --output writes the manifest's lines with `pred_text` added, and NAME_summary.json.

Exit status 2: bad options, files or data, or a model that the pipeline cannot run; the message names the remedy.
"""
EXAMPLES = """
codert stream --model student.nemo --manifest data/fsdd/test_seen.json
codert stream --model student.nemo --audio a.wav b.wav --set streaming.chunk_size=0.8
codert stream --model student.nemo --manifest test.json --pipeline cache_aware
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, metavar="M.nemo")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, metavar="TEST.json")
    source.add_argument("--audio", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--pipeline", choices=PIPELINES, default="buffered")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path, metavar="PIPELINE.yaml")
    parser.add_argument("--output", type=Path, metavar="PREDICTIONS.json")
    return parser


def run(options: argparse.Namespace) -> None:
    """Transcribe, and print texts, errors and speed."""
    settings = StreamSettings(
        model=options.model,
        manifest=options.manifest,
        audio=options.audio or (),
        pipeline=options.pipeline,
        changes=options.set,
        config=options.config,
        output=options.output,
    )
    settings.check()
    console.quieten_libraries()
    streamed = transcribe_streaming(settings)
    print_evaluation(streamed.evaluation)
    for path in streamed.files:
        print(f"wrote {path}")


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print the texts, then errors and speed."""
    for line in evaluation.predictions:
        print(f"{Path(line['audio_filepath']).name}: {line['pred_text']}")
    errors = evaluation.errors
    if errors.words:
        print(
            f"{evaluation.metric} {errors.wer:.2%} of {errors.words} {evaluation.unit} "
            f"({errors.substitutions} substitutions, "
            f"{errors.insertions} insertions, {errors.deletions} deletions)"
        )
    print(f"{evaluation.audio_seconds:.1f} s of audio, real-time factor {evaluation.real_time_factor:.4f}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
