"""Times of validation: the first batch at which one is due, and settings by which none ever is.

Lightning validates after a number of batches within an epoch, or of all epochs. With lhotse's loader, which has no
length, an interval that no epoch reaches passes without a word. May import omegaconf only.
"""

import math
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.data_sections import is_bucketed, is_stream
from nemo_codert.config.values import is_count, value_at

# Keys of lhotse by which fewer or other utterances than those of the manifest come out of the loader.
SELECTING_KEYS = (
    *("min_tokens", "max_tokens", "min_tps", "max_tps", "min_tpt", "max_tpt", "max_cer", "keep"),
    *("perturb_speed", "cut_into_windows_duration", "concatenate_samples", "truncate_duration"),
)
MORE_UTTERANCES = ("perturb_speed", "cut_into_windows_duration")  # than lines of the manifest
DEFAULT_EPOCHS = 1000  # Lightning's, with neither max_steps nor max_epochs


@dataclass(frozen=True)
class EpochBatches:
    """Bounds of the number of batches in an epoch of one process: `fewest` to `most`, which may be infinite."""

    fewest: float = 1
    most: float = math.inf


def epoch_batches(cfg: DictConfig, utterances: int | None = None, processes: int = 1) -> EpochBatches:
    """Return how many batches an epoch of the training data can have, `limit_train_batches` left out.

    Args:
        cfg: root config.
        utterances: usable ones in the training manifests, None if unknown.
        processes: that share the data.

    Returns:
        Both bounds are equal where the number is known.

    Example:
        >>> cfg = OmegaConf.create({"model": {"train_ds": {"manifest_filepath": "train.json", "batch_size": 4}}})
        >>> epoch_batches(cfg, utterances=24)
        EpochBatches(fewest=6, most=6)
    """
    block = value_at(cfg, "model.train_ds")
    is_lhotse = bool(value_at(block, "use_lhotse")) if OmegaConf.is_dict(block) else False
    manifest = value_at(block, "manifest_filepath") if OmegaConf.is_dict(block) else None
    if is_lhotse and (is_stream(block) or not isinstance(manifest, str)) and not value_at(block, "force_finite"):
        # lhotse repeats streams and lists of manifests without an end
        return EpochBatches(math.inf if manifest is not None or is_stream(block) else 1, math.inf)
    if utterances is None or manifest is None:
        return EpochBatches()
    own, size = math.ceil(utterances / processes), value_at(block, "batch_size")
    if is_lhotse and any(value_at(block, key) for key in MORE_UTTERANCES):
        return EpochBatches()
    if not is_count(size) or (is_lhotse and value_at(block, "batch_duration")):
        return EpochBatches(1, own)
    whole = own // size if value_at(block, "drop_last") else math.ceil(own / size)
    if is_lhotse and is_bucketed(block):
        return EpochBatches(whole, own)
    is_exact = not (is_lhotse and any(value_at(block, key) for key in SELECTING_KEYS))
    return EpochBatches(whole if is_exact else 1, whole)


def never_validated(cfg: DictConfig, batches: EpochBatches) -> str | None:
    """Return why no validation of a run can ever come, as key and value; None where one may come.

    Args:
        cfg: root config that has passed `trainer_problems`.
        batches: of an epoch, see `epoch_batches`.

    Returns:
        The reason, a clause without a full stop.

    Example:
        >>> trainer = {"max_steps": 20, "val_check_interval": 10, "check_val_every_n_epoch": 1}
        >>> never_validated(OmegaConf.create({"trainer": trainer}), EpochBatches(6, 6))
        'trainer.val_check_interval is 10 but an epoch has 6 batches (trainer.check_val_every_n_epoch=null counts all)'
    """
    if value_at(cfg, "trainer.limit_val_batches") == 0:
        return "trainer.limit_val_batches is 0"
    interval, every = _interval(cfg), value_at(cfg, "trainer.check_val_every_n_epoch", 1)
    total, epochs = _length(cfg)
    if every is None:
        return f"trainer.val_check_interval is {interval} but {_end(total)}" if interval > total else None
    if every > epochs:
        return f"trainer.check_val_every_n_epoch is {every} but training ends after {epochs} epochs"
    limit, is_lhotse = value_at(cfg, "trainer.limit_train_batches"), value_at(cfg, "model.train_ds.use_lhotse")
    if is_past_epoch(cfg, batches):
        counted = f"{_limited(cfg, batches.most)} batches (trainer.check_val_every_n_epoch=null counts all)"
        return f"trainer.val_check_interval is {interval} but an epoch has {counted}"
    fewest = _limited(cfg, batches.fewest)
    if is_count(interval):
        due = interval
    elif is_lhotse and is_count(limit):
        if limit > batches.most:  # Lightning validates at batch `limit` alone: the loader has no length
            return f"trainer.limit_train_batches is {limit} but an epoch has {batches.most} batches: leave it out"
        due = limit
    else:
        due = fewest if math.isinf(fewest) else max(1, int(fewest * interval))
    before = (every - 1) * fewest if every > 1 else 0
    if before + due <= total:
        return None
    if math.isinf(before + due):
        return (
            "the training data are repeated without an end, so that no epoch ends. Give trainer.val_check_interval a "
            "number of batches and set trainer.check_val_every_n_epoch to null"
        )
    key = f"check_val_every_n_epoch is {every}" if every > 1 else f"val_check_interval is {interval}"
    return f"trainer.{key}: the first validation is due after {before + due} batches but {_end(total)}"


def is_past_epoch(cfg: DictConfig, batches: EpochBatches) -> bool:
    """Return whether validations are counted within each epoch, and are due after more batches than one has.

    Args:
        cfg: root config that has passed `trainer_problems`.
        batches: of an epoch, see `epoch_batches`.

    Returns:
        True: lhotse's loader never comes to a validation, and with a loader that has a length Lightning refuses it.

    Example:
        >>> is_past_epoch(OmegaConf.create({"trainer": {"val_check_interval": 7}}), EpochBatches(6, 6))
        True
    """
    interval = _interval(cfg)
    counts_all = value_at(cfg, "trainer.check_val_every_n_epoch", 1) is None
    return not counts_all and is_count(interval) and interval > _limited(cfg, batches.most)


def _limited(cfg: DictConfig, batches: float) -> float:
    limit = value_at(cfg, "trainer.limit_train_batches")
    return min(batches, limit) if is_count(limit) else batches


def _end(total: float) -> str:
    return f"training ends after {total} batches"


def _interval(cfg: DictConfig) -> int | float:
    given = value_at(cfg, "trainer.val_check_interval", 1.0)
    return 1.0 if given is None else given


def _length(cfg: DictConfig) -> tuple[float, float]:
    """Return after how many batches, and how many epochs, a training ends at the latest."""
    steps, epochs = value_at(cfg, "trainer.max_steps", -1), value_at(cfg, "trainer.max_epochs")
    total = steps * value_at(cfg, "trainer.accumulate_grad_batches", 1) if is_count(steps) else math.inf
    if epochs is None:
        epochs = DEFAULT_EPOCHS if math.isinf(total) and value_at(cfg, "trainer.max_time") is None else math.inf
    return total, math.inf if epochs == -1 else epochs
