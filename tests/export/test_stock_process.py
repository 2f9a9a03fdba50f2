"""The exported student in a process that has NeMo and cannot import nemo_codert."""

import json
import subprocess
import sys
import tarfile

import pytest
import torch
from nemo.collections.asr.modules import RNNTJoint
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

from nemo_codert.export import load_model, save_model
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
print("RESULT" + json.dumps(found))
"""


@torch.no_grad()
def make_talkative(joint: RNNTJoint) -> None:
    """Untrained joints say nothing, or one piece for ever: let the last piece count for more."""
    joint.pred.weight.mul_(100)


@pytest.fixture(scope="module")
def wav(manifest):
    return json.loads(manifest.read_text().splitlines()[4])["audio_filepath"]


def test_students_transcribe_the_same_text_where_nemo_codert_cannot_be_imported(make_model, wav, tmp_path):
    expected = {}
    for name, joint, form in (
        ("additive", ADDITIVE, "auto"),
        ("narrow", ADDITIVE, "narrow"),
        ("stock", STOCK, "auto"),
    ):
        pair = make_model("shared_kd", joint)
        make_talkative(pair.student_joint)
        student = pair.student_model(form)
        (hypothesis,) = student.transcribe([wav], verbose=False)
        expected[str(save_model(student, tmp_path / f"{name}.nemo"))] = hypothesis.text
        save_model(pair, tmp_path / f"pair_{name}.nemo")
        restored = load_model(tmp_path / f"pair_{name}.nemo").student_model(form)
        again = save_model(restored, tmp_path / f"{name}_of_restored.nemo")
        expected[str(again)] = expected[str(tmp_path / f"{name}.nemo")]
    assert all(len(set(text)) > 3 for text in expected.values()), expected
    assert expected[str(tmp_path / "narrow.nemo")] == expected[str(tmp_path / "additive.nemo")]

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, wav, *expected], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("RESULT")[1])
    assert {path: entry["text"] for path, entry in found.items()} == expected
    for entry in found.values():
        assert entry["class"].startswith("nemo.") and entry["joint"].startswith("nemo.")
        assert not [key for key in entry["keys"] if "teacher" in key or "student" in key]
        assert {key.split(".")[0] for key in entry["keys"]} == {"preprocessor", "encoder", "decoder", "joint"}


def test_a_student_file_names_no_class_of_ours_and_no_path_of_this_machine(make_model, tokenizer_dir, tmp_path):
    path = save_model(make_model("shared_kd", ADDITIVE).student_model(), tmp_path / "student.nemo")
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
    restored = load_model(path).tokenizer
    assert [restored.text_to_ids(text) for text in SENTENCES] == [pair.tokenizer.text_to_ids(t) for t in SENTENCES]
