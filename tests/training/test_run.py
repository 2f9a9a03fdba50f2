"""nemo_codert/training/run.py from the first check to the last file, in this process."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import OmegaConf, open_dict

from nemo_codert.config.checked import checked_config
from nemo_codert.export.training_record import recorded_training, training_record
from nemo_codert.models import student_config, teacher_config
from nemo_codert.models.open_model import open_model
from nemo_codert.training import run
from nemo_codert.training.checkpoint_files import CheckpointFiles
from nemo_codert.training.early_checks import test_manifests as manifests_of_tests
from nemo_codert.training.run import (
    Run,
    build_model,
    check_lone_tdt,
    finish,
    make_trainer,
    prepare,
    train,
    transcribe_tests,
)
from nemo_codert.training.run_checks import check_run
from nemo_codert.training.run_folders import unfinished_runs
from nemo_codert.training.usable_data import screen_data
from tests.conftest import ADDITIVE, STOCK
from tests.models.teacher_files import DURATIONS, KINDS, NO_DATA
from tests.models.training_runs import equal_states
from tests.training.run_configs import SMALL, TEST_SETS

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


def built(cfg):
    checked = check_run(cfg)
    return build_model(cfg, checked, make_trainer(cfg, checked))


@pytest.mark.parametrize(
    "branch, key", [("student", "model.student.init_from"), ("teacher", "model.codert.teacher_checkpoint")]
)
def test_a_model_trained_alone_starts_from_its_checkpoint(branch, key, small_run, source):
    path, weights = source(branch)
    models = []
    for overrides in ([], [f"{key}={path}"]):
        cfg = small_run(f"strategy={branch}", *overrides)
        models.append(built(cfg))
    new, started = models
    assert type(started) is EncDecRNNTBPEModel
    assert not torch.equal(new.joint.enc.weight, weights["joint.enc.weight"])
    assert equal_states(started.state_dict(), weights)


@pytest.mark.parametrize(
    "strategy, on", [("student", "false"), ("student", "true"), ("teacher", "true"), ("shared_kd", "true")]
)
def test_a_model_trained_alone_has_no_activation_checkpointing_and_says_so(strategy, on, small_run, monkeypatch):
    said = []
    monkeypatch.setattr(run.logger, "warning", lambda message, *args: said.append(message % args))
    cfg = small_run(f"strategy={strategy}", f"model.codert.activation_checkpointing={on}")
    model = built(cfg)
    alone = strategy != "shared_kd"
    assert ("codert" in model.cfg) is not alone
    warned = [text for text in said if "activation_checkpointing has no effect" in text]
    assert bool(warned) is (alone and on == "true")


def test_a_student_alone_is_built_with_its_own_decoder(small_run, tmp_path):
    network = "{_target_: nemo.collections.asr.modules.RNNTDecoder, normalization_mode: null, prednet: %s}"
    prednet = "{pred_hidden: 24, pred_rnn_layers: 1, t_max: null, dropout: 0.0}"
    cfg = small_run("strategy=student", f"model.student.decoder={network % prednet}")
    checked = check_run(cfg)
    screen_data(cfg, checked, tmp_path / "run")
    model = build_model(cfg, checked, make_trainer(cfg, checked))
    assert model.decoder.pred_hidden == model.joint.pred_hidden == 24


@pytest.mark.parametrize("branch, key", [("student", "model.student.joint"), ("teacher", "model.joint")])
def test_a_lone_tdt_model_with_a_stock_joint_needs_a_gpu(branch, key, make_config):
    cfg = OmegaConf.merge(make_config(joint=STOCK), KINDS["tdt"], {"student": {"durations": DURATIONS}})
    if branch == "student":
        cfg.student.joint = cfg.joint
    alone = checked_config(cfg, alone=branch)
    with pytest.raises(ValueError, match=f"needs a GPU .* train the {branch} alone with {key}._target_=nemo_codert"):
        check_lone_tdt(alone, on_cpu=True)
    check_lone_tdt(alone, on_cpu=False)
    alone.model.loss.loss_name = "tdt_pytorch"
    with pytest.raises(ValueError, match="tdt_pytorch, which NeMo's models give the wrong blank"):
        check_lone_tdt(alone, on_cpu=False)
    OmegaConf.update(alone.model, f"{key.removeprefix('model.')}._target_", ADDITIVE)
    check_lone_tdt(alone, on_cpu=True)


def test_a_lone_tdt_student_trains_on_a_cpu(small_run, tmp_path):
    tdt = ["joint.num_extra_outputs=3", "decoding.durations=[0,1,2]", "decoding.model_type=tdt", "loss.loss_name=tdt"]
    tdt += ["loss.tdt_kwargs={durations: [0, 1, 2], sigma: 0.05, omega: 0.1}", "student.durations=[0,1,2]"]
    cfg = small_run("strategy=student", *(f"++model.{key}" for key in tdt))
    done = train(cfg)
    assert done.trainer.global_step == cfg.trainer.max_steps
    student = ASRModel.restore_from(str(done.folder / "student.nemo"), map_location="cpu")
    assert type(student.joint).__name__ == "RNNTJoint" and student.joint.num_extra_outputs == 3


def test_a_lone_checkpoint_with_other_settings_is_refused(small_run, source):
    path, _ = source("student")
    cfg = small_run("strategy=student", f"model.student.init_from={path}", "model.student.encoder.conv_kernel_size=5")
    expected = (
        r"(?s)model.student.init_from '.*' was trained .*model.encoder.conv_kernel_size is 5, the checkpoint has 9"
    )
    with pytest.raises(ValueError, match=expected):
        built(cfg)


def folders(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}


def test_the_config_that_is_passed_in_stays_as_it_is(small_run):
    cfg = small_run("strategy=student")
    before = OmegaConf.to_container(cfg)
    assert prepare(cfg).config.seed == 0 and OmegaConf.to_container(cfg) == before


def test_a_refused_run_leaves_no_folder_behind(small_run, tmp_path):
    with pytest.raises(ValueError, match="n_layerz"):
        prepare(small_run(UNKNOWN))
    assert folders(tmp_path / "runs") == set()


@pytest.mark.parametrize("keys", [["encoder"], ["student.encoder"], ["encoder", "student.encoder"], ["spec_augment"]])
def test_a_block_that_cannot_be_built_is_named_by_its_place_in_the_config(keys, small_run):
    with pytest.raises(ValueError) as caught:
        prepare(small_run(*(f"+model.{key}.n_layerz=3" for key in keys)))
    head, *lines = str(caught.value).split("\n  - ")
    assert head == "The model cannot be built:"
    assert [line.split(":")[0] for line in lines] == [f"model.{key}" for key in keys]
    assert all("n_layerz" in line for line in lines)


@pytest.mark.parametrize("step", ["exp_manager", "screen_data", "build_model", "seed_augmentation", "describe"])
def test_no_folder_stays_whatever_ends_a_run_before_its_first_step(step, small_run, tmp_path, monkeypatch):
    done = getattr(run, step)

    def stop(*arguments, **options):
        if step == "exp_manager":
            done(*arguments, **options)  # NeMo's own checks come after it made the folder
        raise RuntimeError("no fault of a setting")

    monkeypatch.setattr(run, step, stop)
    with pytest.raises(RuntimeError):
        prepare(small_run())
    assert folders(tmp_path / "runs") == set()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_training_that_fails_keeps_its_folder_once_it_has_made_a_step(steps, small_run, tmp_path):
    def fit(_):
        raise RuntimeError("out of memory")

    def prepared(cfg):
        return replace(prepare(cfg), trainer=SimpleNamespace(fit=fit, global_step=steps, loggers=[]))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(run, "prepare", prepared)
        train(small_run())
    assert bool(folders(tmp_path / "runs")) is bool(steps)


def test_an_optimiser_that_only_pytorch_can_refuse_is_refused_before_the_first_step(small_run, tmp_path):
    cfg = small_run("+model.optim.foo=1")
    check_run(cfg)
    with pytest.raises(ValueError, match=r"model.optim cannot be used: .*foo.*\. Its keys are the arguments"):
        prepare(cfg)
    assert folders(tmp_path / "runs") == set()


def test_a_refused_run_leaves_earlier_runs_alone(small_run, tmp_path):
    earlier = tmp_path / "runs" / "fsdd" / "earlier"
    earlier.mkdir(parents=True)
    (earlier / "pair.nemo").touch()
    with pytest.raises(ValueError):
        prepare(small_run(UNKNOWN))
    assert folders(tmp_path / "runs") == {"fsdd", "fsdd/earlier"}
    assert (earlier / "pair.nemo").is_file()


@pytest.mark.parametrize("name", ["resume", "version", "explicit_log_dir"])
def test_a_refused_run_in_a_folder_that_may_be_an_earlier_runs_keeps_it(name, small_run, tmp_path):
    root, overrides = {
        "resume": ("runs/fsdd", ["exp_manager.resume_if_exists=true"]),
        "version": ("runs/fsdd/mine", ["+exp_manager.version=mine"]),
        "explicit_log_dir": ("here", [f"+exp_manager.explicit_log_dir={tmp_path / 'here'}"]),
    }[name]
    (tmp_path / root).mkdir(parents=True)
    (tmp_path / root / "pair.nemo").touch()
    with pytest.raises(ValueError):
        prepare(small_run(UNKNOWN, *overrides))
    assert len(list((tmp_path / root).rglob("pair.nemo"))) == 1  # NeMo moves it down when it resumes


@pytest.mark.parametrize("rank, kept", [(None, None), ("0", "first"), ("1", "first")])
def test_further_ranks_keep_the_run_folder_of_the_first(rank, kept, small_run, monkeypatch):
    """NeMo tells them by this variable; in a process of its own a run makes a new folder."""
    monkeypatch.setenv("NEMO_EXPM_VERSION", "first")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    seen = []

    def stop(*_):
        seen.append(os.environ.get("NEMO_EXPM_VERSION"))
        raise ValueError("seen")

    monkeypatch.setattr(run, "exp_manager", stop)
    with pytest.raises(ValueError, match="seen"):
        prepare(small_run())
    assert seen == [kept]


def test_a_run_after_one_by_the_strategy_ddp_has_a_folder_of_its_own(small_run, monkeypatch):
    """Lightning leaves LOCAL_RANK in the process, which a further rank has too."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    folders = []
    monkeypatch.setattr("nemo.utils.exp_manager.time.strftime", lambda *_: ("first", "second")[len(folders)])
    for _ in range(2):
        folders.append(prepare(small_run("strategy=student")).folder.name)
        monkeypatch.setenv("LOCAL_RANK", "0")
    assert folders == ["first", "second"]


