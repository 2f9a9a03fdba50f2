"""`codert curves`: learning curves of runs over each other. The work is `nemo_codert.evaluation.learning_curves`."""

import argparse
import sys
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.config.arguments import require_installed

DESCRIPTION = """
Draw the learning curves of several runs over each other, and print how far apart they are.

--run takes a name and the folder of a run (the one with events.out.tfevents.*). Every run is compared with the first:
printed are, per curve, the steps both have and the largest difference, absolute and relative to the first run's value.
The PNG is all that is written. Exit status 2: a folder without curves, runs that share no step.
"""
EXAMPLES = """
codert curves --run exact=runs/exact/latest --run nemo=runs/nemo/latest --output curves.png
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--run", action="append", required=True, type=named_folder, metavar="NAME=FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG")
    parser.add_argument("--names", nargs="+", default=["train_loss", "val_wer"], help="curves, as they are logged")
    return parser


def named_folder(text: str) -> tuple[str, Path]:
    """Return name and folder of `NAME=FOLDER`."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)


def run(options: argparse.Namespace) -> None:
    """Compare and draw the curves, and print the differences."""
    require_installed("scripts", "matplotlib")
    from nemo_codert.evaluation.learning_curves import compare_runs

    folders = dict(options.run)
    first = next(iter(folders))
    for apart in compare_runs(folders, options.names, options.output):
        print(
            f"{apart.curve}: {apart.run} and {first} at {apart.steps} steps: "
            f"at most {apart.distance} apart ({apart.relative:.2%})"
        )
    print(f"Written to {options.output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
