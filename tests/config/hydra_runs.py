"""What Hydra makes of a command line."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from nemo_codert.config.search import ConfigSearch


def composed(search: ConfigSearch) -> DictConfig:
    """The config that Hydra composes of the arguments that a search returns for it."""
    words = search.hydra_arguments()
    folder, name = words[words.index("--config-path") + 1], words[words.index("--config-name") + 1]
    overrides = [word for word in words if "=" in word and word != folder]
    GlobalHydra.instance().clear()
    with initialize_config_dir(folder, version_base=None):
        return compose(name, overrides)
