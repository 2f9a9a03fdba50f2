"""Folders of runs: which run is continued, which start is refused, and where `latest` leads. No NeMo, no training."""

import os
import shlex
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.files.checkpoint_step import checkpoint_step
from nemo_codert.training.run_folders import (
    continue_run,
    continuing_command,
    link_latest,
    runs_folder,
    unfinished_problems,
    unfinished_runs,
    unlink_latest,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def run_of(tmp_path):
    """Makes the folder of a run below runs/pair, each newer than the one before."""
    clock = iter(range(1_000_000_000, 1_000_001_000))

    def make(version: str = "", steps: tuple[int, ...] = (), *, finished: bool = False) -> Path:
        folder = tmp_path / "runs" / "pair" / version
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for step in steps:
            path = folder / "checkpoints" / f"pair--step{step}-last.ckpt"
            torch.save({"epoch": 7, "global_step": step, "state_dict": {"weight": torch.ones(2)}}, path)
            time = next(clock)
            os.utime(path, (time, time))
        if finished:
            (folder / "config.yaml").write_text("name: pair\n")
        return folder

    return make


@pytest.fixture
def config(tmp_path):
    def make(unfinished: str = "refuse", **manager: object):
        manager = {"exp_dir": str(tmp_path / "runs"), "name": "pair", **manager}
        return OmegaConf.create({"exp_manager": manager, "resume": {"unfinished": unfinished}})

    return make


def test_the_step_of_a_checkpoint_is_read_without_executing_it(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 70_000, "epoch": 3, "state_dict": {"global_step": torch.ones(3)}}, path)
    assert checkpoint_step(path) == 70_000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert checkpoint_step(path) is None
    torch.save({"state_dict": {}}, path)
    assert checkpoint_step(path) is None
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"cos\nsystem\n(S'touch " + str(tmp_path / "made").encode() + b"'\ntR.")
    assert checkpoint_step(path) is None and not (tmp_path / "made").exists()


def test_the_newest_unfinished_run_comes_first_and_finished_ones_not_at_all(run_of, config):
    run_of("2024-01-01", (30, 60))
    run_of("2024-01-02", (10,))
    run_of("2024-01-03", (90,), finished=True)
    run_of("2024-01-04")  # killed before its first checkpoint
    found = unfinished_runs(config())
    assert [(run.version, run.step) for run in found] == [("2024-01-02", 10), ("2024-01-01", 60)]
    run_of("", (5,))  # exp_manager.resume_if_exists=true without a version
    assert unfinished_runs(config())[0].version is None
    assert not unfinished_runs(config(name="other"))


def test_a_torn_checkpoint_does_not_hide_a_whole_one(run_of, config):
    folder = run_of("first", (30, 60))
    path = folder / "checkpoints" / "pair--step60-last.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    assert unfinished_runs(config())[0].step == 30


def test_a_second_run_is_refused_with_folder_step_and_both_remedies(run_of, config):
    folder = run_of("first", (40,))
    [fault] = unfinished_problems(config())
    assert fault.startswith(
        f"{folder} is an unfinished run of the same name, at step 40: --resume continues it, --new "
    )
    [fault] = unfinished_problems(config(resume_if_exists=True))  # would start from scratch in runs/pair
    assert str(folder) in fault
    for given in (config("new"), config("continue"), config(version="second"), config(name="other")):
        assert not list(unfinished_problems(given))
    for key in ("explicit_log_dir", "checkpoint_callback_params"):
        place = {key: {"dirpath": "/elsewhere"} if key.endswith("params") else "/elsewhere"}
        assert not list(unfinished_problems(config(**place)))


def test_a_version_that_is_unfinished_is_not_trained_over(run_of, config):
    run_of("first", (40,))
    for unfinished in ("refuse", "new"):
        [fault] = unfinished_problems(config(unfinished, version="first"))
        assert "--resume continues it, another exp_manager.version starts" in fault
    assert not list(unfinished_problems(config("continue", version="first")))
    assert not list(unfinished_problems(config(version="first", resume_if_exists=True)))


