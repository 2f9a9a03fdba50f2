"""Check all that training would check, without training: nothing is written.

    codert check --config-dir my_pair --config-name pair strategy=static \\
        model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=dev.json \\
        exp_manager.exp_dir=runs

The arguments are those of codert train: --config-name names a shipped config (codert configs ls) or one in the folder
that --config-dir names, KEY=VALUE sets a key, strategy=NAME chooses a strategy. The config, its files, every utterance
and the checkpoints that it names are checked; the model and the optimizer are built and tried. Printed are the
branches with their parameters, the data that can be used, the terms of the loss, and the command that trains.

Exit status 2: the run could not start; the message lists every fault.
"""

import shlex
import sys
from collections.abc import Sequence

from nemo_codert.cli.composition import composed, refuse_early
from nemo_codert.cli.console import exit_status, fault, quieten_libraries, setting_errors
from nemo_codert.config.search import check_names, config_search, with_additions


def main(argv: Sequence[str] | None = None) -> int:
    """Run `codert check`; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-h" in arguments or "--help" in arguments:
        print(f"usage: codert check [--config-dir FOLDER] [--config-name NAME] [KEY=VALUE ...]\n\n{__doc__.strip()}")
        raise SystemExit(0)

    def work() -> None:
        search = with_additions(config_search(arguments))
        if search.options:
            raise ValueError(f"{search.options[0]!r} is neither an option of codert check nor KEY=VALUE")
        check_names(search)
        refuse_early(search)
        quieten_libraries()
        from nemo_codert.training.readiness import check_training

        try:
            print(check_training(composed(search)).summary())
        except setting_errors() as error:
            raise ValueError(fault(error)) from error
        print(f"Ready to train: {shlex.join(['codert', 'train', *arguments])}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
