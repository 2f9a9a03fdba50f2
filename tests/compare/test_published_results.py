"""The tables of docs/study/*.md, and the intervals of docs/results.md, follow from what is kept in docs/study.

Kept are predictions, dev WERs and entropies.

python scripts/compare_strategies.py --output-dir docs/study/NAME --report-only
"""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest

from nemo_codert.compare.plan import read_settings
from nemo_codert.compare.report import write_comparison_report
from nemo_codert.compare.results import PREDICTIONS_FILE, RUNS_FILE, read_result_files
from nemo_codert.evaluation.bootstrap import PairedErrors, relative_reduction
from nemo_codert.evaluation.word_errors import word_errors
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

KEPT = REPOSITORY / "docs" / "study"
SUMMARY = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
RESULTS = SUMMARY + "".join(path.read_text(encoding="utf-8") for path in sorted(KEPT.glob("*.md")))
STUDIES = sorted(str(path.parent.relative_to(KEPT)) for path in KEPT.rglob("comparison.json"))
BASELINES = {"many_speakers/tenth": "student@tenth"}  # of the others: student
WITH_TRAININGS = ("many_speakers/", "digits_tdt")  # the dev_wer.csv of an older study is another file


def test_there_is_a_study():
    assert STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_its_table_is_recomputed_from_its_predictions(name, tmp_path):
    of_trainings = ["dev_wer.csv"] if name.startswith(WITH_TRAININGS) else []
    for file in ("comparison.json", RUNS_FILE, PREDICTIONS_FILE, *of_trainings):
        shutil.copy(KEPT / name / file, tmp_path / file)
    settings, against = read_settings(tmp_path), BASELINES.get(name, "student")
    write_comparison_report(settings, read_result_files(settings, tmp_path), tmp_path, against=against)
    assert (tmp_path / "table.md").read_bytes() == (KEPT / name / "table.md").read_bytes()


