"""The studies kept in docs/study: every number of their tables follows from the predictions kept beside them.

python scripts/compare_strategies.py --output-dir docs/study/NAME --report-only
"""

import csv
import re
import shutil
from pathlib import Path

import pytest

from nemo_codert.analysis.comparison_plan import read_settings
from nemo_codert.analysis.comparison_report import write_report
from nemo_codert.analysis.comparison_results import PREDICTIONS_FILE, RUNS_FILE, read_results
from tests.conftest import REPOSITORY

RESULTS = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
STUDIES = sorted(path.parent for path in (REPOSITORY / "docs" / "study").glob("*/comparison.json"))
TABLE_ROW = re.compile(r"^\| (?!---).*%.*\|$", re.MULTILINE)


def test_there_is_a_study():
    assert STUDIES


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_its_table_is_recomputed_from_its_predictions(study, tmp_path):
    for name in ("comparison.json", RUNS_FILE, PREDICTIONS_FILE):
        shutil.copy(study / name, tmp_path / name)
    settings = read_settings(tmp_path)
    write_report(settings, read_results(settings, tmp_path), tmp_path, against="student")
    assert (tmp_path / "table.md").read_bytes() == (study / "table.md").read_bytes()


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_the_rows_shown_for_it_are_those_of_its_table(study):
    rows = set(TABLE_ROW.findall((study / "table.md").read_text(encoding="utf-8")))
    shown = TABLE_ROW.findall(section(study))
    assert shown and set(shown) <= rows


def section(study: Path) -> str:
    """What docs/results.md says between the marks of a study."""
    found = re.search(f"<!-- study {study.name} -->(.*?)<!-- end of study -->", RESULTS, re.DOTALL)
    assert found, f"docs/results.md has no <!-- study {study.name} -->"
    return found[1]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_it_names_no_folder_of_a_machine(study):
    with (study / RUNS_FILE).open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file))
    for path in study.iterdir():
        if path.suffix in (".json", ".csv", ".md", ".html"):
            assert not re.search(r"(?<![\w.$}])/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), path
