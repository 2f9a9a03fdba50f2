"""scripts/compare_strategies.py on bad options, files and folders: what is refused, and that nothing is touched."""

import json
import shutil
from pathlib import Path

import pytest


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OTHER_SETTINGS = [
    (["--max-steps", "400"], "trainer.max_steps is 400, the folder has 2000"),
    (["--", "model.optim.lr=0.5"], "model.optim.lr is 0.5, the folder has"),
    (["--config-name", "quickstart", "--max-steps", "1800"], "config_name is 'quickstart', the folder has 'fsdd'"),
    (["--override", "tandem_kd:model.codert.distillation.weight=0.3"], "(of tandem_kd) is 0.3, the folder has 0.1"),
    (["--threads", "2"], "threads is 2, the folder has 1"),
]


def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(compare, starts, tmp_path):
    compare("--strategies", "student", "tandem_kd", "--seeds", "0")
    starts()
    before = snapshot(tmp_path / "out")
    for arguments, message in OTHER_SETTINGS:
        status, _, err = compare("--seeds", "0", *arguments)
        assert status == 2 and message in err and "or give another --output-dir" in err, arguments
        assert snapshot(tmp_path / "out") == before and starts() == [], arguments


def test_a_folder_with_other_data_is_refused(compare, tmp_path):
    compare("--strategies", "student", "--seeds", "0")
    with (tmp_path / "data" / "train.json").open("a") as file:
        file.write('{"audio_filepath": "more.wav", "duration": 1.0, "text": "one"}\n')
    status, _, err = compare("--seeds", "0")
    assert status == 2 and "sha256 of all/train.json is" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "two"], "--seeds has 'two', wanted numbers and ranges such as 0-4"),
        (["--seeds", "4-1"], "--seeds has '4-1'"),
        (["--jobs", "0"], "--jobs is 0, wanted 1 or more"),
        (["--threads", "0"], "--threads is 0"),
        (["--max-steps", "0"], "--max-steps is 0"),
        (["--folds", "ann"], "--folds names 'ann'"),
        (["--only", "shared"], "--only names 'shared', the comparison has student, tandem_kd, shared_kd"),
        (["--against", "tandem"], "--against is tandem, the comparison has student, tandem_kd, shared_kd"),
        (["--strategies", "static", "--against", "teacher"], "--against is teacher, which has no student to compare"),
        (["--override", "model.optim.lr=1"], "--override is 'model.optim.lr=1', wanted STRATEGY:KEY=VALUE"),
        (["--override", "shared:model.optim.lr=1"], "--override is for shared"),
        (["--", "model.optm.lr=1"], "cannot be composed"),
        (["--", "+model.use_cer=true"], "model.use_cer is true, but a comparison counts words: leave it out"),
        (["--", "seed=1"], "sets seed, which the comparison gives to every cell itself"),
        (["--data-dir", "absent"], "--data-dir is absent: neither it nor a folder in it holds a train.json"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(compare, starts, tmp_path, arguments, message):
    status, _, err = compare(*arguments)
    assert status == 2 and message in err and err.startswith("error: ") and "Traceback" not in err
    assert not (tmp_path / "out").exists() and starts() == []


def test_data_are_asked_for(run, tmp_path):
    status, _, err = run()
    assert status == 2 and "--data-dir is missing" in err and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(compare, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("kept")
    for call in (compare, lambda: run("--report-only")):
        status, _, err = call()
        assert status == 2 and "--output-dir" in err
        assert snapshot(tmp_path / "out") == {"thesis.tex": b"kept"}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("kept")
    for name in ("out", "out/below", "out/far/below"):
        status, _, err = compare("--output-dir", str(tmp_path / name))
        assert status == 2 and f"{tmp_path / 'out'} is a file, give a folder" in err and "Traceback" not in err
    assert (tmp_path / "out").read_text() == "kept"


def test_cells_that_heard_other_utterances_are_refused_by_name(compare, run, tmp_path):
    compare("--strategies", "student", "tandem_kd", "--seeds", "0")
    path = tmp_path / "out" / "cells" / "all" / "seed0" / "tandem_kd" / "result.json"
    result = json.loads(path.read_text())
    result["test_sets"][0]["references"][2] = "what was never said"
    path.write_text(json.dumps(result))
    before = (tmp_path / "out" / "table.md").read_bytes()
    status, _, err = run("--report-only")
    assert status == 2 and "utterance 3 is ('audio/test_seen/002.wav'" in err and "what was never said" in err
    assert (tmp_path / "out" / "table.md").read_bytes() == before


def test_a_broken_result_is_named_and_once_deleted_its_cell_is_trained_again(compare, run, starts, tmp_path):
    compare("--strategies", "student", "--seeds", "0")
    starts()
    path = tmp_path / "out" / "cells" / "all" / "seed0" / "student" / "result.json"
    for content in ("{}", "[]", '{"updates": 20', '{"updates": 1, "test_sets": [{"fold": "all"}]}', ""):
        path.write_text(content)
        before = snapshot(tmp_path / "out")
        for call in (compare, lambda: run("--report-only")):
            status, _, err = call()
            assert status == 2 and f"{path} is not the result of a cell" in err and "delete it" in err, content
            assert "Traceback" not in err and starts() == [], content
            lock = {"comparison.lock": before["comparison.lock"]}
            assert {**snapshot(tmp_path / "out"), **lock} == before, content
    path.unlink()
    assert compare("--seeds", "0")[0] == 0 and starts() == ["all/student/0"]


def test_reported_runs_whose_cells_are_gone_are_never_lost(compare, run, starts, tmp_path):
    compare("--strategies", "student", "tandem_kd")
    starts()
    shutil.rmtree(tmp_path / "out" / "cells/all/seed1")
    before = snapshot(tmp_path / "out")
    for call in (compare, lambda: compare("--seeds", "2"), lambda: run("--report-only")):
        status, _, err = call()
        assert status == 2 and "results.csv reports 2 runs whose cells are not here, first all, seed" in err
        assert "Copy cells/ back, or give another --output-dir" in err
        assert snapshot(tmp_path / "out") == before and starts() == []


def test_a_comparison_handed_on_in_pieces_or_mixed_is_refused_and_left_as_it_is(compare, starts, tmp_path):
    compare("--strategies", "student", "tandem_kd")
    starts()
    folder = tmp_path / "out"
    shutil.rmtree(folder / "cells")
    text = (folder / "results.csv").read_text()
    predictions = (folder / "predictions.jsonl.gz").read_bytes()

    def refused() -> None:
        before = snapshot(folder)
        status, _, err = compare("--seeds", "0-2")
        assert status == 2 and "results.csv" in err and "Traceback" not in err
        assert {**snapshot(folder), "comparison.lock": before["comparison.lock"]} == before and starts() == []

    (folder / "predictions.jsonl.gz").unlink()
    refused()
    (folder / "predictions.jsonl.gz").write_bytes(predictions)
    (folder / "results.csv").write_text(text.replace(",400,", ",40,", 1).replace("student,0", "student,7", 1))
    refused()  # results.csv of another


TRAINING_OPTIONS = [
    *(["--data-dir", "data"], ["--strategies", "student"], ["--seeds", "1"], ["--folds", "all"]),
    *(["--max-steps", "0"], ["--only", "student"], ["--override", "student:a=1"], ["KEY=VALUE"]),
]


def test_options_of_a_training_are_refused_where_only_the_report_is_written(compare, run, tmp_path):
    compare("--strategies", "student", "--seeds", "0")
    before = snapshot(tmp_path / "out")
    for arguments in TRAINING_OPTIONS:
        status, _, err = run("--report-only", *arguments)
        assert status == 2 and f"{arguments[0]} has no effect with --report-only" in err, arguments
        assert snapshot(tmp_path / "out") == before, arguments


def test_a_broken_results_file_is_an_error_without_a_traceback(compare, run, tmp_path):
    compare("--strategies", "student", "tandem_kd")
    path = tmp_path / "out" / "results.csv"
    path.write_text(path.read_text().replace("fold", "corpus", 1))
    for call in (compare, lambda: run("--report-only")):
        status, _, err = call()
        assert status == 2 and "holds a broken results.csv" in err and "Traceback" not in err


def test_settings_changed_by_hand_are_refused_by_key_without_a_traceback(compare, run, starts, tmp_path):
    compare("--strategies", "student", "--seeds", "0")
    starts()
    path = tmp_path / "out" / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "folds": {}, "seeds": "0"}))
    before = snapshot(tmp_path / "out")
    for call in (compare, lambda: run("--report-only")):
        status, _, err = call()
        assert status == 2 and f"{path} does not hold the settings" in err and "seeds: wanted one whole number" in err
        assert "Traceback" not in err and snapshot(tmp_path / "out") == before and starts() == []
