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

--resume continues the newest unfinished run of exp_manager.exp_dir/NAME from its last checkpoint, and starts one where
there is none: the same command serves for both. Without it a run beside an unfinished one is refused; --new starts it
all the same. Ctrl-C and SIGTERM print the command that continues.

Everything goes into one folder, exp_manager.exp_dir/NAME/DATE, which the link exp_dir/latest names: checkpoints (the
best student by val_wer), curves, the list of dropped utterances, `pair.nemo` (for more training, evaluation of both
branches, export) and `student.nemo`, a stock NeMo model, with its model card `student.md`. strategy=student leaves
`lone_student.nemo` in place of the pair, strategy=teacher `teacher.nemo` alone. With
model.test_ds.manifest_filepath (a path or a list) the trained models then transcribe these manifests:
`predictions/{student,teacher}/MANIFEST.json` and `MANIFEST_summary.json`, as codert evaluate writes.

Exit status 1: a setting, a file or the training is at fault, one line names it, or SIGTERM; 130: Ctrl-C.
"""

import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli.composition import refuse_early
from nemo_codert.cli.console import fault, quieten_libraries, setting_errors
from nemo_codert.config.search import check_names, config_search, is_override, with_additions
from nemo_codert.config.shipped import conf_folder
from nemo_codert.training.run_folders import continuing_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEFAULT_CONFIG = "fsdd"
PATH_OPTIONS = ("--config-path", "-cp")
MULTIRUN_OPTIONS = ("-m", "--multirun")
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: of Hydra's command line; those of this process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    given = arguments
    try:
        arguments = config_arguments(given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    quieten_libraries()
    from nemo.core.config import hydra_runner

    command = sys.argv

    def start(cfg: "DictConfig") -> None:
        sys.argv = command  # Lightning starts further processes by it
        train_or_exit(cfg, given)

    sys.argv = [command[0], *arguments]  # Hydra reads it
    try:
        hydra_runner(config_path=str(conf_folder()), config_name=DEFAULT_CONFIG)(start)()
    finally:
        sys.argv = command
    return 0


def train_or_exit(cfg: "DictConfig", arguments: Sequence[str]) -> None:
    """Train from a config; for a failure with a known reason, exit with one `error:` line and status 1.

    Args:
        cfg: root config.
        arguments: of the command line that made it, for the command that continues an interrupted run.
    """
    import torch
    from lhotse.audio.utils import AudioLoadingError
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
    from nemo.utils.get_rank import is_global_rank_zero

    from nemo_codert.files.checkpoints import RefusedCheckpoint
    from nemo_codert.training import run as training
    from nemo_codert.training.memory import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
    if not is_global_rank_zero():
        logging.getLogger("nemo_codert").setLevel(logging.WARNING)  # the first process prints for all
    try:
        run = training.prepare(cfg)
    except setting_errors() as error:
        sys.exit(f"error: {fault(error)}")
    except KeyboardInterrupt:
        sys.exit(interrupted("Interrupted before the first step", INTERRUPTED))
    how_to_continue = partial(continuation, arguments, cfg, run.folder)
    try:
        training.complete(run)
    except KeyboardInterrupt:
        sys.exit(interrupted(f"Interrupted at step {run.trainer.global_step}: {how_to_continue()}", INTERRUPTED))
    except SIGTERMException:  # a SystemExit of status 0, as if the run were complete
        sys.exit(interrupted(f"SIGTERM ended this run at step {run.trainer.global_step}: {how_to_continue()}", 1))
    # A full disk, a file to resume from, numbers that are not finite, lost audio, a callback that refuses to start.
    # Earlier files are untouched.
    except (OSError, RefusedCheckpoint, FloatingPointError, AudioLoadingError, MisconfigurationException) as error:
        sys.exit(f"error: {fault(error)}")


def interrupted(message: str, status: int) -> int:
    """Print why a training ended, in the first of several processes; returns the exit status."""
    from nemo.utils.get_rank import is_global_rank_zero

    if is_global_rank_zero():
        print(f"error: {message}", file=sys.stderr)
    return status


def continuation(arguments: Sequence[str], cfg: "DictConfig", folder: Path) -> str:
    """Return the sentence with the command that continues an interrupted run, or that starts it again."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    words = list(arguments)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:  # one of several runs
        words = [word for word in words if not is_override(word) and word not in MULTIRUN_OPTIONS]
        words += list(HydraConfig.get().overrides.task)
    program = sys.argv[0] if sys.argv[0].startswith("codert ") else f"python {shlex.quote(sys.argv[0])}"
    step, command = continuing_command(program, words, cfg, folder)
    if step:
        return f"this command continues at step {step}, that of the last checkpoint:\n  {command}"
    return (
        "no checkpoint has been saved (resume.every_n_steps saves between validations). This command starts again:\n"
        f"  {command}"
    )


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line for Hydra, with the folders in which configs are looked for.

    Raises:
        ValueError: a config, a strategy or a key that is not there, with the nearest that is, and whatever else can be
            refused before NeMo is imported.
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
    refuse_early(search)
    return search.hydra_arguments()


if __name__ == "__main__":
    sys.exit(main())
