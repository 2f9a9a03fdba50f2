"""A torn, a second, a marked or a missing last checkpoint neither stops a resume nor misleads it."""

import functools
from pathlib import Path

import pytest
import torch

from nemo_codert.training import last_checkpoint
from nemo_codert.training.last_checkpoint import prepare_resume

load = functools.partial(torch.load, map_location="cpu", weights_only=True)


def save(folder: Path, name: str, step: int, *, torn: bool = False, marked: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.ckpt"
    torch.save({"global_step": step, "weights": torch.randn(100)}, path)
    if torn:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if marked:
        (folder / f"{name}-unfinished").touch()
    return path


def choose(folder: Path) -> Path | None:
    chosen = prepare_resume(folder, load, is_writer=True)
    lasts = list(folder.rglob("*last.ckpt"))
    assert lasts == ([chosen] if chosen else []) and not list(folder.rglob("*-unfinished"))
    return chosen


def test_without_checkpoints_the_run_starts_anew(tmp_path):
    assert choose(tmp_path / "absent") is None
    save(tmp_path / "torn", "a-last", 3, torn=True, marked=True)
    assert choose(tmp_path / "torn") is None
    assert [path.name for path in (tmp_path / "torn").iterdir()] == ["a-last.ckpt.set_aside"]


def test_the_newest_whole_one_is_taken_and_the_others_are_kept_under_another_name(tmp_path, caplog):
    best = save(tmp_path, "a--val_wer=0.5000-epoch=0", 3)
    save(tmp_path, "a--val_wer=0.5000-epoch=0-last", 3)
    newest = save(tmp_path, "a--val_wer=0.4000-epoch=1-last", 5)
    save(tmp_path, "a--val_wer=0.3000-epoch=1-last", 6, torn=True)
    assert choose(tmp_path) == newest and best.exists()
    assert len(list(tmp_path.glob("*.set_aside"))) == 2
    reasons = [record.getMessage() for record in caplog.records]
    assert len(reasons) == 2 and any("it is torn" in r for r in reasons) and any(newest.name in r for r in reasons)


def test_a_whole_file_with_a_mark_is_used(tmp_path):
    path = save(tmp_path, "a-last", 4, marked=True)
    best = save(tmp_path, "a--val_wer=0.4000-epoch=1", 4, marked=True)
    assert choose(tmp_path) == path and best.exists()


def test_a_best_checkpoint_that_is_newer_becomes_the_last(tmp_path):
    save(tmp_path, "a--val_wer=0.5000-epoch=0-last", 3)
    best = save(tmp_path, "a--val_wer=0.4000-epoch=1", 6)
    chosen = choose(tmp_path)
    assert chosen.name == "a--val_wer=0.4000-epoch=1-last.ckpt" and best.exists()
    assert load(chosen)["global_step"] == 6


def test_a_numbered_last_one_gets_the_name_that_exp_manager_looks_for(tmp_path):
    save(tmp_path, "a-last", 3)
    save(tmp_path, "a-last-v1", 6)
    assert load(choose(tmp_path))["global_step"] == 6


def test_names_that_are_taken_are_not_overwritten(tmp_path):
    for step in (1, 2):
        save(tmp_path, "a-last", step, torn=True)
        assert choose(tmp_path) is None
    assert len(list(tmp_path.glob("*.set_aside*"))) == 2


def test_a_whole_file_that_cannot_be_loaded_is_an_error(tmp_path):
    torch.save({"steps": 1}, tmp_path / "a-last.ckpt")
    with pytest.raises(ValueError, match="a-last.ckpt is whole but cannot be loaded"):
        choose(tmp_path)


def test_other_processes_change_nothing_and_wait(tmp_path, monkeypatch):
    save(tmp_path, "a-last", 3, torn=True)
    monkeypatch.setattr(last_checkpoint, "WAIT_SECONDS", 0.0)
    with pytest.raises(ValueError, match="rank 0 was to choose one"):
        prepare_resume(tmp_path, load, is_writer=False)
    assert (tmp_path / "a-last.ckpt").exists()
