"""Models of any stage of training: `.nemo` files and Lightning checkpoints, found in order and loaded whole."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel

from nemo_codert.config.model_kinds import KINDS
from nemo_codert.export.stock_file import save_model
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.open_model import branches, checkpoint_files, open_model, saved_step
from nemo_codert.models.teacher_weights import load_source
from tests.conftest import conformer
from tests.models.teacher_files import CTC


def save_checkpoint(model: pl.LightningModule, path: Path, step: int) -> Path:
    """A checkpoint as Lightning writes it, with the step changed."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=False)
    torch.save({**content, "global_step": step}, path)
    return path


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_pairs_and_lone_models_are_restored_from_both_kinds_of_file(make_model, make_config, tmp_path):
    pair, lone = make_model("shared_kd"), EncDecRNNTBPEModel(student_config(make_config("tandem_kd")))
    cfg = make_config("tandem_kd")
    cfg.student.aux_ctc = CTC["aux_ctc"]
    hybrid = EncDecHybridRNNTCTCBPEModel(student_config(cfg))
    kinds = EncDecCoDERTBPEModel, EncDecRNNTBPEModel, EncDecHybridRNNTCTCBPEModel
    for model, kind in zip((pair, lone, hybrid), kinds, strict=True):
        saved = save_checkpoint(model, tmp_path / f"{kind.__name__}.ckpt", step=40)
        for path, step in ((saved, 40), (save_model(model, tmp_path / f"{kind.__name__}.nemo"), None)):
            trained = open_model(path)
            assert type(trained) is kind and same_weights(trained, model)
            assert (saved_step(path), trained.training) == (step, False)


def test_each_branch_of_a_checkpoint_is_a_source_of_weights_with_its_own_config(make_model, tmp_path):
    pair = make_model("tandem_kd", teacher=conformer(layers=2))
    path = save_checkpoint(pair, tmp_path / "pair.ckpt", step=1)
    for branch, block in (("student", pair.cfg.student.encoder), ("teacher", pair.cfg.encoder)):
        source = load_source(str(path), "key", branch, KINDS)
        for network in ("encoder", "decoder", "joint"):
            own = getattr(branches(pair)[branch], network)
            assert same_weights(getattr(source.networks, network), own)
        assert source.config["encoder"] == block and source.ctc_head is None


def test_checkpoints_come_in_the_order_of_their_steps_and_each_step_once(make_model, tmp_path):
    run, pair = tmp_path / "run", make_model("tandem_kd")
    names = {"a--val_wer=0.9-epoch=1.ckpt": 900, "b--val_wer=0.2-epoch=0.ckpt": 30, "b-last.ckpt": 900, "c.ckpt": 1000}
    for name, step in names.items():
        save_checkpoint(pair, run / "checkpoints" / name, step)
    (run / "pair.nemo").touch()
    expected = ["b--val_wer=0.2-epoch=0.ckpt", "a--val_wer=0.9-epoch=1.ckpt", "c.ckpt"]
    for folder in (run, run / "checkpoints"):
        assert [path.name for path in checkpoint_files(folder)] == expected


def test_a_folder_without_checkpoints_gives_its_nemo_files_by_name(tmp_path):
    for name in ("b.nemo", "a.nemo", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint_files(tmp_path)] == ["a.nemo", "b.nemo"]


def test_folders_without_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no .ckpt or .nemo file"):
        checkpoint_files(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        checkpoint_files(tmp_path / "absent")
    (tmp_path / "x.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"x\.ckpt is not a Lightning checkpoint"):
        checkpoint_files(tmp_path)


def test_files_that_are_no_transducer_are_refused_by_name(make_model, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.nemo").write_text("no archive")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    content = {
        "state_dict": {},
        "global_step": 1,
        "hyper_parameters": {"cfg": {"target": "nemo.collections.asr.models.EncDecCTCModel"}},
    }
    torch.save(content, tmp_path / "ctc.ckpt")
    torch.save({**content, "hyper_parameters": {"lr": 0.1}}, tmp_path / "foreign.ckpt")
    torch.save({**content, "hyper_parameters": {"cfg": ["model"]}}, tmp_path / "list.ckpt")
    for key, value in (("hyper_parameters", None), ("global_step", "last"), ("state_dict", None)):
        torch.save({**content, key: value}, tmp_path / f"{key}.ckpt")
    messages = {
        "absent.nemo": "is not a file. Give the path of a .nemo or .ckpt file",
        "absent.ckpt": "is not a file. Give the path of a .nemo or .ckpt file",
        "notes.txt": "is not a .nemo or .ckpt file",
        "broken.nemo": "cannot be restored as a NeMo model",
        "weights.ckpt": "is not a Lightning checkpoint of a NeMo model",
        "ctc.ckpt": "is EncDecCTCModel, wanted a standard RNN-T",
        "foreign.ckpt": "is of unknown class, wanted a standard RNN-T",
        "list.ckpt": "is of unknown class, wanted a standard RNN-T",
        "hyper_parameters.ckpt": "is not a Lightning checkpoint of a NeMo model",
        "global_step.ckpt": "is not a Lightning checkpoint of a NeMo model",
        "state_dict.ckpt": "is not a Lightning checkpoint of a NeMo model",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as error:
            open_model(tmp_path / name)
        assert name in str(error.value)


def test_a_checkpoint_whose_tokenizer_or_weights_are_gone_is_refused(make_model, tmp_path):
    path = save_checkpoint(make_model("tandem_kd"), tmp_path / "pair.ckpt", step=1)
    content = torch.load(path, weights_only=False)
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith("joint.")}
    torch.save({**content, "state_dict": state}, tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match=r"half\.ckpt cannot be restored as a checkpoint: .*joint\.pred\.weight"):
        open_model(tmp_path / "half.ckpt")
    content["hyper_parameters"]["cfg"]["tokenizer"]["dir"] = str(tmp_path / "gone")
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.tokenizer\.dir is .*gone.*Put the folder back"):
        open_model(path)
    assert make_model("tandem_kd")._teacher_has_weights is False  # NeMo no longer believes in a restore under way
