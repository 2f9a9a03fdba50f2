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

Beside NAME.nemo comes NAME.md, a model card in the form that model hubs read, and its text is in the file
(`model.cfg.model_card`): training data by name and hours, strategy and teacher as the model's file records them, WER
of the sets in --wer (predictions or summaries of scripts/evaluate.py, repeatable) with an interval, --license,
--language and --dataset (hub names; repeatable). What is not known is called unknown.

A file is complete under its name or not there. Exit status 2: bad options or files; the message says what to change.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import DictConfig

    from nemo_codert.export.training_record import TrainingRecord

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
    card = parser.add_argument_group("model card, --format nemo")
    card.add_argument("--wer", type=Path, action="append", default=[], metavar="PREDICTIONS.json")
    card.add_argument("--license", default="unknown", metavar="ID", help="a hub's id, such as cc-by-4.0 (unknown)")
    card.add_argument("--language", action="append", default=[], metavar="CODE", help="ISO code, such as en")
    card.add_argument("--dataset", action="append", default=[], metavar="NAME", help="training data at a model hub")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a wrong suffix, an option of another format, an output that would replace the input.
    """
    if options.int8 and options.format != "sherpa-onnx":
        raise ValueError(f"--int8 is for --format sherpa-onnx, the format is {options.format}: leave it out")
    if options.format != "nemo":
        given = {"--wer": options.wer, "--language": options.language, "--dataset": options.dataset}
        given["--license"] = options.license != "unknown"
        for option in [option for option, value in given.items() if value]:
            raise ValueError(f"{option} is for the model card, which --format {options.format} has none of")
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
    console.quieten_libraries()
    from nemo_codert.export.stock_file import load_model

    model = load_model(options.model)
    about, written = export_sherpa(model, options) if options.format == "sherpa-onnx" else export_stock(model, options)
    print(about)
    for path in written:
        print(f"{path}  model card" if path.suffix == ".md" else f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def card_of(cfg: "DictConfig", record: "TrainingRecord | None", parameters: int, options: argparse.Namespace) -> str:
    """The model card that the options ask for.

    Raises:
        ValueError: results that are none, or of another model.
    """
    from nemo_codert.export.model_card import CardOptions, model_card, read_results

    about = {"branch": options.branch, "parameters": parameters}
    return model_card(
        cfg,
        name=options.output.stem,
        record=record,
        results=[result for path in options.wer for result in read_results(path, **about)],
        options=CardOptions(options.license, tuple(options.language), tuple(options.dataset)),
        **about,
    )


def export_stock(model: "EncDecRNNTBPEModel", options: argparse.Namespace) -> tuple[str, list[Path]]:
    """A stock `.nemo` with its card, or NeMo's ONNX: what it is, and the files."""
    from nemo_codert.export.stock_file import export_onnx, save_with_card, stock_of
    from nemo_codert.export.training_record import recorded_training

    stock = stock_of(model, branch=options.branch, joint=options.joint)
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    if options.format == "onnx":
        written = export_onnx(stock, options.output)
    else:
        card = card_of(stock.cfg, recorded_training(model.cfg), parameters, options)
        written = save_with_card(stock, options.output, card)
    pieces = stock.joint.num_classes_with_blank - 1
    hidden = f"joint_hidden {stock.joint.joint_hidden}"
    return f"{type(stock).__name__}, {parameters:,} parameters, {hidden}, {pieces} word pieces", list(written)


def export_sherpa(model: "EncDecRNNTBPEModel", options: argparse.Namespace) -> tuple[str, list[Path]]:
    """The folder for sherpa-onnx: which recognizer it is for, and the files."""
    from nemo_codert.export.sherpa_onnx import export_sherpa_onnx, is_cache_aware
    from nemo_codert.export.stock_file import networks_of

    choice = {"branch": options.branch, "joint": options.joint, "int8": options.int8}
    written = export_sherpa_onnx(model, options.output, **choice)
    networks = networks_of(model, options.branch)
    program = "OnlineRecognizer" if is_cache_aware(networks.encoder) else "OfflineRecognizer"
    return f"sherpa-onnx {program}, {networks.joint.num_classes_with_blank - 1} word pieces", written


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: export(options))
