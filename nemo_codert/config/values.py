"""Kinds of values in a config, for the checks of configs. May import omegaconf only."""

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def is_count(value: object) -> bool:
    """Return whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Return whether a value is a number; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sub_block(cfg: DictConfig | dict, name: str) -> DictConfig | dict:
    """Return a block of keys, empty if it is absent or not a block."""
    block = cfg.get(name)
    return block if OmegaConf.is_dict(block) else {}


def value_at(cfg: DictConfig, key: str, default: object = None) -> object:
    """Return the value of a dotted key; `default` where there is none or it cannot be resolved."""
    try:
        return OmegaConf.select(cfg, key, default=default, throw_on_missing=False, throw_on_resolution_failure=False)
    except OmegaConfBaseException:  # a list or a text where a block should be
        return default
