"""What nemo_codert/training/run_checks.py says of the trainer, the optimiser, the loaders and the parts of a run."""

import pytest
from omegaconf import open_dict

from tests.scripts.test_train_bad_input import refusal

SAVE_LAST = "exp_manager.checkpoint_callback_params.save_last"
MONITOR = "exp_manager.checkpoint_callback_params.monitor"
EPOCHS = ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]


def listed(script, cfg) -> list[str]:
    return refusal(script, cfg).split("\n  - ")[1:]


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.train_ds.batch_size=0", "model.train_ds.batch_size is 0, wanted a number of utterances, 1 or more"),
        ("model.train_ds.batch_size=abc", "model.train_ds.batch_size is 'abc', wanted a number of utterances"),
        ("model.validation_ds.batch_size=0", "model.validation_ds.batch_size is 0, wanted"),
        ("model.test_ds.batch_size=abc", "model.test_ds.batch_size is 'abc', wanted"),
        ("seed=abc", "seed is 'abc', wanted a whole number from 0 to 4294967295"),
        ("seed=-1", "seed is -1, wanted a whole number from 0"),
        ("model.preprocessor.window_stride=abc", "model.preprocessor.window_stride is 'abc', wanted seconds above 0"),
        ("model.preprocessor.window_size=0", "model.preprocessor.window_size is 0, wanted seconds above 0"),
        ("model.sample_rate=abc", "model.sample_rate is 'abc', wanted the Hz that all audio is brought to"),
        ("model.encoder.n_heads=5", "model.encoder.n_heads is 5, wanted a divisor of its d_model (112)"),
        (
            "model.student.encoder.n_heads=abc",
            "model.student.encoder.n_heads is 'abc', wanted a divisor of its d_model",
        ),
        ("model.sample_rate=0", "model.sample_rate is 0, wanted the Hz"),
        *(
            (
                f"model.{name}.sample_rate=8000",
                f"model.{name}.sample_rate is 8000 but model.sample_rate is 16000: make",
            )
            for name in ("preprocessor", "train_ds", "validation_ds")
        ),
        ("model.optim.name=adamx", "model.optim.name is 'adamx', wanted one of sgd, adam, adamw"),
        ("model.optim.sched.name=Foo", "model.optim.sched.name is 'Foo', wanted one of WarmupPolicy"),
        ("model.optim.sched=5", "model.optim.sched is 5, wanted a block with name and warmup_steps, or null"),
        ("model.optim.lr=fast", "model.optim.lr is 'fast', wanted a learning rate above 0"),
        ("model.optim.lr=0", "model.optim.lr is 0, wanted a learning rate above 0"),
        ("~model.optim", "model.optim is None, wanted a block with name, lr"),
        ("trainer.max_steps=0", "trainer.max_steps is 0, wanted a number of optimizer steps, 1 or more"),
        ("trainer.max_steps=abc", "trainer.max_steps is 'abc', wanted a number of optimizer steps"),
        ("trainer.max_steps=2.5", "trainer.max_steps is 2.5, wanted a number of optimizer steps"),
        ("trainer.max_epochs=0", "trainer.max_epochs is 0, wanted a number of epochs"),
        ("trainer.max_epochs=3", "trainer.max_epochs is 3 but check_val_every_n_epoch is null"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches is 0, wanted batches per optimizer"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval is 0, wanted a number of batches, 1 or more"),
        ("trainer.val_check_interval=0.5", "trainer.val_check_interval is 0.5, wanted a number of batches, 1 or more"),
        ("trainer.val_check_interval=null", "trainer.val_check_interval is None, wanted a number of batches"),
        (f"{MONITOR}=val_foo", f"{MONITOR} is 'val_foo', which nothing is logged by, wanted one of"),
        ("model.loss.warprnnt_numba_kwargs=5", "model.loss.warprnnt_numba_kwargs is 5, wanted a block of keys"),
        ("model.loss=5", "model.loss is 5, wanted a block of keys"),
    ],
)
def test_a_setting_that_no_run_can_have_is_the_one_fault_named(override, message, script, run_config, tmp_path):
    (fault,) = listed(script, run_config(override))
    assert fault.startswith(message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "train, key", [("student", "model.codert.teacher_checkpoint"), ("teacher", "model.student.init_from")]
)
def test_weights_that_a_model_trained_alone_would_not_read_are_refused(train, key, script, run_config, manifest):
    (fault,) = listed(script, run_config(f"strategy={train}", f"{key}={manifest}"))
    assert fault.startswith(f"{key} is '{manifest}' but train is {train}: nothing would read it. Set it to null")


@pytest.mark.parametrize(
    "overrides, words",
    [
        ([], None),
        (["trainer.max_steps=200"], None),
        (["trainer.max_steps=199"], "trainer.val_check_interval is 200 but training ends after 199 batches"),
        (["trainer.max_steps=100", "trainer.accumulate_grad_batches=2"], None),
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches is 0: nothing is validated"),
    ],
)
def test_a_run_without_validation_says_so_before_it_starts(overrides, words, script, run_config, monkeypatch):
    said = []
    monkeypatch.setattr(
        "nemo_codert.training.run_checks.logger.warning", lambda message, *args: said.append(message % args)
    )
    script.check_run(run_config(*overrides))
    assert bool(said) is bool(words)
    assert all(words in text and "no best checkpoint is chosen" in text for text in said)


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_file_in_place_of_the_run_folder_is_named(below, script, run_config, manifest):
    (fault,) = listed(script, run_config(f"exp_manager.exp_dir={manifest}{below}"))
    assert fault.startswith(f"exp_manager.exp_dir is '{manifest}{below}' but {manifest} is a file: give a folder")


