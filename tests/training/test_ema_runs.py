"""A run with an averaged teacher: stopped and resumed to the bit, and from the command line to files."""

import subprocess

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel

from nemo_codert.evaluation.learning_curves import read_curves
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.training.run import train as run_training
from tests.conftest import REPOSITORY
from tests.training.resume_runs import differences, random_pair, stopped, train
from tests.training.run_configs import SMALL, TEST_SETS


def test_a_resumed_run_goes_on_with_the_average_exactly(make_config, manifest, tmp_path):
    cfg = random_pair(make_config, manifest, "lhotse")
    cfg.student.encoder.conv_norm_type = "batch_norm"
    views = {"views": {"at": "joint", "nodes": "occupied", "weight": 0.2}}
    cfg.codert = {"teacher": "ema", "ema_decay": 0.9, "share_decoder": False, "distillation": views}
    given = {"max_steps": 4, "val_check_interval": 8, "limit_val_batches": 1, "accumulate_grad_batches": 2}
    whole = train(cfg, tmp_path / "whole", **given)
    assert stopped(cfg, tmp_path / "parts", lambda hook, step: (hook, step) == ("batch_start", 3), every=2, **given)
    resumed = train(cfg, tmp_path / "parts", seed=9, **given)
    assert not differences(whole, resumed)
    assert resumed.diary.losses == whole.diary.losses[3:]
    model = resumed.model
    assert not torch.equal(model.encoder.pre_encode.out.weight, model.student_encoder.pre_encode.out.weight)


SHORT = ["model.train_ds.batch_size=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
SHORT += [*SMALL, "model.encoder.d_model=24", "model.preprocessor.window_stride=0.01"]


@pytest.mark.slow
def test_it_trains_and_resumes_from_the_command_line(preloaded_python, manifest, tokenizer_dir, tmp_path):
    dev = tmp_path / "dev.json"
    dev.write_text("\n".join(manifest.read_text().splitlines()[:2]) + "\n")
    data = {"model.train_ds.manifest_filepath": manifest, "model.validation_ds.manifest_filepath": dev, TEST_SETS: dev}
    given = [f"{key}={value}" for key, value in data.items()]
    given += [f"model.tokenizer.dir={tokenizer_dir}", "exp_manager.exp_dir=runs", "strategy=ema", *SHORT]
    given += ["exp_manager.resume_if_exists=true", "model.codert.ema_decay=0.5"]
    script = str(REPOSITORY / "scripts" / "train.py")
    for steps in (2, 4):
        command = [preloaded_python, script, *given, f"trainer.max_steps={steps}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "fsdd"
    curves = read_curves(folder)
    assert [step for step, _ in curves["train_distillation_loss_views"]] == [0, 1, 2, 3]
    assert "val_wer_teacher" in curves and "train_rnnt_loss_teacher" not in curves
    assert {path.name for path in (folder / "predictions").iterdir()} == {"student", "teacher"}
    pair = EncDecCoDERTBPEModel.restore_from(str(folder / "pair.nemo"), map_location="cpu")
    assert pair.cfg.encoder.d_model == 16 and not torch.equal(pair.joint.enc.weight, pair.student_joint.enc.weight)
    stock = ASRModel.restore_from(str(folder / "student.nemo"), map_location="cpu")
    assert type(stock) is EncDecRNNTBPEModel and torch.equal(stock.encoder.pre_encode.out.weight, pair_weight(pair))
    card = (folder / "student.md").read_text()
    assert "- Strategy: `ema by views` (from an average of its own weights)" in card
    assert "- Teacher: running average of the student's weights, decay 0.5" in card


def pair_weight(pair) -> torch.Tensor:
    return pair.student_encoder.pre_encode.out.weight


def test_two_views_of_one_model_train(run_config, test_sets):
    data = [f"model.validation_ds.manifest_filepath={test_sets[1]}"]
    run = run_training(run_config(*SHORT, *data, "strategy=two_views", "trainer.max_steps=2"))
    assert {"pair.nemo", "student.nemo"} <= {path.name for path in run.folder.iterdir()}
    values = [value for _, value in read_curves(run.folder)["train_distillation_loss_views"]]
    assert len(values) == 2 and min(values) > 0
    assert torch.equal(run.model.joint.enc.weight, run.model.student_joint.enc.weight)
    assert "- Strategy: `two_views by views` (from itself," in (run.folder / "student.md").read_text()
