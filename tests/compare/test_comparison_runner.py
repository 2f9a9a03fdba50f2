"""The estimate of a comparison's time, and files that are written whole."""

import time
from pathlib import Path

import pytest

from nemo_codert.compare.plan import Cell, write_whole
from nemo_codert.compare.runner import Runner

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("running, waiting, left", [(0, 0, 0), (0, 1, 60), (1, 0, 60), (1, 1, 60), (0, 4, 120)])
def test_time_left_counts_no_more_trainings_at_a_time_than_there_are_cells(running, waiting, left):
    runner = Runner(settings=None, data_dir=Path(), folder=Path(), trainer=[], jobs=2, keep_models=True, lock=0)
    runner._seconds = {"student": [60.0]}
    runner._running = {Cell("all", "student", seed): (None, time.monotonic()) for seed in range(running)}
    cells = [Cell("all", "student", 10 + seed) for seed in range(waiting)]
    assert runner._left(cells) == pytest.approx(left, abs=0.5)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    write_whole(tmp_path / "table.md", "old")

    def fails(source: Path, target: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "table.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"


def test_two_writers_of_one_file_have_a_temporary_one_each(tmp_path, monkeypatch):
    used = []
    written = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: used.append(self) or written(self, content))
    for text in ("one", "two"):
        write_whole(tmp_path / "table.md", text)
    assert len(set(used)) == 2 and (tmp_path / "table.md").read_text() == "two"
