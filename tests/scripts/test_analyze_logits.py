"""`codert analyze` on tiny models: what it writes, and what it refuses."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
CLASSES = 33  # 32 word pieces and the blank


@pytest.fixture
def run(run_command):
    """The command, by its arguments."""
    return partial(run_command, "analyze")


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory):
    """Files of a pair, of the same pair with equal logits, of its student as a stock model, and of a lone model with
    an additive joint and another frame rate."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.export.stock_file import save_model
    from nemo_codert.models import EncDecCoDERTBPEModel, student_config
    from tests.conftest import conformer

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(make_config("tandem_kd", ADDITIVE))
    files = {"pair": save_model(pair, folder / "pair.nemo")}
    files["student"] = save_model(pair.student_model(), folder / "student.nemo")
    slow = make_config("tandem_kd", ADDITIVE, teacher=conformer(subsampling=8), student=conformer(subsampling=8))
    files["slow"] = save_model(EncDecRNNTBPEModel(student_config(slow)), folder / "lone_student.nemo")
    with torch.no_grad():
        for joint in (pair.joint, pair.student_joint):
            for layer in (joint.enc, joint.pred):
                layer.weight.zero_(), layer.bias.zero_()
    files["equal"] = save_model(pair, folder / "equal.nemo")
    return files


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sequence_of_pairs_is_measured_and_the_last_one_shown(run, models, manifest, tmp_path):
    output = tmp_path / "new" / "out"
    given = ["--model", models["pair"], "--model", models["equal"], "--manifest", manifest, "--output-dir", output]
    status, text, _ = run(*given, "--utterances", "1", "--max-utterances", "4", "--top-k", "3")
    assert status == 0
    names = ["agreement.csv", "agreement.png", "confusions.csv", "entropy.png", "frames.csv", "measures.csv"]
    assert sorted(path.name for path in output.iterdir()) == [*names, "report.html", "utterance_000_0.png"]
    rows = rows_of(output / "measures.csv")
    assert [Path(row["model"]).name for row in rows] == ["pair.nemo"] * 16 + ["equal.nemo"] * 16
    assert all(0 < float(row["entropy_mean"]) < math.log(CLASSES) for row in rows[:16])
    for row in rows[16:]:
        assert float(row["entropy_mean"]) == pytest.approx(math.log(CLASSES), abs=1e-12)
    agreements = rows_of(output / "agreement.csv")
    assert 0 < float(agreements[0]["kl_nats_per_frame"]) and float(agreements[1]["kl_nats_per_frame"]) == 0
    assert float(agreements[1]["top1_agreement"]) == 1
    assert float(agreements[0]["shift_apart"]) > 0 and float(agreements[1]["shift_apart"]) == 0
    assert "equal.nemo: teacher and student name the same class in 100.0% of " in text
    assert "nats a frame; with the prior in 100.0%, KL 0.000\n" in text
    assert f"Written to {output / 'report.html'}" in text
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "turn the light on" in page and page.count("<img ") == 3
    assert len(rows_of(output / "confusions.csv")) % 3 == 0


