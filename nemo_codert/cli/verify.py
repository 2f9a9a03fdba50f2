"""Is my export right? Exports a student in every format and transcribes a manifest with the programs that serve them.

    python scripts/check_deployment.py --model runs/fsdd/fsdd/DATE/pair.nemo --manifest data/fsdd/test_unseen.json \\
        --output-dir runs/deployment

--model is a pair (--branch says which half, the student by default) or one RNN-T. --output-dir gets student.nemo,
onnx/ (NeMo's layout) and sherpa-onnx/ (float and int8), as scripts/export_student.py writes them, and deployment.md:
a table of the formats (word error rate, utterances with NeMo's text, size), and the texts of the first --show
utterances. Needs pip install -r requirements-deploy.txt.

The four programs: NeMo's `transcribe`; onnxruntime with a greedy loop, on NeMo's features; sherpa-onnx, which computes
its own features, with the float and with the int8 files (its online recognizer where the encoder is cache-aware, its
offline one else). All get the same samples, at the model's sample rate, and
decode greedily. --limit N takes the first N utterances only.

Exit status 2: bad options, files or data, or a model that sherpa-onnx cannot serve; the message says what to change.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli import console

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.evaluation.served import Deployed


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="PAIR.nemo")
    parser.add_argument("--manifest", type=Path, required=True, metavar="TEST.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--limit", type=int, metavar="N", help="utterances (all)")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="utterances in the second table (10)")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a file that is missing, a number out of range, a program that is not installed.
    """
    from importlib.util import find_spec

    for package in ("onnxruntime", "sherpa_onnx"):
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -r requirements-deploy.txt")
    if not options.model.is_file():
        raise ValueError(f"--model is {options.model}: no such file. Give the path of a .nemo file")
    for name, least in (("limit", 1), ("show", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}, wanted {least} or more")


def run(options: argparse.Namespace) -> None:
    """Export, transcribe, print and write the report."""
    check_options(options)
    console.quieten_libraries()
    from nemo_codert.data.manifest import whole_or_not
    from nemo_codert.evaluation.served import read_signal, report
    from nemo_codert.evaluation.transcribe import set_decoding, usable_entries
    from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
    from nemo_codert.export.stock_file import load_model, stock_of

    entries = usable_entries(options.manifest)[: options.limit]
    with console.folder_to_fill(options.output_dir, "--output-dir"):
        model = load_model(options.model)
        folder = options.output_dir / "sherpa-onnx"
        sherpa = export_sherpa_onnx(model, folder, branch=options.branch, int8=True)
        stock = stock_of(model, branch=options.branch)
        set_decoding(stock, "greedy_batch")
        signals = [read_signal(entry, stock.preprocessor.featurizer.sample_rate) for entry in entries]
        deployed = transcribe(stock, options.output_dir, sherpa, signals, [entry["text"] for entry in entries])
        text = report(deployed, [entry["text"] for entry in entries], options.show)
        with whole_or_not(options.output_dir / "deployment.md") as path:
            path.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {options.output_dir / 'deployment.md'}")


def transcribe(
    stock: "EncDecRNNTBPEModel", folder: Path, sherpa: list[Path], signals: list, references: list[str]
) -> list["Deployed"]:
    """The same signals through every program; the stock model's own files are written first."""
    from nemo_codert.evaluation.served import Deployed, OnnxGreedy, SherpaOnnx, nemo_texts
    from nemo_codert.export.stock_file import export_onnx, save_model

    rate = stock.preprocessor.featurizer.sample_rate
    nemo = save_model(stock, folder / "student.nemo")
    onnx = export_onnx(stock, folder / "onnx" / "student.onnx")
    greedy = OnnxGreedy(stock, *onnx)
    deployed = [
        Deployed.of("NeMo", nemo_texts(stock, signals), [nemo], references),
        Deployed.of("onnxruntime", [greedy.text(signal) for signal in signals], onnx, references),
    ]
    for int8 in (False, True):
        program = SherpaOnnx(sherpa[0].parent, rate, int8=int8)
        texts = [program.text(signal) for signal in signals]
        files = [path for path in sherpa if path.name.endswith(".int8.onnx") == int8 and path.suffix == ".onnx"]
        deployed.append(Deployed.of("sherpa-onnx int8" if int8 else "sherpa-onnx", texts, files, references))
    return deployed


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: run(options))
