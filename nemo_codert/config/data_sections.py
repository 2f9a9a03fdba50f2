"""Data sections (`train_ds`, `validation_ds`): plain manifests, or a stream that has no length.

May import omegaconf only.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config.values import value_at

# Types of sources in lhotse's `input_cfg` whose utterances lie in single files; all others are streams.
PLAIN_TYPES = ("nemo", "lhotse", "parquet", "multi_speaker_simulator")
BUCKET_KEYS = ("use_bucketing", "bucket_batch_size", "bucket_duration_bins")  # lhotse sorts by length where one is set


def is_tarred(block: DictConfig) -> bool:
    """Return whether a data section is of tarred audio, whose manifests may be patterns."""
    return bool(value_at(block, "is_tarred") or value_at(block, "tarred_audio_filepaths"))


def is_stream(block: DictConfig) -> bool:
    """Return whether lhotse reads a section as a stream: without a length, and without an end unless it is finite.

    Example:
        >>> is_stream(OmegaConf.create({"use_lhotse": True, "shar_path": "shards"}))
        True
        >>> is_stream(OmegaConf.create({"use_lhotse": True, "manifest_filepath": "train.json"}))
        False
    """
    if not OmegaConf.is_dict(block) or not value_at(block, "use_lhotse") or value_at(block, "force_map_dataset"):
        return False
    if is_tarred(block) or value_at(block, "shar_path") or value_at(block, "force_iterable_dataset"):
        return True
    return any(kind not in PLAIN_TYPES for kind in _source_types(value_at(block, "input_cfg")))


def is_bucketed(block: DictConfig) -> bool:
    """Return whether lhotse puts the utterances of a section into buckets of similar length."""
    if not OmegaConf.is_dict(block) or not value_at(block, "use_lhotse"):
        return False
    return any(value_at(block, key) not in (None, False) for key in BUCKET_KEYS)


def keep_order_of_buckets(cfg: DictConfig) -> None:
    """Set `concurrent_bucketing` of bucketed sections to false where a config leaves it out (lhotse: true).

    lhotse's thread fills the buckets in an order that no seed repeats. The thread ends when the data do, and the
    process waits for it: a training that stops before would hang when all else is done.

    Args:
        cfg: root config, changed in place.

    Example:
        >>> cfg = OmegaConf.create({"model": {"train_ds": {"use_lhotse": True, "use_bucketing": True}}})
        >>> keep_order_of_buckets(cfg)
        >>> cfg.model.train_ds.concurrent_bucketing
        False
    """
    for section in ("train_ds", "validation_ds"):
        block = value_at(cfg, f"model.{section}")
        if is_bucketed(block) and value_at(block, "concurrent_bucketing") is None:
            with open_dict(block):
                block.concurrent_bucketing = False


def _source_types(sources: object) -> Iterator[str]:
    """Yield the types of the sources of an `input_cfg`, groups and the YAML that it may name resolved."""
    if isinstance(sources, str) and Path(sources).is_file():
        sources = OmegaConf.load(sources)
    for source in sources if OmegaConf.is_list(sources) else ():
        if OmegaConf.is_dict(source):
            kind = str(source.get("type"))
            is_shards = is_tarred(source) or source.get("shar_path")
            yield from _source_types(source.get("input_cfg")) if kind == "group" else ["shards" if is_shards else kind]


def manifest_paths(value: object) -> list[str]:
    """Return the paths of a manifest setting: one path, several separated by commas, or a list, as in NeMo."""
    if not isinstance(value, str):
        return [str(path) for path in value]
    return [value] if os.path.isfile(value) else [path.strip() for path in value.split(",")]
