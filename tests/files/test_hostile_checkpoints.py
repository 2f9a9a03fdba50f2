"""A Lightning checkpoint from a stranger executes nothing, whichever way it is opened."""

import pickle
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf

from nemo_codert.files.checkpoints import StandIn, plain, read_checkpoint
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.open_model import checkpoint_files, load_trained
from nemo_codert.training.checkpoint_files import CheckpointFiles
from tests.conftest import load_script
from tests.files.traps import Trap, bare_pickle, save_trapped, traps
from tests.models.training_runs import equal_states

KINDS = ["os.system", "eval", "open", "getattr", "hydra", "pathlib"]
NO_DATA = "which is not data: it was refused and nothing of the file was executed"


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "executed"


@pytest.fixture(scope="module")
def trainer():
    def make(**options) -> pl.Trainer:
        defaults = {"logger": False, "enable_checkpointing": False, "plugins": [CheckpointFiles()]}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(accelerator="cpu", max_steps=2, **{**defaults, **quiet, **options})

    return make


@pytest.fixture(scope="module")
def pair(make_config) -> EncDecCoDERTBPEModel:
    """Only read."""
    torch.manual_seed(0)
    return EncDecCoDERTBPEModel(make_config("shared_kd"))


@pytest.fixture(scope="module")
def checkpoint(pair, trainer, tmp_path_factory) -> Path:
    """As training leaves it."""
    path, fit = tmp_path_factory.mktemp("checkpoint") / "good.ckpt", trainer()
    fit.strategy.connect(pair)
    fit.save_checkpoint(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_trap_works_where_it_is_unpickled_in_full(tmp_path, mark, kind):
    path = save_trapped({}, tmp_path / "bad.ckpt", traps(mark)[kind])
    try:
        torch.load(path, weights_only=False)
    except AttributeError:
        assert kind == "getattr"
    assert mark.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("force", [False, True])
def test_a_trap_is_refused_by_name_and_nothing_of_it_is_executed(tmp_path, mark, kind, force, monkeypatch):
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save_trapped({"state_dict": {}}, tmp_path / "bad.ckpt", traps(mark)[kind])
    with pytest.raises(ValueError, match=NO_DATA) as error:
        CheckpointFiles().load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "bare.ckpt").write_bytes(bare_pickle(traps(mark)[kind]))
    with pytest.raises(ValueError, match=r"bare\.ckpt is not a Lightning checkpoint|bare\.ckpt names"):
        read_checkpoint(tmp_path / "bare.ckpt")
    assert not mark.exists()


def entries(model, trainer, path: Path, folder: Path) -> dict:
    """Ways to open a checkpoint: name -> call."""

    def resume() -> None:
        fit = trainer(logger=False)
        log_dir = folder / "run"
        (log_dir / "checkpoints").mkdir(parents=True)
        (log_dir / "checkpoints" / "x--val_wer=0.5-epoch=0-last.ckpt").write_bytes(path.read_bytes())
        options = {"explicit_log_dir": str(log_dir), "resume_if_exists": True, "create_tensorboard_logger": False}
        exp_manager(fit, OmegaConf.create({**options, "create_checkpoint_callback": False}))
        assert fit.ckpt_path.endswith("last.ckpt")
        fit.fit(model, train_dataloaders=[0])

    def finish() -> None:
        best = type("Callback", (), {"best_model_path": str(path)})()
        load_script("train").finish(
            None, type("Trainer", (), {"lightning_module": model, "checkpoint_callback": best}), folder
        )

    return {
        "resume_if_exists": resume,
        "fit": lambda: trainer().fit(model, train_dataloaders=[0], ckpt_path=str(path)),
        "validate": lambda: trainer().validate(model, dataloaders=[0], ckpt_path=str(path), verbose=False),
        "load_from_checkpoint": lambda: EncDecCoDERTBPEModel.load_from_checkpoint(str(path), map_location="cpu"),
        "analyze_logits.py, measure_latency.py": lambda: load_trained(path),
        "analyze_logits.py, a folder": lambda: checkpoint_files(folder),
        "train.py, its best checkpoint": finish,
    }


def test_no_way_to_open_a_checkpoint_executes_anything(make_model, trainer, checkpoint, tmp_path, mark, monkeypatch):
    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)
    content = read_checkpoint(checkpoint)
    folder = tmp_path / "hostile"
    folder.mkdir()
    path = save_trapped(content, folder / "bad.ckpt", traps(mark)["open"])
    ways = entries(make_model("shared_kd"), trainer, path, folder)
    for name, open_it in ways.items():
        with pytest.raises(ValueError, match=NO_DATA):
            open_it()
        assert not mark.exists(), name
    assert len(ways) == 7


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "optimizer_states", "callbacks", "loops"])
def test_a_trap_is_found_wherever_it_is(checkpoint, tmp_path, mark, place):
    content = read_checkpoint(checkpoint)
    content[place] = {"x": [content.get(place), (traps(mark)["eval"],)]}
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=NO_DATA):
        read_checkpoint(tmp_path / "bad.ckpt", mmap=True)
    assert not mark.exists()


