"""`codert latency` on tiny models: what it prints, and what it refuses."""

import json
import re
from functools import partial

import pytest
import torch


@pytest.fixture
def run(run_command):
    """The command, by its arguments."""
    return partial(run_command, "latency")


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory):
    """Files of a pair with a streaming student, of both its branches as stock models, and of a lone model with
    another tokenizer."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.data.tokenizer import train_tokenizer
    from nemo_codert.export.stock_file import save_model
    from nemo_codert.models import EncDecCoDERTBPEModel, student_config
    from tests.conftest import SENTENCES, conformer

    folder = tmp_path_factory.mktemp("models")
    streaming = {"causal_downsampling": True, "att_context_style": "chunked_limited", "conv_context_size": "causal"}
    cfg = make_config("tandem_kd", student={**conformer(), **streaming, "att_context_size": [6, 1]})
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(cfg)
    files = {"pair": save_model(pair, folder / "pair.nemo")}
    files["student"] = save_model(pair.student_model(), folder / "student.nemo")
    files["teacher"] = save_model(pair.teacher_model(), folder / "teacher.nemo")
    (folder / "tokenizer").mkdir()
    train_tokenizer(SENTENCES, folder / "tokenizer", vocab_size=28)
    cfg.tokenizer.dir = str(folder / "tokenizer")
    files["stranger"] = save_model(EncDecRNNTBPEModel(student_config(cfg)), folder / "stranger.nemo")
    return files


def figures(text: str) -> list[list[str]]:
    """The rows of figures, without the manifests' names."""
    return [line.split()[1:] for line in text.splitlines() if line.startswith(("manifest.json ", "empty.json "))]


def test_a_pair_and_its_two_models_apart_give_the_same_delays(run, models, manifest):
    status, text, _ = run("--model", models["pair"], "--manifest", manifest)
    assert status == 0
    assert "pair.nemo: delay against its teacher, frames of 40 ms (student) and 40 ms (teacher)" in text
    assert re.search(r"^manifest +tokens +mean ms +median ms +p90 ms$", text, re.MULTILINE)
    (row,) = figures(text)
    assert int(row[0]) > 8 and float(row[2]) <= float(row[3])
    apart = run("--model", models["student"], "--teacher", models["teacher"], "--manifest", manifest)
    of_pair = run("--model", models["student"], "--teacher", models["pair"], "--manifest", manifest)
    assert figures(apart[1]) == figures(of_pair[1]) == [row]


def test_several_models_and_manifests_get_a_table_each(run, models, manifest, tmp_path):
    line = json.loads(manifest.read_text().splitlines()[0])
    (tmp_path / "empty.json").write_text(json.dumps({**line, "text": ""}) + "\n")
    given = ["--model", models["student"], "--model", models["teacher"], "--teacher", models["teacher"]]
    status, text, errors = run(*given, "--manifest", manifest, "--manifest", tmp_path / "empty.json")
    assert status == 0 and text.count("delay against") == 2
    rows = figures(text)
    assert rows[1] == rows[3] == ["0", "n/a", "n/a", "n/a"]
    assert rows[2][1:] == ["0", "0", "0"]  # a teacher against itself
    assert "empty.json has transcripts that cannot be aligned (empty transcript: 1)" in errors


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "student"], r"student\.nemo is a single RNN-T, not a pair: name the teacher .* with --teacher"),
        (["--model", "pair", "--teacher", "teacher"], r"pair\.nemo: a teacher is given, but the model is a pair"),
        (["--model", "stranger", "--teacher", "teacher"], "the teacher has 32 word pieces, the student 28"),
        (["--model", "absent.nemo"], r"--model is absent\.nemo: no such file"),
        (["--model", "student", "--teacher", "absent.nemo"], r"--teacher is absent\.nemo: no such file"),
        (["--model", "pair", "--batch-size", "0"], "--batch-size is 0, wanted 1 or more"),
        (["--model", "pair", "--manifest", "absent.json"], r"absent\.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, models, manifest, options, words):
    given = [models.get(word, word) for word in options]
    status, text, errors = run(*given, "--manifest", manifest)
    assert status == 2 and not text
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")] or [""]
    assert re.search(words, errors[errors.index("error: ") :]) and line


def test_a_model_is_asked_for(run, manifest):
    status, _, errors = run("--manifest", manifest)
    assert status == 2 and "--model" in errors
