"""What kind of value a key of a config holds, for the checks of configs. May import omegaconf only."""

from omegaconf import DictConfig, OmegaConf


def is_count(value: object) -> bool:
    """A whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """A number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sub_block(cfg: DictConfig | dict, name: str) -> DictConfig | dict:
    """A block of keys, empty where there is none or something else in its place."""
    block = cfg.get(name)
    return block if OmegaConf.is_dict(block) else {}
