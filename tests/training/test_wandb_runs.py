"""Weights & Biases by one key, offline: what arrives, under which names, and what is refused."""

import json
import struct
from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf

from nemo_codert.evaluation.learning_curves import read_curves
from nemo_codert.training.run import prepare, train
from nemo_codert.training.wandb_run import name_wandb_run
from tests.training.run_configs import SMALL

HEADER, BLOCK = 7, 32768  # bytes, of a .wandb file
ON = "+exp_manager.create_wandb_logger=true"
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
SHORT += ["model.train_ds.batch_size=4", "strategy=shared_kd", *SMALL]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B without its service, and its folder: nothing outside this machine is reached."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    yield tmp_path / "runs" / "wandb"
    assert wandb.run is None, "the run was not ended"


@pytest.fixture
def short_run(run_config, manifest, tmp_path):
    """Factory of the config of a run of two steps with one validation."""
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    return lambda *more: run_config(f"model.validation_ds.manifest_filepath={dev}", *SHORT, *more)


def logged(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a log in LevelDB's format, blocks of 32 KiB after a header of 7 bytes."""
    at, record = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the end of a block is padded
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + HEADER])  # checksum, bytes, place in the record
        record += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # the whole record, or its last part
            yield record
            record = b""


def records(folder) -> tuple[dict, dict[str, list[float]], int]:
    """Name, project and id of the one run in a folder of W&B's, its history by metric, and its exit status."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("offline-run-*/run-*.wandb")
    about, history, status = {}, {}, None
    for data in logged(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            about = {"name": record.run.display_name, "project": record.run.project, "id": record.run.run_id}
        for item in record.history.item:
            name = item.key or ".".join(item.nested_key)
            history.setdefault(name, []).append(json.loads(item.value_json))
        if record.HasField("exit"):
            status = record.exit.exit_code
    return about, history, status


@pytest.mark.slow
def test_one_key_logs_every_term_and_both_error_rates_of_every_run(short_run, offline, monkeypatch):
    run = train(short_run(ON))
    about, history, status = records(offline)
    assert (about["project"], about["name"]) == ("fsdd", "fsdd, shared_kd, seed 0") and status == 0
    assert about["id"] == run.folder.name
    terms = {"train_loss", "train_rnnt_loss_student", "train_rnnt_loss_teacher", "train_distillation_loss"}
    assert terms | {"train_distillation_weight", "val_wer", "val_wer_teacher"} <= history.keys()
    curves = read_curves(run.folder)  # TensorBoard has the same
    for name in (*terms, "val_wer", "val_wer_teacher"):
        assert history[name] == pytest.approx([value for _, value in curves[name]], rel=1e-6), name
    assert history["trainer/global_step"][0] == 0

    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    named = short_run(ON, "+exp_manager.wandb_logger_kwargs={name: mine}", "seed=3")
    offline.rename(offline.with_name("first"))
    train(named)
    about, history, _ = records(offline)  # a second run in this process is a run of its own
    assert (about["project"], about["name"]) == ("of the environment", "mine") and len(history["train_loss"]) == 2


def test_a_training_that_fails_ends_its_run_as_failed(short_run, offline, monkeypatch):
    cfg = short_run(ON)
    monkeypatch.setattr(
        "nemo_codert.models.EncDecCoDERTBPEModel.training_step", lambda *_: (_ for _ in ()).throw(OSError("disk"))
    )
    with pytest.raises(OSError, match="disk"):
        train(cfg)
    assert records(offline)[2] == 1


def test_a_w_and_b_that_cannot_start_is_named_before_the_first_step(short_run, offline, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        ValueError, match="create_wandb_logger is true, but wandb cannot start: No API key.*WANDB_MODE"
    ):
        prepare(short_run(ON))
    assert not (tmp_path / "runs" / "fsdd").exists()


def test_given_names_stay_and_an_unused_logger_gets_none(short_run, monkeypatch):
    from nemo_codert.training.run import checked_run

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    kwargs = "+exp_manager.wandb_logger_kwargs={project: shared, name: null, tags: [a]}"
    cfg, checked = checked_run(short_run(ON, kwargs, "+exp_manager.version=v1", "seed=5"))
    name_wandb_run(cfg, checked)
    expected = {"name": "fsdd, shared_kd, seed 5", "project": "shared", "tags": ["a"]}
    assert OmegaConf.to_container(cfg.exp_manager.wandb_logger_kwargs) == expected
    cfg, checked = checked_run(short_run())
    name_wandb_run(cfg, checked)
    assert "wandb_logger_kwargs" not in cfg.exp_manager
