"""A `.nemo` archive from a stranger is refused by name before anything of it is unpacked, built or executed."""

import gzip
import inspect
import io
import pkgutil
import shutil
import struct
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from nemo.core.classes import common
from omegaconf import OmegaConf

import nemo_codert
from nemo_codert.export.stock_file import save_model
from nemo_codert.files.nemo_archive import CheckedArchive, check_archive, target_problem
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.open_model import open_model, restored_config
from nemo_codert.models.teacher_weights import load_lone_checkpoint, load_source
from nemo_codert.nemo_compat import forget_failed_restore, is_being_restored
from tests.conftest import ADDITIVE, STOCK
from tests.files.traps import add_member, bare_pickle, members_of, pickled, rewrite, traps


@pytest.fixture(scope="module")
def pair_file(make_config, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(make_config(strategy="shared_kd", joint=ADDITIVE))
    return save_model(model, tmp_path_factory.mktemp("pair") / "pair.nemo")


@pytest.fixture(scope="module")
def stock_file(make_config, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = EncDecRNNTBPEModel(student_config(make_config("tandem_kd", joint=STOCK)))
    return save_model(model, tmp_path_factory.mktemp("stock") / "stock.nemo")


def link(name: str, to: str, kind: bytes):
    return lambda archive: add_member(archive, name, type=kind, linkname=to)


def special(kind: bytes):
    return lambda archive: add_member(archive, "device", type=kind, devmajor=1, devminor=5)


def many(archive: tarfile.TarFile) -> None:
    for i in range(1001):
        add_member(archive, f"{i}.txt")


def sparse(archive: tarfile.TarFile) -> None:
    """A member of 0 bytes that says it unpacks to 8 TiB."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(8 * 2**40)}
    member = tarfile.TarInfo("sparse.bin")
    member.pax_headers, member.size = {**headers, "GNU.sparse.name": "sparse.bin"}, 512
    archive.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))


MEMBERS = {
    "a parent folder": (lambda a: add_member(a, "../evil.txt", b"x"), "member '../evil.txt' lies outside the folder"),
    "an absolute path": (lambda a: add_member(a, "/tmp/evil.txt", b"x"), "member '/tmp/evil.txt' lies outside"),
    "a hidden parent": (lambda a: add_member(a, "a/../../evil", b"x"), r"member 'a/../../evil' lies outside"),
    "a symbolic link": (link("l", "/etc/passwd", tarfile.SYMTYPE), "member 'l' is a link to '/etc/passwd'"),
    "a hard link": (link("l", "model_config.yaml", tarfile.LNKTYPE), "member 'l' is a link to 'model_config.yaml'"),
    "a character device": (special(tarfile.CHRTYPE), "member 'device' is neither file nor folder"),
    "a block device": (special(tarfile.BLKTYPE), "member 'device' is neither file nor folder"),
    "a pipe": (special(tarfile.FIFOTYPE), "member 'device' is neither file nor folder"),
    "thousands of members": (many, "it has more than 1000 members"),
    "a sparse member": (sparse, "member 'sparse.bin' is sparse: it would unpack to 8,388,608.0 MiB"),
    "a second config": (lambda a: add_member(a, "model_config.yaml", b"x: 1"), "two members 'model_config.yaml'"),
    "a config elsewhere": (lambda a: add_member(a, "x/model_config.yaml", b"x: 1"), "is a second model_config.yaml"),
    "a name twice": (lambda a: [add_member(a, "t.txt", b"x") for _ in "ab"], "two members 't.txt'"),
}


def refusal(path: Path) -> str:
    """What restoring an archive says, by the way of every script and by the class's own."""
    with pytest.raises(ValueError) as error:
        open_model(path)
    with pytest.raises(ValueError) as other:
        EncDecCoDERTBPEModel.restore_from(str(path), map_location="cpu")
    assert not is_being_restored() and "\n" not in str(error.value)
    assert str(path) in str(error.value) and str(path) in str(other.value)
    return str(error.value)


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_members_that_are_no_model_are_refused_by_name(pair_file, tmp_path, kind, mode):
    extra, message = MEMBERS[kind]
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    path = rewrite(pair_file, folder / "bad.nemo", extra=extra, mode=mode)
    assert message in refusal(path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["bad.nemo"]


def set_key(key: str, value: object):
    def change(cfg: dict) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            cfg = cfg.setdefault(parent, {})
        cfg[last] = value

    return change


EVIL = {"_target_": "os.system", "command": "x"}
WRITES = "nemo.collections.asr.parts.utils.manifest_utils.write_manifest"
CONFIGS = {
    "encoder._target_": (set_key("encoder._target_", "os.system"), "encoder._target_ is 'os.system': wanted a class"),
    "joint in a list": (set_key("joint.more", [[{"deep": EVIL}]]), "joint.more[0][0].deep._target_ is 'os.system'"),
    "train_ds": (set_key("train_ds", {"augmentor": EVIL}), "train_ds.augmentor._target_ is 'os.system'"),
    "validation_ds": (set_key("validation_ds", [EVIL]), "validation_ds[0]._target_ is 'os.system'"),
    "optim": (set_key("optim.sched", EVIL), "optim.sched._target_ is 'os.system'"),
    "decoding": (set_key("decoding.beam.x", EVIL), "decoding.beam.x._target_ is 'os.system'"),
    "tokenizer": (set_key("tokenizer.custom_tokenizer", EVIL), "tokenizer.custom_tokenizer._target_ is 'os.system'"),
    "student": (set_key("student.encoder._target_", "os.system"), "student.encoder._target_ is 'os.system'"),
    "an old key": (set_key("encoder.cls", "subprocess.Popen"), "encoder.cls is 'subprocess.Popen'"),
    "the model": (set_key("target", "subprocess.Popen"), "target is 'subprocess.Popen': wanted a class of nemo"),
    "a module as the model": (set_key("target", ADDITIVE), f"target is '{ADDITIVE}': wanted a class of"),
    "a function of NeMo's that writes": (set_key("encoder._target_", WRITES), f"encoder._target_ is '{WRITES}': want"),
    "a way through a module": (set_key("encoder._target_", "nemo_codert.modules.additive_joint.nn.Linear"), "no netw"),
    "a function of ours": (set_key("encoder._target_", "nemo_codert.modules.to_stock_joint"), "no network, loss or"),
    "no name at all": (set_key("encoder._target_", "nemo_codert.modules.__import__('os')"), "no network, loss or"),
    "the environment": (set_key("note", "${oc.env:HOME}"), "note is '${oc.env:HOME}', which is not resolved"),
    "a resolver": (set_key("encoder.d_model", "${multiply:9,9}"), "encoder.d_model is '${multiply:9,9}', which is no"),
    "a key that is resolved": (set_key("note", {"${oc.env:HOME}": 1}), "note is '${oc.env:HOME}', which is not"),
    "among word pieces": (set_key("joint.vocabulary", ["a", "${oc.env:HOME}"]), "joint.vocabulary[1] is '${oc.env"),
    "a file to open": (
        set_key("decoding.beam.ngram_lm_model", "/etc/lm"),
        "decoding.beam.ngram_lm_model is '/etc/lm'",
    ),
    "an address": (set_key("encoder.pretrained", "https://x.y/z"), "encoder.pretrained is 'https://x.y/z', a file or"),
    "a tokenizer here": (
        set_key("tokenizer.vocab_path", "/etc/passwd"),
        "tokenizer.vocab_path is '/etc/passwd', a fi",
    ),
    "a tokenizer outside": (set_key("tokenizer.model_path", "nemo:../../x"), "tokenizer.model_path is 'nemo:../../x'"),
    "a tokenizer of a language": (
        set_key("tokenizer.langs", {"en": {"dir": "/etc", "vocab_path": "/etc/passwd"}}),
        "tokenizer.langs.en.vocab_path is '/etc/passwd', a file of this machine",
    ),
    "a model within": (lambda cfg: cfg.update(model={"target": "os.system"}), "target is 'os.system'"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_name_code_files_or_the_environment_are_refused_by_key(pair_file, tmp_path, kind):
    change, message = CONFIGS[kind]
    assert message in refusal(rewrite(pair_file, tmp_path / "bad.nemo", config=change))


def replace_config(text: bytes):
    return lambda members: members.update({"model_config.yaml": text})


LAUGHS = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 120))
TEXTS = {
    "a tag": (b"a: !!python/object/apply:os.system ['touch executed']", "could not determine a constructor"),
    "a tag of a name": (b"a: !!python/name:os.system", "could not determine a constructor"),
    "aliases of aliases": (LAUGHS, "it has an alias (*a), which NeMo does not write"),
    "an endless alias": (b"a: &a [*a]", "it has an alias (*a)"),
    "deep blocks": (b"[" * 100_000, "nest"),
    "no mapping": (b"- 1", "it holds a list, wanted a mapping"),
    "an empty file": (b"", "it holds a NoneType, wanted a mapping"),
    "no text": (b"\xff\xfe\x00", "is not plain YAML"),
    "a number without end": (b"a: " + b"9" * 10_000, "is not plain YAML"),
    "a large one": (b"# " + b"x" * (16 * 2**20), "model_config.yaml has 16.0 MiB, at most 16.0 MiB are read"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_config_that_is_no_plain_yaml_is_refused(pair_file, tmp_path, kind):
    text, message = TEXTS[kind]
    assert message in refusal(rewrite(pair_file, tmp_path / "bad.nemo", members=replace_config(text)))


def zeros(size: int):
    return lambda archive: add_member(archive, "zeros.bin", bytes(size))


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(pair_file, tmp_path):
    bomb = rewrite(pair_file, tmp_path / "bomb.nemo", extra=zeros(70 * 2**20), mode="w:gz")
    assert bomb.stat().st_size < 2**20
    assert "it unpacks to more than 64.0 MiB, 20 times its size" in refusal(bomb)


def test_a_bomb_is_left_at_the_limit_and_not_unpacked(tmp_path):
    """A member of 80 MB, which would have to be decompressed to find the next one."""
    with gzip.open(tmp_path / "bomb.nemo", "wb") as file:
        add = tarfile.TarInfo("model_config.yaml")
        add.size = 80 * 10**6
        file.write(add.tobuf(tarfile.GNU_FORMAT))
        for _ in range(80):
            file.write(bytes(10**6))
    assert "it unpacks to more than 64.0 MiB" in refusal(tmp_path / "bomb.nemo")


def test_an_archive_that_the_disk_has_no_room_for_says_so(pair_file, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(
        ValueError, match=r"it unpacks to 0\.\d MiB, but .* has 0\.0 MiB left: free some space or set TMP"
    ):
        check_archive(pair_file)


def test_a_member_that_says_it_is_larger_than_the_file_is_refused(pair_file, tmp_path):
    def lie(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("large.bin")
        member.size = 8 * 2**40
        archive.fileobj.write(member.tobuf(tarfile.PAX_FORMAT))

    assert "unexpected end of data" in refusal(rewrite(pair_file, tmp_path / "bad.nemo", extra=lie))


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused(tmp_path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**60
    (tmp_path / "bad.nemo").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "is not an archive that can be opened safely" in refusal(tmp_path / "bad.nemo")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_torn_archive_is_refused(pair_file, tmp_path, share, mode):
    whole = rewrite(pair_file, tmp_path / "whole.nemo", mode=mode)
    data = whole.read_bytes()
    (tmp_path / "torn.nemo").write_bytes(data[: int(len(data) * share)])
    assert "is not an archive that can be opened safely" in refusal(tmp_path / "torn.nemo")


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8bno gzip", struct.pack("<256I", *range(256)) * 4])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "text.nemo").write_bytes(content)
    assert "is not an archive that can be opened safely" in refusal(tmp_path / "text.nemo")


FEW = [("open", True)]
REST = [(kind, force) for kind in ("os.system", "eval", "getattr", "hydra", "pathlib") for force in (False, True)]


@pytest.mark.parametrize("kind, force", [*FEW, *(pytest.param(*case, marks=pytest.mark.reliability) for case in REST)])
def test_weights_with_code_are_refused_and_nothing_is_executed(pair_file, tmp_path, kind, force, monkeypatch):
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "executed"
    for make in (pickled, bare_pickle):
        content = make({"encoder.x": traps(mark)[kind]})
        path = tmp_path / f"{make.__name__}.nemo"
        rewrite(
            pair_file, path, members=lambda members, content=content: members.update({"model_weights.ckpt": content})
        )
        with pytest.raises(ValueError, match=r"cannot be restored as a NeMo model: .*weights.only|Weights.only"):
            open_model(path)
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            EncDecCoDERTBPEModel.restore_from(str(path), map_location="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"no tokenizer", bytes(range(256)) * 20])
def test_a_tokenizer_that_is_none_is_refused(pair_file, tmp_path, content):
    def replace(members: dict[str, bytes]) -> None:
        (name,) = [name for name in members if name.endswith("tokenizer.model")]
        members[name] = content

    path = rewrite(pair_file, tmp_path / "bad.nemo", members=replace)
    with pytest.raises(ValueError, match=r"bad\.nemo cannot be restored as a NeMo model: "):
        open_model(path)


def test_the_trap_works_with_nemos_own_restoring(pair_file, tmp_path, monkeypatch):
    """Where the environment variable is set and the archive is not asked for through this package."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = pickled({"encoder.x": traps(tmp_path / "executed")["open"]})
    path = rewrite(pair_file, tmp_path / "bad.nemo", members=lambda m: m.update({"model_weights.ckpt": content}))
    with pytest.raises(Exception):  # noqa: B017  (whatever the file handle in place of a tensor leads to)
        ASRModel.restore_from(str(path), map_location="cpu")
    forget_failed_restore()
    assert (tmp_path / "executed").exists()


def test_every_way_to_restore_an_archive_checks_it(pair_file, stock_file, make_config, tmp_path, monkeypatch):
    bad = rewrite(pair_file, tmp_path / "bad.nemo", extra=MEMBERS["a symbolic link"][0])
    bad_stock = rewrite(stock_file, tmp_path / "bad_stock.nemo", extra=MEMBERS["a symbolic link"][0])
    lone = EncDecRNNTBPEModel(student_config(make_config("tandem_kd", joint=STOCK)))
    frozen = {"codert": {"teacher_checkpoint": str(bad_stock)}}
    ways = {
        "open_model": lambda: open_model(bad),
        "restored_config": lambda: restored_config(bad, "it"),
        "open_model, a text": lambda: open_model(str(bad), "it"),
        "load_source": lambda: load_source(str(bad_stock), "key", "teacher", ()),
        "load_lone_checkpoint": lambda: load_lone_checkpoint(lone, str(bad_stock), "key", "student"),
        "teacher_checkpoint": lambda: EncDecCoDERTBPEModel(make_config("static", joint=STOCK, **frozen)),
        "init_from": lambda: EncDecCoDERTBPEModel(
            OmegaConf.merge(make_config("tandem_kd", joint=STOCK), {"student": {"init_from": str(bad_stock)}})
        ),
        "init_from_teacher": lambda: EncDecCoDERTBPEModel(
            OmegaConf.merge(make_config("static", joint=STOCK, **frozen), {"student": {"init_from_teacher": True}})
        ),
        "restore_from": lambda: EncDecCoDERTBPEModel.restore_from(str(bad), map_location="cpu"),
        "restore_from, config": lambda: EncDecCoDERTBPEModel.restore_from(str(bad), return_config=True),
    }
    for name, way in ways.items():
        with pytest.raises(ValueError, match="member 'l' is a link"):
            way()
        assert not is_being_restored(), name
    asked = {}
    monkeypatch.setattr(ASRModel, "from_pretrained", lambda name, **options: asked.update(options) or 1 / 0)
    with pytest.raises(ValueError, match="cannot be restored"):
        open_model("a_pretrained_name", "it")
    assert isinstance(asked["save_restore_connector"], CheckedArchive)


def test_models_as_nemo_and_this_package_write_them_pass(pair_file, stock_file, tmp_path):
    for path in (pair_file, stock_file):
        check_archive(path)
        check_archive(rewrite(path, tmp_path / "old.nemo", mode="w:gz"))  # as NeMo wrote them before 1.7
        restored = open_model(tmp_path / "old.nemo")
        again = save_model(restored, tmp_path / "again.nemo")
        assert members_of(again).keys() >= {"model_config.yaml", "model_weights.ckpt"}
        check_archive(again)


def test_a_large_model_passes(tmp_path):
    """3 GiB of weights, which the file system need not store, and 50,000 word pieces."""
    vocabulary = [f"piece/{i}" for i in range(50_000)]
    config = {"target": "nemo.collections.asr.models.EncDecRNNTBPEModel", "joint": {"vocabulary": vocabulary}}
    config["tokenizer"] = {"dir": "/somewhere/else", "model_path": "nemo:x_tokenizer.model", "vocab_path": None}
    path, size = tmp_path / "large.nemo", 3 * 2**30
    with path.open("wb") as file:
        for name, content in {
            "model_config.yaml": yaml.dump(config, Dumper=yaml.CSafeDumper),
            "x_tokenizer.model": "x",
        }.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            padding = -len(content) % tarfile.BLOCKSIZE
            file.write(member.tobuf() + content.encode() + bytes(padding))
        weights = tarfile.TarInfo("./model_weights.ckpt")
        weights.size = size
        file.write(weights.tobuf())
        file.truncate(file.tell() + size + 2 * tarfile.BLOCKSIZE)
    check_archive(path)


def test_our_prefix_lets_nothing_be_called_but_networks_and_models():
    """NeMo's allow-list with our prefix on it, asked for everything that can be reached under it."""
    allowed = set()
    for module in pkgutil.walk_packages(nemo_codert.__path__, "nemo_codert."):
        if "sherpa" not in module.name:
            for name, found in vars(import_module(module.name)).items():
                if (
                    callable(found)
                    and not name.startswith("__")
                    and common._is_target_allowed(f"{module.name}.{name}")
                ):
                    allowed.add(found)
    for found in allowed:
        assert inspect.isclass(found), found
        assert issubclass(found, torch.nn.Module | common.Serialization | torch.utils.data.Dataset), found
    assert EncDecCoDERTBPEModel in allowed and len(allowed) > 5
    # What an archive may name is less: the networks that this package itself defines.
    ours = {found for found in allowed if target_problem(f"{found.__module__}.{found.__qualname__}") is None}
    ours = {found for found in ours if found.__module__.startswith("nemo_codert.")}
    assert {found.__name__ for found in ours} == {"AdditiveRNNTJoint", "UnprojectedLSTM", "CachedEncoder"}, ours


def test_the_package_opens_checkpoints_in_one_way():
    """Every file that could unpickle: only the two that read weights as data do."""
    root = Path(nemo_codert.__file__).parents[1]
    found = {}
    for path in [*(root / "nemo_codert").rglob("*.py"), *(root / "scripts").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for word in (
            "torch.load(",
            "pickle.load",
            "np.load(",
            "numpy.load(",
            "yaml.unsafe",
            "joblib",
            "weights_only=F",
        ):
            if word in text:
                found.setdefault(path.name, set()).add(word)
        if "torch.load(" in text:
            assert text.count("torch.load(") == text.count("weights_only=True")
    assert found == {"checkpoints.py": {"torch.load("}, "nemo_archive.py": {"torch.load("}}
    assert sys.version_info >= (3, 11)  # tarfile's filter `data`, which NeMo unpacks with