def test_a_lone_model_has_neither_teacher_nor_agreement(run, models, manifest, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    given = ["--model", models["student"], "--manifest", manifest, "--output-dir", output]
    status, text, _ = run(*given, "--utterances", "0", "--max-utterances", "2")
    assert status == 0 and "teacher" not in text
    assert {row["branch"] for row in rows_of(output / "measures.csv")} == {"model"}
    assert sorted(path.name for path in output.iterdir()) == [
        "confusions.csv",
        "entropy.png",
        "measures.csv",
        "report.html",
    ]


def test_transcripts_that_cannot_be_aligned_are_counted_in_the_output_and_on_the_page(run, models, manifest, tmp_path):
    texts = ["turn the light on", "", "  ", "turn 漢字 on", "on " * 60]
    audio = json.loads(manifest.read_text().splitlines()[0])
    lines = [{**audio, "text": text} for text in texts]
    given = tmp_path / "given.json"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--model", models["student"], "--manifest", given, "--output-dir", tmp_path / "out"]
    status, _, errors = run(*arguments, "--utterances", "0")
    counts = "empty transcript: 2, characters unknown to the tokenizer: 1, more tokens than encoder frames: 1"
    assert status == 0 and f"warning: 4 of 5 transcripts in {given} cannot be aligned" in errors and counts in errors
    assert counts in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    good = run("--model", models["student"], "--manifest", manifest, "--output-dir", tmp_path / "good")
    assert good[0] == 0 and "warning" not in good[2]
    assert 'class="warning"' not in (tmp_path / "good" / "report.html").read_text(encoding="utf-8")
    assert len([*(tmp_path / "good").glob("utterance_*.png")]) == 3  # where --utterances does not say how many


def test_a_student_is_compared_with_the_teacher_that_is_named(run, models, manifest, tmp_path):
    common = ["--manifest", manifest, "--utterances", "0", "--max-utterances", "2", "--output-dir"]
    assert run("--model", models["student"], "--teacher", models["pair"], *common, tmp_path / "apart")[0] == 0
    assert run("--model", models["pair"], *common, tmp_path / "pair")[0] == 0
    assert run("--model", models["pair"], "--branch", "teacher", *common, tmp_path / "teacher")[0] == 0
    apart, pair = (rows_of(tmp_path / name / "agreement.csv")[0] for name in ("apart", "pair"))
    assert float(apart["kl_nats_per_frame"]) == pytest.approx(float(pair["kl_nats_per_frame"]), rel=1e-4)
    assert not (tmp_path / "teacher" / "agreement.csv").exists()
    rows = {name: rows_of(tmp_path / name / "measures.csv") for name in ("pair", "teacher")}
    assert [row for row in rows["pair"] if row["branch"] == "teacher"] == rows["teacher"]


def test_a_folder_of_models_is_taken_in_order(run, models, manifest, tmp_path):
    for place, name in enumerate(("pair", "equal")):
        (tmp_path / f"step_{place}.nemo").symlink_to(models[name])
    given = ["--checkpoints", tmp_path, "--manifest", manifest, "--output-dir", tmp_path / "out"]
    status, _, _ = run(*given, "--utterances", "0", "--max-utterances", "1", "--branch", "student")
    assert status == 0
    rows = rows_of(tmp_path / "out" / "measures.csv")
    assert [Path(row["model"]).name for row in rows] == ["step_0.nemo"] * 8 + ["step_1.nemo"] * 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "absent.nemo"], "--model is absent.nemo: no such file"),
        (["--model", "BROKEN"], "broken.nemo cannot be restored as a NeMo model"),
        (["--model", "MANIFEST"], "empty.json is not a .nemo or .ckpt file"),
        (["--model", "PAIR", "--manifest", "absent.json"], "absent.json is not a file"),
        (["--model", "PAIR", "--manifest", "MANIFEST"], "empty.json is empty"),
        (["--model", "PAIR", "--manifest", "SILENT"], "gone.wav: audio file missing"),
        (["--model", "PAIR", "--utterances", "x", "y"], "no utterance is called x, y"),
        (["--model", "PAIR", "--max-utterances", "2", "--utterances", "7.wav"], "no utterance is called 7.wav: the 2"),
        (["--model", "PAIR", "--max-utterances", "0"], "--max-utterances is 0, wanted 1 or more"),
        (["--model", "PAIR", "--top-k", "21"], "--top-k is 21, wanted 20 or fewer"),
        (["--model", "PAIR", "--teacher", "SLOW"], "the model is a pair and has its own: leave the teacher out"),
        (["--model", "STUDENT", "--teacher", "absent.nemo"], "--teacher is absent.nemo: no such file"),
        (["--model", "STUDENT", "--teacher", "SLOW"], "one frame of the teacher is 80 ms, one of the student 40 ms"),
        (["--model", "STUDENT", "--branch", "teacher"], "this model is a single RNN-T, not a pair"),
        (["--model", "STUDENT", "--teacher", "PAIR", "--branch", "student"], "--teacher needs both"),
        (["--checkpoints", "FOLDER"], "has no .ckpt or .nemo file"),
        (["--model", "PAIR", "--output-dir", "FOLDER"], "is there already and not empty"),
    ],
)
def test_mistakes_end_in_one_message_and_leave_nothing(run, models, manifest, tmp_path, arguments, message):
    work = tmp_path / "given"
    work.mkdir()
    (work / "empty.json").write_text("\n")
    (work / "broken.nemo").write_text("no archive")
    silent = {"audio_filepath": "gone.wav", "duration": 1.0, "text": "a"}
    (work / "silent.json").write_text(json.dumps(silent) + "\n")
    (work / "folder").mkdir()
    (work / "folder" / "notes.txt").write_text("mine")
    names = {"BROKEN": work / "broken.nemo", "MANIFEST": work / "empty.json", "SILENT": work / "silent.json"}
    names |= {"PAIR": models["pair"], "STUDENT": models["student"], "SLOW": models["slow"], "FOLDER": work / "folder"}
    start = ["--manifest", manifest, "--output-dir", tmp_path / "new" / "out"]
    status, text, errors = run(*start, *[names.get(word, word) for word in arguments])
    assert status == 2 and message in errors and errors.startswith("error: ")
    assert "Traceback" not in errors and text == ""
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    assert [path.name for path in (work / "folder").iterdir()] == ["notes.txt"]


def test_one_source_of_models_has_to_be_given(run, models, manifest, tmp_path):
    start = ["--manifest", manifest, "--output-dir", tmp_path / "out"]
    assert run(*start)[0] == 2 and run(*start, "--model", "a", "--checkpoints", "b")[0] == 2
    assert list(tmp_path.iterdir()) == []
