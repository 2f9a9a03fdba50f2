"""nemo_codert/training/run_checks.py: faults of a run's config are named before anything is built or written."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from nemo_codert.evaluation import long_audio
from nemo_codert.training import run_checks
from nemo_codert.training.run_checks import check_run
from tests.conftest import ADDITIVE, REPOSITORY, STOCK
from tests.training.run_configs import TEST_SETS, listed, refusal

SAVE_LAST = "exp_manager.checkpoint_callback_params.save_last"


STOCK_BLOCK = f"{{_target_: {STOCK}, jointnet: {{joint_hidden: 8, activation: relu}}}}"


MONITOR = "exp_manager.checkpoint_callback_params.monitor"


LIMIT = "+trainer.limit_train_batches=100"


EPOCHS = ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]


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
def test_a_setting_that_no_run_can_have_is_the_one_fault_named(override, message, run_config, tmp_path):
    (fault,) = listed(run_config(override))
    assert fault.startswith(message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "train, key", [("student", "model.codert.teacher_checkpoint"), ("teacher", "model.student.init_from")]
)
def test_weights_that_a_model_trained_alone_would_not_read_are_refused(train, key, run_config, manifest):
    (fault,) = listed(run_config(f"strategy={train}", f"{key}={manifest}"))
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
def test_a_run_without_validation_says_so_before_it_starts(overrides, words, run_config, monkeypatch):
    said = []
    monkeypatch.setattr(
        "nemo_codert.training.run_checks.logger.warning", lambda message, *args: said.append(message % args)
    )
    check_run(run_config(*overrides))
    assert bool(said) is bool(words)
    assert all(words in text and "no best checkpoint is chosen" in text for text in said)


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_file_in_place_of_the_run_folder_is_named(below, run_config, manifest):
    (fault,) = listed(run_config(f"exp_manager.exp_dir={manifest}{below}"))
    assert fault.startswith(f"exp_manager.exp_dir is '{manifest}{below}' but {manifest} is a file: give a folder")


def test_a_config_without_a_trainer_is_asked_for_one(run_config):
    cfg = run_config()
    with open_dict(cfg):
        del cfg.trainer
    (fault,) = listed(cfg)
    assert fault.startswith("trainer is missing: give it max_steps")


def test_training_without_an_end_or_without_a_known_length_is_refused(run_config):
    endless = listed(run_config("trainer.max_steps=-1"))
    assert any("training would never end. Give trainer.max_steps" in fault for fault in endless)
    (fault,) = listed(run_config("trainer.max_steps=-1", "trainer.max_epochs=2", *EPOCHS))
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
        ["strategy=student", f"{MONITOR}=val_loss"],
        [f"{MONITOR}=val_foo", "exp_manager.create_checkpoint_callback=false"],
        ["model.loss=null"],
        ["model.sample_rate=8000"],
        ["~model.train_ds.sample_rate", "~model.preprocessor.sample_rate"],
    ],
    ids=lambda value: ",".join(value)[:60],
)
def test_other_ways_to_say_how_long_and_how_to_train_pass(overrides, run_config):
    check_run(run_config(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=student", f"{MONITOR}=val_wer_teacher"],
        ["model.compute_eval_loss=false", f"{MONITOR}=val_loss"],
        ["model.compute_eval_loss=false", f"~{MONITOR}"],  # NeMo's own default is val_loss
    ],
    ids=["student", "no loss", "default"],
)
def test_a_best_checkpoint_is_chosen_by_what_this_run_logs(overrides, run_config):
    (fault,) = listed(run_config(*overrides))
    assert fault.startswith(MONITOR) and "val_wer" in fault


@pytest.mark.parametrize(
    "override, said",
    [
        ("resume.every_n_steps=-1", "resume.every_n_steps is -1, wanted a number of optimizer steps, or 0"),
        ("resume.every_n_steps=true", "resume.every_n_steps is True, wanted a number of optimizer steps, or 0"),
        ("resume.replay_streams=3", "resume.replay_streams is 3, wanted true or false"),
        ("+resume.every=3", "resume.every is not a key of resume, which has every_n_steps, replay_streams, "),
    ],
)
def test_what_to_resume_with_is_checked(override, said, run_config):
    (fault,) = listed(run_config(override))
    assert fault.startswith(said)


def test_checkpoints_between_validations_need_something_that_saves_them(run_config):
    for off in (
        "exp_manager.create_checkpoint_callback=false",
        "+exp_manager.checkpoint_callback_params.save_last=false",
    ):
        (fault,) = listed(run_config("resume.every_n_steps=2", off))
        assert off.strip("+").split("=")[0] in fault


def test_processes_that_would_all_read_the_same_stream_are_refused(run_config):
    stream = ["+model.train_ds.is_tarred=true", "trainer.devices=2", "trainer.strategy=ddp", LIMIT]
    for same in ([], ["model.train_ds.shard_seed=randomized"]):
        (fault,) = listed(run_config(*stream, *same))
        assert "every process would train on the same utterances" in fault and "num_workers" in fault
    check_run(run_config(*stream, "model.train_ds.shard_seed=randomized", "model.train_ds.num_workers=1"))
    check_run(run_config(*stream, "trainer.devices=1"))
    check_run(run_config("trainer.devices=2", "trainer.strategy=ddp"))


@pytest.mark.parametrize(
    "key",
    [
        *("model.train_ds.manifest_filepath", "model.validation_ds.manifest_filepath"),
        *("model.test_ds.manifest_filepath", "model.tokenizer.dir", "model.codert.teacher_checkpoint"),
    ],
)
def test_paths_that_no_system_takes_are_paths_that_are_not_there(run_config, key):
    (problem,) = listed(run_config(f"{key}={'a' * 5000}.nemo"))
    assert problem.startswith(key) and "File name too long" not in problem


def test_a_reference_to_nothing_is_named_by_its_key(run_config):
    cfg = run_config()
    cfg.model.train_ds.use_lhotse = "${nowhere}"
    problems = listed(cfg)
    assert problems and all("nowhere" in text and "model.train_ds.use_lhotse" in text for text in problems)


@pytest.mark.parametrize("strategy", ["student", "teacher", "tandem", "tandem_kd", "shared", "shared_kd"])
def test_a_run_that_can_start_passes(strategy, run_config, tmp_path):
    check_run(run_config(f"strategy={strategy}"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["model.train_ds.manifest_filepath=absent.json"],
            ["model.train_ds.manifest_filepath: absent.json is not a file", "Check the path"],
        ),
        (
            ["model.train_ds.manifest_filepath=null"],
            ["train_ds.manifest_filepath is missing", "codert prepare"],
        ),
        (
            ["model.validation_ds.manifest_filepath=[a.json,b.json]"],
            [f"model.validation_ds.manifest_filepath: {name}.json is not a file" for name in "ab"],
        ),
        (
            ["model.train_ds.manifest_filepath='a.json, b.json'"],
            [f"model.train_ds.manifest_filepath: {name}.json is not a file" for name in "ab"],
        ),
        (
            ["+model.skip_nan_grad=true"],
            ["model.skip_nan_grad is true", "set model.codert.non_finite.action to skip"],
        ),
        (["~model.validation_ds"], ["model.validation_ds is missing: give it a manifest_filepath"]),
        (
            ["model.tokenizer.dir=absent"],
            ["model.tokenizer.dir is 'absent'", "no tokenizer.model in there", "codert prepare"],
        ),
        (
            ["strategy=student", "++model.codert.distillation.encoder.weight=0.1"],
            [
                "model.codert.distillation.encoder.weight is 0.1 but train is student",
                "Set the weight to 0 or choose a strategy",
            ],
        ),
        (
            ["strategy=static"],
            ["model.codert.teacher is frozen", "teacher_checkpoint is null", "give a trained"],
        ),
        (["strategy=static_shared"], ["model.codert.teacher is frozen", "teacher_checkpoint is null"]),
        (
            ["model.codert.teacher_checkpoint=absent.nemo"],
            ["model.codert.teacher_checkpoint is 'absent.nemo': no such file. Give the path of a .nemo file"],
        ),
        (
            ["strategy=teacher", "model.codert.teacher_checkpoint=absent.nemo"],
            ["model.codert.teacher_checkpoint is 'absent.nemo': no such file"],
        ),
        (
            ["strategy=student", "model.student.init_from=absent.nemo"],
            ["model.student.init_from is 'absent.nemo': no such file. Give the path of a .nemo file"],
        ),
        *(
            (
                [f"strategy={train}", "model.codert.rnnt_loss=exact", f"model.joint._target_={STOCK}"],
                [f"model.codert.rnnt_loss is exact but train is {train} with the stock joint", "auto or nemo"],
            )
            for train in ("student", "teacher")
        ),
        (
            ["strategy=student", "model.codert.rnnt_loss=exact", f"model.student.joint={STOCK_BLOCK}"],
            ["model.codert.rnnt_loss is exact but train is student with the stock joint"],
        ),
        (["train=both"], ["train is 'both'", "wanted pair, student or teacher"]),
        (
            ["+init_from_nemo_model=a.nemo"],
            ["init_from_nemo_model is not supported", "codert.teacher_checkpoint"],
        ),
        (
            ["+init_from_pretrained_model=a"],
            ["init_from_pretrained_model is not supported", "init_from"],
        ),
        (["+model.codert.distilation=1"], ["model.codert.distilation is not a key of this version", "distillation"]),
        (["++model.codert.distillation.encoder.temperature=hot"], ["temperature is 'hot'", "wanted a number"]),
        (["model.joint.fuse_loss_wer=true"], ["model.joint.fused_batch_size is None", "set fuse_loss_wer to false"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else value,
)
def test_a_fault_is_named_with_key_value_and_remedy_and_nothing_is_written(overrides, words, run_config, tmp_path):
    before = sorted(tmp_path.iterdir())
    message = refusal(run_config(*overrides))
    for word in words:
        assert word in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("joint, loss, strategy", [(STOCK, "exact", "shared_kd"), (ADDITIVE, "exact", "student")])
def test_the_exact_loss_is_there_for_pairs_and_for_the_additive_joint(joint, loss, strategy, run_config):
    cfg = run_config(f"strategy={strategy}", f"model.codert.rnnt_loss={loss}", f"model.joint._target_={joint}")
    assert check_run(cfg).codert.rnnt_loss == loss


def test_a_lone_additive_student_of_a_stock_teacher_has_the_exact_loss(run_config):
    own = f"model.student.joint={{_target_: {ADDITIVE}, jointnet: {{}}}}"
    cfg = run_config("strategy=student", "model.codert.rnnt_loss=exact", f"model.joint._target_={STOCK}", own)
    assert check_run(cfg).student.joint._target_ == ADDITIVE


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("source", ["input_cfg", "cuts_path", "shar_path"])
def test_lhotses_other_sources_need_no_manifest(source, absent, run_config):
    cfg = run_config("model.train_ds.manifest_filepath=null")
    with open_dict(cfg):
        if absent:
            del cfg.model.train_ds.manifest_filepath
    assert "model.train_ds.manifest_filepath is missing" in refusal(cfg)
    with open_dict(cfg):
        cfg.model.train_ds[source] = "given"
        cfg.trainer.limit_train_batches = 100  # shards need it
    check_run(cfg)


def test_manifests_of_tarred_data_may_be_patterns(run_config):
    pattern = "model.train_ds.manifest_filepath='manifest__OP_0..3_CL_.json'"
    tarred = run_config(pattern, "+model.train_ds.tarred_audio_filepaths='audio__OP_0..3_CL_.tar'", LIMIT)
    assert check_run(tarred).model.train_ds.manifest_filepath == "manifest__OP_0..3_CL_.json"


def test_faults_of_one_run_are_reported_together(run_config):
    message = refusal(
        run_config("strategy=static", "model.train_ds.manifest_filepath=absent.json", "+init_from_ptl_ckpt=a.ckpt"),
    )
    assert message.startswith("This run cannot start:")
    assert message.count("\n  - ") == 3


def test_paths_that_nobody_gave_are_asked_for():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        message = refusal(compose("fsdd"))
    for key in ("model.train_ds.manifest_filepath", "model.tokenizer.dir", "exp_manager.exp_dir"):
        assert key in message


@pytest.mark.parametrize(
    "content, words",
    [
        ({"tokenizer.model": b"no model", "vocab.txt": b""}, ["tokenizer.model is not a SentencePiece model"]),
        ({"tokenizer.model": b"", "vocab.txt": b""}, ["tokenizer.model is not a SentencePiece model"]),
        ({"tokenizer.model": b"no model"}, ["no vocab.txt in there"]),
    ],
    ids=["broken", "empty", "no vocabulary"],
)
def test_a_tokenizer_that_nemo_cannot_read_is_refused_by_folder(content, words, run_config, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, written in content.items():
        (folder / name).write_bytes(written)
    message = refusal(run_config(f"model.tokenizer.dir={folder}"))
    for word in (f"model.tokenizer.dir is {str(folder)!r}", "codert prepare makes one", *words):
        assert word in message


def test_test_sets_are_a_path_or_a_list_or_nothing(run_config, test_sets):
    one, two = map(str, test_sets)
    for value, expected in (
        ("null", []),
        (one, [one]),
        (f"[{one},{two}]", [one, two]),
        (f"'{one}, {two}'", [one, two]),
    ):
        cfg = run_config(f"{TEST_SETS}={value}")
        check_run(cfg)
        assert run_checks.test_manifests(cfg) == expected
    with open_dict(cfg):
        del cfg.model.test_ds  # a stock config may have none
    check_run(cfg)
    assert run_checks.test_manifests(cfg) == []


def test_tarred_test_data_are_left_alone(run_config):
    cfg = run_config(f"{TEST_SETS}='manifest__OP_0..3_CL_.json'", "+model.test_ds.is_tarred=true")
    check_run(cfg)
    assert run_checks.test_manifests(cfg) == []


@pytest.mark.parametrize("strategy, heads, is_refused", [
    ("shared_kd", {"model.encoder": 10**6, "model.student.encoder": 1}, True),
    ("student", {"model.encoder": 10**6, "model.student.encoder": 1}, False),  # the teacher transcribes nothing
    ("student", {"model.encoder": 1, "model.student.encoder": 10**6}, True),
])  # fmt: skip
def test_test_sets_too_long_for_full_attention_are_refused_before_training(
    run_config, test_sets, monkeypatch, strategy, heads, is_refused
):
    monkeypatch.setattr(long_audio, "total_memory", lambda device: 10**9 if device == "cpu" else 0)
    batch = "model.test_ds.batch_size=1"
    cfg = run_config(f"{TEST_SETS}={test_sets[1]}", f"strategy={strategy}", batch, "trainer.accelerator=cpu")
    for block, number in heads.items():
        OmegaConf.update(cfg, f"{block}.n_heads", number)
    problems = [
        text for text in run_checks._test_problems(cfg) if "full attention over the batches of 1 needs" in text
    ]
    assert len(problems) == is_refused and all(text.startswith(f"{TEST_SETS}: ") for text in problems)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "absent.json is not a file"),
        ("", "bad.json is empty"),
        ("{", "bad.json:1: not JSON"),
        ('{"audio_filepath": "gone.wav", "duration": 1.0, "text": "a"}', "gone.wav: audio file missing"),
    ],
)
def test_a_test_set_that_cannot_be_transcribed_is_refused_before_training(
    content, message, run_config, test_sets, tmp_path
):
    path = tmp_path / ("absent.json" if content is None else "bad.json")
    if content is not None:
        path.write_text(content)
    text = refusal(run_config(f"{TEST_SETS}=[{test_sets[0]},{path}]", "strategy=static"))
    assert f"{TEST_SETS}: " in text and message in text
    assert "model.codert.teacher_checkpoint is null" in text  # told together with the other faults


def test_two_test_sets_of_one_name_are_refused(run_config, test_sets, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "test_seen.json"
    twin.write_text(test_sets[0].read_text())
    text = refusal(run_config(f"{TEST_SETS}=[{test_sets[0]},{twin}]"))
    assert f"{TEST_SETS} names 2 files 'test_seen': predictions are kept by that name. Rename one" in text


def test_something_else_than_paths_is_refused(run_config):
    assert f"{TEST_SETS} is 3, wanted a path or a list of paths" in refusal(run_config(f"{TEST_SETS}=3"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["+model.train_ds.channel_selector=average"],
            "model.train_ds.channel_selector is 'average', wanted the number",
        ),
        (
            ["+model.validation_ds.channel_selector=-1"],
            "model.validation_ds.channel_selector is -1, wanted the number",
        ),
        (["+model.test_ds.channel_selector=-1"], "model.test_ds.channel_selector is -1, wanted the number"),
        (
            ["model.train_ds.use_lhotse=false", "+model.train_ds.text_field=said"],
            "model.train_ds.text_field is 'said' but use_lhotse is false, whose loader reads text: set it to true",
        ),
    ],
)
def test_how_audio_and_text_are_read_is_checked_before_the_start(run_config, manifest, overrides, message):
    (problem,) = listed(run_config(f"model.test_ds.manifest_filepath={manifest}", *overrides))
    assert problem.startswith(message)


def test_stored_targets_are_of_the_channel_that_a_line_states(run_config, tmp_path):
    cached = ["model.codert.teacher=cached", f"model.codert.teacher_cache={tmp_path}", "strategy=cached"]
    for value, refused in (("0", True), ("side", True), ("channel", False)):
        problems = listed(run_config(*cached, f"+model.train_ds.channel_selector={value}"))
        assert any("model.train_ds.channel_selector is" in problem for problem in problems) == refused


def test_the_text_of_a_test_set_is_its_text_field(run_config, manifest, tmp_path):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    path = tmp_path / "said.json"
    path.write_text("".join(json.dumps({"said": line.pop("text"), **line}) + "\n" for line in lines))
    given = f"model.test_ds.manifest_filepath={path}"
    (problem,) = listed(run_config(given))
    assert "text is missing" in problem
    cfg = run_config(given, "+model.test_ds.text_field=said")
    check_run(cfg)
    assert run_checks.test_reading(cfg)["text_field"] == "said"
