"""nemo_codert/training/trainer.py: the trainer of a run, and how a run ends with what its config names."""

import json
import threading

import lightning.pytorch.callbacks
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy

from nemo_codert.config.trainer_keys import REFUSED_CALLBACKS
from nemo_codert.training import run_checks
from nemo_codert.training.checkpoint_files import CheckpointFiles
from nemo_codert.training.progress import StepProgress
from nemo_codert.training.readiness import check_training
from nemo_codert.training.run import checked_run, prepare, train
from nemo_codert.training.run_checks import check_run
from nemo_codert.training.trainer import make_trainer
from tests.training.run_configs import SMALL, listed, screened

CALLBACKS = "lightning.pytorch.callbacks"
MONITOR = "exp_manager.checkpoint_callback_params.monitor"
EPOCHS = ["trainer.check_val_every_n_epoch=1", "trainer.max_epochs=2", "trainer.max_steps=20"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "model.optim.sched.warmup_steps=1"]
FOUR = ["model.train_ds.batch_size=4", "model.validation_ds.batch_size=4"]


@pytest.fixture
def small_run(run_config, manifest, tmp_path):
    """Factory of the config of a run of two steps, with a validation manifest whose name NeMo accepts."""
    (tmp_path / "dev.json").write_text(manifest.read_text())
    dev = f"model.validation_ds.manifest_filepath={tmp_path / 'dev.json'}"
    return lambda *overrides: run_config(dev, *SMALL, *SHORT, *FOUR, *overrides)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """Warnings of the checks of a run."""
    said = []
    monkeypatch.setattr(run_checks.logger, "warning", lambda message, *args: said.append(message % args))
    return said


def trainer_of(cfg):
    return make_trainer(*checked_run(cfg))


def callbacks(*blocks: str) -> str:
    return f"+trainer.callbacks=[{', '.join(blocks)}]"


EARLY = f"{{_target_: {CALLBACKS}.EarlyStopping, monitor: val_wer, patience: 3}}"


def test_a_strategy_given_as_a_block_is_built_and_saves_whole_files(small_run):
    block = "{_target_: lightning.pytorch.strategies.DDPStrategy, gradient_as_bucket_view: true}"
    trainer = trainer_of(small_run(f"trainer.strategy={block}"))
    assert isinstance(trainer.strategy, DDPStrategy) and trainer.strategy._ddp_kwargs["gradient_as_bucket_view"]
    assert isinstance(trainer.strategy.checkpoint_io, CheckpointFiles)


def test_callbacks_of_a_list_are_built_beside_those_of_a_run(small_run):
    trainer = trainer_of(small_run("trainer.enable_progress_bar=true", callbacks(EARLY)))
    (early,) = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    assert early.patience == 3 and any(isinstance(callback, StepProgress) for callback in trainer.callbacks)


def test_a_progress_bar_of_the_users_own_takes_the_place_of_ours(small_run):
    trainer = trainer_of(
        small_run("trainer.enable_progress_bar=true", callbacks(f"{{_target_: {CALLBACKS}.TQDMProgressBar}}"))
    )
    assert isinstance(trainer.progress_bar_callback, TQDMProgressBar)
    assert not any(isinstance(callback, StepProgress) for callback in trainer.callbacks)


def test_a_trainer_that_leaves_loggers_and_checkpoints_to_the_default_leaves_them_to_exp_manager(small_run):
    trainer = trainer_of(small_run("~trainer.logger", "~trainer.enable_checkpointing"))
    assert not trainer.loggers and trainer.checkpoint_callback is None


@pytest.mark.parametrize(
    "target",
    [
        *(f"{CALLBACKS}.{name}" for name in ("StochasticWeightAveraging", "ModelPruning", "ModelCheckpoint")),
        *(f"{CALLBACKS}.{name}" for name in ("OnExceptionCheckpoint", "LearningRateFinder", "BackboneFinetuning")),
    ],
)
def test_a_callback_that_changes_what_is_shipped_is_refused_by_key(target, small_run):
    (fault,) = listed(small_run(callbacks(EARLY, f"{{_target_: {target}}}")))
    assert fault.startswith(f"trainer.callbacks[1]._target_ is '{target}': ")
    assert any(fault.endswith(reason) for reason in REFUSED_CALLBACKS.values())


