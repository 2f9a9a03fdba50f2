"""`codert export --push` against a hub on this machine: nothing outside of it is reached."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard, constants
from nemo.core.classes.mixins.hf_io_mixin import HuggingFaceFileIO

from nemo_codert.cli import export as command
from nemo_codert.export.hub import UploadError, push_to_hub
from nemo_codert.export.stock_file import save_model
from tests.conftest import REPOSITORY, SAMPLE_RATE
from tests.export.local_hub import TOKEN, LocalHub, local_hub

NAME = "some-org/tiny-student"
RESTORE = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nemo_codert":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocker())
import numpy, torch
from nemo.collections.asr.models import ASRModel

model = ASRModel.from_pretrained("{NAME}", map_location="cpu")
model.transcribe([numpy.zeros({SAMPLE_RATE}, dtype=numpy.float32)], verbose=False)
torch.save(model.state_dict(), sys.argv[1])
print("CLASS", type(model).__module__, type(model.joint).__module__, len(model.cfg.model_card))
"""


@pytest.fixture(scope="module")
def pair_file(make_config, tmp_path_factory):
    from nemo_codert.models import EncDecCoDERTBPEModel

    return save_model(EncDecCoDERTBPEModel(make_config("shared_kd")), tmp_path_factory.mktemp("pair") / "pair.nemo")


@pytest.fixture
def hub(monkeypatch) -> LocalHub:
    """A hub that this process reaches, with a token for it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)  # would change the whole process
    with local_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        yield served


def process(code: str, hub: LocalHub, folder, *arguments: str) -> str:
    """Run Python code in a process of its own that has the hub's address in its environment; returns its output."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    own |= {"HF_HOME": str(folder / "hf"), "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_hub_has_the_file_that_was_written_and_stock_nemo_restores_it_by_its_name(pair_file, tmp_path):
    import torch
    from nemo.collections.asr.models import ASRModel

    push = "import sys; from nemo_codert.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["export", "--model", str(pair_file), "--output", "student.nemo", "--license", "cc-by-4.0"]
    with local_hub() as hub:
        out = process(push, hub, tmp_path, *arguments, "--language", "en", "--push", NAME)
        assert out.endswith(f"\n{hub.endpoint}/{NAME}\n")
        uploaded = dict(hub.repositories[NAME])
        restored = process(RESTORE, hub, tmp_path, "weights.pt").rpartition("CLASS ")[2].split()
    assert uploaded.keys() == {"tiny-student.nemo", "README.md"}
    assert uploaded["tiny-student.nemo"] == (tmp_path / "student.nemo").read_bytes()
    card = (tmp_path / "student.md").read_text(encoding="utf-8")
    assert uploaded["README.md"].decode() == card
    assert ASRModel.restore_from(str(tmp_path / "student.nemo"), return_config=True).model_card == card
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["license"], data["language"]) == ("nemo", "cc-by-4.0", ["en"])
    assert data["pipeline_tag"] == "automatic-speech-recognition" and "CoDERT" in data["tags"]
    assert f'ASRModel.from_pretrained("{NAME}").transcribe' in card and "\n# tiny-student\n" in card
    assert [name.split(".")[0] for name in restored[:2]] == ["nemo", "nemo"] and int(restored[2]) == len(card)
    here = ASRModel.restore_from(str(tmp_path / "student.nemo"), map_location="cpu").state_dict()
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert weights.keys() == here.keys() and all(torch.equal(weights[name], here[name]) for name in here)


