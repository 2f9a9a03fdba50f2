"""The config that a command line makes, and its refusal before PyTorch and NeMo are imported."""

from typing import TYPE_CHECKING

from nemo_codert.cli.console import announce
from nemo_codert.config.search import ConfigSearch

if TYPE_CHECKING:
    from omegaconf import DictConfig


def composed(search: ConfigSearch) -> "DictConfig":
    """Return the config that Hydra composes of a command line.

    Raises:
        ValueError: Hydra refuses an override or a file.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # Resolvers of NeMo's that configs may use; NeMo replaces them by the same.
    OmegaConf.register_new_resolver("multiply", lambda x, y: x * y, replace=True)
    OmegaConf.register_new_resolver("sum", lambda x, y: x + y, replace=True)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(search.primary()), version_base=None):
            return compose(search.name, list(search.hydra_overrides()))
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config {search.name!r} cannot be composed: {reason}") from error


def refuse_early(search: ConfigSearch) -> None:
    """Check a run's config as far as that needs neither PyTorch nor NeMo.

    A command line with further options of Hydra (`-m`, `--cfg`) stands for no run or for several: it is left to Hydra.

    Args:
        search: of a command line whose names have been checked.

    Raises:
        ValueError: one error that lists the faults.
    """
    if search.options:
        return
    announce("Checking config and files ...")
    from nemo_codert.training.early_checks import early_problems, refusal, with_run_defaults

    if problems := early_problems(with_run_defaults(composed(search))):
        raise ValueError(refusal(problems))
