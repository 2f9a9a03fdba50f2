"""`codert new`: the config of a pair from a model's file, which builds as it is, and what cannot be a teacher."""

import copy
import re
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf, open_dict

from nemo_codert.cli.composition import composed
from nemo_codert.cli.new import main
from nemo_codert.config.search import check_names, config_search
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models import new_pair as module
from nemo_codert.models.encoder_sizes import scaled_encoder
from nemo_codert.models.new_pair import new_pair
from tests.conftest import conformer, lstm
from tests.models.teacher_files import DURATIONS, KINDS, save_teacher

TEACHER = conformer(layers=4, channels=48)


@pytest.fixture(scope="module")
def teachers(make_config, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {kind: save_teacher(make_config, folder, kind, teacher=TEACHER)[0] for kind in KINDS}


def built(path: Path, *overrides: str) -> EncDecCoDERTBPEModel:
    """The pair of a written config, as training builds it: the teacher is compared with its file and loaded."""
    search = config_search(["--config-dir", str(path.parent), "--config-name", path.stem, *overrides])
    check_names(search)
    cfg = composed(search)
    OmegaConf.set_struct(cfg, False)
    for block in ("train_ds", "validation_ds", "test_ds"):
        cfg.model.pop(block)
    return EncDecCoDERTBPEModel(cfg.model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_builds_the_pair_of_every_kind_of_teacher(kind, teachers, tmp_path, batch):
    pair = new_pair(teachers[kind], tmp_path / "my_pair", share=1 / 4)
    model = built(pair.path)
    assert model.teacher_is_frozen and not model.cfg.codert.share_decoder
    networks = {"teacher": model.teacher_transducer, "student": model.student_transducer}
    sizes = {
        branch: sum(p.numel() for part in (each.encoder, each.decoder, each.joint) for p in part.parameters())
        for branch, each in networks.items()
    }
    assert (pair.teacher, pair.student) == (sizes["teacher"], sizes["student"])
    assert model.student_joint.num_extra_outputs == (len(DURATIONS) if "tdt" in kind else 0)
    output = model.training_step(batch, 0)
    assert torch.isfinite(output["loss"])


def test_a_hybrids_ctc_head_can_be_distilled(teachers, tmp_path):
    pair = new_pair(teachers["hybrid"], tmp_path / "my_pair", share=1 / 4)
    assert "model.codert.teacher_logits=ctc" in pair.path.read_text()
    model = built(pair.path, "model.codert.teacher_logits=ctc")
    assert model.teacher_transducer.ctc_head is not None


@pytest.mark.parametrize("strategy", ["student", "shared_kd", "static_shared"])
def test_other_strategies_can_be_chosen(strategy, teachers, tmp_path):
    pair = new_pair(teachers["rnnt"], tmp_path / "my_pair", share=1 / 2)
    search = config_search(["--config-dir", str(tmp_path / "my_pair"), "--config-name=pair", f"strategy={strategy}"])
    check_names(search)
    cfg = composed(search)
    assert cfg.train == ("student" if strategy == "student" else "pair")
    assert cfg.model.codert.teacher_checkpoint == teachers["rnnt"]
    assert cfg.exp_manager.name == "pair" and pair.path.name == "pair.yaml"


def test_files_and_summary(teachers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nemo_codert.cli.new.quieten_libraries", lambda: None)
    folder = tmp_path / "new" / "my_pair"
    arguments = ["--teacher", teachers["rnnt"], "--output", str(folder), "--size", "1/4", "--name", "mine"]
    assert main(arguments) == 0
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "mine.yaml",
        *("tokenizer", "tokenizer/tokenizer.model", "tokenizer/tokenizer.vocab", "tokenizer/vocab.txt"),
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["my_pair"]
    out = capsys.readouterr().out
    model = built(folder / "mine.yaml")
    encoders = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.student_encoder)]
    for count in encoders:
        assert f"{count:,}" in out
    assert f"1/{encoders[0] / encoders[1]:.1f} of the teacher's: n_layers" in out
    assert f"codert check --config-dir {folder} --config-name mine" in out


def parameters(block: dict) -> int:
    model = EncDecCTCModelBPE.from_config_dict(OmegaConf.create(copy.deepcopy(block)))
    return sum(parameter.numel() for parameter in model.parameters())


LARGE = {**conformer(layers=8, channels=256), "n_heads": 4, "subsampling_conv_channels": 128, "subsampling_factor": 8}


@pytest.mark.parametrize(
    "block, shares",
    [
        (LARGE, (1, 1 / 2, 1 / 4, 1 / 8, 1 / 20)),
        ({**LARGE, "conv_norm_type": "batch_norm", "reduction": "striding", "reduction_position": 6}, (1 / 4,)),
        (lstm(layers=5, channels=256, projection=128), (1, 1 / 4, 1 / 8)),
        (TEACHER, (1 / 2, 1 / 4, 1 / 8)),
    ],
)
def test_a_scaled_encoder_comes_near_the_share(block, shares):
    whole = parameters(block)
    for share in shares:
        small = scaled_encoder(block, share)
        ratio = parameters(small) / whole / share
        # Widths go in steps of 8 (of 4 below 128 channels): at 16 channels a step is half of the parameters.
        assert abs(ratio - 1) < (0.06 if block["d_model"] >= 128 else 0.35), (share, small)
        assert small["n_layers"] <= block["n_layers"] and small["d_model"] <= block["d_model"]
        assert small["d_model"] % small.get("n_heads", 1) == 0
        untouched = block.keys() - {"n_layers", "d_model", "n_heads", "proj_size", "subsampling_conv_channels"}
        assert {key: small[key] for key in untouched - {"feat_out", "reduction_position"}} == {
            key: block[key] for key in untouched - {"feat_out", "reduction_position"}
        }


@pytest.mark.parametrize(
    "block, share, message",
    [
        (TEACHER, 1 / 5000, "the nearest of its kind has .* Choose a larger share"),
        (
            {**TEACHER, "_target_": "nemo.collections.asr.modules.ConvASREncoder"},
            1 / 8,
            "of class ConvASREncoder: only",
        ),
    ],
)
def test_an_encoder_that_cannot_be_made_smaller_is_refused(block, share, message):
    with pytest.raises(ValueError, match=message):
        scaled_encoder(block, share)


# ---- what cannot be a teacher ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_config(teachers):
    """Makes a `.nemo` file of the standard RNN-T with a changed config."""
    import tarfile

    def make(path: Path, **changes) -> str:
        with tarfile.open(teachers["rnnt"]) as archive:
            archive.extractall(path.parent / path.stem, filter="data")
        file = path.parent / path.stem / "model_config.yaml"
        cfg = OmegaConf.load(file)
        with open_dict(cfg):
            cfg = OmegaConf.merge(cfg, changes)
        OmegaConf.save(cfg, file)
        with tarfile.open(path, "w:") as archive:
            archive.add(path.parent / path.stem, arcname=".")
        return str(path)

    return make


MODELS = "nemo.collections.asr.models"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target": f"{MODELS}.ctc_bpe_models.EncDecCTCModelBPE"}, "is EncDecCTCModelBPE, wanted a standard RNN-T"),
        ({"target": f"{MODELS}.aed_multitask_models.EncDecMultiTaskModel"}, "is EncDecMultiTaskModel, wanted"),
        ({"target": f"{MODELS}.rnnt_models.EncDecRNNTModel"}, "is EncDecRNNTModel, wanted"),
        ({"adapters": {"a": {}}}, "is an RNN-T with adapters, wanted"),
        ({"joint": {"num_extra_outputs": 2}}, "is a multi-blank model, wanted"),
        ({"tokenizer": {"type": "wpe"}}, "is an RNN-T with a tokenizer of type 'wpe', wanted"),
        ({"tokenizer": {"type": "agg"}}, "is an RNN-T with a tokenizer of type 'agg', wanted"),
    ],
)
def test_other_models_are_refused_by_name(changes, message, other_config, tmp_path):
    path = other_config(tmp_path / "other.nemo", **changes)
    with pytest.raises(ValueError, match=f"the teacher '{path}' {message}"):
        new_pair(path, tmp_path / "new" / "my_pair")
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nemo_codert.cli.new.quieten_libraries", lambda: None)
    (tmp_path / "model.ckpt").write_text("weights")
    (tmp_path / "model.nemo").write_text("weights")
    for name, message in {
        "model.ckpt": "is not a .nemo file",
        "model.nemo": "cannot be restored as a NeMo model",
        "absent.nemo": "Give the path of a .nemo",
    }.items():
        assert main(["--teacher", str(tmp_path / name), "--output", str(tmp_path / "my_pair")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: the teacher '{tmp_path / name}' ") and message in error
    assert not (tmp_path / "my_pair").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"share": 0}, "size is 0, wanted a share"),
        ({"share": 1.5}, "size is 1.5, wanted a share"),
        ({"name": "a/b"}, "name is 'a/b', wanted letters"),
        ({"name": "fsdd"}, "name is 'fsdd', which a shipped config has"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(settings, message, teachers, tmp_path):
    with pytest.raises(ValueError, match=message):
        new_pair(teachers["rnnt"], tmp_path / "my_pair", **settings)


def test_a_size_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--teacher", "x", "--output", "y", "--size", "small"])
    assert end.value.code == 2
    assert "'small' is not a share. Give one such as 1/8 or 0.125" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(teachers, tmp_path):
    (tmp_path / "my_pair").mkdir()
    (tmp_path / "my_pair" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="my_pair, which is there already and not an empty folder"):
        new_pair(teachers["rnnt"], tmp_path / "my_pair")
    assert [path.name for path in (tmp_path / "my_pair").iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(teachers, tmp_path):
    (tmp_path / "my_pair").mkdir()
    assert new_pair(teachers["rnnt"], tmp_path / "my_pair", share=1 / 2).path.is_file()


@pytest.mark.parametrize("step", ["write_tokenizer", "_built_student", "_text"])
def test_nothing_is_left_of_what_fails_half_way(step, teachers, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OSError):
        new_pair(teachers["rnnt"], tmp_path / "new" / "my_pair", share=1 / 2)
    assert [*tmp_path.iterdir()] == []


def test_the_config_names_every_size_once(teachers, tmp_path):
    text = new_pair(teachers["rnnt"], tmp_path / "my_pair", share=1 / 2).path.read_text()
    assert not re.search(r"vocabulary|num_classes|labels|vocab_size|nemo_version|target: nemo", text)
    assert text.count("strategy: static") == 1