@pytest.mark.parametrize(
    "place, status, known",
    [
        ("/api/repos/create", 500, "refused with 500"),
        ("/api/models/some-org/tiny-student/preupload", 403, "refused with 403"),
        ("/api/models/some-org/tiny-student/commit", 500, "refused with 500"),
    ],
)
def test_a_failed_upload_leaves_the_files_and_names_the_command(
    place, status, known, pair_file, hub, tmp_path, capsys
):
    hub.refuse[place] = status
    output = tmp_path / "my student.nemo"
    arguments = ["--model", str(pair_file), "--output", str(output), "--push", NAME]
    assert command.main(arguments) == 2
    said = capsys.readouterr()
    assert output.is_file() and f"{output}  " in said.out and f"{output.with_suffix('.md')}  model card" in said.out
    error = said.err.strip().splitlines()[-1]  # huggingface_hub shows a bar for each file
    assert error.startswith(f"error: {NAME} was not uploaded to {hub.endpoint}: ") and known in error
    again = error.rpartition("To try again: ")[2]
    assert again == f"codert export --model {pair_file} --output '{output}' --push {NAME}"
    assert not hub.repositories.get(NAME)
    hub.refuse.clear()
    assert command.main(arguments) == 0 and hub.repositories[NAME].keys() == {"tiny-student.nemo", "README.md"}


def test_a_hub_that_cannot_be_reached_or_refuses_the_token_is_named(hub, tmp_path, monkeypatch):
    model, card = tmp_path / "student.nemo", tmp_path / "student.md"
    model.write_bytes(b"a file"), card.write_text("---\nlicense: unknown\n---\n")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UploadError, match="401.* are complete, the upload alone is missing"):
        push_to_hub(model, card, NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UploadError, match="was not uploaded to http://127.0.0.1:9: .*[Cc]onnect"):
        push_to_hub(model, card, NAME)
    assert model.read_bytes() == b"a file"


def test_it_is_nemo_that_uploads(hub, tmp_path, monkeypatch):
    model, card = tmp_path / "student.nemo", tmp_path / "student.md"
    model.write_bytes(b"a file"), card.write_text("---\nlicense: unknown\n---\nä\n", encoding="utf-8")
    calls, upload = [], HuggingFaceFileIO.push_to_hf_hub
    monkeypatch.setattr(HuggingFaceFileIO, "push_to_hf_hub", lambda *a, **k: (calls.append(a[1]), upload(*a, **k))[1])
    assert push_to_hub(model, card, NAME) == f"{hub.endpoint}/{NAME}"
    assert calls == [NAME]
    assert hub.repositories[NAME] == {"tiny-student.nemo": b"a file", "README.md": card.read_bytes()}


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        (["--push", "student"], "--push is 'student', wanted ORG/NAME"),
        (["--push", "a/b/c"], "--push is 'a/b/c', wanted ORG/NAME"),
        (["--push", "/student"], "--push is '/student', wanted ORG/NAME"),
        (["--push", ""], "--push is '', wanted ORG/NAME"),
        (["--push", "some org/student"], "--push is 'some org/student', which is not a name at the hub: "),
        (["--push", NAME, "--format", "onnx"], "--push is for --format nemo, the format is onnx"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_anything_is_written(arguments, wanted, hub, tmp_path, capsys):
    (tmp_path / "pair.nemo").write_bytes(b"never read")
    output = tmp_path / ("student.onnx" if "onnx" in arguments else "student.nemo")
    assert command.main(["--model", str(tmp_path / "pair.nemo"), "--output", str(output), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {wanted}")
    assert [path.name for path in tmp_path.iterdir()] == ["pair.nemo"] and not hub.requests


def test_without_a_token_or_offline_the_remedy_is_named(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "pair.nemo").write_bytes(b"never read")
    arguments = ["--model", str(tmp_path / "pair.nemo"), "--output", str(tmp_path / "student.nemo"), "--push", NAME]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert "there is no token for the hub: run hf auth login" in said and "set HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert command.main(arguments) == 2
    assert "HF_HUB_OFFLINE is set: unset it to reach the hub" in capsys.readouterr().err
    assert not hub.requests


def test_a_refusal_imports_neither_torch_nor_nemo(tmp_path):
    (tmp_path / "pair.nemo").write_bytes(b"never read")
    code = (
        "import sys; from nemo_codert.cli.main import main\n"
        f"assert main(['export', '--model', 'pair.nemo', '--output', 'x.nemo', '--push', '{NAME}']) == 2\n"
        "assert not {'torch', 'nemo', 'numpy'} & set(sys.modules)"
    )
    home = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "0"}
    home.pop("HF_TOKEN", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=home, capture_output=True, text=True)
    assert done.returncode == 0 and "there is no token" in done.stderr, done.stderr
