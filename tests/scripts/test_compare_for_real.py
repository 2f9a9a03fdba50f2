"""One real comparison of two updates: a teacher, a lone student and a static one, trained, tested and compared."""

import csv
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
import soundfile
import yaml

from tests.compare.comparison_corpora import WORDS, write_corpus
from tests.conftest import REPOSITORY, SAMPLE_RATE, tone

TINY = [
    "trainer.val_check_interval=2",
    "model.train_ds.batch_size=4",
    "model.model_defaults.enc_hidden=16",
    "model.model_defaults.pred_hidden=16",
    *(f"model.{name}.{key}=1" for name in ("encoder", "student.encoder") for key in ("n_layers", "n_heads")),
    *(f"model.{name}.d_model=16" for name in ("encoder", "student.encoder")),
    *(f"model.{name}.subsampling_conv_channels=8" for name in ("encoder", "student.encoder")),
]


@pytest.fixture
def spoken_corpus(tmp_path) -> Path:
    """Twelve tones that are called digits, and a tokenizer of these words."""
    from nemo_codert.data.tokenizer import train_tokenizer

    folder = write_corpus(tmp_path / "my data", speakers={"test": ["ann"]}, utterances=12)
    for path in folder.glob("*.json"):
        for place, line in enumerate(path.read_text().splitlines()):
            audio = folder / json.loads(line)["audio_filepath"]
            audio.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, tone(3.0, seed=place), SAMPLE_RATE)
    train_tokenizer([" ".join(WORDS)] * 4, folder / "tokenizer", vocab_size=24)
    return folder


def stock_config(path: Path) -> dict:
    with tarfile.open(path) as file:
        (member,) = [name for name in file.getnames() if name.endswith("model_config.yaml")]
        return yaml.safe_load(file.extractfile(member))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_lone_student_and_a_static_one_are_really_trained_tested_and_compared(
    spoken_corpus, tmp_path, preloaded_python
):
    folder = tmp_path / "a comparison"
    arguments = ["--data-dir", str(spoken_corpus), "--output-dir", str(folder), "--strategies", "student", "static"]
    command = [preloaded_python, str(REPOSITORY / "scripts" / "compare_strategies.py"), *arguments]
    command += ["--seeds", "7", "--max-steps", "2", "--jobs", "2", "--", *TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "2 updates a run" in (folder / "table.md").read_text() and "too few words" in done.stdout
    teacher, student, static = sorted(
        rows(folder), key=lambda r: ["teacher", "student", "static"].index(r["strategy"])
    )
    assert {row["updates"] for row in (teacher, student, static)} == {"2"}
    assert student["student_parameters"] == static["student_parameters"] != ""
    assert teacher["teacher_parameters"] == static["teacher_parameters"] != ""
    assert static["student_test_words"] == "60" and teacher["student_test_words"] == ""
    runs = {name: folder / "cells" / "all" / "seed7" / name / "run" for name in ("teacher", "student", "static")}
    assert {path.name for path in runs["static"].glob("*.nemo")} == {"pair.nemo", "student.nemo"}
    assert not (runs["static"] / "checkpoints").exists()
    # The static student's teacher is the lone one: same weights, so the same texts.
    texts = [
        [
            json.loads(line)["pred_text"]
            for line in (runs[name] / "predictions/teacher/test.json").read_text().splitlines()
        ]
        for name in ("teacher", "static")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 12
    summary = json.loads((runs["static"] / "predictions" / "student" / "test_summary.json").read_text())
    assert summary["updates"] == 2 and summary["threads"] == 1 and summary["sets"][0]["words"] == 60
    for path in (runs["static"] / "student.nemo", runs["student"] / "student.nemo", runs["teacher"] / "teacher.nemo"):
        assert "test_ds" not in stock_config(path), path
    assert yaml.safe_load((runs["static"] / "config.yaml").read_text())["model"]["test_ds"]["manifest_filepath"] == [
        str(spoken_corpus / "test.json")
    ]