def test_beside_runs_that_are_finished_or_have_no_checkpoint_another_may_start(run_of, config):
    run_of("first", (40,), finished=True)
    run_of("second")
    assert not list(unfinished_problems(config()))
    [fault] = unfinished_problems(config("continue"))
    assert "is finished, there is none to continue. Leave out --resume" in fault
    assert not list(unfinished_problems(config("continue", version="first")))  # trained longer


def test_an_unknown_choice_is_named(config):
    [fault] = unfinished_problems(config("keep"))
    assert fault == "resume.unfinished is 'keep', wanted one of refuse, continue, new"


def test_exp_manager_resumes_the_run_that_is_found(run_of, config):
    run_of("first", (40,))
    run_of("second", (20,))
    cfg = config("continue")
    manager = continue_run(cfg).exp_manager
    assert (manager.version, manager.resume_if_exists) == ("second", True) and "version" not in cfg.exp_manager
    named = continue_run(config("continue", version="first")).exp_manager
    assert (named.version, named.resume_if_exists) == ("first", True)
    fresh = continue_run(config("continue", name="other")).exp_manager
    assert "resume_if_exists" not in fresh
    assert continue_run(config("new")) == config("new")


def test_the_command_that_continues_names_the_run_only_where_it_must(run_of, config):
    first = run_of("first", (40,))
    given = ["--config-name=pair", "--new", "exp_manager.exp_dir=my runs"]
    step, command = continuing_command("codert train", given, config("new"), first)
    assert step == 40
    assert command == "codert train --config-name=pair 'exp_manager.exp_dir=my runs' --resume"
    run_of("second", (20,))  # newer: --resume would find it
    _, command = continuing_command("codert train", given, config("new"), first)
    assert shlex.split(command)[-2:] == ["exp_manager.version=first", "--resume"]
    cfg = config(version="first")
    assert shlex.split(continuing_command("codert train", ["a=1"], cfg, first)[1])[2:] == ["a=1", "--resume"]
    cfg = config(resume_if_exists=True, version="first")
    assert continuing_command("codert train", ["a=1"], cfg, first) == (40, "codert train a=1")
    third = run_of("third")
    assert continuing_command("codert train", ["a=1"], config(), third) == (0, "codert train a=1")


def test_latest_leads_to_the_run_and_survives_a_move_of_the_folder(run_of, tmp_path):
    for version in ("first", "second"):
        link_latest(run_of(version))
    assert os.readlink(tmp_path / "runs" / "latest") == "pair/second"
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest" / "checkpoints").is_dir()
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["latest", "pair"]
    assert sorted(path.name for path in (tmp_path / "moved" / "pair").iterdir()) == ["first", "second"]


@pytest.mark.parametrize(("name", "folder"), [(0, "runs/0"), ("pair", "runs/pair"), (None, "runs/default")])
def test_a_name_of_0_is_a_name(name, folder):
    assert runs_folder(OmegaConf.create({"exp_manager": {"exp_dir": "runs", "name": name}})) == Path(folder)


def test_latest_of_a_run_that_is_gone_leads_to_the_one_before(run_of):
    first, second = run_of("first"), run_of("second")
    link_latest(second)
    (second / "checkpoints").rmdir(), second.rmdir()
    unlink_latest(second)
    assert os.readlink(first.parent.parent / "latest") == "pair/first"
    (first / "checkpoints").rmdir(), first.rmdir()
    unlink_latest(first)
    assert [path.name for path in first.parent.parent.iterdir()] == ["pair"]


def test_where_no_link_can_be_made_nothing_happens(run_of, monkeypatch):
    folder = run_of("../latest/first")  # a run of that name
    link_latest(folder)
    assert folder.parent.is_dir() and not folder.parent.is_symlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError("operation not permitted")

    other = run_of("../other/first")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_latest(other)
    assert [path.name for path in other.parent.iterdir()] == ["first"]
