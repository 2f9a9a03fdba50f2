"""The exported student in a process that has NeMo and cannot import nemo_codert."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.modules import RNNTJoint
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

from nemo_codert.export.model_card import CardOptions, Result, model_card
from nemo_codert.export.stock_file import save_model, save_with_card
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.open_model import open_model
from tests.conftest import SENTENCES

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"

SCRIPT = """
import json, logging, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nemo_codert":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocker())
try:
    import nemo_codert
    raise SystemExit("nemo_codert could be imported")
except ImportError:
    pass
import torch
torch.set_num_threads(1)
from nemo.collections.asr.models import ASRModel

wav, *paths = sys.argv[1:]
found = {}
for path in paths:
    model = ASRModel.restore_from(path, map_location="cpu")
    found[path] = {
        "class": type(model).__module__,
        "joint": type(model.joint).__module__,
        "text": model.transcribe([wav], verbose=False)[0].text,
        "keys": sorted(model.state_dict()),
    }
    if "model_card" in model.cfg:
        model.save_to(path.replace(".nemo", "_again.nemo"))
        again = ASRModel.restore_from(path.replace(".nemo", "_again.nemo"), return_config=True)
        found[path]["card"] = again.model_card
print("RESULT" + json.dumps(found))
"""


@torch.no_grad()
def make_talkative(joint: RNNTJoint) -> None:
    """Untrained joints say nothing, or one piece for ever: let the last piece count for more."""
    joint.pred.weight.mul_(100)


@pytest.fixture(scope="module")
def wav(manifest):
    return json.loads(manifest.read_text().splitlines()[4])["audio_filepath"]


@pytest.fixture(scope="module")
def written(make_config, wav, tmp_path_factory) -> tuple[dict[str, str], Path]:
    """Path -> text of students that were saved, and the card of one of them, which lies beside it."""
    folder = tmp_path_factory.mktemp("students")
    expected = {}
    for name, joint, form in (
        ("additive", ADDITIVE, "auto"),
        ("narrow", ADDITIVE, "narrow"),
        ("stock", STOCK, "auto"),
    ):
        torch.manual_seed(0)
        pair = EncDecCoDERTBPEModel(make_config("shared_kd", joint))
        make_talkative(pair.student_joint)
        student = pair.student_model(form)
        (hypothesis,) = student.transcribe([wav], verbose=False)
        expected[str(save_model(student, folder / f"{name}.nemo"))] = hypothesis.text
        if name == "additive":
            continue  # narrow's joint is additive too
        save_model(pair, folder / f"pair_{name}.nemo")
        student = open_model(folder / f"pair_{name}.nemo").student_model(form)
        path = folder / f"{name}_of_restored.nemo"
        expected[str(path)] = hypothesis.text
        if name == "stock":
            results = [Result("ü_${x}", 1, 1, 0.5)]  # what OmegaConf would take for a reference
            about = {"name": "tiny", "branch": "student", "parameters": 1, "record": None}
            text = model_card(student.cfg, results=results, options=CardOptions(), **about)
            _, card = save_with_card(student, path, text)
        else:
            save_model(student, path)
    return expected, card


@pytest.fixture(scope="module")
def found(written, wav) -> dict[str, dict]:
    """What a process that has NeMo alone says of those files."""
    expected, card = written
    command = [sys.executable, "-c", SCRIPT, wav, *expected]
    done = subprocess.run(command, cwd=card.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


def test_students_transcribe_the_same_text_where_nemo_codert_cannot_be_imported(written, found):
    expected, _ = written
    assert len(expected) == 5 and all(len(set(text)) > 3 for text in expected.values()), expected
    texts = {Path(path).stem: text for path, text in expected.items()}
    assert texts["narrow"] == texts["additive"]
    assert {path: entry["text"] for path, entry in found.items()} == expected
    for entry in found.values():
        assert entry["class"].startswith("nemo.") and entry["joint"].startswith("nemo.")
        assert not [key for key in entry["keys"] if "teacher" in key or "student" in key]
        assert {key.split(".")[0] for key in entry["keys"]} == {"preprocessor", "encoder", "decoder", "joint"}


def test_nemo_alone_restores_a_model_with_a_card_and_finds_the_card(written, found):
    _, card = written
    text = card.read_text(encoding="utf-8")
    assert "| ü_$ {x} | 1 |" in text
    assert found[str(card.with_suffix(".nemo"))]["card"] == text
    assert [path for path, entry in found.items() if "card" in entry] == [str(card.with_suffix(".nemo"))]


def test_a_student_file_names_no_class_of_ours_and_no_path_of_this_machine(shared_pair, tokenizer_dir, tmp_path):
    path = save_model(shared_pair("shared_kd", ADDITIVE).student_model(), tmp_path / "student.nemo")
    with tarfile.open(path) as archive:
        member = next(name for name in archive.getnames() if name.endswith("model_config.yaml"))
        config = archive.extractfile(member).read().decode()
    assert "nemo_codert." not in config and "codert:" not in config
    assert str(tokenizer_dir) not in config and "nemo_codert_tokenizer_" not in config
    assert "nemo_codert_version:" in config


def test_no_member_of_a_student_file_names_the_folder_its_tokenizer_was_made_in(make_model, tmp_path):
    """sentencepiece writes its input and output paths into the model it trains, and NeMo leaves them there."""
    workshop = tmp_path / "workshop"
    workshop.mkdir()
    (workshop / "texts.txt").write_text("\n".join(SENTENCES))
    create_spt_model(str(workshop / "texts.txt"), 32, -1, False, tokenizer_type="bpe", output_dir=str(workshop))
    assert str(workshop).encode() in (workshop / "tokenizer.model").read_bytes()
    pair = make_model("shared_kd", ADDITIVE, tokenizer={"dir": str(workshop)})
    path = save_model(pair.student_model(), tmp_path / "student.nemo")
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    assert len(members) == 5  # config, weights and three tokenizer files
    for name, content in members.items():
        assert str(tmp_path).encode() not in content, name
    restored = open_model(path).tokenizer
    assert [restored.text_to_ids(text) for text in SENTENCES] == [pair.tokenizer.text_to_ids(t) for t in SENTENCES]
