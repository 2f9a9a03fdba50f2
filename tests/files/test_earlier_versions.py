"""Pairs that earlier versions of this package saved: restored, checked by value, trained on and exported.

The files are made by tests/files/make_earlier_pair.py, from noise: NAME is the commit whose code made them.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_codert.export.stock_file import load_model, save_model, stock_of
from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.open_model import load_trained
from nemo_codert.models.safe_restoring import model_from_checkpoint
from tests.conftest import REPOSITORY
from tests.files.traps import members_of
from tests.models.training_runs import equal_states, train

FOLDER = REPOSITORY / "tests" / "files"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# Outputs are float32 on another machine's kernels; 1e-6 seen between one and two threads.
TOLERANCE = 1e-4


def recipe():
    """tests/files/make_earlier_pair.py as a module."""
    spec = importlib.util.spec_from_file_location("make_earlier_pair", FOLDER / "make_earlier_pair.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_recorded(model, name: str) -> None:
    """The outputs of both joints are what the version that saved the model recorded."""
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    for branch, values in recipe().outputs(model).items():
        difference = (torch.tensor(values) - torch.tensor(recorded[branch])).abs().max()
        assert difference < TOLERANCE, f"{branch}: {difference}"


def checkpoint_of(name: str, folder: Path) -> tuple[dict, dict]:
    """A checkpoint and its config, the tokenizer put where the config can find it: a .ckpt does not hold it."""
    members = members_of(FOLDER / f"{name}.nemo")
    for member, content in members.items():
        if member.endswith(("tokenizer.model", "vocab.txt")):
            (folder / member.split("_", 1)[1]).write_bytes(content)
    content = read_checkpoint(FOLDER / f"{name}.ckpt")
    cfg = dict(content["hyper_parameters"]["cfg"])
    cfg["tokenizer"] = {"dir": str(folder), "type": "bpe"}
    return content, cfg


def test_there_are_files_of_early_later_and_last_versions_and_they_are_small():
    assert NAMES == ["57c0e9a", "74a22cf", "abb218b"]
    for name in NAMES:
        for suffix in (".nemo", ".ckpt"):
            assert (FOLDER / f"{name}{suffix}").stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_of_an_earlier_version_is_restored_trained_on_and_exported(name, tmp_path):
    pair = load_model(FOLDER / f"{name}.nemo")
    assert type(pair) is EncDecCoDERTBPEModel and pair.student_decoder is pair.decoder
    assert_recorded(pair, name)
    student = stock_of(pair)
    save_model(student, tmp_path / "student.nemo")
    restored = ASRModel.restore_from(str(tmp_path / "student.nemo"), map_location="cpu")
    assert type(restored) is EncDecRNNTBPEModel and equal_states(restored.state_dict(), student.state_dict())
    before = {key: value.clone() for key, value in pair.state_dict().items()}
    (loss,) = train(pair, [recipe().noise_batch(32)])
    assert loss > 0 and not equal_states(pair.state_dict(), before)
    again = load_model(save_model(pair, tmp_path / "again.nemo"))
    assert equal_states(again.state_dict(), pair.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_an_earlier_version_loads(name, tmp_path):
    content, cfg = checkpoint_of(name, tmp_path)
    pair = model_from_checkpoint(EncDecCoDERTBPEModel, content, name, cfg=cfg)
    assert_recorded(pair, name)
    (tmp_path / "weights.ckpt").write_bytes(members_of(FOLDER / f"{name}.nemo")["model_weights.ckpt"])
    assert equal_states(pair.state_dict(), torch.load(tmp_path / "weights.ckpt", weights_only=True))
    content["hyper_parameters"]["cfg"] = cfg
    torch.save(content, tmp_path / "moved.ckpt")
    trained = load_trained(tmp_path / "moved.ckpt").model
    assert_recorded(trained, name)
    with open_dict(trained.cfg):
        assert trained.cfg.codert.rnnt_loss == "auto"
