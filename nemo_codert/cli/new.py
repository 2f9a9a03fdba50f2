"""Write the config of a pair from a trained model's file: the model becomes the teacher of a smaller student.

    codert new --teacher teacher.nemo --output my_pair --size 1/8

The folder gets pair.yaml and the teacher's tokenizer. The teacher may be an RNN-T, a hybrid RNN-T/CTC or a TDT model
with a SentencePiece tokenizer. It stays as it is (strategy=static); the student's encoder is the teacher's with fewer
and narrower layers. Then give the config your data:

    codert check --config-dir my_pair --config-name pair model.train_ds.manifest_filepath=train.json \\
        model.validation_ds.manifest_filepath=dev.json exp_manager.exp_dir=runs
    codert train --config-dir my_pair --config-name pair model.train_ds.manifest_filepath=train.json \\
        model.validation_ds.manifest_filepath=dev.json exp_manager.exp_dir=runs
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from nemo_codert.cli.console import exit_status, quieten_libraries


def share(text: str) -> Fraction:
    """Return a share such as 1/8 or 0.125 as a fraction."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share. Give one such as 1/8 or 0.125") from None


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, metavar="M.nemo", help="a .nemo file, or a pretrained name")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a folder that is new or empty")
    parser.add_argument(
        *("--size", "-s"),
        type=share,
        default=Fraction(1, 8),
        metavar="SHARE",
        help="parameters of the student's encoder, as a share of the teacher's (default: 1/8)",
    )
    parser.add_argument("--name", default="pair", help="of the config (default: pair)")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `codert new`; see the module's docstring."""
    options = parse_arguments(argv)

    def work() -> None:
        quieten_libraries()
        from nemo_codert.models.new_pair import new_pair

        pair = new_pair(options.teacher, options.output, share=options.size, name=options.name)
        print(f"Wrote {pair.path} and {pair.tokenizer}")
        print(pair.summary())
        print(
            f"Next: codert check --config-dir {options.output} --config-name {options.name} "
            f"model.train_ds.manifest_filepath=TRAIN.json model.validation_ds.manifest_filepath=DEV.json "
            f"exp_manager.exp_dir=runs/{options.name}"
        )

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
