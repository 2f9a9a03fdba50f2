"""Train a teacher and its student together, or either of them alone.

    python scripts/train.py --config-name=fsdd strategy=shared_kd \\
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
`MANIFEST_summary.json`, as scripts/evaluate.py writes.

Exit status 1: a setting, a file or the training is at fault; one line names it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.cli.console import fault, quieten_libraries
from nemo_codert.config.hydra_text import missing_config
from nemo_codert.config.shipped import conf_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEFAULT_CONFIG = "fsdd"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: of Hydra's command line; those of this process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    quieten_libraries()
    arguments += config_path_option(arguments)
    if problem := missing_config_problem(arguments):
        sys.exit(f"error: {problem}")
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
    """Train as a config says; where that fails for a known reason, exit with one `error:` line and status 1."""
    import torch
    from hydra.errors import InstantiationException
    from lhotse.audio.utils import AudioLoadingError
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
    from omegaconf.errors import OmegaConfBaseException

    from nemo_codert.files.checkpoints import RefusedCheckpoint
    from nemo_codert.training import run as training
    from nemo_codert.training.memory import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
    # Raised by NeMo, Lightning, Hydra and this package for settings that cannot be used; OSError for their paths.
    library_errors = (OmegaConfBaseException, InstantiationException, MisconfigurationException)
    try:
        run = training.prepare(cfg)
    except (ValueError, TypeError, OSError, *library_errors) as error:
        sys.exit(f"error: {fault(error)}")
    try:
        training.complete(run)
    except SIGTERMException:  # a SystemExit of status 0, as if the run were complete
        sys.exit("error: SIGTERM ended this run. exp_manager.resume_if_exists=true goes on from its last checkpoint")
    # A full disk, a file to resume from, numbers that are not finite, lost audio. Earlier files are untouched.
    except (OSError, RefusedCheckpoint, FloatingPointError, AudioLoadingError) as error:
        sys.exit(f"error: {fault(error)}")


def config_path_option(arguments: Sequence[str]) -> list[str]:
    """Return --config-path as an absolute path, which Hydra would take relative to this file; [] where not given."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_args(arguments).config_path
    if not given or "://" in given or os.path.isabs(given):
        return []
    # Else relative to scripts/, as in earlier versions.
    path = Path(given) if Path(given).is_dir() else conf_folder().parent / "scripts" / given
    return [f"--config-path={os.path.abspath(path)}"]


def missing_config_problem(arguments: Sequence[str]) -> str | None:
    """Return one sentence where a config, or one that it inherits from, does not exist; Hydra's own text is a page."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.errors import HydraException, MissingConfigException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    options = get_args_parser().parse_args(arguments)
    search = create_config_search_path(options.config_path or str(conf_folder()))
    if options.config_dir:
        own = f"file://{os.path.abspath(options.config_dir)}"
        search.prepend("command-line", own, anchor=SearchPathQuery(provider="schema"))
    try:
        ConfigLoaderImpl(search).load_configuration(
            options.config_name or DEFAULT_CONFIG,
            options.overrides,
            run_mode=RunMode.MULTIRUN,  # accepts overrides of both modes
            validate_sweep_overrides=False,
        )
    except MissingConfigException as error:
        paths = [element.path for element in search.get_path() if element.provider in ("main", "command-line")]
        return missing_config(error, [path.removeprefix("file://") for path in paths])
    except (HydraException, OmegaConfBaseException):
        return None  # Hydra reports it
    return None


if __name__ == "__main__":
    sys.exit(main())
