"""`codert export`: a trained branch as files. The work is `nemo_codert.export.student_files`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.export.student_files import FORMATS, JOINTS, UNKNOWN, ExportSettings, export_student

DESCRIPTION = """
Makes a stock NeMo model of a trained pair's student: a `.nemo` that needs nothing but NeMo, or ONNX files.

--model is a pair, or one RNN-T trained alone (strategy=student or teacher), also with an additive joint, or a hybrid
or TDT model. The exported file holds no weight of the other branch and no path of this machine. Of --format onnx come
two files beside each other, encoder-NAME.onnx and decoder_joint-NAME.onnx, as NeMo's own export makes them (raw
logits). Of --format sherpa-onnx comes a folder with encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt, which
sherpa-onnx loads as model type nemo_transducer; --int8 adds encoder.int8.onnx and so on. ONNX files of an encoder with
positions take audio up to a length, which is printed. Features that sherpa-onnx cannot compute are refused by name
(docs/deployment.md has the list).

--joint selects the form in which an additive joint is rewritten as NeMo's: exact (outputs bit-equal on real
utterances, on the CPU), compact (equal to rounding, smaller when the vocabulary is large), narrow (equal to rounding
in float32, half as wide as compact and the fastest with a large vocabulary; not for half precision or int8), auto
(exact while V+1 <= D_enc + D_pred, else compact). A stock joint is copied as it is. For sherpa-onnx, auto keeps an
additive joint: its joiner is then a sum.

Beside NAME.nemo comes NAME.md, a model card in the form that model hubs read, and its text is in the file
(`model.cfg.model_card`): training data by name and hours, strategy and teacher as the model's file records them, WER
of the sets in --wer (predictions or summaries of `codert evaluate`, repeatable) with an interval, --license,
--language and --dataset (hub names; repeatable). What is not known is called unknown.

--push ORG/NAME then uploads both to the Hugging Face hub by NeMo's push_to_hf_hub: NAME.nemo is the file just written,
README.md its card, which names the repository. It needs a token (hf auth login, or HF_TOKEN); a repository that is not
there is made, a public one. If the upload fails, the local files stay and the command to repeat is printed.

A file is complete under its name or not there. Exit status 2: bad options or files, or a failed upload; the message
names the remedy.
"""
EXAMPLES = r"""
codert export --model runs/fsdd/latest/pair.nemo --output student.nemo
codert export --model runs/fsdd/latest/pair.nemo --output student.onnx --format onnx
codert export --model runs/fsdd/latest/pair.nemo --output sherpa --format sherpa-onnx --int8
codert export --model runs/fsdd/latest/pair.nemo --output teacher.nemo --branch teacher
codert export --model runs/fsdd/latest/pair.nemo --output student.nemo --push my-org/digits-student
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, metavar="PAIR.nemo")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDENT.nemo")
    parser.add_argument("--format", choices=FORMATS, default="nemo")
    parser.add_argument("--joint", choices=JOINTS, default="auto")
    parser.add_argument("--branch", choices=["student", "teacher"], default="student")
    parser.add_argument("--int8", action="store_true", help="sherpa-onnx: 8-bit files beside the others")
    card = parser.add_argument_group("model card, --format nemo")
    card.add_argument("--wer", type=Path, action="append", default=[], metavar="PREDICTIONS.json")
    card.add_argument("--license", default=UNKNOWN, metavar="ID", help="a hub's id, such as cc-by-4.0 (unknown)")
    card.add_argument("--language", action="append", default=[], metavar="CODE", help="ISO code, such as en")
    card.add_argument("--dataset", action="append", default=[], metavar="NAME", help="training data at a model hub")
    card.add_argument("--push", metavar="ORG/NAME", help="upload model and card to the Hugging Face hub")
    return parser


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Write the files, print what they are, and upload them if that is wanted.

    arguments: of the command line, which a failed upload prints to be repeated.
    """
    settings = ExportSettings(**vars(options))
    settings.check()
    console.quieten_libraries()
    exported = export_student(settings)
    print(exported.description)
    for path in exported.files:
        print(f"{path}  model card" if path.suffix == ".md" else f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    if settings.push:
        print(_pushed(exported.files, settings.push, arguments))


def _pushed(files: Sequence[Path], repository: str, arguments: Sequence[str]) -> str:
    """Upload the files and return the address."""
    from nemo_codert.export.hub import UploadError, push_to_hub

    try:
        return push_to_hub(*files, repository)
    except UploadError as error:
        again = shlex.join(["codert", "export", *arguments])
        raise UploadError(f"{error}. To try again: {again}") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    return console.exit_status(lambda: run(options, arguments), options)


if __name__ == "__main__":
    sys.exit(main())
