"""Sizes and numbers of a model's config with which nothing could be built, or decoding would never end.

May import omegaconf only.
"""

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.values import is_count, is_number, sub_block

BLOCKS = "model_defaults preprocessor spec_augment encoder student decoder joint aux_ctc decoding loss".split()
LARGEST = 2**20  # of any whole number in these blocks: channels, frames, Hz; published models stay below 2**16
# Numbers of things that are made or gone through one by one.
REPEATED = (
    "n_layers pred_rnn_layers time_masks freq_masks rect_masks beam_size max_symbols max_symbols_per_step".split()
)
MOST_REPEATED = 1000
MAX_SYMBOLS = ("max_symbols", "max_symbols_per_step")  # of decoding: with 0 NeMo's loops never end
LEAST_ONE = ("n_layers", "pred_rnn_layers", "beam_size")
BYTES = 4  # of a float32


def size_problems(cfg: DictConfig) -> Iterator[str]:
    """Numbers that are not finite, whole numbers beyond all use, and networks larger than this machine's memory."""
    for name in BLOCKS:
        block = cfg.get(name)
        if OmegaConf.is_config(block):
            yield from _number_problems(f"model.{name}", OmegaConf.to_container(block, throw_on_missing=False))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path, size in _estimates(cfg).items():
        if size * BYTES > memory:
            yield (
                f"{path} has sizes that make about {size:.1e} parameters, {size * BYTES / 2**30:.0f} GiB, and this "
                f"machine has {memory / 2**30:.0f} GiB: lower d_model, pred_hidden, joint_hidden or the layers"
            )


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
    elif is_number(node) and not abs(node) <= most:  # nor is nan
        yield f"{path} is {node!r}, wanted a number of at most {most}"


def _estimates(cfg: DictConfig) -> dict[str, float]:
    """Config path -> parameters to the order of magnitude."""
    encoders = {"model.encoder": sub_block(cfg, "encoder")}
    encoders["model.student.encoder"] = sub_block(sub_block(cfg, "student"), "encoder")
    found = {path: _encoder_size(block) for path, block in encoders.items()}
    for path, decoder in (("model.decoder", cfg), ("model.student.decoder", sub_block(cfg, "student"))):
        network = sub_block(sub_block(decoder, "decoder"), "prednet")
        found[path] = 8.0 * _number(network, "pred_rnn_layers", 1) * _number(network, "pred_hidden", 0) ** 2
    joint = sub_block(sub_block(cfg, "joint"), "jointnet")
    widths = max(_number(encoder, "d_model", 0) for encoder in encoders.values())
    found["model.joint"] = _number(joint, "joint_hidden", 0) * (widths + 1000.0)
    return found


def _encoder_size(encoder: DictConfig | dict) -> float:
    """A Conformer's layers (attention, two feed-forward blocks, convolution), its subsampling and its positions."""
    width, channels = _number(encoder, "d_model", 0), _number(encoder, "subsampling_conv_channels", 0)
    layers = _number(encoder, "n_layers", 1) * width**2 * (4 * _number(encoder, "ff_expansion_factor", 1) + 8)
    kernels = _number(encoder, "n_layers", 1) * width * _number(encoder, "conv_kernel_size", 1)
    return layers + kernels + channels**2 + channels * width * 64 + width * _number(encoder, "pos_emb_max_len", 0)


def _number(block: DictConfig | dict, key: str, default: float) -> float:
    value = (
        block.get(key, default) if not (OmegaConf.is_config(block) and OmegaConf.is_missing(block, key)) else default
    )
    return float(value) if is_count(value) and value < 2**60 else float(default)
