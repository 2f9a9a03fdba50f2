"""scripts/train.py from the first check to the last file, with a teacher that is a hybrid or a TDT model."""

import json

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel
from omegaconf import OmegaConf, open_dict

from nemo_codert.cli import train as command
from nemo_codert.export.stock_file import load_model
from nemo_codert.models import teacher_config
from tests.conftest import STOCK
from tests.models.teacher_files import KINDS, NO_DATA
from tests.models.training_runs import equal_states
from tests.scripts.test_train_prepare import SMALL


@pytest.mark.parametrize("kind, logits", [("hybrid", "joint"), ("hybrid_tdt", "ctc")])
def test_a_static_run_with_a_hybrid_teacher_leaves_all_its_files(
    script, run_config, manifest, tmp_path, monkeypatch, kind, logits
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
    monkeypatch.setattr(script.logger, "info", lambda message, *args: said.append(message % args))

    command.main(cfg)

    (folder,) = (tmp_path / "runs" / "fsdd").iterdir()
    pair, student = load_model(folder / "pair.nemo"), ASRModel.restore_from(str(folder / "student.nemo"))
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


def test_a_hybrid_student_alone_is_nemos_own_class(script, run_config, manifest, tmp_path):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    cfg = run_config("strategy=student", f"model.validation_ds.manifest_filepath={dev}", *SMALL)
    cfg.model.student.aux_ctc = KINDS["hybrid"]["aux_ctc"]
    script.check_run(cfg)
    model = script.build_model(cfg, script.make_trainer(cfg))
    assert type(model) is EncDecHybridRNNTCTCBPEModel and model.ctc_loss_weight == 0.3
