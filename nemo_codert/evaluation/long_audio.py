"""Memory that full attention takes for long audio, against what the machine has: refused before it is allocated."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

FULL_ATTENTION = ("rel_pos", "abs_pos")  # a limited context is a mask over the same scores
WINDOW_STRIDE = 0.01  # seconds; NeMo's default
SUBSAMPLING = 4  # NeMo's default
# Peak of a layer of NeMo's relative attention in matrices of scores, measured: content, position (twice as wide) and
# its shifted copy, their sum, and the softmax.
SCORES = 7


def attention_bytes(model_cfg: DictConfig, seconds: Sequence[float], batch_size: int) -> int:
    """Return the peak memory in bytes of the scores of attention, over batches of consecutive utterances.

    Args:
        model_cfg: config of a stock model (`preprocessor` and `encoder`).
        seconds: durations, in order. batch_size: utterances of a batch.

    Returns:
        `7 * 4 * B * H * F^2` of the largest batch of B utterances, with H heads and F encoder frames of its longest
        one, in float32. 0 for an encoder without full attention.

    Example:
        >>> from omegaconf import OmegaConf
        >>> encoder = {"self_attention_model": "rel_pos", "n_heads": 4, "subsampling_factor": 8}
        >>> attention_bytes(OmegaConf.create({"preprocessor": {}, "encoder": encoder}), [3600.0], 16) / 1e9
        226.8
    """
    encoder = model_cfg.encoder
    if encoder.get("self_attention_model") not in FULL_ATTENTION:
        return 0
    step = (model_cfg.preprocessor.get("window_stride") or WINDOW_STRIDE) * (
        encoder.get("subsampling_factor") or SUBSAMPLING
    )
    batches = [seconds[start : start + batch_size] for start in range(0, len(seconds), batch_size)]
    largest = max((len(batch) * max(batch) ** 2 for batch in batches), default=0.0)
    return round(SCORES * 4 * encoder.get("n_heads", 4) * largest / step**2)


def refuse_without_memory(model_cfg: DictConfig, entries: list[dict[str, Any]], batch_size: int) -> None:
    """Refuse utterances whose attention needs more memory than the GPU, or without one the machine, has in all.

    Args:
        model_cfg: config of a stock model. entries: of a manifest, with `duration`. batch_size: utterances of a batch.

    Raises:
        ValueError: names the longest utterance, the memory and the ways out.
    """
    seconds = [entry["duration"] for entry in entries]
    needed, has = attention_bytes(model_cfg, seconds, batch_size), total_memory()
    if needed <= has:
        return
    longest = max(entries, key=lambda entry: entry["duration"])
    alone = attention_bytes(model_cfg, seconds, 1)
    ways = ["cut the audio at pauses", "stream it in chunks (codert stream)"]
    if alone <= has:
        ways.insert(0, f"take a batch size of {max(1, int(has // max(alone, 1)))} or less")
    raise ValueError(
        f"{longest['audio_filepath']} lasts {longest['duration']:.0f} s: full attention over the batches of "
        f"{batch_size} needs some {needed / 1e9:.3g} GB, and there are {has / 1e9:.3g} GB. Either {', or '.join(ways)}"
    )


def total_memory() -> int:
    """Return the bytes of memory of the GPU if there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
