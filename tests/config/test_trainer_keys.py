"""nemo_codert/config/trainer_keys.py: keys of the trainer and exp_manager that a run cannot honour."""

import pytest
from omegaconf import OmegaConf

from nemo_codert.config import trainer_keys
from nemo_codert.config.data_sections import is_stream, keep_order_of_buckets
from nemo_codert.config.trainer_keys import TRAINER_KEYS, manager_problems, missing_logger, trainer_problems

pytestmark = pytest.mark.unit

PARAMS = "exp_manager.checkpoint_callback_params"


def config(**overrides: object):
    """A trainer and data without a fault, with dotted keys overridden."""
    cfg = OmegaConf.create(
        {
            "model": {"train_ds": {"manifest_filepath": "train.json", "use_lhotse": True}, "validation_ds": {}},
            "trainer": {"max_steps": 10, "val_check_interval": 5, "check_val_every_n_epoch": None},
            "exp_manager": {"checkpoint_callback_params": {"monitor": "val_wer"}},
        }
    )
    for key, value in overrides.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def test_every_argument_of_lightnings_trainer_has_an_answer():
    import inspect

    lightning = pytest.importorskip("lightning.pytorch")
    assert list(TRAINER_KEYS) == list(inspect.signature(lightning.Trainer).parameters)