def test_checkpoints_load_back_into_pairs_and_stock_models(make_config, pair, trainer, tmp_path):
    lone = EncDecRNNTBPEModel(student_config(make_config("tandem_kd")))
    for model in (pair, lone):
        path, fit = tmp_path / f"{type(model).__name__}.ckpt", trainer()
        fit.strategy.connect(model)
        fit.save_checkpoint(path)
        # NeMo's own loading, of a stock model, and ours, of a pair.
        restored = type(model).load_from_checkpoint(str(path), map_location="cpu")
        assert type(restored) is type(model) and equal_states(restored.state_dict(), model.state_dict())
        assert OmegaConf.to_container(restored.cfg) == OmegaConf.to_container(model.cfg)
        assert equal_states(load_trained(path).model.state_dict(), model.state_dict())


def test_checkpoints_with_omegaconf_objects_still_load(pair, trainer, tmp_path):
    model, path, fit = pair, tmp_path / "old.ckpt", trainer(plugins=[])
    fit.strategy.connect(model)
    fit.save_checkpoint(path)  # by Lightning's own file format
    with pytest.raises(pickle.UnpicklingError, match="omegaconf"):  # as PyTorch's own reader would
        torch.load(path, weights_only=True)
    restored = EncDecCoDERTBPEModel.load_from_checkpoint(str(path), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    assert OmegaConf.to_container(restored.cfg) == OmegaConf.to_container(model.cfg)
    assert equal_states(load_trained(path).model.state_dict(), model.state_dict())


def test_every_kind_of_omegaconf_value_comes_back_plain(tmp_path):
    values = {"a": [1, 2.5, True, None, "x"], "b": {"c": "${a}", "d": [{"e": "???"}]}, "p": Path("folder/file")}
    torch.save({"cfg": OmegaConf.create(values), "n": np.float64(0.5), "t": (np.int64(3),)}, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=NO_DATA):  # NumPy's scalars: training saves Python's
        read_checkpoint(tmp_path / "old.ckpt")
    torch.save({"cfg": OmegaConf.create({**values, "p": None})}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt") == {"cfg": {**values, "p": None}}
    content = {"cfg": OmegaConf.create({**values, "p": None}), "n": np.float64(0.5), "p": Path("folder/file")}
    CheckpointFiles().save_checkpoint(content, tmp_path / "new.ckpt")
    assert read_checkpoint(tmp_path / "new.ckpt") == {"cfg": {**values, "p": None}, "n": 0.5, "p": "folder/file"}


def test_no_code_of_omegaconf_sees_what_a_stranger_wrote(tmp_path, mark):
    """Objects with equal keys in one dict: comparing them would resolve their interpolations."""
    OmegaConf.register_new_resolver("codert_test_trap", lambda: mark.touch(), replace=True)
    try:
        first, second = (OmegaConf.create({"x": "${codert_test_trap:}"}) for _ in range(2))
        torch.save({first: 1, second: 2, "cfg": first}, tmp_path / "bad.ckpt")
        mark.unlink(missing_ok=True)
        content = read_checkpoint(tmp_path / "bad.ckpt")
        assert content["cfg"] == {"x": "${codert_test_trap:}"}
    except ValueError:
        pass
    finally:
        OmegaConf.clear_resolver("codert_test_trap")
    assert not mark.exists()


def test_a_checkpoints_config_names_neither_code_nor_the_environment(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("CODERT_SECRET", "secret")
    content = read_checkpoint(checkpoint)
    for change, message in (
        ({"encoder": {"_target_": "os.system"}}, r"encoder\._target_ is 'os\.system': wanted a class of"),
        ({"note": "${oc.env:CODERT_SECRET}"}, r"note is '\$\{oc\.env:CODERT_SECRET\}', which is not resolved"),
        ({"tokenizer": {"vocab_path": "/etc/passwd"}}, r"vocab_path is '/etc/passwd', wanted a file \.txt"),
        (
            {"decoding": {"beam": {"ngram_lm_model": "/etc/lm"}}},
            r"decoding\.beam\.ngram_lm_model is '/etc/lm', a file",
        ),
    ):
        cfg = OmegaConf.merge(content["hyper_parameters"]["cfg"], change)
        cfg = OmegaConf.to_container(cfg, resolve=False)
        torch.save({**content, "hyper_parameters": {"cfg": cfg}}, tmp_path / "bad.ckpt")
        for load in (load_trained, EncDecCoDERTBPEModel.load_from_checkpoint):
            with pytest.raises(ValueError, match=message) as error:
                load(tmp_path / "bad.ckpt")
            assert "secret" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_checkpoint_is_named_as_one(checkpoint, tmp_path, share):
    data = checkpoint.read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"torn\.ckpt is not a Lightning checkpoint, or was torn"):
        CheckpointFiles().load_checkpoint(tmp_path / "torn.ckpt")


def test_a_checkpoint_that_is_not_there_is_missing_and_not_torn(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        CheckpointFiles().load_checkpoint(tmp_path / "absent.ckpt")


def test_stand_ins_do_nothing_and_plain_values_stay_the_same_objects():
    node = StandIn("anything", 1)
    node.__setstate__("no dict")
    assert plain(node) is None
    value = {"a": [1, (2, {"b": torch.zeros(1)})]}
    assert plain(value) is value
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested more than"):
        plain(endless)


def test_a_trap_among_what_is_to_be_saved_is_found_when_it_is_saved(tmp_path, mark):
    with pytest.raises(ValueError, match=r"bad\.ckpt was not written: it would hold .*which a resume would refuse"):
        CheckpointFiles().save_checkpoint({"callbacks": Trap(Path.touch, mark)}, tmp_path / "bad.ckpt")
    assert not list(tmp_path.iterdir())
