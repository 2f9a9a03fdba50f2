"""The command `codert`: one subcommand for each module of this room.

Imports the standard library and the version only: `codert --help` must not wait for PyTorch and NeMo. The module of a
subcommand is imported when it is called, and has `main(argv)`, which returns the exit status.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nemo_codert import __version__
from nemo_codert.config.nearest import nearest

# Subcommand -> module in nemo_codert.cli, summary; in the order in which they are used.
SUBCOMMANDS = {
    "quickstart": ("quickstart", "make a small corpus, train teacher and students on it, check the student"),
    "configs": ("configs", "list the shipped configs, copy one into a folder of your own"),
    "new": ("new", "write the config of a pair, and its tokenizer, from a trained model's file"),
    "prepare": ("prepare", "make manifests and a tokenizer from a corpus"),
    "check": ("check", "check all that training would check, without training"),
    "train": ("train", "train a teacher and its student together, or either of them alone"),
    "pseudo-label": ("pseudo_label", "transcribe audio without text, as labels for a student"),
    "cache": ("cache", "store the targets of trained teachers, for training without them"),
    "evaluate": ("evaluate", "transcribe manifests and count word errors"),
    "curves": ("curves", "plot the learning curves of runs"),
    "compare": ("compare", "train several strategies alike and compare their students"),
    "analyze": ("analyze", "measure and picture the logits of teacher and student"),
    "latency": ("latency", "measure when the words of a stream are recognised"),
    "stream": ("stream", "transcribe as a stream, in NeMo's own pipelines"),
    "export": ("export", "write the student as a stock .nemo, as ONNX, or for sherpa-onnx"),
    "verify": ("verify", "compare an exported student's transcripts in NeMo, onnxruntime and sherpa-onnx"),
    "demo": ("demo", "serve a page that transcribes a microphone with an exported student"),
    "benchmark": ("benchmark", "measure the time and memory of the loss, of training steps and of decoding"),
    "env": ("env", "print versions and machine, for a report of a fault"),
}
EXAMPLE = """\
Example: a student of one eighth of a teacher's encoder, on your own data

  codert new --teacher teacher.nemo --output my_pair --size 1/8
  codert check --config-dir my_pair --config-name pair model.train_ds.manifest_filepath=train.json \\
      model.validation_ds.manifest_filepath=dev.json exp_manager.exp_dir=runs
  codert train --config-dir my_pair --config-name pair model.train_ds.manifest_filepath=train.json \\
      model.validation_ds.manifest_filepath=dev.json exp_manager.exp_dir=runs"""


def help_text() -> str:
    """Return what `codert --help` prints."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in SUBCOMMANDS.items()]
    head = "usage: codert SUBCOMMAND ...\n\nTrain small transducers under large ones in NVIDIA NeMo.\n\nSubcommands:"
    tail = "codert SUBCOMMAND --help describes one of them, codert --version prints the version."
    return "\n".join([head, *lines, "", tail, "", EXAMPLE])


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a subcommand.

    Args:
        argv: the subcommand and its arguments, by default those of this process.

    Returns:
        The exit status: 0 or None, 2 for an unknown subcommand, otherwise that of the subcommand.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"codert {__version__}")
        return 0
    if name not in SUBCOMMANDS:
        near = nearest(name, SUBCOMMANDS)
        print(f"error: codert has no subcommand {name!r}, the nearest is {near!r} (codert --help)", file=sys.stderr)
        return 2
    module = f"nemo_codert.cli.{SUBCOMMANDS[name][0]}"
    with _as_program(f"codert {name}", module, rest):
        return importlib.import_module(module).main(rest)


@contextmanager
def _as_program(program: str, module: str, arguments: list[str]) -> Iterator[None]:
    """Let this process look as if it had been started as `python -m module`, under the name of the subcommand.

    Hydra reads `sys.argv`, argparse takes the program's name from there, and Lightning starts further processes of a
    run on several devices from `__main__.__spec__` and `sys.argv`.
    """
    process = sys.modules["__main__"]
    before = sys.argv, getattr(process, "__spec__", None)
    sys.argv, process.__spec__ = [program, *arguments], importlib.util.find_spec(module)
    try:
        yield
    finally:
        sys.argv, process.__spec__ = before


if __name__ == "__main__":
    sys.exit(main())
