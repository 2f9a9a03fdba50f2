"""Makes a stock NeMo model of a trained pair's student: a `.nemo` that needs nothing but NeMo, or ONNX files.

    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output student.nemo
    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output student.onnx --format onnx
    python scripts/export_student.py --model runs/fsdd/fsdd/DATE/pair.nemo --output teacher.nemo --branch teacher

--model is a pair, or one RNN-T trained alone (strategy=student or teacher), also with an additive joint. The exported
file holds no weight of the other branch and no path of this machine. Of --format onnx come two files beside each
other, encoder-NAME.onnx and decoder_joint-NAME.onnx, as NeMo's own export makes them (raw logits).

--joint says how an additive joint is rewritten as NeMo's: exact (outputs bit-equal on real utterances, on the CPU),
compact (equal to rounding, smaller when the vocabulary is large), narrow (equal to rounding in float32, half as wide
as compact and the fastest with a large vocabulary; not for half precision or int8), auto (exact while V+1 <= D_enc +
D_pred, else compact). A stock joint is copied as it is.

A file is complete under its name or not there. Exit status 2: bad options or files; the message says what to change.
"""

import argparse
import sys
from pathlib import Path

from nemo_codert.console import exit_status, quieten_libraries

SUFFIXES = {"nemo": ".nemo", "onnx": ".onnx"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="PAIR.nemo")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDENT.nemo")
    parser.add_argument("--format", choices=["nemo", "onnx", "sherpa-onnx"], default="nemo")
    parser.add_argument("--joint", choices=["auto", "exact", "compact", "narrow"], default="auto")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a format that is not there yet, a wrong suffix, an output that would replace the input.
    """
    if options.format == "sherpa-onnx":
        raise ValueError(
            "--format sherpa-onnx is not in this release, it comes with a later one. Use --format onnx (encoder and "
            "decoder with joint, NeMo's layout) or --format nemo"
        )
    suffix = SUFFIXES[options.format]
    if options.output.suffix != suffix:
        raise ValueError(f"--output is {options.output}, but --format {options.format} makes a {suffix} file")
    if not options.model.is_file():
        raise ValueError(f"--model is {options.model}: no such file. Give the .nemo that scripts/train.py left")
    if options.output.is_dir():
        raise ValueError(f"--output is {options.output}: that is a folder")
    if options.output.resolve() == options.model.resolve():
        raise ValueError(f"--output is --model itself ({options.model}): give another name")


def export(options: argparse.Namespace) -> None:
    """Write the files that the options ask for and print what they are."""
    check_options(options)
    quieten_libraries()
    from nemo_codert.export import export_onnx, load_model, save_model, stock_of

    model = load_model(options.model)
    stock = stock_of(model, branch=options.branch, joint=options.joint)
    written = export_onnx(stock, options.output) if options.format == "onnx" else [save_model(stock, options.output)]
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(
        f"{type(stock).__name__}, {parameters:,} parameters, joint_hidden {stock.joint.joint_hidden}, "
        f"{stock.joint.num_classes_with_blank - 1} word pieces"
    )
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    """Command line; returns the exit status."""
    options = parse_arguments()
    return exit_status(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
