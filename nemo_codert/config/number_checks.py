"""Numbers of a model's config with which nothing could be built, or decoding would never end.

May import omegaconf only.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.values import is_count, is_number

BLOCKS = "model_defaults preprocessor spec_augment encoder student decoder joint aux_ctc decoding loss".split()
LARGEST = 2**20  # limit of numbers in these blocks: channels, frames, Hz; published models stay below 2**16
# Counts of parts and steps, which are built or run one by one.
REPEATED = (
    "n_layers pred_rnn_layers time_masks freq_masks rect_masks beam_size max_symbols max_symbols_per_step".split()
)
MOST_REPEATED = 1000
MAX_SYMBOLS = ("max_symbols", "max_symbols_per_step")  # decoding keys: with 0 NeMo's loops never end
LEAST_ONE = ("n_layers", "pred_rnn_layers", "beam_size")


def size_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield numbers that are not finite, and whole numbers that are too large, or 0 where none may be."""
    for name in BLOCKS:
        block = cfg.get(name)
        if OmegaConf.is_config(block):
            yield from _number_problems(f"model.{name}", OmegaConf.to_container(block, throw_on_missing=False))


def _number_problems(path: str, node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _number_problems(f"{path}.{key}", value)
        return
    if isinstance(node, list):
        for i, value in enumerate(node):
            yield from _number_problems(f"{path}[{i}]", value)
        return
    key = path.rsplit(".", 1)[-1]
    most = MOST_REPEATED if key in REPEATED or key in MAX_SYMBOLS else LARGEST
    if (key in LEAST_ONE or (key in MAX_SYMBOLS and node is not None)) and not is_count(node):
        yield f"{path} is {node!r}, wanted a whole number from 1 to {MOST_REPEATED}"
    elif is_number(node) and not abs(node) <= most:  # NaN, too, fails this comparison
        yield f"{path} is {node!r}, wanted a number of at most {most}"