@pytest.mark.parametrize("seconds, finished", [("00", False), ("59", True)])
def test_a_run_that_ends_by_its_share_of_the_time_is_unfinished(seconds, finished, small_run, tmp_path):
    overrides = [
        f"+exp_manager.max_time_per_run=00:00:00:{seconds}",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    cfg = small_run("strategy=student", *overrides)
    run_folder = train(cfg).folder
    assert (run_folder / "student.nemo").is_file() and (run_folder / "config.yaml").is_file() is finished
    assert [run.step for run in unfinished_runs(cfg)] == ([] if finished else [0])


@pytest.mark.parametrize(
    "strategy, monitor, pattern",
    [
        ("tandem_kd", None, r"Best val_wer \d+\.\d\d%\. Files in "),
        ("student", None, r"Best val_wer \d+\.\d\d%\. Files in "),
        ("teacher", None, r"Best val_wer \d+\.\d\d%\. Files in "),
        ("student", "val_loss", r"Best val_loss \d+\.\d{4}\. Files in "),
        ("tandem_kd", "val_wer_teacher", r"Best val_wer_teacher \d+\.\d\d%\. Files in "),
    ],
)
def test_the_best_checkpoint_is_named_with_its_metric(strategy, monitor, pattern, small_run, monkeypatch):
    """A config that names none, as NeMo's own, is monitored by val_wer."""
    said = []
    monkeypatch.setattr(run.logger, "info", lambda message, *args: said.append(message % args))
    cfg = small_run(f"strategy={strategy}", "trainer.max_steps=2", "trainer.val_check_interval=1")
    with open_dict(cfg):
        del cfg.exp_manager.checkpoint_callback_params
        if monitor:
            cfg.exp_manager.checkpoint_callback_params = {"monitor": monitor, "mode": "min"}
    done = train(cfg)
    callback = done.trainer.checkpoint_callback
    assert (callback.monitor, callback.mode) == (monitor or "val_wer", "min")
    assert re.match(pattern, said[-1]) and "checkpoints/" in said[-1]
    for line in said[-1].splitlines()[1:-1]:
        assert (done.folder / line.strip()).is_file(), line


def test_a_student_made_of_its_teachers_layers_says_so(run_config):
    given = ["model.codert.teacher_checkpoint=/data/of/someone/teacher.nemo", "model.student.init_from_teacher=true"]
    cfg = run_config("strategy=static", *given)
    record = training_record(cfg, checked_config(cfg.model), {"train": [], "validation": []})
    assert record.started_from == {"student": "evenly spaced layers of teacher.nemo"}
    assert record.teacher == "trained before, kept frozen: teacher.nemo"


def test_a_trained_student_carries_the_record_of_its_training_and_a_card_with_its_results(
    run_config, manifest, tmp_path
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
    prepared = prepare(cfg)
    ended = SimpleNamespace(
        global_step=5,
        callbacks=[],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        checkpoint_callback=SimpleNamespace(
            best_model_path="", best_model_score=torch.tensor(0.25), monitor="val_wer"
        ),
    )
    finish(replace(prepared, trainer=ended))
    folder = prepared.folder
    seconds = sum(line["duration"] for line in lines)
    for name in ("pair.nemo", "student.nemo"):
        record = recorded_training(open_model(folder / name).cfg)
        assert (record.strategy, record.teacher, record.updates) == ("tandem_kd", "trained in the same run", 5)
        assert [(each.manifest, each.utterances) for each in record.train] == [
            ("mine.json", 8)
        ]  # the empty one dropped
        assert record.train[0].hours == pytest.approx(seconds / 3600, abs=1e-4) and record.best_val_wer == 0.25
        assert [each.manifest for each in record.validation] == ["dev.json"]
    text = (folder / "student.md").read_text()
    assert text == open_model(folder / "student.nemo").cfg.model_card
    assert "`mine.json` (8 utterances, 0.00 hours)" in text and "| dev | 8 | 36 | " in text
    assert str(tmp_path) not in text and "train_ds_usable" not in text


@pytest.mark.parametrize("kind, logits", [("hybrid", "joint"), ("hybrid_tdt", "ctc")])
def test_a_static_run_with_a_hybrid_teacher_leaves_all_its_files(
    run_config, manifest, tmp_path, monkeypatch, kind, logits
):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    cfg = run_config(
        *(f"model.validation_ds.manifest_filepath={dev}", f"model.test_ds.manifest_filepath={dev}", *SMALL),
        *(
            "strategy=static",
            f"model.codert.teacher_checkpoint={tmp_path / 'hybrid.nemo'}",
            f"model.joint._target_={STOCK}",
        ),
        *(f"model.codert.teacher_logits={logits}", "model.student.init_from_teacher=true"),
        *("trainer.max_steps=2", "trainer.val_check_interval=2", "model.train_ds.batch_size=4"),
    )
    with open_dict(cfg):
        hybrid = OmegaConf.merge(teacher_config(cfg.model), KINDS[kind], {"validation_ds": NO_DATA})
        cfg.model = OmegaConf.merge(cfg.model, KINDS[kind])
        hybrid.pop("train_ds"), hybrid.pop("test_ds")
    torch.manual_seed(9)
    original = EncDecHybridRNNTCTCBPEModel(hybrid)
    original.save_to(str(tmp_path / "hybrid.nemo"))
    said = []
    monkeypatch.setattr(run.logger, "info", lambda message, *args: said.append(message % args))

    done = train(cfg)

    (folder,) = (tmp_path / "runs" / "fsdd").glob("2*")
    pair, student = open_model(folder / "pair.nemo"), ASRModel.restore_from(str(folder / "student.nemo"))
    assert done.folder == folder and not done.model.training
    weights = original.state_dict()
    teacher = {name: value for name, value in pair.state_dict().items() if not name.startswith("student_")}
    assert equal_states(teacher, {name: weights[name] for name in teacher})
    assert student.joint.num_classes_with_blank == 33 and "aux_ctc" not in student.cfg
    report = json.loads((folder / "teacher_report.json").read_text())
    assert report["words"] == 36 and ("ctc_wer" in report) is (logits == "ctc")
    assert "student starts from encoder layers 0 of its teacher's 1: " in "\n".join(said)
    lines = [json.loads(line) for line in (folder / "predictions" / "teacher" / "dev.json").read_text().splitlines()]
    texts = [hypothesis.text for hypothesis in original.transcribe([line["audio_filepath"] for line in lines])]
    assert [line["pred_text"] for line in lines] == texts


def test_a_hybrid_student_alone_is_nemos_own_class(run_config, manifest, tmp_path):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    cfg = run_config("strategy=student", f"model.validation_ds.manifest_filepath={dev}", *SMALL)
    block = KINDS["hybrid"]["aux_ctc"]
    for cfg.model.student.aux_ctc in (block, {key: block[key] for key in ("ctc_loss_weight", "decoder")}):
        model = built(cfg)
        assert type(model) is EncDecHybridRNNTCTCBPEModel and model.ctc_loss_weight == 0.3
        # A checkpoint holds plain values only.
        CheckpointFiles().save_checkpoint({"hyper_parameters": model.hparams}, tmp_path / "hybrid.ckpt")


def test_a_trained_model_says_what_it_hears_and_keeps_no_path_of_the_test_sets(
    run_config, test_sets, manifest, tmp_path
):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    paths = f"[{test_sets[0]},{test_sets[1]}]"
    common = f"{TEST_SETS}={paths}", f"model.validation_ds.manifest_filepath={dev}", *SMALL
    alone = {}  # a student is as large in a pair as alone, shared parts counted with it
    for strategy in ("student", "teacher", "tandem_kd", "shared_kd"):
        cfg = run_config(f"strategy={strategy}", *common)
        model = built(cfg)
        branches = [strategy] if strategy in ("student", "teacher") else ["student", "teacher"]
        if branches == [strategy]:
            alone[strategy] = sum(parameter.numel() for parameter in model.parameters())
        assert "test_ds" not in model.cfg, strategy
        assert list(manifests_of_tests(cfg)) == list(map(str, test_sets)), strategy
        ended = SimpleNamespace(global_step=5, strategy=SimpleNamespace(root_device=torch.device("cpu")))
        folder = tmp_path / strategy
        for branch in branches:
            transcribe_tests(Run(cfg, ended, model.eval(), folder), branch)
            check_predictions(folder / "predictions" / branch, branch, test_sets, alone[branch])
        assert {path.name for path in (folder / "predictions").iterdir()} == {*branches}, strategy


def check_predictions(folder: Path, branch: str, test_sets: list[Path], trained_parameters: int) -> None:
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{kind}.json" for name in ("test_seen", "test_unseen") for kind in ("", "_summary")
    }
    for path in test_sets:
        lines = [json.loads(line) for line in (folder / path.name).read_text().splitlines()]
        wanted = [json.loads(line) for line in path.read_text().splitlines()]
        assert [{**line, "pred_text": None} for line in lines] == [{**line, "pred_text": None} for line in wanted]
        assert all(isinstance(line["pred_text"], str) for line in lines)
        summary = json.loads((folder / f"{path.stem}_summary.json").read_text())
        assert (summary["branch"], summary["updates"], summary["batch_size"]) == (branch, 5, 16), folder
        assert [figures["utterances"] for figures in summary["sets"]] == [len(wanted)]
        assert summary["trained_parameters"] == trained_parameters, folder
