"""The table's rows of tests/files: every kind of hostile file, counted."""

from pathlib import Path

import pytest

from nemo_codert.export.stock_file import load_model, save_model
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.training.checkpoint_files import CheckpointFiles
from tests.files.test_hostile_archives import CONFIGS, MEMBERS, TEXTS, replace_config
from tests.files.traps import pickled, rewrite, save_trapped, traps

pytestmark = pytest.mark.reliability
NOTHING = "nothing: refused by name, nothing executed or written"


@pytest.fixture
def pair_file(make_model, tmp_path) -> Path:
    return save_model(make_model(), tmp_path / "pair.nemo")


def refused(path: Path) -> bool:
    """By the way of the scripts and by the model's own."""
    for restore in (load_model, EncDecCoDERTBPEModel.restore_from):
        try:
            restore(str(path))
        except ValueError as error:
            if str(path) not in str(error):
                return False
        else:
            return False
    return True


def test_hostile_archives(pair_file, tmp_path, campaign):
    classes = {
        "archive with hostile members": [
            {"extra": extra, "mode": m} for extra, _ in MEMBERS.values() for m in ("w:", "w:gz")
        ],
        "archive whose config names code, files, environment": [{"config": change} for change, _ in CONFIGS.values()],
        "archive whose config is not plain YAML": [{"members": replace_config(text)} for text, _ in TEXTS.values()],
    }
    for fault, cases in classes.items():
        results = [refused(rewrite(pair_file, tmp_path / "bad.nemo", **case)) for case in cases]
        campaign.record(fault, injected=len(results), survived=sum(results), lost=NOTHING)
        assert all(results), fault
    assert not [p for p in tmp_path.rglob("*") if p.name not in ("pair.nemo", "bad.nemo")]


@pytest.mark.parametrize("force", ["0", "1"])
def test_code_in_weights_and_checkpoints(pair_file, tmp_path, campaign, force, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    mark, results = tmp_path / "executed", []
    for trap in traps(mark).values():
        weights = {"model_weights.ckpt": pickled({"encoder.x": trap})}
        path = rewrite(
            pair_file, tmp_path / "bad.nemo", members=lambda members, weights=weights: members.update(weights)
        )
        with pytest.raises(ValueError, match=r"bad\.nemo"):
            load_model(path)
        results.append(not mark.exists())
        with pytest.raises(ValueError, match=r"bad\.ckpt names"):
            CheckpointFiles().load_checkpoint(save_trapped({}, tmp_path / "bad.ckpt", trap))
        results.append(not mark.exists())
    fault = f"code in a pickle, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD={force}"
    campaign.record(fault, injected=len(results), survived=sum(results), lost=NOTHING)
    assert all(results)


def test_torn_archives_and_checkpoints(pair_file, make_model, tmp_path, campaign):
    CheckpointFiles().save_checkpoint({"state_dict": make_model().state_dict()}, tmp_path / "good.ckpt")
    results, shares = [], [i / 20 for i in range(20)]
    for name, load in (("pair.nemo", load_model), ("good.ckpt", CheckpointFiles().load_checkpoint)):
        data = (tmp_path / name).read_bytes()
        for share in shares:
            path = tmp_path / f"torn_{name}"
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(ValueError) as error:
                load(path)
            results.append(path.name in str(error.value))
    campaign.record("torn archive or checkpoint", injected=len(results), survived=sum(results), lost="that file")
    assert all(results)