def test_averaging_of_later_versions_of_lightning_is_refused_too(small_run, monkeypatch):
    averaging = type("WeightAveraging", (Callback,), {})
    monkeypatch.setattr(lightning.pytorch.callbacks, "WeightAveraging", averaging, raising=False)
    (fault,) = listed(small_run(callbacks(f"{{_target_: {CALLBACKS}.WeightAveraging}}")))
    assert "other weights than those validated" in fault


@pytest.mark.parametrize(
    "override, start",
    [
        (
            callbacks("{_target_: nemo.collections.common.callbacks.EMA}"),
            "trainer.callbacks[0]._target_ is 'nemo.coll",
        ),
        (
            "trainer.strategy={_target_: os.system}",
            "trainer.strategy._target_ is 'os.system', wanted a class of Light",
        ),
        (callbacks("{_target_: os.system}"), "trainer.callbacks[0]._target_ is 'os.system', wanted a class of Light"),
        ("trainer.strategy={timeout: 3}", "trainer.strategy is {'timeout': 3}, wanted a name (auto, ddp, ...) or a"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run is True, wanted false: NeMo's exp_manager makes no fold"),
        ("+exp_manager.ema={enable: true, decay: 0.9}", "exp_manager.ema.enable is true: NeMo would validate averag"),
    ],
)
def test_a_key_of_lightning_or_nemo_that_a_run_cannot_honour_is_the_one_fault_named(
    override, start, small_run, tmp_path
):
    (fault,) = listed(small_run(override))
    assert fault.startswith(start)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "override, words",
    [
        (callbacks(f"{{_target_: {CALLBACKS}.EarlyStopping}}"), r"trainer.callbacks\[0\] cannot be built: .*monitor"),
        ("trainer.precision=8", "trainer cannot be built: .*8"),
        ("trainer.accelerator=abacus", "trainer cannot be built: .*abacus"),
        ("+trainer.profiler=mine", "trainer cannot be built: .*profiler"),
        ("+trainer.max_time=soon", "trainer cannot be built: .*soon"),
    ],
)
def test_what_only_lightning_can_refuse_names_the_trainer_and_leaves_no_folder(override, words, small_run, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare(small_run(override))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides, key",
    [
        ([callbacks(EARLY.replace("val_wer", "val_foo"))], "trainer.callbacks[0].monitor"),
        (["+exp_manager.create_early_stopping_callback=true", "model.compute_eval_loss=false"], "val_loss"),
        ([f"{MONITOR}=dev_val_wer"], f"{MONITOR} is 'dev_val_wer'"),  # a single set is logged without its name
        ([f"{MONITOR}=foo_val_wer"], f"{MONITOR} is 'foo_val_wer'"),
    ],
)
def test_a_metric_that_is_never_logged_is_refused_wherever_it_is_named(overrides, key, small_run):
    (fault,) = listed(small_run(*overrides))
    assert key in fault and "which nothing is logged by, wanted one of" in fault


@pytest.mark.parametrize("monitor", [[], ["+model.optim.sched.monitor=val_wer"]], ids=["default", "val_wer"])
def test_a_schedule_that_waits_for_a_plateau_reads_a_metric_of_each_step(monitor, small_run):
    plateau = "model.optim.sched.name=ReduceLROnPlateau"
    (fault,) = listed(small_run(plateau, *monitor))
    assert fault.startswith("model.optim.sched.monitor is ") and "train_loss" in fault
    check_run(small_run(plateau, "+model.optim.sched.monitor=train_loss"))


