"""Train a teacher and its student together, or either of them alone.

    codert train --config-name=fsdd strategy=shared_kd \\
        model.train_ds.manifest_filepath=data/fsdd/train.json \\
        model.validation_ds.manifest_filepath=data/fsdd/dev.json \\
        model.tokenizer.dir=data/fsdd/tokenizer exp_manager.exp_dir=runs/fsdd

Strategies (conf/strategy): student, static, tandem, tandem_kd, shared, shared_kd, static_shared; and teacher, which
makes the checkpoint that the static ones take as model.codert.teacher_checkpoint=....

Configs: --config-name names one of the shipped configs. --config-dir MY_FOLDER --config-name NAME takes one of your
own, whose `defaults:` may name shipped ones (base, fsdd, ...); --config-path MY_FOLDER looks in that folder alone.
KEY=VALUE overrides a key, -m with several values trains one run after the other; --hydra-help lists all options.

Everything goes into one folder, exp_manager.exp_dir/NAME/DATE: checkpoints (the best student by val_wer), curves,
the list of dropped utterances, `pair.nemo` (for more training, evaluation of both branches, export) and
`student.nemo`, a stock NeMo model, with its model card `student.md`. strategy=student leaves `lone_student.nemo` in
place of the pair, strategy=teacher `teacher.nemo` alone. With model.test_ds.manifest_filepath (a path or a list) the
trained models then transcribe these manifests: `predictions/{student,teacher}/MANIFEST.json` and
`MANIFEST_summary.json`, as codert evaluate writes.

Exit status 1: a setting, a file or the training is at fault; one line names it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli.console import fault, quieten_libraries, setting_errors
from nemo_codert.config.search import check_names, config_search, with_additions
from nemo_codert.config.shipped import conf_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEFAULT_CONFIG = "fsdd"
PATH_OPTIONS = ("--config-path", "-cp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: of Hydra's command line; those of this process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    try:
        arguments = config_arguments(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    quieten_libraries()
    from nemo.core.config import hydra_runner

    command = sys.argv

    def start(cfg: "DictConfig") -> None:
        sys.argv = command  # Lightning starts further processes by it
        train_or_exit(cfg)

    sys.argv = [command[0], *arguments]  # Hydra reads it
    try:
        hydra_runner(config_path=str(conf_folder()), config_name=DEFAULT_CONFIG)(start)()
    finally:
        sys.argv = command
    return 0


def train_or_exit(cfg: "DictConfig") -> None:
    """Train from a config; for a failure with a known reason, exit with one `error:` line and status 1."""
    import torch
    from lhotse.audio.utils import AudioLoadingError
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

    from nemo_codert.files.checkpoints import RefusedCheckpoint
    from nemo_codert.training import run as training
    from nemo_codert.training.memory import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
    try:
        run = training.prepare(cfg)
    except setting_errors() as error:
        sys.exit(f"error: {fault(error)}")
    try:
        training.complete(run)
    except SIGTERMException:  # a SystemExit of status 0, as if the run were complete
        sys.exit("error: SIGTERM ended this run. exp_manager.resume_if_exists=true resumes from its last checkpoint")
    # A full disk, a file to resume from, numbers that are not finite, lost audio, a callback that refuses to start.
    # Earlier files are untouched.
    except (OSError, RefusedCheckpoint, FloatingPointError, AudioLoadingError, MisconfigurationException) as error:
        sys.exit(f"error: {fault(error)}")


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line for Hydra, with the folders in which configs are looked for.

    Raises:
        ValueError: a config, a strategy or a key that is not there, with the nearest that is.
    """
    arguments = list(arguments)
    for place, argument in enumerate(arguments):
        option, separator, given = argument.partition("=")
        if option in PATH_OPTIONS and (separator or place + 1 < len(arguments)):
            at = place if separator else place + 1
            given = given if separator else arguments[at]
            old = conf_folder().parent / "scripts" / given  # relative to scripts/, as in earlier versions
            if not Path(given).is_dir() and old.is_dir():
                arguments[at] = f"{option}={old.resolve()}" if separator else str(old.resolve())
    search = with_additions(config_search(arguments, DEFAULT_CONFIG))
    check_names(search)
    return search.hydra_arguments()


if __name__ == "__main__":
    sys.exit(main())