def test_a_config_without_a_trainer_is_asked_for_one(script, run_config):
    cfg = run_config()
    with open_dict(cfg):
        del cfg.trainer
    (fault,) = listed(script, cfg)
    assert fault.startswith("trainer is missing: give it max_steps")


def test_training_without_an_end_or_without_a_known_length_is_refused(script, run_config):
    endless = listed(script, run_config("trainer.max_steps=-1"))
    assert any("training would never end. Give trainer.max_steps" in fault for fault in endless)
    (fault,) = listed(script, run_config("trainer.max_steps=-1", "trainer.max_epochs=2", *EPOCHS))
    assert fault.startswith("trainer.max_steps is -1 but model.optim.sched needs it") and "sched to null" in fault


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=-1", "trainer.max_epochs=2", "model.optim.sched=null", *EPOCHS],
        ["trainer.max_steps=-1", "+trainer.max_time=00:01:00:00", "+model.optim.sched.max_steps=100"],
        ["trainer.max_epochs=2", *EPOCHS],
        ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=3"],
        ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=0.5", "model.train_ds.use_lhotse=false"],
        ["model.train_ds.batch_size=null", "+model.train_ds.batch_duration=20"],
        ["model.optim.name=null", "model.optim.lr=null"],
        ["+model.optim._target_=torch.optim.Adam", "model.optim.name=mine"],
        [f"{MONITOR}=val_wer_teacher"],
        [f"{MONITOR}=dev_other_val_wer"],
        ["strategy=student", f"{MONITOR}=val_loss"],
        [f"{MONITOR}=val_foo", "exp_manager.create_checkpoint_callback=false"],
        ["model.loss=null"],
        ["model.sample_rate=8000"],
        ["~model.train_ds.sample_rate", "~model.preprocessor.sample_rate"],
    ],
    ids=lambda value: ",".join(value)[:60],
)
def test_other_ways_to_say_how_long_and_how_to_train_pass(overrides, script, run_config):
    script.check_run(run_config(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=student", f"{MONITOR}=val_wer_teacher"],
        ["model.compute_eval_loss=false", f"{MONITOR}=val_loss"],
        ["model.compute_eval_loss=false", f"~{MONITOR}"],  # NeMo's own default is val_loss
    ],
    ids=["student", "no loss", "default"],
)
def test_a_best_checkpoint_is_chosen_by_what_this_run_logs(overrides, script, run_config):
    (fault,) = listed(script, run_config(*overrides))
    assert fault.startswith(MONITOR) and "val_wer" in fault


@pytest.mark.parametrize(
    "override, said",
    [
        ("resume.every_n_steps=-1", "resume.every_n_steps is -1, wanted a number of optimizer steps, or 0"),
        ("resume.every_n_steps=true", "resume.every_n_steps is True, wanted a number of optimizer steps, or 0"),
        ("resume.replay_streams=3", "resume.replay_streams is 3, wanted true or false"),
        ("+resume.every=3", "resume.every is not a key of resume, which has every_n_steps and replay_streams"),
    ],
)
def test_what_to_resume_with_is_checked(override, said, script, run_config):
    (fault,) = listed(script, run_config(override))
    assert fault.startswith(said)


def test_checkpoints_between_validations_need_something_that_saves_them(script, run_config):
    for off in (
        "exp_manager.create_checkpoint_callback=false",
        "+exp_manager.checkpoint_callback_params.save_last=false",
    ):
        (fault,) = listed(script, run_config("resume.every_n_steps=2", off))
        assert off.strip("+").split("=")[0] in fault


def test_processes_that_would_all_read_the_same_stream_are_refused(script, run_config):
    stream = ["+model.train_ds.is_tarred=true", "trainer.devices=2", "trainer.strategy=ddp"]
    for same in ([], ["model.train_ds.shard_seed=randomized"]):
        (fault,) = listed(script, run_config(*stream, *same))
        assert "every process would train on the same utterances" in fault and "num_workers" in fault
    script.check_run(run_config(*stream, "model.train_ds.shard_seed=randomized", "model.train_ds.num_workers=1"))
    script.check_run(run_config(*stream, "trainer.devices=1"))
    script.check_run(run_config("trainer.devices=2", "trainer.strategy=ddp"))


@pytest.mark.parametrize(
    "key",
    [
        *("model.train_ds.manifest_filepath", "model.validation_ds.manifest_filepath"),
        *("model.test_ds.manifest_filepath", "model.tokenizer.dir", "model.codert.teacher_checkpoint"),
    ],
)
def test_paths_that_no_system_takes_are_paths_that_are_not_there(script, run_config, key):
    (problem,) = listed(script, run_config(f"{key}={'a' * 5000}.nemo"))
    assert problem.startswith(key) and "File name too long" not in problem


def test_a_reference_to_nothing_is_named_by_its_key(script, run_config):
    cfg = run_config()
    cfg.model.train_ds.use_lhotse = "${nowhere}"
    problems = listed(script, cfg)
    assert problems and all("nowhere" in text and "model.train_ds.use_lhotse" in text for text in problems)