def two_sets(manifest, tmp_path) -> str:
    """Two validation sets, of which the second has a line that is dropped."""
    lines = manifest.read_text().splitlines()
    bad = json.dumps({**json.loads(lines[0]), "audio_filepath": str(tmp_path / "absent.wav")})
    (tmp_path / "dev-other.json").write_text("\n".join([*lines[:2], bad]) + "\n")
    return f"[{tmp_path / 'dev.json'},{tmp_path / 'dev-other.json'}]"


def test_validation_sets_keep_their_names_when_a_line_is_dropped(small_run, manifest, tmp_path):
    cfg = small_run(
        f"model.validation_ds.manifest_filepath={two_sets(manifest, tmp_path)}", f"{MONITOR}=dev_other_val_wer"
    )
    check_run(cfg)
    screened(cfg, tmp_path / "run")
    assert cfg.model.validation_ds.manifest_filepath[1].endswith("validation_ds_1_usable.json")
    assert list(cfg.model.validation_ds.name) == ["dev", "dev-other"]


def test_names_that_a_config_gives_its_validation_sets_are_those_of_the_metrics(small_run, manifest, tmp_path):
    sets = f"model.validation_ds.manifest_filepath={two_sets(manifest, tmp_path)}"
    named = "+model.validation_ds.name=[clean,noisy]"
    check_run(small_run(sets, named, f"{MONITOR}=noisy_val_wer_teacher"))
    assert listed(small_run(sets, named, f"{MONITOR}=dev_other_val_wer"))


@pytest.mark.parametrize("use_lhotse", [True, False])
def test_manifests_between_commas_mean_what_they_did_after_screening(use_lhotse, small_run, manifest, tmp_path):
    paths = two_sets(manifest, tmp_path).strip("[]")
    cfg = small_run(f"model.validation_ds.manifest_filepath='{paths}'", f"model.validation_ds.use_lhotse={use_lhotse}")
    screened(cfg, tmp_path / "run")
    given = cfg.model.validation_ds.manifest_filepath
    assert isinstance(given, str) is not use_lhotse  # NeMo's classic loader scores them as one set
    assert ("name" in cfg.model.validation_ds) is use_lhotse


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["trainer.val_check_interval=3"], "trainer.val_check_interval is 3 but an epoch has 2 batches"),
        (["+trainer.limit_train_batches=3", "trainer.val_check_interval=1.0"], "limit_train_batches is 3 but an"),
        (["trainer.val_check_interval=1"], None),
    ],
)
def test_an_interval_beyond_the_usable_utterances_is_said_before_the_start(overrides, words, small_run, warnings):
    check_training(small_run(*EPOCHS, *overrides))
    assert bool(warnings) is bool(words)
    assert all(words in text and "nothing is validated" in text for text in warnings)


def test_an_interval_that_lightning_would_refuse_later_is_refused_before_the_start(small_run, tmp_path):
    classic = ["model.train_ds.use_lhotse=false", "trainer.val_check_interval=3"]
    with pytest.raises(ValueError, match="trainer.val_check_interval is 3 but an epoch has 2 batches"):
        prepare(small_run(*EPOCHS, *classic))
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_bucketed_run_with_more_data_than_its_buffer_leaves_no_thread_that_keeps_the_process(small_run):
    buckets = {"use_bucketing": "true", "num_buckets": 2, "bucket_buffer_size": 2, "shuffle_buffer_size": 1}
    before = set(threading.enumerate())
    train(small_run(*(f"+model.train_ds.{key}={value}" for key, value in buckets.items()), "trainer.max_steps=2"))
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    assert not left


@pytest.mark.slow
def test_a_run_by_the_metric_of_a_later_set_ships_its_best(small_run, manifest, tmp_path):
    sets = f"model.validation_ds.manifest_filepath={two_sets(manifest, tmp_path)}"
    done = train(small_run(sets, f"{MONITOR}=dev_other_val_wer", callbacks(EARLY)))
    assert "dev_other_val_wer" in done.trainer.callback_metrics
    assert done.trainer.checkpoint_callback.best_model_score is not None
    assert (done.folder / "student.nemo").is_file()
