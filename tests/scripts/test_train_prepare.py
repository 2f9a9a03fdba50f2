"""What scripts/train.py does between a good command line and the first step, in this process."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_codert.cli import train as command
from nemo_codert.export.stock_file import load_model
from nemo_codert.export.training_record import recorded_training, training_record
from nemo_codert.models import student_config, teacher_config
from tests.models.training_runs import equal_states

SMALL = [
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model.model_defaults.enc_hidden=16",
    "model.model_defaults.pred_hidden=16",
    "model.preprocessor.features=32",
    *(f"model.{name}.{key}=1" for name in ("encoder", "student.encoder") for key in ("n_layers", "n_heads")),
    *(f"model.{name}.d_model=16" for name in ("encoder", "student.encoder")),
]
UNKNOWN = "+model.encoder.n_layerz=3"


@pytest.fixture
def small_run(run_config, manifest, tmp_path):
    """`run_config` with tiny networks, and a validation manifest whose name NeMo accepts."""
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    return lambda *overrides: run_config(f"model.validation_ds.manifest_filepath={dev}", *SMALL, *overrides)


@pytest.fixture
def source(small_run, tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Factory of the file of a lone student or teacher with other weights than a new one, and these weights."""

    def make(branch: str):
        cfg = small_run(f"strategy={branch}").model
        stock = {"student": student_config, "teacher": teacher_config}[branch](cfg)
        with open_dict(stock):
            del stock.train_ds, stock.validation_ds
        torch.manual_seed(9)
        model = EncDecRNNTBPEModel(stock)
        model.save_to(str(tmp_path / f"{branch}_source.nemo"))
        return tmp_path / f"{branch}_source.nemo", model.state_dict()

    return make


@pytest.mark.parametrize(
    "branch, key", [("student", "model.student.init_from"), ("teacher", "model.codert.teacher_checkpoint")]
)
def test_a_model_trained_alone_starts_from_its_checkpoint(branch, key, script, small_run, source):
    path, weights = source(branch)
    models = []
    for overrides in ([], [f"{key}={path}"]):
        cfg = small_run(f"strategy={branch}", *overrides)
        script.check_run(cfg)
        models.append(script.build_model(cfg, script.make_trainer(cfg)))
    new, started = models
    assert type(started) is EncDecRNNTBPEModel
    assert not torch.equal(new.joint.enc.weight, weights["joint.enc.weight"])
    assert equal_states(started.state_dict(), weights)


@pytest.mark.parametrize(
    "strategy, on", [("student", "false"), ("student", "true"), ("teacher", "true"), ("shared_kd", "true")]
)
def test_a_model_trained_alone_has_no_activation_checkpointing_and_says_so(
    strategy, on, script, small_run, monkeypatch
):
    said = []
    monkeypatch.setattr(script.logger, "warning", lambda message, *args: said.append(message % args))
    cfg = small_run(f"strategy={strategy}", f"model.codert.activation_checkpointing={on}")
    script.check_run(cfg)
    model = script.build_model(cfg, script.make_trainer(cfg))
    alone = strategy != "shared_kd"
    assert ("codert" in model.cfg) is not alone
    warned = [text for text in said if "activation_checkpointing has no effect" in text]
    assert bool(warned) is (alone and on == "true")


def test_a_student_alone_is_built_with_its_own_decoder(script, small_run, tmp_path):
    network = "{_target_: nemo.collections.asr.modules.RNNTDecoder, normalization_mode: null, prednet: %s}"
    prednet = "{pred_hidden: 24, pred_rnn_layers: 1, t_max: null, dropout: 0.0}"
    cfg = small_run("strategy=student", f"model.student.decoder={network % prednet}")
    script.check_run(cfg)
    script.screen_data(cfg, tmp_path / "run")
    model = script.build_model(cfg, script.make_trainer(cfg))
    assert model.decoder.pred_hidden == model.joint.pred_hidden == 24


