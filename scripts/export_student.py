"""Makes a stock NeMo model of a trained pair's student: a `.nemo` that needs nothing but NeMo, or ONNX files.

    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output student.nemo
    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output student.onnx --format onnx
    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output sherpa --format sherpa-onnx --int8
    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output teacher.nemo --branch teacher

--model is a pair, or one RNN-T trained alone (strategy=student or teacher), also with an additive joint. The exported
file holds no weight of the other branch and no path of this machine. Of --format onnx come two files beside each
other, encoder-NAME.onnx and decoder_joint-NAME.onnx, as NeMo's own export makes them (raw logits). Of --format
sherpa-onnx comes a folder with encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt, which sherpa-onnx loads as
model type nemo_transducer; --int8 adds encoder.int8.onnx and so on. Features that sherpa-onnx cannot compute are
refused by name (docs/deployment.md has the list).

--joint says how an additive joint is rewritten as NeMo's: exact (outputs bit-equal on real utterances, on the CPU),
compact (equal to rounding, smaller when the vocabulary is large), narrow (equal to rounding in float32, half as wide
as compact and the fastest with a large vocabulary; not for half precision or int8), auto (exact while V+1 <= D_enc +
D_pred, else compact). A stock joint is copied as it is. For sherpa-onnx, auto keeps an additive joint: its joiner is
then a sum.

A file is complete under its name or not there. Exit status 2: bad options or files; the message says what to change.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.console import exit_status, quieten_libraries

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

SUFFIXES = {"nemo": ".nemo", "onnx": ".onnx"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="PAIR.nemo")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDENT.nemo")
    parser.add_argument("--format", choices=["nemo", "onnx", "sherpa-onnx"], default="nemo")
    parser.add_argument("--joint", choices=["auto", "exact", "compact", "narrow"], default="auto")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--int8", action="store_true", help="sherpa-onnx: 8-bit files beside the others")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a wrong suffix, an option of another format, an output that would replace the input.
    """
    if options.int8 and options.format != "sherpa-onnx":
        raise ValueError(f"--int8 is for --format sherpa-onnx, the format is {options.format}: leave it out")
    if not options.model.is_file():
        raise ValueError(f"--model is {options.model}: no such file. Give the .nemo that scripts/train.py left")
    if options.format == "sherpa-onnx":
        if options.output.exists() and not options.output.is_dir() or options.output.suffix in SUFFIXES.values():
            raise ValueError(f"--output is {options.output}, but --format sherpa-onnx fills a folder: give one")
        return
    suffix = SUFFIXES[options.format]
    if options.output.suffix != suffix:
        raise ValueError(f"--output is {options.output}, but --format {options.format} makes a {suffix} file")
    if options.output.is_dir():
        raise ValueError(f"--output is {options.output}: that is a folder")
    if options.output.resolve() == options.model.resolve():
        raise ValueError(f"--output is --model itself ({options.model}): give another name")


def export(options: argparse.Namespace) -> None:
    """Write the files that the options ask for and print what they are."""
    check_options(options)
    quieten_libraries()
    from nemo_codert.export import load_model

    model = load_model(options.model)
    about, written = export_sherpa(model, options) if options.format == "sherpa-onnx" else export_stock(model, options)
    print(about)
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def export_stock(model: "EncDecRNNTBPEModel", options: argparse.Namespace) -> tuple[str, list[Path]]:
    """A stock `.nemo` or NeMo's ONNX: what it is, and the files."""
    from nemo_codert.export import export_onnx, save_model, stock_of

    stock = stock_of(model, branch=options.branch, joint=options.joint)
    written = export_onnx(stock, options.output) if options.format == "onnx" else [save_model(stock, options.output)]
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    pieces = stock.joint.num_classes_with_blank - 1
    hidden = f"joint_hidden {stock.joint.joint_hidden}"
    return f"{type(stock).__name__}, {parameters:,} parameters, {hidden}, {pieces} word pieces", list(written)


def export_sherpa(model: "EncDecRNNTBPEModel", options: argparse.Namespace) -> tuple[str, list[Path]]:
    """The folder for sherpa-onnx: which recognizer it is for, and the files."""
    from nemo_codert.export import networks_of
    from nemo_codert.sherpa_onnx import export_sherpa_onnx, is_cache_aware

    choice = {"branch": options.branch, "joint": options.joint, "int8": options.int8}
    written = export_sherpa_onnx(model, options.output, **choice)
    networks = networks_of(model, options.branch)
    program = "OnlineRecognizer" if is_cache_aware(networks.encoder) else "OfflineRecognizer"
    return f"sherpa-onnx {program}, {networks.joint.num_classes_with_blank - 1} word pieces", written


def main() -> int:
    """Command line; returns the exit status."""
    options = parse_arguments()
    return exit_status(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
