"""Cost and dev WER of the trainings of a comparison: kept for each run, handed on, and shown in a table and a plot."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_codert.compare.plan import Cell
from nemo_codert.compare.report import write_comparison_report
from nemo_codert.compare.results import (
    CURVES_FILE,
    RUNS_FILE,
    Results,
    finish_cell,
    read_cells,
    read_result_files,
    restore_cells,
    write_results,
)
from nemo_codert.compare.tables import ErrorCounts, training_tables
from tests.compare.test_comparison_report import results_of, settings_of, written_run

pytestmark = pytest.mark.unit

CURVES = {
    "student": [(5, 0.8), (10, 0.5), (15, 0.4), (20, 0.38)],
    "teacher": [(5, 0.9), (10, 0.3), (15, 0.2), (20, 0.1)],
}


def with_curves(results: Results, cpu_seconds: float | None = 90.0) -> Results:
    runs = [
        replace(run, cpu_seconds=cpu_seconds, dev_wers={branch: CURVES[branch] for branch in run.parameters})
        for run in results.runs
    ]
    return replace(results, runs=runs)


def test_a_finished_cell_keeps_the_wer_of_every_validation_of_both_branches(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    settings, cell = settings_of(), Cell("all", "tandem_kd", 1)
    folder = tmp_path / cell.folder
    for branch in ("student", "teacher"):
        written_run(folder, branch, ["one"], corpus=tmp_path / "data")
    with writer(str(folder / "run")) as events:
        for step, student, teacher in ((9, 0.5, 0.25), (19, 0.25, 0.125)):
            events.add_scalar("val_wer", student, step)
            events.add_scalar("val_wer_teacher", teacher, step)
    finish_cell(settings, cell, folder, tmp_path / "data", 12.34, cpu_seconds=21.26)
    (run,) = read_cells(settings, tmp_path).runs
    assert run.cpu_seconds == 21.3
    assert run.dev_wers == {"student": [(10, 0.5), (20, 0.25)], "teacher": [(10, 0.25), (20, 0.125)]}


@pytest.mark.parametrize("strategy, branch", [("student", "student"), ("teacher", "teacher")])
def test_the_one_model_of_a_run_is_its_val_wer(strategy, branch, tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    settings, cell = settings_of(["student", "teacher"]), Cell("all", strategy, 1)
    written_run(tmp_path / cell.folder, branch, ["one"], corpus=tmp_path / "data")
    with writer(str(tmp_path / cell.folder / "run")) as events:
        events.add_scalar("val_wer", 0.5, 19)
    finish_cell(settings, cell, tmp_path / cell.folder, tmp_path / "data", 12.34)
    (run,) = read_cells(settings, tmp_path).runs
    assert run.dev_wers == {branch: [(20, 0.5)]} and run.cpu_seconds is None


def test_curves_and_costs_are_handed_on(tmp_path):
    settings = settings_of(["teacher", "student", "tandem_kd"], folds=["ann", "bob"])
    results = with_curves(results_of(settings))
    write_results(settings, results, tmp_path)
    assert read_result_files(settings, tmp_path) == results
    rows = list(csv.DictReader((tmp_path / CURVES_FILE).open()))
    assert len(rows) == 4 * 2 * 2 * (1 + 1 + 2) and rows[0]["dev_wer"] == "0.900000"
    assert restore_cells(settings, tmp_path) == len(results.runs)
    assert read_cells(settings, tmp_path).runs == results.runs


def test_a_comparison_without_them_has_neither_column_nor_file(tmp_path):
    settings = settings_of()
    write_results(settings, results_of(settings), tmp_path)
    assert "cpu_seconds" not in (tmp_path / RUNS_FILE).read_text() and not (tmp_path / CURVES_FILE).exists()
    assert training_tables(settings, ErrorCounts(results_of(settings))) == []


def test_a_broken_file_of_curves_is_named(tmp_path):
    settings = settings_of()
    write_results(settings, with_curves(results_of(settings)), tmp_path)
    path = tmp_path / CURVES_FILE
    path.write_text(path.read_text().replace("0.800000", "none"))
    with pytest.raises(ValueError, match=r"holds a broken dev_wer\.csv"):
        read_result_files(settings, tmp_path)


def test_a_table_shows_cost_best_wer_and_whether_the_end_was_flat():
    settings = settings_of(["teacher", "student", "static"])
    results = with_curves(results_of(settings))
    (table,) = training_tables(settings, ErrorCounts(results))
    assert [*table.rows] == [
        ("teacher", "teacher", "2", "1.5", "10.00%", "-50.0%"),
        ("student", "student", "2", "1.5", "38.00%", "-5.0%"),
        ("static", "student", "2", "1.5 + 1.5", "38.00%", "-5.0%"),  # its teacher's training beside its own
        ("static", "teacher", "2", "1.5 + 1.5", "10.00%", "-50.0%"),
    ]


def test_the_report_draws_the_dev_wer_of_every_strategy(tmp_path: Path):
    settings = settings_of(["student", "tandem_kd"])
    write_comparison_report(settings, with_curves(results_of(settings)), tmp_path, "student")
    assert (tmp_path / "dev_wer.png").read_bytes().startswith(b"\x89PNG")
    assert "## Trainings" in (tmp_path / "table.md").read_text()
    write_comparison_report(settings, results_of(settings), tmp_path, "student")
    assert not (tmp_path / "dev_wer.png").exists()