@pytest.mark.parametrize(
    "key, value",
    [
        ("fast_dev_run", True),
        ("fast_dev_run", 3),
        ("overfit_batches", 2),
        ("barebones", True),
        ("logger", True),
        ("enable_checkpointing", True),
        ("plugins", ["x"]),
        ("strategy", {"find_unused_parameters": True}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.EarlyStopping"}),
        ("callbacks", ["lightning.pytorch.callbacks.EarlyStopping"]),
        ("limit_train_batches", 0),
        ("limit_train_batches", 0.5),
        ("limit_train_batches", "all"),
        ("limit_val_batches", -1),
        ("check_val_every_n_epoch", 0),
        ("num_sanity_val_steps", -2),
        ("min_steps", "ten"),
        ("gradient_clip_val", -1),
        ("gradient_clip_algorithm", "agc"),
        ("deterministic", "maybe"),
        ("reload_dataloaders_every_n_epochs", 1),
        ("accelerator", 1),
        ("num_nodes", 0),
        ("max_epoch", 3),
        ("gpus", 1),
        ("resume_from_checkpoint", "last.ckpt"),
        ("progress_bar_refresh_rate", "often"),
    ],
)
def test_a_key_that_no_run_can_honour_is_named_with_its_value_and_a_remedy(key, value):
    cfg = config(**{f"trainer.{key}": value})
    faults = list(trainer_problems(cfg))
    assert any(fault.startswith(f"trainer.{key} is ") for fault in faults)
    assert all(", " in fault or ": " in fault for fault in faults)


@pytest.mark.parametrize(
    "key, value",
    [
        ("fast_dev_run", False),
        ("overfit_batches", 0.0),
        ("logger", None),
        ("limit_train_batches", 3),
        ("limit_train_batches", 1.0),
        ("limit_val_batches", 0),
        ("num_sanity_val_steps", -1),
        ("deterministic", "warn"),
        ("strategy", {"_target_": "lightning.pytorch.strategies.DDPStrategy"}),
        ("callbacks", [{"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"}]),
        ("callbacks", []),
        ("callbacks", None),
        ("plugins", None),
        ("profiler", "simple"),
        ("gradient_clip_algorithm", "value"),
        ("max_time", "00:01:00:00"),
        ("resume_from_checkpoint", None),
        ("progress_bar_refresh_rate", 10),
    ],
)
def test_other_values_pass(key, value):
    assert not list(trainer_problems(config(**{f"trainer.{key}": value})))


TAR = {"model.train_ds.tarred_audio_filepaths": "audio.tar"}


def test_lhotses_streams_need_the_number_of_batches_of_an_epoch():
    for given in ({}, {"trainer.limit_train_batches": 1.0}):
        (fault,) = trainer_problems(config(**TAR, **given))
        assert fault.startswith("trainer.limit_train_batches is ") and "number of batches" in fault
    assert not list(trainer_problems(config(**TAR, **{"trainer.limit_train_batches": 10})))
    assert not list(trainer_problems(config(**TAR, **{"model.train_ds.use_lhotse": False})))  # NeMo counts them


def test_a_validation_without_an_end_is_refused():
    shards = {"model.validation_ds": {"use_lhotse": True, "shar_path": "shards"}}
    (fault,) = trainer_problems(config(**shards))
    assert fault.startswith("trainer.limit_val_batches is missing but model.validation_ds is tarred or sharded")
    assert not list(trainer_problems(config(**shards, **{"model.validation_ds.force_finite": True})))
    assert not list(trainer_problems(config(**shards, **{"trainer.limit_val_batches": 5})))


@pytest.mark.parametrize(
    "sources, expected",
    [
        ([{"type": "nemo", "manifest_filepath": "a.json"}], False),
        ([{"type": "nemo_tarred", "manifest_filepath": "a.json"}], True),
        ([{"type": "nemo", "tarred_audio_filepaths": "a.tar"}], True),
        ([{"type": "group", "input_cfg": [{"type": "lhotse_shar"}]}], True),
        ([{"type": "lhotse", "shar_path": "shards"}], True),
        ([{"type": "lhotse", "cuts_path": "cuts.jsonl"}], False),
    ],
)
def test_sources_of_an_input_cfg_may_be_streams(sources, expected, tmp_path):
    (tmp_path / "sources.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(sources)))
    for given in (sources, str(tmp_path / "sources.yaml")):
        assert is_stream(OmegaConf.create({"use_lhotse": True, "input_cfg": given})) is expected


def test_lhotse_on_several_devices_shares_the_data_itself():
    several = {"trainer.devices": 2}
    (fault,) = trainer_problems(config(**several))
    assert fault.startswith("trainer.use_distributed_sampler is true")
    assert not list(trainer_problems(config(**several, **{"trainer.use_distributed_sampler": False})))


@pytest.mark.parametrize("bucketed", [{"use_bucketing": True}, {"bucket_duration_bins": [1.0, 2.0]}])
def test_buckets_are_filled_without_a_thread(bucketed):
    cfg = config(**{f"model.train_ds.{key}": value for key, value in bucketed.items()})
    keep_order_of_buckets(cfg)
    assert cfg.model.train_ds.concurrent_bucketing is False and "concurrent_bucketing" not in cfg.model.validation_ds
    assert not list(trainer_problems(cfg))
    cfg.model.train_ds.concurrent_bucketing = True
    keep_order_of_buckets(cfg)
    (fault,) = trainer_problems(cfg)
    assert fault.startswith("model.train_ds.concurrent_bucketing is true") and "Set it to false" in fault


def test_data_without_buckets_keep_their_keys():
    cfg = config()
    keep_order_of_buckets(cfg)
    assert cfg == config()


@pytest.mark.parametrize(
    "overrides, start",
    [
        ({"exp_manager.ema": {"enable": True}}, "exp_manager.ema.enable is true"),
        ({f"{PARAMS}.async_save": True}, f"{PARAMS}.async_save is true"),
        ({f"{PARAMS}.every_n_train_steps": 5}, f"{PARAMS}.every_n_train_steps is 5"),
        ({f"{PARAMS}.train_time_interval": "00:01"}, f"{PARAMS}.train_time_interval is '00:01'"),
        ({f"{PARAMS}.save_on_train_epoch_end": True}, f"{PARAMS}.save_on_train_epoch_end is true"),
        (
            {f"{PARAMS}.save_weights_only": True, "exp_manager.resume_if_exists": True},
            f"{PARAMS}.save_weights_only is true",
        ),
    ],
)
def test_files_hold_the_weights_that_were_validated(overrides, start):
    (fault,) = manager_problems(config(**overrides))
    assert fault.startswith(start)


@pytest.mark.parametrize(
    "overrides",
    [
        {"exp_manager.ema": {"enable": False, "decay": 0.9}},
        {f"{PARAMS}.every_n_train_steps": 5, f"{PARAMS}.monitor": "train_loss"},
        {
            f"{PARAMS}.save_on_train_epoch_end": True,
            "trainer.val_check_interval": 1.0,
            "trainer.check_val_every_n_epoch": 1,
        },
        {f"{PARAMS}.save_weights_only": True},
        {f"{PARAMS}.async_save": True, "exp_manager.create_checkpoint_callback": False},
    ],
)
def test_other_ways_to_save_pass(overrides):
    assert not list(manager_problems(config(**overrides)))


def test_a_logger_without_its_package_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path):
    cfg = config(**{"exp_manager.create_wandb_logger": True, "exp_manager.create_neptune_logger": False})
    monkeypatch.setattr(trainer_keys, "find_spec", lambda package: None)
    wanted = "exp_manager.create_wandb_logger is true, but wandb is not installed: pip install wandb"
    assert list(manager_problems(cfg)) == [wanted]
    monkeypatch.undo()
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    key = "exp_manager.create_wandb_logger"
    for package, is_there in (("json", True), ("a_folder", False)):  # W&B leaves a folder of its name
        monkeypatch.setitem(trainer_keys.LOGGER_PACKAGES, key, package)
        assert (missing_logger(key) is None) == is_there
