"""`codert evaluate` with several models: side by side, each one's memory measured in a process of its own."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from nemo_codert.benchmark.model_sizes import distinct_names, peak_memory_of
from tests.conftest import conformer


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory) -> dict[str, Path]:
    """Files of a student and of a teacher forty times its size, 25 MB in float32."""
    from nemo_codert.export.stock_file import save_model
    from nemo_codert.models import EncDecCoDERTBPEModel

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(make_config("tandem_kd", teacher=conformer(layers=4, channels=320)))
    return {
        "pair": save_model(pair, folder / "pair.nemo"),
        "student": save_model(pair.student_model(), folder / "small" / "model.nemo"),
        "teacher": save_model(pair.teacher_model(), folder / "large" / "model.nemo"),
    }


@pytest.fixture
def evaluate(run_command, manifest):
    """The command on the fixture's manifest."""
    return partial(run_command, "evaluate", "--manifest", manifest)


def parameters_of(path: Path) -> int:
    from nemo_codert.export.stock_file import load_model

    return sum(parameter.numel() for parameter in load_model(path).parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded_spawn")
def test_models_stand_side_by_side_with_size_speed_and_memory(evaluate, models, tmp_path):
    output = tmp_path / "said.json"
    status, text, errors = evaluate("--model", models["teacher"], "--model", models["student"], "--output", output)
    assert status == 0, errors
    names = ["said_large_model", "said_small_model"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        name for stem in names for name in (f"{stem}.json", f"{stem}_summary.json")
    ]
    large, small = (json.loads((tmp_path / f"{name}_summary.json").read_text()) for name in names)
    table = text.split("Side by side")[1]
    for name, summary in (("teacher", large), ("student", small)):
        assert summary["file_bytes"] == models[name].stat().st_size
        assert summary["parameters"] == parameters_of(models[name])
        row = next(line for line in table.splitlines() if summary["model"].split("/")[-2] in line)
        for cell in (f"{summary['parameters']:,}", f"{summary['file_bytes'] / 1e6:.2f} MB"):
            assert cell in row
        assert f"{summary['sets'][0]['wer']:.2%}" in row
        assert f"{summary['peak_memory_bytes'] / 1e6:.0f} MB" in row
        assert summary["peak_memory_bytes"] > 4 * summary["parameters"]  # its weights at least
    assert large["peak_memory_bytes"] > small["peak_memory_bytes"] + 2 * large["parameters"]


def test_one_model_is_measured_on_request_only(evaluate, models, monkeypatch):
    asked = []

    def peak(model, entries, **options):
        asked.append((model, len(entries), options))

    monkeypatch.setattr("nemo_codert.benchmark.model_sizes.peak_memory_of", peak)
    arguments = ["--model", models["pair"], "--branch", "teacher", "--batch-size", "3"]
    status, text, _ = evaluate(*arguments)
    assert status == 0 and "Side by side" not in text and not asked
    status, text, _ = evaluate(*arguments, "--sizes")
    assert status == 0 and "Side by side" in text and "n/a" in text  # the stub measured nothing
    options = {"branch": "teacher", "decoding": None, "batch_size": 3, "device": "cpu"}
    if not torch.cuda.is_available():
        assert asked == [(models["pair"], 8, options)]


def test_the_longest_utterances_make_the_batch_that_is_measured(monkeypatch):
    cases = []
    monkeypatch.setattr("nemo_codert.benchmark.model_sizes.peak_memory_in_own_process", cases.append)
    entries = [{"audio_filepath": f"{i}.wav", "duration": seconds} for i, seconds in enumerate([3.0, 1.0, 2.0])]
    options = {"branch": "student", "decoding": "beam", "batch_size": 2, "device": "cpu"}
    assert peak_memory_of(Path("m.nemo"), entries, **options) is None
    assert sorted(entry["duration"] for entry in cases[0].entries) == [2.0, 3.0] and cases[0].decoding == "beam"


def test_models_are_called_by_as_much_of_their_paths_as_tells_them_apart():
    assert distinct_names([Path("a/teacher.nemo"), Path("b/student.nemo")]) == ["teacher", "student"]
    assert distinct_names([Path("a/s.nemo"), Path("b/s.nemo")]) == ["a/s", "b/s"]
    with pytest.raises(ValueError, match="a file is given twice"):
        distinct_names([Path("a/s.nemo"), Path("a/../a/s.nemo")])


def test_a_faulty_model_is_told_before_the_first_one_transcribes(evaluate, models, tmp_path, monkeypatch):
    (tmp_path / "broken.nemo").write_text("no archive")
    monkeypatch.setattr("nemo_codert.evaluation.transcribe.evaluate", lambda *_, **__: pytest.fail("transcribed"))
    for other, message in ((tmp_path / "broken.nemo", "broken.nemo cannot be restored"), ("absent.nemo", "no such")):
        status, text, errors = evaluate("--model", models["student"], "--model", other)
        assert status == 2 and message in errors and text == ""
