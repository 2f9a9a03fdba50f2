"""Results of a comparison: kept, handed on, read back, and the tables, plots and page made of them."""

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_codert.compare.folds import Fold
from nemo_codert.compare.plan import Cell, Settings, plan, write_whole
from nemo_codert.compare.report import write_comparison_report
from nemo_codert.compare.results import (
    PREDICTIONS_FILE,
    RUNS_FILE,
    Results,
    Run,
    Transcripts,
    finish_cell,
    is_finished,
    merged,
    read_cells,
    read_result_files,
    source_hash,
    system_name,
    write_results,
)
from nemo_codert.compare.tables import (
    ErrorCounts,
    description,
    explanation,
    label,
    pair_tables,
    score_tables,
    scores,
    verdicts,
)

pytestmark = pytest.mark.unit

REFERENCE = "one two three four five"
# Words of five that each system gets right.
RIGHT = {"student": 3, "tandem_kd": 4, "shared_kd": 3, "static": 1, "teacher": 5}
FILES = {"results.csv", "predictions.jsonl.gz", "table.md", "wer.png", "reduction.png", "report.html"}


FROZEN = {"train": "pair", "model.codert.teacher": "frozen"}


def settings_of(strategies=("student", "tandem_kd"), seeds=(0, 1), folds=("all",), sets=("test_seen",)) -> Settings:
    hashes = {"train.json": "0" * 64}
    return Settings(
        config_name="fsdd",
        overrides=["model.optim.lr=0.5"],
        strategy_overrides={},
        threads=1,
        max_steps=20,
        strategies=list(strategies),
        seeds=list(seeds),
        folds={name: Fold("." if name == "all" else name, list(sets), hashes) for name in folds},
        config={"seed": 0, "model.optim.lr": 0.5},
        changes={name: FROZEN if name == "static" else {} for name in strategies},
        versions={"torch": "1.2.3"},
    )


def branches_of(strategy: str) -> list[str]:
    return {"student": ["student"], "teacher": ["teacher"]}.get(strategy, ["student", "teacher"])


def results_of(
    settings: Settings, cells: list[Cell] | None = None, utterances: int = 24, speakers=("ann",)
) -> Results:
    """Every system gets the first few words of every utterance right and says no more."""
    cells = plan(settings) if cells is None else cells
    cells = sorted(cells, key=lambda c: (list(settings.folds).index(c.fold), settings.strategies.index(c.strategy)))
    runs = [
        Run(
            cell,
            20,
            60.0,
            {branch: {"student": 400, "teacher": 2200}[branch] for branch in branches_of(cell.strategy)},
        )
        for cell in cells
    ]
    transcripts = []
    for fold in dict.fromkeys(cell.fold for cell in cells):
        for name in settings.test_sets:
            systems = {
                system_name(cell, branch): RIGHT["teacher" if branch == "teacher" else cell.strategy]
                for cell in cells
                for branch in branches_of(cell.strategy)
                if cell.fold == fold
            }
            transcripts.append(
                Transcripts(
                    fold=fold,
                    name=name,
                    ids=[f"{place:03d}.wav" for place in range(utterances)],
                    speakers=[speakers[place % len(speakers)] for place in range(utterances)],
                    references=[REFERENCE] * utterances,
                    hypotheses={
                        name: [" ".join(REFERENCE.split()[:right])] * utterances for name, right in systems.items()
                    },
                )
            )
    return Results(runs, transcripts)


# ---- a cell --------------------------------------------------------------------------------------------------------


