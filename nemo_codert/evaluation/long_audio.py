"""Estimates the memory that full attention takes for long audio, and refuses what the machine does not have."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

# Peak of a layer in matrices of scores, float32, measured in NeMo 3.0.0 without gradients (tests/evaluation). Key:
# self_attention_model, use_pytorch_sdpa. A limited context is a mask over the same scores; other kinds are linear.
SCORES = {("rel_pos", False): 7, ("rel_pos", True): 4, ("abs_pos", False): 4}
WINDOW_STRIDE = 0.01  # seconds; NeMo's default
SUBSAMPLING = 4  # NeMo's default
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1


class TooLong(ValueError):
    """Audio whose attention needs more memory than there is."""


def attention_bytes(encoder: DictConfig, preprocessor: DictConfig, seconds: Sequence[float], batch_size: int) -> int:
    """Return the peak memory in bytes of the scores of attention, over batches of consecutive utterances.

    Args:
        encoder, preprocessor: their blocks in a model's config.
        seconds: durations, in order. batch_size: utterances of a batch.

    Returns:
        `N * 4 * B * H * F^2` of the largest batch of B utterances, with H heads, F encoder frames of its longest one
        and N matrices of scores (7 for `rel_pos`). 0 for an encoder without full attention.

    Example:
        >>> from omegaconf import OmegaConf
        >>> encoder = OmegaConf.create({"self_attention_model": "rel_pos", "n_heads": 4, "subsampling_factor": 8})
        >>> attention_bytes(encoder, OmegaConf.create({"window_stride": 0.01}), [3600.0], 16) / 1e9
        226.8
    """
    default = "rel_pos" if str(encoder.get("_target_")).endswith(".ConformerEncoder") else None
    kind = encoder.get("self_attention_model", default), bool(encoder.get("use_pytorch_sdpa"))
    window = preprocessor.get("window_stride") or WINDOW_STRIDE
    step = window * (encoder.get("subsampling_factor") or SUBSAMPLING)
    batches = [seconds[start : start + batch_size] for start in range(0, len(seconds), batch_size)]
    largest = max((len(batch) * max(batch) ** 2 for batch in batches), default=0.0)
    return round(SCORES.get(kind, 0) * 4 * encoder.get("n_heads", 4) * largest / step**2)


def refuse_without_memory(
    encoder: DictConfig,
    preprocessor: DictConfig,
    entries: list[dict[str, Any]],
    batch_size: int,
    device: str | torch.device = "cpu",
) -> None:
    """Refuse utterances whose attention needs more memory than the device has in all.

    Args:
        encoder, preprocessor: their blocks in a model's config.
        entries: of a manifest, with `duration`. batch_size: utterances of a batch.
        device: where the network computes.

    Raises:
        TooLong: names the longest utterance, the memory and the ways out.
    """
    seconds = [entry["duration"] for entry in entries]
    needed, has = attention_bytes(encoder, preprocessor, seconds, batch_size), total_memory(device)
    if needed <= has:
        return
    longest = max(entries, key=lambda entry: entry["duration"])
    alone = attention_bytes(encoder, preprocessor, seconds, 1)
    ways = ["cut the audio at pauses", "stream it in chunks (codert stream)"]
    if alone <= has:
        ways.insert(0, f"take a batch size of {max(1, int(has // max(alone, 1)))} or less")
    raise TooLong(
        f"{longest['audio_filepath']} lasts {longest['duration']:.0f} s: full attention over the batches of "
        f"{batch_size} needs some {needed / 1e9:.3g} GB, and there are {has / 1e9:.3g} GB. Either {', or '.join(ways)}"
    )


def total_memory(device: str | torch.device = "cpu") -> int:
    """Return the bytes of memory of a GPU, or of the machine, within the limit of its control group."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    for path in map(Path, CGROUP_LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal():
            yield int(text)