def test_a_lone_checkpoint_with_other_settings_is_refused(script, small_run, source):
    path, _ = source("student")
    cfg = small_run("strategy=student", f"model.student.init_from={path}", "model.student.encoder.conv_kernel_size=5")
    expected = (
        r"(?s)model.student.init_from '.*' was trained .*model.encoder.conv_kernel_size is 5, the checkpoint has 9"
    )
    with pytest.raises(ValueError, match=expected):
        script.build_model(cfg, script.make_trainer(cfg))


def folders(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}


def test_a_refused_run_leaves_no_folder_behind(script, small_run, tmp_path):
    with pytest.raises(ValueError, match="n_layerz"):
        script.prepare(small_run(UNKNOWN))
    assert folders(tmp_path / "runs") == set()


@pytest.mark.parametrize("keys", [["encoder"], ["student.encoder"], ["encoder", "student.encoder"], ["spec_augment"]])
def test_a_block_that_cannot_be_built_is_named_by_its_place_in_the_config(keys, script, small_run):
    with pytest.raises(ValueError) as caught:
        script.prepare(small_run(*(f"+model.{key}.n_layerz=3" for key in keys)))
    head, *lines = str(caught.value).split("\n  - ")
    assert head == "The model cannot be built:"
    assert [line.split(":")[0] for line in lines] == [f"model.{key}" for key in keys]
    assert all("n_layerz" in line for line in lines)


@pytest.mark.parametrize("step", ["exp_manager", "screen_data", "build_model", "seed_augmentation", "describe"])
def test_no_folder_stays_whatever_ends_a_run_before_its_first_step(step, script, small_run, tmp_path, monkeypatch):
    done = getattr(script, step)

    def stop(*arguments, **options):
        if step == "exp_manager":
            done(*arguments, **options)  # NeMo's own checks come after it made the folder
        raise RuntimeError("no fault of a setting")

    monkeypatch.setattr(script, step, stop)
    with pytest.raises(RuntimeError):
        script.prepare(small_run())
    assert folders(tmp_path / "runs") == set()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_training_that_fails_keeps_its_folder_once_it_has_made_a_step(steps, script, small_run, tmp_path):
    def fit(_):
        raise RuntimeError("out of memory")

    prepare = script.prepare

    def prepared(cfg):
        _, model, folder = prepare(cfg)
        return SimpleNamespace(fit=fit, global_step=steps), model, folder

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(script, "prepare", prepared)
        command.main(small_run())
    assert bool(folders(tmp_path / "runs")) is bool(steps)


def test_an_optimiser_that_only_pytorch_can_refuse_is_refused_before_the_first_step(script, small_run, tmp_path):
    cfg = small_run("+model.optim.foo=1")
    script.check_run(cfg)
    with pytest.raises(ValueError, match=r"model.optim cannot be used: .*foo.*\. Its keys are the arguments"):
        script.prepare(cfg)
    assert folders(tmp_path / "runs") == set()


def test_a_refused_run_leaves_earlier_runs_alone(script, small_run, tmp_path):
    earlier = tmp_path / "runs" / "fsdd" / "earlier"
    earlier.mkdir(parents=True)
    (earlier / "pair.nemo").touch()
    with pytest.raises(command.USER_ERRORS):
        script.prepare(small_run(UNKNOWN))
    assert folders(tmp_path / "runs") == {"fsdd", "fsdd/earlier"}
    assert (earlier / "pair.nemo").is_file()


@pytest.mark.parametrize("name", ["resume", "version", "explicit_log_dir"])
def test_a_refused_run_in_a_folder_that_may_be_an_earlier_runs_keeps_it(name, script, small_run, tmp_path):
    root, overrides = {
        "resume": ("runs/fsdd", ["exp_manager.resume_if_exists=true"]),
        "version": ("runs/fsdd/mine", ["+exp_manager.version=mine"]),
        "explicit_log_dir": ("here", [f"+exp_manager.explicit_log_dir={tmp_path / 'here'}"]),
    }[name]
    (tmp_path / root).mkdir(parents=True)
    (tmp_path / root / "pair.nemo").touch()
    with pytest.raises(command.USER_ERRORS):
        script.prepare(small_run(UNKNOWN, *overrides))
    assert len(list((tmp_path / root).rglob("pair.nemo"))) == 1  # NeMo moves it down when it resumes


