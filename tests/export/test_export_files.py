"""Files of models: complete or absent, restored or refused with one clear message."""

import io
import tarfile

import pytest
import torch
import yaml
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.export.stock_file import save_model, stock_of
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.open_model import open_model
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.nemo_compat import is_being_restored

STOCK_TARGET = "nemo.collections.asr.models.EncDecRNNTBPEModel"


def write_archive(path, files: dict[str, str]):
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def same_weights(model, other) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_failing_save_leaves_nothing_and_keeps_the_old_file(shared_pair, tmp_path, monkeypatch):
    model = shared_pair().student_model()
    path = save_model(model, tmp_path / "new" / "student.nemo")
    old = path.read_bytes()

    def fail(self, save_path, **kwargs):
        open(save_path, "w").write("half")
        raise OSError("disk full")

    monkeypatch.setattr(EncDecRNNTBPEModel, "save_to", fail)
    for target in (path, path.with_name("other.nemo")):
        with pytest.raises(OSError, match="disk full"):
            save_model(model, target)
    assert [p.name for p in path.parent.iterdir()] == ["student.nemo"]
    assert path.read_bytes() == old


def test_pairs_stock_models_and_lone_additive_students_load(shared_pair, make_config, tmp_path):
    pair = shared_pair()
    loaded = open_model(save_model(pair, tmp_path / "pair.nemo"))
    assert type(loaded) is EncDecCoDERTBPEModel and not loaded.training and same_weights(loaded, pair)

    student = loaded.student_model()
    loaded = open_model(save_model(student, tmp_path / "student.nemo"))
    assert type(loaded) is EncDecRNNTBPEModel and same_weights(loaded, student)
    assert same_weights(stock_of(loaded), student)

    lone = EncDecRNNTBPEModel(student_config(make_config()))
    loaded = open_model(save_model(lone, tmp_path / "lone.nemo"))
    assert isinstance(loaded.joint, AdditiveRNNTJoint) and same_weights(loaded, lone)
    assert type(stock_of(loaded).joint).__module__.startswith("nemo.")


def test_a_lone_model_has_no_teacher_branch(shared_pair):
    student = shared_pair().student_model()
    with pytest.raises(ValueError, match="this model is a single RNN-T, not a pair"):
        stock_of(student, branch="teacher")
    with pytest.raises(ValueError, match="branch is 'both', wanted student or teacher"):
        stock_of(student, branch="both")


def test_missing_and_broken_files_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.nemo is not a file"):
        open_model(tmp_path / "absent.nemo")
    with pytest.raises(ValueError, match="is not a file"):
        open_model(tmp_path)
    (tmp_path / "text.nemo").write_text("no archive")
    broken = [tmp_path / "text.nemo", write_archive(tmp_path / "empty.nemo", {"readme.txt": "no config"})]
    config = yaml.safe_dump({"target": STOCK_TARGET, "joint": {}})
    broken.append(write_archive(tmp_path / "weightless.nemo", {"model_config.yaml": config}))
    broken.append(write_archive(tmp_path / "no_yaml.nemo", {"model_config.yaml": "a: [unclosed"}))
    for path in broken:
        with pytest.raises(ValueError, match=rf"{path.name} cannot be restored as a NeMo model: .+"):
            open_model(path)
        assert not is_being_restored()


def test_a_truncated_file_is_refused(shared_pair, tmp_path):
    path = save_model(shared_pair().student_model(), tmp_path / "student.nemo")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"student\.nemo cannot be restored"):
        open_model(path)
    assert not is_being_restored()


@pytest.mark.parametrize(
    "config, kind",
    [
        ({"target": STOCK_TARGET, "joint": {"num_extra_outputs": 5}}, "a multi-blank model"),
        ({"target": STOCK_TARGET, "decoding": {"durations": [0, 1]}}, "a TDT model"),
        ({"target": STOCK_TARGET, "loss": {"loss_name": "tdt"}}, "a TDT model"),
        ({"target": "nemo.collections.asr.models.EncDecHybridRNNTCTCModel"}, "EncDecHybridRNNTCTCModel"),
        ({"target": "nemo.collections.asr.models.EncDecCTCModelBPE"}, "EncDecCTCModelBPE"),
        ({"sample_rate": 16000}, "of unknown class"),
    ],
)
def test_other_kinds_of_models_are_refused_by_kind(tmp_path, config, kind):
    path = write_archive(tmp_path / "other.nemo", {"model_config.yaml": yaml.safe_dump(config)})
    with pytest.raises(ValueError, match=rf"other\.nemo is {kind}, wanted a standard RNN-T"):
        open_model(path, kinds=())


def test_classes_outside_nemo_and_this_package_are_refused(tmp_path):
    config = yaml.safe_dump({"target": "os.EncDecRNNTBPEModel"})
    path = write_archive(tmp_path / "unsafe.nemo", {"model_config.yaml": config})
    with pytest.raises(ValueError, match=r"unsafe\.nemo cannot .* target is 'os.EncDecRNNTBPEModel': wanted a"):
        open_model(path)
