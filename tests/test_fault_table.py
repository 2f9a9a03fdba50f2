"""The table of the reliability campaign holds what its tests recorded."""

import sys

import pytest

from tests.conftest import REPOSITORY
from tests.reliability import fault_table
from tests.reliability.fault_table import Campaign, Row

pytestmark = pytest.mark.unit


def test_rows_are_kept_apart_and_printed_with_their_sum(tmp_path, capsys, monkeypatch):
    Campaign(tmp_path).record("kill, random step", injected=3, survived=3, lost="nothing")
    Campaign(tmp_path, "one test").record("kill while writing", injected=1, survived=1, lost="nothing")
    Campaign(tmp_path, "another").record("kill while writing", injected=1, survived=0, lost="one step")
    assert Campaign(tmp_path).rows() == [
        Row("kill while writing", 2, 1, "one step; nothing"),
        Row("kill, random step", 3, 3, "nothing"),
    ]
    monkeypatch.setattr(sys, "argv", ["fault_table.py", str(tmp_path)])
    assert fault_table.main() == 1  # one was not survived
    printed = capsys.readouterr().out
    assert "| kill while writing | 2 | 1 | one step; nothing |" in printed and "| all | 5 | 4 | |" in printed
    assert (tmp_path / "table.md").read_text().strip() == printed.strip()


def test_an_empty_campaign_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fault_table.py", str(tmp_path)])
    assert fault_table.main() == 1
    assert "no test has recorded anything" in capsys.readouterr().out


def test_the_published_table_adds_up_and_has_at_least_twenty_kills():
    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    lines = text.split("<!-- campaign -->\n")[1].split("<!-- end -->")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == fault_table.COLUMNS
    rows = [Row(fault, int(injected), int(survived), lost) for fault, injected, survived, lost in cells[2:-1]]
    assert lines == fault_table.table(rows).splitlines()
    assert all(row.survived == row.injected for row in rows)
    assert sum(row.injected for row in rows if row.fault.startswith("SIGKILL")) >= 20
