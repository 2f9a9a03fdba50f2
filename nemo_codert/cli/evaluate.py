"""Word error rate, speed and size of trained models on test manifests.

    python scripts/evaluate.py --model runs/fsdd/student.nemo --manifest data/fsdd/test_seen.json
    python scripts/evaluate.py --model runs/fsdd/fsdd/DATE/pair.nemo --branch teacher --decoding malsd_batch \\
        --manifest data/fsdd/test_seen.json --manifest data/fsdd/test_unseen.json --output predictions.json
    python scripts/evaluate.py --model teacher.nemo --model student.nemo --manifest data/fsdd/test_seen.json

--model is a stock RNN-T, a pair (--branch says which half, the student by default), or an RNN-T trained alone with an
additive joint. The stock model of it transcribes, with NeMo's own `transcribe`, on the GPU if there is one.

--decoding: greedy, greedy_batch, beam, tsd, alsd, maes, maes_batch, malsd_batch; by default what the model's config
says. Beam size and the other decoding settings stay the model's; maes takes 4 steps a frame at least.

One table is printed: reference words, substitutions, insertions, deletions, WER (summed errors over summed words, n/a
without any word), and the real-time factor: seconds of the whole `transcribe` call (reading files, features, encoder,
decoding; not loading the model) per second of audio. --output writes the manifests' lines with `pred_text` added, and
NAME_summary.json.

Several --model are evaluated one after the other, --branch holding for each, and a second table puts them side by
side: parameters, file (of a pair, both branches), WER, real-time factor of all manifests, and peak memory: what a
process of its own takes, beyond NeMo's libraries, to restore the model and transcribe one batch of the longest
utterances. --sizes prints it for one model too. --output then makes NAME_MODEL.json and NAME_MODEL_summary.json of
each.

Exit status 2: bad options, files or data; the message says what to change.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from nemo_codert.cli import console

if TYPE_CHECKING:
    from nemo_codert.evaluation.transcribe import Evaluation

COLUMNS = ("manifest", "utterances", "words", "sub", "ins", "del", "WER", "audio", "real-time factor")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append", metavar="M.nemo")
    parser.add_argument("--manifest", type=Path, required=True, action="append", metavar="TEST.json")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--decoding", metavar="STRATEGY", help="see above (the model's own)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--sizes", action="store_true", help="measure the memory of one model too")
    parser.add_argument("--output", type=Path, metavar="PREDICTIONS.json")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a file that is missing, a manifest that cannot be read, numbers out of range.
    """
    from nemo_codert.data.manifest import read_manifest

    for model in options.model:
        if not model.is_file():
            raise ValueError(f"--model is {model}: no such file. Give the path of a .nemo file")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}, wanted 1 or more")
    if options.output is not None and options.output.is_dir():
        raise ValueError(f"--output is {options.output}: that is a folder, give a file name")
    for manifest in options.manifest:
        read_manifest(manifest)
        if options.output is not None and options.output.resolve() == manifest.resolve():
            raise ValueError(f"--output is --manifest itself ({manifest}): give another name")
    if options.output is not None:
        check_writable(options.output)


def check_writable(output: Path) -> None:
    """Make the folder of the predictions and try it, lest they are lost after a long evaluation.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"--output is {output}: no file can be made in {output.parent} ({error.strerror}). Give another folder"
        ) from error


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the tables, write the predictions."""
    check_options(options)
    console.quieten_libraries()
    from nemo_codert.benchmark.model_sizes import distinct_names, peak_memory_of
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.teacher_weights import restored_config

    names = distinct_names(options.model)
    for model in options.model if len(options.model) > 1 else ():
        cfg = restored_config(model, str(model))  # a fault of the last model is told before the first one transcribes
        if options.branch == "teacher" and "codert" not in cfg:
            raise ValueError(f"--branch is teacher, but {model}: this model is one RNN-T and no pair")
    entries = [entry for manifest in options.manifest for entry in usable_entries(manifest)]
    rows = []
    for model, name in zip(options.model, names, strict=True):
        about, evaluations = evaluate_model(model, options)
        if len(names) > 1 or options.sizes:
            about["peak_memory_bytes"] = peak_memory_of(
                model,
                entries,
                branch=options.branch,
                decoding=options.decoding,
                batch_size=options.batch_size,
                device=about["device"].split(":")[0],
            )
            rows.append(size_row(name, about, evaluations))
        title = (
            f"{name if len(names) > 1 else model.name}: {about['parameters']:,} parameters, {about['decoding']}, "
            f"batches of {options.batch_size}, {about['device']}, {about['threads']} threads"
        )
        print_table(title, COLUMNS, [table_row(evaluation) for evaluation in evaluations])
        write(options, name if len(names) > 1 else None, about, evaluations)
    if rows:
        sets = [f"WER {manifest.stem}" for manifest in options.manifest]
        print_table("Side by side", ("model", "parameters", "file", *sets, "real-time factor", "peak memory"), rows)


def evaluate_model(path: Path, options: argparse.Namespace) -> "tuple[dict[str, Any], list[Evaluation]]":
    """What one model is and what it made of the manifests; it is gone from memory afterwards."""
    import torch

    from nemo_codert.evaluation.transcribe import evaluate, set_decoding
    from nemo_codert.export.stock_file import load_model, stock_of

    model = stock_of(load_model(path), branch=options.branch)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if options.decoding is not None:
        set_decoding(model, options.decoding)
    about = {
        "model": str(path),
        "branch": options.branch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "file_bytes": path.stat().st_size,
        "decoding": model.cfg.decoding.strategy,
        "batch_size": options.batch_size,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    return about, [evaluate(model, manifest, batch_size=options.batch_size) for manifest in options.manifest]


def write(
    options: argparse.Namespace, name: str | None, about: dict[str, Any], evaluations: "list[Evaluation]"
) -> None:
    """Predictions and summary of a model, whose name goes into theirs where there are several."""
    from nemo_codert.evaluation.transcribe import write_predictions

    if options.output is None:
        return
    path = options.output
    if name is not None:
        path = path.with_name(f"{path.stem}_{name.replace('/', '_')}{path.suffix}")
    for written in write_predictions(path, evaluations, about):
        print(f"wrote {written}")


def size_row(name: str, about: dict[str, Any], evaluations: "list[Evaluation]") -> tuple[str, ...]:
    """The cells of one model in the table of all."""
    rates = [f"{each.errors.wer:.2%}" if each.errors.words else "n/a" for each in evaluations]
    seconds = sum(each.wall_seconds for each in evaluations), sum(each.audio_seconds for each in evaluations)
    peak = about["peak_memory_bytes"]
    return (
        name,
        f"{about['parameters']:,}",
        f"{about['file_bytes'] / 1e6:.2f} MB",
        *rates,
        f"{seconds[0] / seconds[1]:.4f}",
        "n/a" if peak is None else f"{peak / 1e6:.0f} MB",
    )


def table_row(evaluation: "Evaluation") -> tuple[str, ...]:
    """The cells of one manifest."""
    errors = evaluation.errors
    return (
        Path(evaluation.manifest).name,
        str(len(evaluation.predictions)),
        str(errors.words),
        str(errors.substitutions),
        str(errors.insertions),
        str(errors.deletions),
        f"{errors.wer:.2%}" if errors.words else "n/a",
        f"{evaluation.audio_seconds:.0f} s",
        f"{evaluation.real_time_factor:.4f}",
    )


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """With rich where it is installed, in plain columns elsewhere."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        for row in (columns, *rows):
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        return
    print(title)
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a log file has no width to keep to
        console = Console(width=200)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: run(options))
