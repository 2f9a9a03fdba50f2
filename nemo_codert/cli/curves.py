"""Draw the learning curves of several runs over each other, and say how far apart they are.

    python scripts/plot_curves.py --run exact=runs/exact/DATE --run nemo=runs/nemo/DATE --output curves.png

--run takes a name and the folder of a run (the one with events.out.tfevents.*). Every run is compared with the first:
printed are, per curve, the steps both have and the largest difference, absolute and relative to the first run's value.
The PNG is all that is written. Exit status 2: a folder without curves, runs that share no step.
"""

import argparse
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.evaluation.learning_curves import largest_difference, plot_runs, read_curves


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, type=named_folder, metavar="NAME=FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG")
    parser.add_argument("--names", nargs="+", default=["train_loss", "val_wer"], help="curves, as they are logged")
    return parser.parse_args(arguments)


def named_folder(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER`."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)


def compare(options: argparse.Namespace) -> None:
    """Print the differences and draw the curves."""
    runs = {name: read_curves(folder) for name, folder in options.run}
    (first, reference), *others = runs.items()
    for name, curves in others:
        for curve in options.names:
            steps, absolute, relative = largest_difference(reference, curves, curve)
            print(f"{curve}: {name} and {first} at {steps} steps: at most {absolute:.3g} apart ({relative:.2%})")
    print(f"Written to {plot_runs(runs, options.names, options.output)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: compare(options))