def written_run(folder: Path, branch: str, texts: list[str], *, corpus: Path, updates: int = 20, **keys) -> None:
    """The predictions that scripts/train.py leaves."""
    root = folder / "run" / "predictions" / branch
    root.mkdir(parents=True)
    lines = [
        {
            "audio_filepath": str(corpus / f"audio/{i}.wav"),
            "duration": 1.0,
            "text": REFERENCE,
            "pred_text": text,
            **keys,
        }
        for i, text in enumerate(texts)
    ]
    (root / "test_seen.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {"updates": updates, "trained_parameters": 400, "device": "cpu", "decoding": "greedy_batch"}
    (root / "test_seen_summary.json").write_text(json.dumps(about))


def test_a_teacher_of_which_the_encoder_alone_is_loaded_has_no_text_to_test(tmp_path):
    settings, cell = settings_of(), Cell("all", "static", 1)
    folder, corpus = tmp_path / cell.folder, tmp_path / "data"
    written_run(folder, "student", ["one", "two"], corpus=corpus, speaker=7)
    near = "{at: hidden, by: mse, layers: {1: 1}}"
    codert = f"{{teacher: frozen, share_decoder: false, distillation: {{near: {near}}}}}"
    (folder / "run" / "config.yaml").write_text(f"model: {{codert: {codert}}}\n")
    finish_cell(settings, cell, folder, corpus, 12.34)
    assert is_finished(cell, tmp_path)


def test_a_cell_is_finished_with_names_that_no_machine_is_in(tmp_path):
    settings, cell = settings_of(), Cell("all", "tandem_kd", 1)
    folder, corpus = tmp_path / cell.folder, tmp_path / "data"
    written_run(folder, "student", ["one", "two"], corpus=corpus, speaker=7)
    with pytest.raises(ValueError, match="seed 1, tandem_kd: the run left no predictions of its teacher"):
        finish_cell(settings, cell, folder, corpus, 12.34)
    written_run(folder, "teacher", [REFERENCE, "three"], corpus=corpus, speaker=7)
    assert not is_finished(cell, tmp_path)
    finish_cell(settings, cell, folder, corpus, 12.34)
    assert is_finished(cell, tmp_path)
    assert str(tmp_path) not in (folder / "result.json").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["device"] == {"student": "cpu", "teacher": "cpu"}
    assert result["decoding"] == {"student": "greedy_batch", "teacher": "greedy_batch"}
    older = {key: value for key, value in result.items() if key not in ("device", "decoding")}
    (folder / "result.json").write_text(json.dumps(older))
    results = read_cells(settings, tmp_path)
    assert results.runs == [Run(cell, 20, 12.3, {"student": 400, "teacher": 400})]
    (part,) = results.transcripts
    assert (part.ids, part.speakers, part.references) == (["audio/0.wav", "audio/1.wav"], ["7", "7"], [REFERENCE] * 2)
    assert part.hypotheses == {"tandem_kd/1/student": ["one", "two"], "tandem_kd/1/teacher": [REFERENCE, "three"]}


@pytest.mark.parametrize("speaker, name", [(0, "0"), ("", ""), (None, ""), ("ann", "ann")])
def test_a_speaker_may_be_number_zero(speaker, name, tmp_path):
    settings, cell = settings_of(), Cell("all", "student", 0)
    written_run(tmp_path / cell.folder, "student", ["one"], corpus=tmp_path / "data", speaker=speaker)
    finish_cell(settings, cell, tmp_path / cell.folder, tmp_path / "data", 1.0)
    assert read_cells(settings, tmp_path).transcripts[0].speakers == [name]


def test_utterances_of_a_linked_data_folder_are_named_relative_to_it(tmp_path):
    settings, cell = settings_of(), Cell("all", "student", 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    written_run(tmp_path / cell.folder, "student", ["one"], corpus=tmp_path / "data")
    finish_cell(settings, cell, tmp_path / cell.folder, tmp_path / "data", 1.0)
    assert read_cells(settings, tmp_path).transcripts[0].ids == ["audio/0.wav"]


@pytest.mark.parametrize(
    "keys, ids",
    [
        ({}, ["audio/0.wav", "audio/1.wav"]),
        ({"offset": 1.5}, ["audio/0.wav@1.5", "audio/1.wav@1.5"]),
        ({"audio_filepath": "/elsewhere/same.wav"}, ["same.wav#1", "same.wav#2"]),
    ],
)
def test_utterances_are_told_apart(keys, ids, tmp_path):
    settings, cell = settings_of(), Cell("all", "student", 0)
    written_run(tmp_path / cell.folder, "student", ["one", "two"], corpus=tmp_path / "data", **keys)
    finish_cell(settings, cell, tmp_path / cell.folder, tmp_path / "data", 1.0)
    assert read_cells(settings, tmp_path).transcripts[0].ids == ids


def test_a_cell_keeps_the_hash_of_the_code_that_trained_it_and_an_older_one_is_read_without(tmp_path):
    settings, cell = settings_of(), Cell("all", "student", 0)
    written_run(tmp_path / cell.folder, "student", ["one", "two"], corpus=tmp_path / "data")
    finish_cell(settings, cell, tmp_path / cell.folder, tmp_path / "data", 1.0, source_hash())
    assert [run.code for run in read_cells(settings, tmp_path).runs] == [source_hash()]
    path = tmp_path / cell.folder / "result.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "code_sha256"}))
    assert [run.code for run in read_cells(settings, tmp_path).runs] == [""]


def test_the_hash_of_the_code_tells_names_and_contents_of_the_package_and_nothing_else(tmp_path):
    package = tmp_path / "nemo_codert"
    for name in ("a.py", "losses/b.py", "training/run.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("pass\n")
    before = source_hash(package)
    for name in ("nemo_codert/notes.txt", "other.py"):
        (tmp_path / name).write_text("new\n")
    assert source_hash(package) == before == source_hash(package) and len(before) == 64
    seen = {before}
    for change in (
        lambda: (package / "a.py").rename(package / "c.py"),
        lambda: (package / "losses" / "b.py").write_text("1\n"),
        lambda: (package / "training" / "run.py").write_text("2\n"),
    ):
        change()
        seen.add(source_hash(package))
    assert len(seen) == 4


def test_a_run_of_fewer_updates_or_without_predictions_finishes_no_cell(tmp_path):
    settings, cell = settings_of(), Cell("all", "student", 0)
    folder = tmp_path / cell.folder
    with pytest.raises(ValueError, match="all, seed 0, student: the run left no predictions"):
        finish_cell(settings, cell, folder, tmp_path, 1.0)
    written_run(folder, "student", ["one"], corpus=tmp_path, updates=19)
    with pytest.raises(ValueError, match="student had 19 updates, not 20"):
        finish_cell(settings, cell, folder, tmp_path, 1.0)
    assert not is_finished(cell, tmp_path)


def changed(part: Transcripts, change: str) -> Transcripts:
    return {
        "reference": replace(part, references=[*part.references[:3], "another", *part.references[4:]]),
        "id": replace(part, ids=[*part.ids[:3], "other.wav", *part.ids[4:]]),
        "fewer": replace(part, **{key: getattr(part, key)[:3] for key in ("ids", "speakers", "references")}),
    }[change]


@pytest.mark.parametrize("change", ["reference", "id", "fewer"])
def test_systems_that_heard_other_utterances_are_not_compared(change):
    part = results_of(settings_of()).transcripts[0]
    one, two = (replace(part, hypotheses={name: part.hypotheses[name]}) for name in list(part.hypotheses)[:2])
    assert merged(one, two).hypotheses.keys() == {*one.hypotheses, *two.hypotheses}
    with pytest.raises(ValueError, match="test_seen of fold all is not the same for student/0/student and") as caught:
        merged(one, changed(two, change))
    assert "utterance 4 is ('003.wav', 'one two three four five')" in str(caught.value)
    assert {"reference": "another", "id": "other.wav", "fewer": "nothing"}[change] in str(caught.value)


# ---- files that are handed on --------------------------------------------------------------------------------------


def test_results_are_one_row_a_run_with_errors_of_every_test_set(tmp_path):
    settings = settings_of(["teacher", "student", "tandem_kd"], folds=["ann", "bob"], sets=["test", "test_far"])
    write_results(settings, results_of(settings), tmp_path)
    with (tmp_path / RUNS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and len({(row["fold"], row["strategy"], row["seed"]) for row in rows}) == 12
    row = next(row for row in rows if row["strategy"] == "tandem_kd")
    assert (row["updates"], row["wall_seconds"]) == ("20", "60.0")
    assert (row["student_parameters"], row["teacher_parameters"]) == ("400", "2200")
    for name in settings.test_sets:
        counts = [row[f"student_{name}_{count}"] for count in ("words", "substitutions", "insertions", "deletions")]
        assert counts == ["120", "0", "0", "24"] and row[f"student_{name}_wer"] == "0.200000"
        assert row[f"teacher_{name}_wer"] == "0.000000"
    lone = next(row for row in rows if row["strategy"] == "student")
    assert lone["teacher_parameters"] == lone["teacher_test_wer"] == ""


def test_what_is_handed_on_is_read_back_and_gives_the_same_bytes(tmp_path):
    settings = settings_of(["teacher", "student", "tandem_kd"], folds=["ann", "bob"])
    results, folders = results_of(settings), [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    write_results(settings, results, folders[0])
    write_comparison_report(settings, results, folders[0], "student")
    again = read_result_files(settings, folders[0])
    assert again == results
    write_results(settings, again, folders[1])
    write_comparison_report(settings, again, folders[1], "student")
    assert {path.name for path in folders[0].iterdir()} == FILES
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert gzip.open(folders[0] / PREDICTIONS_FILE).readline().startswith(b'{"fold": "ann", "set": "test_seen", "id"')


@pytest.mark.parametrize(
    "codes, line",
    [
        ([""], None),
        (["a"], None),
        (["a", "b"], "Cells were trained by 2 versions of the code."),
        (["a", "", "b", "c"], "Cells were trained by 3 versions of the code, 1 of 4 by an unknown one."),
        (["a", ""], "Cells were trained by 1 version of the code, 2 of 4 by an unknown one."),
    ],
)
def test_cells_of_different_code_are_told_and_handed_on(codes, line, tmp_path):
    settings = settings_of()
    results = results_of(settings)
    runs = [replace(run, code=codes[place % len(codes)]) for place, run in enumerate(results.runs)]
    results = replace(results, runs=runs)
    assert [text for text in description(settings, ErrorCounts(results)) if "code" in text] == [line] * bool(line)
    write_results(settings, results, tmp_path)
    assert ("code_sha256" in (tmp_path / RUNS_FILE).read_text()) == (codes != [""])
    assert read_result_files(settings, tmp_path) == results


def rewrite(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = change((folder / RUNS_FILE).read_text().splitlines())
    (folder / RUNS_FILE).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / RUNS_FILE).unlink(), "holds no results.csv"),
        (lambda folder: (folder / PREDICTIONS_FILE).unlink(), "holds no predictions.jsonl.gz"),
        (lambda folder: (folder / PREDICTIONS_FILE).write_bytes(b"nothing"), "holds a broken"),
        (lambda folder: (folder / RUNS_FILE).write_text("fold\nall\n"), "holds a broken"),
        (
            lambda folder: write_whole(folder / RUNS_FILE, (folder / RUNS_FILE).read_text().replace("0.4", "0.3")),
            "student_test_seen_wer of all, seed 0, student is 0.300000 in results.csv but 0.400000",
        ),
        (
            lambda folder: write_whole(
                folder / RUNS_FILE, (folder / RUNS_FILE).read_text().replace("tandem", "static")
            ),
            "has no row for tandem_kd/0/student of fold all",
        ),
        (
            lambda folder: rewrite(folder, lambda lines: [line.rpartition(",")[0] for line in lines]),
            "_wer of all, seed",
        ),
        (lambda folder: rewrite(folder, lambda lines: lines[:-1]), "no row for tandem_kd/1/student of fold all"),
        (lambda folder: rewrite(folder, lambda lines: [*lines, lines[1]]), "results.csv has two rows of all, seed 0"),
        (
            lambda folder: rewrite(folder, lambda lines: [line.replace(",20,", ",40,", 1) for line in lines]),
            "results.csv has 40 updates of all, seed 0, student, the comparison 20",
        ),
    ],
)
def test_files_that_are_missing_broken_or_not_of_one_comparison_are_refused(spoil, message, tmp_path):
    settings = settings_of()
    write_results(settings, results_of(settings), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_result_files(settings, tmp_path)


# ---- tables --------------------------------------------------------------------------------------------------------


def tables_of(settings: Settings, results: Results, against: str = "student", *, each_fold: bool = False):
    counts = ErrorCounts(results)
    found = scores(settings, counts, against)
    return score_tables(settings, found, against, each_fold=each_fold), found


def test_a_table_says_who_is_better_by_how_much_and_on_how_many_words():
    settings = settings_of(["teacher", "student", "tandem_kd", "shared_kd", "static"])
    (table,), _ = tables_of(settings, results_of(settings))
    assert table.title == "test_seen" and table.header[4] == "relative reduction against student"
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows)[:4] == ["student", "tandem_kd", "shared_kd", "static"]
    assert rows["student"] == ("2", "400", "40.00% ± 0.00", "", "", "120", "1")
    assert rows["tandem_kd"] == ("2", "400", "20.00% ± 0.00", "+50.0% [+50.0%, +50.0%]", "better", "120", "1")
    assert rows["shared_kd"][3:5] == ("+0.0% [+0.0%, +0.0%]", "no difference shown")
    assert rows["static"][3:5] == ("-100.0% [-100.0%, -100.0%]", "worse")
    assert rows["teacher alone"] == ("2", "2,200", "0.00% ± 0.00", "", "", "120", "1")
    assert rows["static: its teacher"][:1] == ("2",)
    assert "| tandem_kd | 2 | 400 | 20.00% ± 0.00 | +50.0% [+50.0%, +50.0%] | better | 120 | 1 |" in table.markdown()


def test_trainings_count_where_every_fold_has_seeds_of_its_own(tmp_path):
    settings = replace(settings_of(["student", "tandem_kd"]), own_seeds=True)
    counts = ErrorCounts(results_of(settings), settings.own_seeds)
    found = scores(settings, counts, "student")
    trainings = len(settings.seeds) * len(settings.folds)
    assert {score.reduction.seeds for score in found if score.reduction and score.fold is None} == {trainings}
    write_comparison_report(settings, results_of(settings), tmp_path, "student")
    text = (tmp_path / "table.md").read_text()
    assert "every fold with seeds of its own" in text and "trainings, of any fold, are drawn" in text


def test_a_teacher_alone_is_compared_with_nobody(tmp_path):
    settings = settings_of(["teacher"])
    (table,), _ = tables_of(settings, results_of(settings), "teacher")
    assert table.header == ("strategy", "runs", "parameters", "WER, mean ± sd", "words", "speakers")
    assert table.rows == [("teacher alone", "2", "2,200", "0.00% ± 0.00", "120", "1")]
    assert "reduction against" not in write_comparison_report(settings, results_of(settings), tmp_path, "teacher")


def test_any_strategy_can_be_compared_with_and_all_pairs_are():
    settings = settings_of(["student", "tandem_kd", "shared_kd"])
    results = results_of(settings)
    (table,), _ = tables_of(settings, results, "tandem_kd")
    rows = {row[0]: row for row in table.rows}
    assert rows["student"][4:6] == ("-100.0% [-100.0%, -100.0%]", "worse") and rows["tandem_kd"][5] == ""
    (pairs,) = pair_tables(settings, ErrorCounts(results))
    assert [row[:2] for row in pairs.rows] == [
        ("tandem_kd", "student"),
        ("shared_kd", "student"),
        ("shared_kd", "tandem_kd"),
    ]
    assert [row[4] for row in pairs.rows] == ["better", "no difference shown", "worse"]
    two = settings_of(["student", "tandem_kd"])
    assert pair_tables(two, ErrorCounts(results_of(two))) == []


def test_folds_are_shown_together_and_each():
    settings = settings_of(folds=["ann", "bob", "eve"])
    results = results_of(settings)
    (together,), found = tables_of(settings, results)
    each, _ = tables_of(settings, results, each_fold=True)
    assert together.title == "test_seen, 3 folds together"
    assert [table.title for table in each] == [f"test_seen, fold {name}" for name in settings.folds]
    assert {row[0]: (row[1], row[6]) for row in together.rows}["tandem_kd"] == ("6", "360")
    assert {row[0]: (row[1], row[6]) for row in each[0].rows}["tandem_kd"] == ("2", "120")
    assert len(found) == 4 * 3


def test_only_seeds_that_both_have_in_all_folds_are_compared():
    settings = settings_of(seeds=[0, 1, 2], folds=["ann", "bob"])
    late = [Cell("bob", "tandem_kd", 2), Cell("ann", "student", 1)]
    results = results_of(settings, [cell for cell in plan(settings) if cell not in late])
    (table,), found = tables_of(settings, results)
    student, distilled, _ = (score for score in found if score.fold is None)
    assert (student.seeds, distilled.seeds, distilled.paired_seeds) == ([0, 2], [0, 1], [0])
    assert distilled.reduction.seeds == 1
    assert table.rows[1][4] == "+50.0% [+50.0%, +50.0%], one seed"
    assert any(note.startswith("`one seed`: the interval is over recordings only") for note in explanation(found))
    of_ann = next(score for score in found if (score.fold, score.strategy) == ("ann", "tandem_kd"))
    assert of_ann.seeds == [0, 1, 2] and of_ann.paired_seeds == [0, 2]


def test_what_a_table_rests_on_is_said_where_it_is_little():
    def notes(seeds: int, speakers: int) -> str:
        settings = settings_of(seeds=range(seeds))
        names = [f"s{i}" for i in range(speakers)]
        return "\n".join(explanation(tables_of(settings, results_of(settings, speakers=names))[1]))

    assert "fewer than 5 seeds" in notes(3, 6) and "speakers is" not in notes(3, 6)
    assert "fewer than 5 speakers" in notes(6, 3) and "5 seeds" not in notes(6, 3)
    assert "one speaker, or over recordings of unnamed" in notes(6, 1)
    assert not any(text in notes(5, 5) for text in ("fewer than 5", "one speaker", "`one seed`"))


def test_unnamed_speakers_are_not_counted():
    settings = settings_of()
    (table,), found = tables_of(settings, results_of(settings, speakers=[""]))
    assert {row[7] for row in table.rows} == {"?"} and found[0].speakers == 0


def test_too_few_words_are_no_verdict():
    settings = settings_of()
    (table,), _ = tables_of(settings, results_of(settings, utterances=19))
    assert table.rows[1][5:] == ("too few words", "95", "1")


def test_without_a_run_of_the_other_strategy_there_is_a_rate_and_no_verdict(tmp_path):
    settings = settings_of()
    results = results_of(settings, [cell for cell in plan(settings) if cell.strategy == "tandem_kd"])
    write_comparison_report(settings, results, tmp_path, "student")
    assert "| tandem_kd | 2 | 400 | 20.00% ± 0.00 |  |  | 120 | 1 |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "reduction.png").exists() and (tmp_path / "wer.png").is_file()


def test_a_plot_without_anything_in_it_is_not_left_from_an_earlier_report(tmp_path):
    settings = settings_of(folds=["ann", "bob"])
    write_comparison_report(settings, results_of(settings), tmp_path, "student")
    assert (tmp_path / "reduction.png").is_file() and (tmp_path / "wer.png").is_file()
    only_ann = results_of(settings, [cell for cell in plan(settings, ["student"]) if cell.fold == "ann"])
    write_comparison_report(settings, only_ann, tmp_path, "student")
    assert not list(tmp_path.glob("*.png")) and "fold ann" in (tmp_path / "table.md").read_text()


# ---- report --------------------------------------------------------------------------------------------------------


def test_a_report_holds_tables_plots_settings_and_commands_in_one_file(tmp_path):
    settings = replace(settings_of(["teacher", "student", "static"], folds=["ann", "bob"]), overrides=["+a='<b>'"])
    shown = write_comparison_report(settings, results_of(settings), tmp_path, "student")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and 'src="http' not in page
    assert page.count("<table>") == 3 and '<td class="worse">worse</td>' in page
    assert page.count("python -m nemo_codert.cli.train") == len(plan(settings)) == 12
    assert "$OUTPUT/cells/ann/seed0/teacher/run/teacher.nemo" in page and "torch 1.2.3" in page
    assert "<b>'" not in page and "&lt;b&gt;" in page
    text = (tmp_path / "table.md").read_text()
    assert "12 of 12 runs finished" in text and "## How to read this" in text
    assert "2 folds together" in shown and "fold ann" not in shown and "fold ann" in text
    for name in ("wer.png", "reduction.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_plot_shows_every_seed_and_every_interval(tmp_path, monkeypatch):
    from nemo_codert.compare import plots as comparison_plots

    kept = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: kept.append(figure) or path)
    settings = settings_of(["student", "tandem_kd", "static"], folds=["ann", "bob"], sets=["test", "test_far"])
    _, found = tables_of(settings, results_of(settings))
    comparison_plots.plot_wers(found, tmp_path / "wer.png")
    comparison_plots.plot_reductions(found, "student", tmp_path / "reduction.png")
    wers, reductions = kept
    assert [axis.get_title() for axis in wers.axes] == ["test", "test_far"]
    for axis in (*wers.axes, *reductions.axes):
        low, high = axis.get_xlim()
        assert all(low <= x <= high for line in axis.lines for x in line.get_xdata()), "drawn outside of its axes"
    assert len({axis.get_xlim() for axis in wers.axes}) == 1
    dots, bar = wers.axes[0].lines[2:4]  # of the second row
    labels = [text.get_text() for text in wers.axes[0].get_yticklabels()]
    assert labels == [label(score) for score in found if (score.test_set, score.fold) == ("test", None)]
    assert labels[1] == "tandem_kd" and list(dots.get_xdata()) == pytest.approx([20, 20])
    assert list(bar.get_xdata()) == pytest.approx([20, 20]) and list(bar.get_ydata()) == [0.7, 1.3]
    lines = reductions.axes[0].lines
    assert len(lines) == 2 * 2 * 3 + 1  # interval and point of two strategies, together and of two folds; and zero
    assert list(lines[0].get_xdata()) == pytest.approx([50, 50]) and list(lines[1].get_xdata()) == pytest.approx([50])


def test_the_first_sentences_name_who_is_better_where_and_by_how_much(tmp_path):
    settings = settings_of(["student", "tandem_kd", "shared_kd", "static"], sets=("test", "test_far"))
    _, found = tables_of(settings, results_of(settings))
    first, second = verdicts(found, "student")
    assert first == (
        "On test fewer word errors than student: tandem_kd by 50.0% (95% interval +50.0% to +50.0%); "
        "no difference to student is shown: shared_kd; "
        "more word errors than student: static by 100.0% (95% interval -100.0% to -100.0%)."
    )
    assert second == first.replace("On test ", "On test_far ")
    write_comparison_report(settings, results_of(settings), tmp_path, "student")
    page = (tmp_path / "report.html").read_text()
    assert (
        page.index(first) < page.index("<table>")
        and page.count(f'{first} {second}" ') + page.count(f'{second}">') == 2
    )


def test_without_a_comparison_the_page_begins_with_that(tmp_path):
    settings = settings_of(["student"])
    assert verdicts(tables_of(settings, results_of(settings))[1], "student") == []
    write_comparison_report(settings, results_of(settings), tmp_path, "student")
    assert "No strategy can be compared with student yet." in (tmp_path / "report.html").read_text()
