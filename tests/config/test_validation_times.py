"""nemo_codert/config/validation_times.py: settings by which no validation ever comes."""

import math

import pytest
from omegaconf import OmegaConf

from nemo_codert.config.validation_times import EpochBatches, epoch_batches, is_past_epoch, never_validated

pytestmark = pytest.mark.unit

SIX = EpochBatches(6, 6)
EPOCHS = {"check_val_every_n_epoch": 1}


def config(*, lhotse: bool = True, data: dict | None = None, **trainer: object):
    block = {"manifest_filepath": "train.json", "batch_size": 4, "use_lhotse": lhotse, **(data or {})}
    return OmegaConf.create({"model": {"train_ds": block}, "trainer": {"max_steps": 20, **trainer}})


@pytest.mark.parametrize(
    "trainer, words",
    [
        ({"val_check_interval": 10}, "trainer.val_check_interval is 10 but an epoch has 6 batches"),
        ({"val_check_interval": 6}, None),
        ({"val_check_interval": 5, "limit_train_batches": 4}, "but an epoch has 4 batches"),
        ({"val_check_interval": 10, "check_val_every_n_epoch": None}, None),
        ({"val_check_interval": 21, "check_val_every_n_epoch": None}, "training ends after 20 batches"),
        ({"val_check_interval": 21, "check_val_every_n_epoch": None, "accumulate_grad_batches": 2}, None),
        ({"limit_train_batches": 10}, "trainer.limit_train_batches is 10 but an epoch has 6 batches"),
        ({"limit_train_batches": 6}, None),
        ({}, None),
        ({"max_steps": 5}, "the first validation is due after 6 batches but training ends after 5 batches"),
        ({"max_steps": 5, "val_check_interval": 5}, None),
        ({"check_val_every_n_epoch": 3}, None),
        ({"check_val_every_n_epoch": 4}, "trainer.check_val_every_n_epoch is 4: the first validation is due after 24"),
        ({"check_val_every_n_epoch": 4, "val_check_interval": 2}, None),
        ({"check_val_every_n_epoch": 3, "max_steps": -1, "max_epochs": 2}, "training ends after 2 epochs"),
        ({"check_val_every_n_epoch": 2, "max_steps": -1, "max_epochs": 2}, None),
        ({"limit_val_batches": 0}, "trainer.limit_val_batches is 0"),
    ],
    ids=str,
)
def test_a_validation_that_never_comes_is_told_from_one_that_does(trainer, words):
    reason = never_validated(config(**{**EPOCHS, **trainer}), SIX)
    assert reason is None if words is None else words in reason


def test_a_loader_with_a_length_ends_its_epoch_below_the_limit():
    assert never_validated(config(lhotse=False, limit_train_batches=10, **EPOCHS), SIX) is None
    assert never_validated(config(lhotse=False, val_check_interval=0.5, max_steps=3, **EPOCHS), SIX) is None
    assert never_validated(config(lhotse=False, val_check_interval=0.5, max_steps=2, **EPOCHS), SIX)
    assert is_past_epoch(config(lhotse=False, val_check_interval=10, **EPOCHS), SIX)


@pytest.mark.parametrize(
    "data, processes, bounds",
    [
        ({}, 1, (6, 6)),
        ({"batch_size": 5}, 1, (5, 5)),
        ({"batch_size": 5, "drop_last": True}, 1, (4, 4)),
        ({}, 2, (3, 3)),
        ({"use_bucketing": True}, 1, (6, 24)),
        ({"batch_size": None, "batch_duration": 20}, 1, (1, 24)),
        ({"batch_duration": 20}, 1, (1, 24)),
        ({"max_tps": 10}, 1, (1, 6)),
        ({"perturb_speed": True}, 1, (1, math.inf)),
        ({"manifest_filepath": ["a.json", "b.json"]}, 1, (math.inf, math.inf)),
        ({"manifest_filepath": ["a.json", "b.json"], "use_lhotse": False}, 1, (6, 6)),
        ({"tarred_audio_filepaths": "audio.tar"}, 1, (math.inf, math.inf)),
        ({"manifest_filepath": None, "input_cfg": [{"type": "nemo"}]}, 1, (1, math.inf)),
    ],
    ids=str,
)
def test_batches_of_an_epoch_follow_from_24_utterances(data, processes, bounds):
    assert epoch_batches(config(data=data), 24, processes) == EpochBatches(*bounds)


def test_data_without_an_end_have_no_validation_at_the_end_of_an_epoch():
    cfg = config(data={"manifest_filepath": ["a.json", "b.json"]}, **EPOCHS)
    assert "repeated without an end" in never_validated(cfg, epoch_batches(cfg, 24))
    cfg.trainer.val_check_interval = 4
    assert never_validated(cfg, epoch_batches(cfg, 24)) is None