def tables(text: str, title: str) -> dict[str, list[str]]:
    """Lines of every table by the title above it, which the pattern `title` finds."""
    found = re.findall(rf"^{title}\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    return {name: lines.splitlines() for name, lines in found}


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_shown_for_it_are_rows_of_its_own_in_their_order(name):
    kept = tables((KEPT / name / "table.md").read_text(encoding="utf-8"), r"## (.+)")
    shown = tables(section(name), r"\*\*(.+)\*\*")
    assert shown and sum(map(len, shown.values())) == section(name).count("\n|")
    for title, lines in shown.items():
        assert lines == [line for line in kept[title] if line in lines], title


def test_every_strategy_and_test_set_of_the_study_is_shown():
    kept = tables((KEPT / "fsdd" / "table.md").read_text(encoding="utf-8"), r"## (.+)")
    pooled = {title: lines for title, lines in kept.items() if re.fullmatch(r"\w+, 5 folds together", title)}
    shown = tables(section("fsdd"), r"\*\*(.+)\*\*")
    assert len(pooled) == 4 and {title: shown[title] for title in pooled} == pooled


def section(name: str) -> str:
    """Text of the pages between the marks of a study."""
    found = re.search(f"<!-- study {name} -->(.*?)<!-- end of study -->", RESULTS, re.DOTALL)
    assert found, f"no page of the results has <!-- study {name} -->"
    return found[1]


def cells_of(name: str) -> list[list[str]]:
    """Cells of the table of a section, without header and rule."""
    lines = [line for line in section(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def kept_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tuning_shown_is_the_best_dev_wer_of_every_run():
    """tuning.csv: a row a run, with the errors of every validation."""
    best: dict[str, list[str]] = {}
    for row in kept_rows(KEPT / "tuning.csv"):
        errors = min(int(count) for count in row["dev_errors"].split())
        best.setdefault(row["run"], []).append(f"{errors / int(row['dev_words']):.1%}")
    means = {run: f"{fmean(float(wer[:-1]) for wer in wers):.1f}%" for run, wers in best.items()}
    assert cells_of("tuning") == [[run, ", ".join(wers), means[run]] for run, wers in best.items()]


def test_the_runs_on_a_tenth_of_the_labels_are_recomputed_from_their_texts():
    with gzip.open(KEPT / "words_tenth" / PREDICTIONS_FILE, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    errors = {
        run: [word_errors(line["text"], line["hypotheses"][run]).errors for line in lines]
        for run in lines[0]["hypotheses"]
    }
    words, speakers = [len(line["text"].split()) for line in lines], [line["speaker"] for line in lines]
    rows = []
    for run, counts in errors.items():
        row = [f"`{run}`", f"{sum(counts) / sum(words):.2%}", ""]
        if run != "student":
            found = relative_reduction([PairedErrors([counts], [errors["student"]], words, speakers)])
            row[2] = f"{found.value:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
        rows.append(row)
    assert [[cells[0], *cells[2:]] for cells in cells_of("words_tenth")] == rows


def test_the_dev_wers_of_the_words_are_those_that_are_kept():
    """dev_wer.csv: a row a run, the student's dev WER of every validation."""
    rows = kept_rows(KEPT / "words" / "dev_wer.csv")
    steps = [cell for cell in rows[0] if cell.isdigit() and int(cell) % 500 == 0]
    shown = [[row["run"], *(f"{float(row[step]):.1%}" for step in steps)] for row in rows]
    assert cells_of("words_dev") == shown


def test_the_pilot_of_the_protocol_is_recomputed_from_its_trials():
    """trials.csv: a row a trial, with the dev WER of every validation; the protocol shows those on varied data."""
    rows = [row for row in kept_rows(KEPT / "trials.csv") if row["data"] == "varied"]
    shown = []
    for row in rows:
        wers = {
            int(step) + 1: float(wer) for step, wer in zip(row["steps"].split(), row["dev_wer"].split(), strict=True)
        }
        early = f"{wers[750]:.1%}" if 750 in wers else ""
        last = max(wers)
        cells = [f"`{row['run']}`", f"{last:,}", early, f"{wers[last]:.1%}", f"{min(wers.values()):.1%}"]
        shown.append(f"| {' | '.join([*cells, row['cpu_minutes']])} |".replace("|  |", "| |"))
    text = (KEPT / "protocol.md").read_text(encoding="utf-8").replace("|  |", "| |")
    assert shown and [line for line in text.splitlines() if line.startswith("| `")][-len(shown) :] == shown


def test_the_speed_of_tdt_students_shown_is_what_was_measured():
    """speed.csv: a row a model, the real-time factor of codert evaluate by batch size."""
    factors = {row.pop("strategy"): list(map(float, row.values())) for row in kept_rows(KEPT / "digits_tdt/speed.csv")}
    assert cells_of("speed") == [[name, *(f"{value:.4f}" for value in row)] for name, row in factors.items()]
    saved = [1 - own / other for own, other in zip(factors["student"], factors["student@rnnt"], strict=True)]
    assert f"saves {saved[0]:.0%} (batches of 16) and {saved[1]:.0%} (one at a time)" in " ".join(SUMMARY.split())


def test_the_entropies_shown_are_those_that_were_measured():
    rows = kept_rows(KEPT / "entropy" / "measures.csv")
    measured = {(row["branch"], row["logits"], row["view"]): row for row in rows}
    columns = {"entropy": "entropy_mean", "median entropy": "entropy_median", "blank mass": "blank_mass"}
    columns["entropy among pieces"] = "piece_entropy_mean"
    views = {"all frames": "all", "frames that emit a token": "non-blank"}
    shown = cells_of("entropy")
    assert len(shown) == 12
    for name, encoder, joint, ratio in shown:
        branch, measure, view = name.split(", ")
        values = [float(measured[branch, logits, views[view]][columns[measure]]) for logits in ("encoder", "joint")]
        assert [f"{value:.3f}" for value in values] == [encoder, joint], name
        assert f"{values[0] / values[1]:.2f}" == ratio, name


def test_the_agreement_shown_over_the_training_is_what_was_measured():
    rows = kept_rows(KEPT / "entropy" / "agreement_over_training.csv")
    formatted = [
        [row["step"], f"{float(row['top1_agreement']):.1%}", f"{float(row['kl_nats_per_frame']):.3f}"] for row in rows
    ]
    assert len(rows) == 6 and cells_of("agreement") == formatted
    assert {row["frames"] for row in rows} == {"1480"} and "(1480 frames)" in RESULTS


def test_the_numbers_between_the_tables_are_kept_too():
    (agreement,) = kept_rows(KEPT / "entropy" / "agreement.csv")
    nodes = kept_rows(KEPT / "entropy" / "measures.csv")[4]["rows"]
    text = " ".join(RESULTS.split())
    assert f"{agreement['frames']} frames" in text and f"the {nodes} nodes" in text
    assert f"{float(agreement['top1_agreement']):.1%} of the frames" in text
    assert f"a divergence of {float(agreement['kl_nats_per_frame']):.3f} nats" in text
    rows = kept_rows(KEPT / "tuning.csv")
    static, student, tandem = (
        int(row["dev_errors"].split()[1]) / int(row["dev_words"])
        for run in ("`static`, weight 0.1", "lone student", "`tandem_kd`, weight 0.1")
        for row in rows
        if row["run"] == run and row["seed"] == "0"
    )
    assert f"has {static:.0%} WER on dev, the lone one {student:.0%}, the one of `tandem_kd` {tandem:.0%}" in text


@pytest.mark.parametrize("name", STUDIES)
def test_it_names_no_folder_of_a_machine(name):
    assert kept_rows(KEPT / name / RUNS_FILE)
    for path in (KEPT / name).iterdir():
        if path.suffix in (".json", ".csv", ".md", ".html"):
            assert not re.search(r"(?<![\w.$}])/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), path


def test_every_interval_of_the_summary_is_one_of_the_page_that_it_names():
    rows = [line for line in SUMMARY.splitlines() if line.startswith("| ") and "](" in line]
    found = 0
    for row in rows:
        page = re.search(r"\]\(([\w/]+\.md)", row)[1]
        text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        for interval in re.findall(r"[-+]\d+\.\d% \[[^]]+\]", row):
            assert interval in text, (page, interval)
            found += 1
    assert found >= 5
