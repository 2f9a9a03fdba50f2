"""Runs with a teacher of which the encoder alone is read, and with CTC heads in the middle: from a config to files."""

import json

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import OmegaConf, open_dict

from nemo_codert.config.checked import checked_config
from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.evaluation.learning_curves import read_curves
from nemo_codert.models import teacher_config
from nemo_codert.training.run import train
from tests.conftest import SENTENCES
from tests.models.teacher_files import CTC, NO_DATA
from tests.training.run_configs import SMALL, TEST_SETS

SHORT = ["trainer.max_steps=3", "trainer.val_check_interval=3", "model.train_ds.batch_size=4"]
SHORT += ["trainer.log_every_n_steps=1", "strategy=static", "model.codert.teacher_checkpoint=teacher.nemo"]


@pytest.fixture
def static_run(run_config, test_sets):
    """Factory of the config of a short run of a frozen teacher with the given terms."""

    def make(distillation: dict, **codert):
        validation = f"model.validation_ds.manifest_filepath={test_sets[0]}"
        cfg = run_config(*SMALL, *SHORT, validation, f"{TEST_SETS}={test_sets[1]}")
        with open_dict(cfg):
            cfg.model.codert.distillation = distillation
            cfg.model.codert = OmegaConf.merge(cfg.model.codert, codert)
        return cfg

    return make


def test_a_ctc_teacher_with_another_tokenizer_teaches_by_correlation(static_run, tmp_path):
    near = {"at": "hidden", "by": "correlation", "layers": {1: 1}, "weight": 1.0, "self_weight": 0.1, "until_step": 2}
    cfg = static_run({"near": near}, teacher_checkpoint=str(tmp_path / "teacher.nemo"))
    train_tokenizer([*SENTENCES, "quite other words jump over foxes"], tmp_path / "other", vocab_size=40)
    model = checked_config(cfg.model).model
    parts = {key: model[key] for key in ("sample_rate", "preprocessor", "encoder")}
    tokenizer = {"dir": str(tmp_path / "other"), "type": "bpe"}
    head = CTC["aux_ctc"]["decoder"]
    teacher = {**parts, "tokenizer": tokenizer, "decoder": head, "validation_ds": NO_DATA}
    EncDecCTCModelBPE(OmegaConf.create(teacher)).save_to(str(tmp_path / "teacher.nemo"))
    cfg.model.train_ds.batch_size = 1  # an epoch has the steps of the term and the one after them
    run = train(cfg)
    curves = read_curves(run.folder)
    assert [step for step, _ in curves["train_distillation_loss_near"]] == [0, 1]
    assert [step for step, _ in curves["train_distillation_weight_near"]] == [0, 1, 2]
    assert "val_wer" in curves and "val_wer_teacher" not in curves
    assert [path.name for path in (run.folder / "predictions").iterdir()] == ["student"]
    report = json.loads((run.folder / "teacher_report.json").read_text())
    assert "wer" not in report and report["source"].endswith("teacher.nemo")
    assert type(ASRModel.restore_from(str(run.folder / "student.nemo"), map_location="cpu")) is EncDecRNNTBPEModel


def test_heads_in_the_middle_learn_from_a_hybrid_teacher(static_run, tmp_path):
    middle = {"at": "ctc", "by": "l2", "layers": [1], "ctc_weight": 0.3, "weight": 0.25}
    last = {"at": "ctc", "by": "l2", "weight": 0.25}
    given = {"teacher_checkpoint": str(tmp_path / "teacher.nemo"), "teacher_logits": "ctc"}
    cfg = static_run({"last": last, "middle": middle}, **given)
    with open_dict(cfg):
        cfg.model = OmegaConf.merge(cfg.model, CTC, {"student": CTC})
    teacher = teacher_config(cfg.model)
    with open_dict(teacher):
        teacher = OmegaConf.merge(teacher, CTC, {"validation_ds": NO_DATA})
    torch.manual_seed(7)
    EncDecHybridRNNTCTCBPEModel(teacher).save_to(str(tmp_path / "teacher.nemo"))
    run = train(cfg)
    curves = read_curves(run.folder)
    for name in ("train_distillation_loss_last", "train_distillation_loss_middle", "train_ctc_loss_middle_heads"):
        assert [step for step, _ in curves[name]] == [0, 1, 2]
    stock = ASRModel.restore_from(str(run.folder / "student.nemo"), map_location="cpu")
    assert type(stock) is EncDecHybridRNNTCTCBPEModel
    assert sum(name.startswith("ctc_decoder") for name in stock.state_dict()) == 2  # its own head, one layer