def test_a_fault_that_only_building_finds_is_one_message_and_exit_status_1(script, small_run, capfd):
    with pytest.raises(SystemExit) as caught:
        command.main(small_run(UNKNOWN))
    message = caught.value.code  # a text: the interpreter prints it and ends with status 1
    assert isinstance(message, str) and message.startswith("error: ") and "n_layerz" in message
    assert "Traceback" not in capfd.readouterr().err


def test_a_path_that_the_system_refuses_is_one_message_that_names_it(script, small_run, capfd):
    with pytest.raises(SystemExit) as caught:
        command.main(small_run("exp_manager.exp_dir=/proc/nope"))
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: /proc/nope: No such file or directory. Give a path")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("rank, kept", [(None, None), ("0", "first"), ("1", "first")])
def test_further_ranks_keep_the_run_folder_of_the_first(rank, kept, script, small_run, monkeypatch):
    """NeMo tells them by this variable; in a process of its own a run makes a new folder."""
    monkeypatch.setenv("NEMO_EXPM_VERSION", "first")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    seen = []

    def stop(*_):
        seen.append(os.environ.get("NEMO_EXPM_VERSION"))
        raise ValueError("seen")

    monkeypatch.setattr(script, "exp_manager", stop)
    with pytest.raises(ValueError, match="seen"):
        script.prepare(small_run())
    assert seen == [kept]


def test_a_student_made_of_its_teachers_layers_says_so(run_config):
    given = ["model.codert.teacher_checkpoint=/data/of/someone/teacher.nemo", "model.student.init_from_teacher=true"]
    record = training_record(run_config("strategy=static", *given), {"train": [], "validation": []})
    assert record.started_from == {"student": "evenly spaced layers of teacher.nemo"}
    assert record.teacher == "trained before, kept frozen: teacher.nemo"


def test_a_trained_student_carries_the_record_of_its_training_and_a_card_with_its_results(
    script, run_config, manifest, tmp_path
):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "mine.json").write_text(
        "".join(json.dumps(line) + "\n" for line in [{**lines[0], "text": ""}, *lines])
    )
    (tmp_path / "dev.json").write_text(manifest.read_text())
    cfg = run_config(
        f"model.train_ds.manifest_filepath={tmp_path / 'mine.json'}",
        f"model.validation_ds.manifest_filepath={tmp_path / 'dev.json'}",
        f"+model.test_ds.manifest_filepath={tmp_path / 'dev.json'}",
        "strategy=tandem_kd",
        *SMALL,
    )
    trainer, model, folder = script.prepare(cfg)
    ended = SimpleNamespace(
        lightning_module=model.eval(),
        global_step=5,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        checkpoint_callback=SimpleNamespace(
            best_model_path="", best_model_score=torch.tensor(0.25), monitor="val_wer"
        ),
    )
    script.finish(cfg, ended, folder)
    seconds = sum(line["duration"] for line in lines)
    for name in ("pair.nemo", "student.nemo"):
        record = recorded_training(load_model(folder / name).cfg)
        assert (record.strategy, record.teacher, record.updates) == ("tandem_kd", "trained in the same run", 5)
        assert [(each.manifest, each.utterances) for each in record.train] == [
            ("mine.json", 8)
        ]  # the empty one dropped
        assert record.train[0].hours == pytest.approx(seconds / 3600, abs=1e-4) and record.best_val_wer == 0.25
        assert [each.manifest for each in record.validation] == ["dev.json"]
    text = (folder / "student.md").read_text()
    assert text == load_model(folder / "student.nemo").cfg.model_card
    assert "`mine.json` (8 utterances, 0.00 hours)" in text and "| dev | 8 | 36 | " in text
    assert str(tmp_path) not in text and "train_ds_usable" not in text
