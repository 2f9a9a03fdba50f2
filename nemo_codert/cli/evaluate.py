"""`codert evaluate`: trained models on test manifests. The work is `nemo_codert.benchmark.trained_models`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.benchmark.trained_models import EvaluationSettings, ModelEvaluation, evaluate_models
from nemo_codert.cli import console
from nemo_codert.cli.tables import print_table

if TYPE_CHECKING:
    from nemo_codert.evaluation.transcribe import Evaluation

DESCRIPTION = """
Word error rate, speed and size of trained models on test manifests.

--model is a stock RNN-T, TDT, hybrid or CTC model, a pair (--branch selects a half, the student by default), or an
RNN-T trained alone with an additive joint. The stock model of it transcribes, with NeMo's own `transcribe`, on the GPU
if there is one.

--decoding: greedy, greedy_batch, beam, tsd, alsd, maes, maes_batch, malsd_batch; by default the one in the model's
config. Beam size and the other decoding settings stay the model's; maes takes 4 steps a frame at least.

One table is printed: reference words, substitutions, insertions, deletions, WER (summed errors over summed words, n/a
without any word; of a model with use_cer characters and CER), and the real-time factor: seconds of the whole
`transcribe` call (reading files, features, encoder, decoding; not loading the model) per second of audio. --output
writes the manifests' lines with `pred_text` added, and NAME_summary.json.

Several --model are evaluated one after the other, --branch holding for each, and a second table puts them side by
side: parameters, file (of a pair, both branches), WER, real-time factor of all manifests, and peak memory: what a
process of its own takes, beyond NeMo's libraries, to restore the model and transcribe one batch of the longest
utterances. --sizes prints it for one model too. --output then makes NAME_MODEL.json and NAME_MODEL_summary.json of
each.

Exit status 2: bad options, files or data; the message names the remedy.
"""
EXAMPLES = r"""
codert evaluate --model runs/fsdd/student.nemo --manifest data/fsdd/test_seen.json
codert evaluate --model runs/fsdd/latest/pair.nemo --branch teacher --decoding malsd_batch \
    --manifest data/fsdd/test_seen.json --manifest data/fsdd/test_unseen.json --output predictions.json
codert evaluate --model teacher.nemo --model student.nemo --manifest data/fsdd/test_seen.json
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, action="append", metavar="M.nemo")
    parser.add_argument("--manifest", type=Path, required=True, action="append", metavar="TEST.json")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--decoding", metavar="STRATEGY", help="see above (the model's own)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--sizes", action="store_true", help="measure the memory of one model too")
    parser.add_argument("--output", type=Path, metavar="PREDICTIONS.json")
    return parser


def run(options: argparse.Namespace) -> None:
    """Evaluate, and print a table of each model and one of all."""
    settings = EvaluationSettings(
        models=options.model,
        manifests=options.manifest,
        branch=options.branch,
        decoding=options.decoding,
        batch_size=options.batch_size,
        sizes=options.sizes,
        output=options.output,
    )
    settings.check()
    console.quieten_libraries()
    rows, metrics = [], set()
    for model in evaluate_models(settings):
        about = model.about
        title = (
            f"{model.name if settings.several else Path(about['model']).name}: {about['parameters']:,} parameters, "
            f"{about['decoding']}, batches of {about['batch_size']}, {about['device']}, {about['threads']} threads"
        )
        print_table(title, columns(model.evaluations[0]), [table_row(evaluation) for evaluation in model.evaluations])
        for path in model.files:
            print(f"wrote {path}")
        if "peak_memory_bytes" in about:
            rows.append(size_row(model))
            metrics.add(model.evaluations[0].metric)
    if rows:
        sets = [f"{'/'.join(sorted(metrics))} {manifest.stem}" for manifest in options.manifest]
        print_table("Side by side", ("model", "parameters", "file", *sets, "real-time factor", "peak memory"), rows)


def size_row(model: ModelEvaluation) -> tuple[str, ...]:
    """Return the cells of one model in the table of all."""
    peak = model.about["peak_memory_bytes"]
    return (
        model.name,
        f"{model.about['parameters']:,}",
        f"{model.about['file_bytes'] / 1e6:.2f} MB",
        *(rate(each) + (" CER" if each.metric == "CER" else "") for each in model.evaluations),
        f"{model.real_time_factor:.4f}",
        "n/a" if peak is None else f"{peak / 1e6:.0f} MB",
    )


def rate(evaluation: "Evaluation") -> str:
    """Return an error rate as text."""
    return f"{evaluation.errors.wer:.2%}" if evaluation.errors.words else "n/a"


def columns(evaluation: "Evaluation") -> tuple[str, ...]:
    """Return the heads of a table of one model."""
    counted = (evaluation.unit, "sub", "ins", "del", evaluation.metric)
    return ("manifest", "utterances", *counted, "audio", "real-time factor")


def table_row(evaluation: "Evaluation") -> tuple[str, ...]:
    """Return the cells of one manifest."""
    errors = evaluation.errors
    return (
        Path(evaluation.manifest).name,
        str(len(evaluation.predictions)),
        str(errors.words),
        str(errors.substitutions),
        str(errors.insertions),
        str(errors.deletions),
        rate(evaluation),
        f"{evaluation.audio_seconds:.0f} s",
        f"{evaluation.real_time_factor:.4f}",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
