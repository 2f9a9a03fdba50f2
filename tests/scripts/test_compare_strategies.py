"""scripts/compare_strategies.py with a stub for a trainer: what it trains and what not, and how it ends."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compare.comparison_corpora import write_corpus
from tests.conftest import REPOSITORY

STUB = [sys.executable, str(REPOSITORY / "tests" / "scripts" / "stub_trainer.py")]
REPORT = {"results.csv", "predictions.jsonl.gz", "table.md", "wer.png", "reduction.png", "report.html"}


def behave(tmp_path: Path, **how) -> None:
    (tmp_path / "stub.json").write_text(json.dumps(how))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is trained -----------------------------------------------------------------------------------------------


def test_a_comparison_trains_every_cell_once_seed_by_seed_and_reports(compare, starts, tmp_path):
    status, out, err = compare("--strategies", "student", "tandem_kd")
    assert status == 0
    assert starts() == ["all/student/0", "all/tandem_kd/0", "all/student/1", "all/tandem_kd/1"]
    assert "all, seed 1, tandem_kd: finished in 0:00:00; 0 cells, 0:00:00 left" in err
    assert "| tandem_kd | 2 | 400 | 10." in out and "better" in out
    folder = tmp_path / "out"
    assert names(folder) == REPORT | {"cells", "comparison.json", "comparison.lock"}
    assert [(row["strategy"], row["seed"]) for row in rows(folder)] == [
        ("student", "0"),
        ("student", "1"),
        ("tandem_kd", "0"),
        ("tandem_kd", "1"),
    ]
    cell = folder / "cells" / "all" / "seed0" / "tandem_kd"
    assert names(cell) == {"command.sh", "train.log", "result.json", "run"}
    assert names(cell / "run") == {"predictions", "student.nemo"}  # its checkpoints are gone
    assert (cell / "train.log").read_text() == "training all/tandem_kd/0 with 1 threads\n"
    shutil.rmtree(cell / "run")
    subprocess.run(["bash", str(cell / "command.sh")], check=True, capture_output=True)
    assert (cell / "run" / "predictions" / "student" / "test_seen.json").is_file()


def test_finished_cells_are_never_trained_again_and_more_may_be_added(compare, starts, tmp_path):
    compare("--strategies", "student", "tandem_kd", "--seeds", "0")
    starts()
    before = snapshot(tmp_path / "out")
    status, out, _ = compare("--seeds", "0")  # the strategies of the folder
    assert status == 0 and starts() == [] and "2 cells, 2 of them finished" in out
    after = snapshot(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} <= {"comparison.lock"}
    status, _, _ = compare("--strategies", "shared_kd", "--seeds", "0-1")
    assert status == 0
    assert starts() == ["all/shared_kd/0", *(f"all/{name}/1" for name in ("student", "tandem_kd", "shared_kd"))]
    assert len(rows(tmp_path / "out")) == 6


def test_seeds_and_folds_of_a_later_call_limit_what_is_trained_now_and_the_comparison_keeps_all(run, starts, tmp_path):
    for fold in ("ann", "bob"):
        write_corpus(tmp_path / "folds" / fold)
    arguments = ["--data-dir", str(tmp_path / "folds")]
    run(*arguments, "--strategies", "student", "static", "--seeds", "0-1", "--only", "teacher", "--folds", "ann")
    assert starts() == ["ann/teacher/0", "ann/teacher/1"]
    status, out, _ = run(*arguments, "--seeds", "2", "--folds", "bob", "--only", "static")
    assert status == 0 and starts() == ["bob/teacher/2", "bob/static/2"] and out.startswith("2 cells, 0 of them")
    assert "4 of 18 runs finished" in (tmp_path / "out" / "table.md").read_text()
    settings = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert settings["seeds"] == [0, 1, 2] and list(settings["folds"]) == ["ann", "bob"]


def test_code_that_changes_between_two_calls_is_told_in_the_table(compare, monkeypatch, tmp_path):
    for seed in ("0", "1"):
        monkeypatch.setattr("nemo_codert.compare.runner.source_hash", lambda seed=seed: seed * 64)
        assert compare("--strategies", "student", "--seeds", seed)[0] == 0
    result = json.loads((tmp_path / "out" / "cells" / "all" / "seed1" / "student" / "result.json").read_text())
    assert result["code_sha256"] == "1" * 64
    assert "Cells were trained by 2 versions of the code." in (tmp_path / "out" / "table.md").read_text()


def test_a_strategy_that_is_named_twice_is_trained_once(compare, starts):
    repeated = ["--strategies", "student", "student", "--seeds", "0", "0-0", "--folds", "all", "all", "--jobs", "2"]
    status, out, _ = compare(*repeated, "--only", "student", "student")
    assert status == 0 and starts() == ["all/student/0"] and "1 cells, 0 of them finished" in out


def test_only_some_strategies_are_trained_now_and_the_comparison_stays_what_it_is(compare, starts, tmp_path):
    compare("--strategies", "student", "tandem_kd", "shared_kd", "--seeds", "0", "--only", "shared_kd")
    assert starts() == ["all/shared_kd/0"]
    compare("--seeds", "0")
    assert starts() == ["all/student/0", "all/tandem_kd/0"]


def test_a_static_strategy_gets_the_teacher_of_its_fold_and_seed(run, starts, tmp_path):
    for fold in ("ann", "bob"):
        write_corpus(tmp_path / "folds" / fold)
    arguments = ["--data-dir", str(tmp_path / "folds"), "--seeds", "3", "5", "--strategies", "student", "static"]
    status, out, _ = run(*arguments, "--only", "static", "--jobs", "3", "--drop-models")
    order = starts()
    assert status == 0 and len(order) == 8
    for fold in ("ann", "bob"):
        for seed in (3, 5):
            assert order.index(f"{fold}/teacher/{seed}") < order.index(f"{fold}/static/{seed}")
            root = tmp_path / "out" / "cells" / fold / f"seed{seed}"
            assert f"{root}/teacher/run/teacher.nemo" in (root / "static" / "command.sh").read_text()
            assert names(root / "static" / "run") == {"predictions"}  # its model was dropped,
            assert "teacher.nemo" in names(root / "teacher" / "run")  # the teacher's never is
    assert "2 folds together" in out
    run(*arguments)
    assert sorted(starts()) == [f"{fold}/student/{seed}" for fold in ("ann", "bob") for seed in (3, 5)]


def test_a_strategy_is_compared_with_its_twin_after_the_teacher_of_both(compare, starts, tmp_path):
    status, out, _ = compare("--strategies", "static_joint", "static_joint-twin", "--seeds", "0")
    assert status == 0 and starts() == ["all/teacher/0", "all/static_joint/0", "all/static_joint-twin/0"]
    assert "relative reduction against static_joint-twin" in out
    cells = tmp_path / "out" / "cells" / "all" / "seed0"
    own, twin = ((cells / name / "command.sh").read_text() for name in ("static_joint", "static_joint-twin"))
    assert "strategy=static_joint " in twin and "distillation.joint.weight=0 " in twin
    assert "weight=0 " not in own and all("teacher/run/teacher.nemo" in text for text in (own, twin))


@pytest.mark.parametrize("manifest", ["train.json", "clean.json"])
def test_targets_of_a_cached_teacher_are_stored_before_its_student_is_trained(manifest, compare, starts, tmp_path):
    if manifest == "clean.json":
        shutil.copyfile(tmp_path / "data" / "train.json", tmp_path / "data" / manifest)
    status, _, _ = compare("--strategies", "target_speaker", "--seeds", "0")
    assert status == 0 and starts() == ["all/teacher/0", "all/target_speaker/0"]
    cell = tmp_path / "out" / "cells" / "all" / "seed0" / "target_speaker"
    assert (cell / "train.log").read_text().startswith(f"storing targets of {manifest}\ntraining all/target_speaker/0")
    assert names(cell) == {"command.sh", "train.log", "result.json", "run"}  # its targets are gone
    shutil.rmtree(cell / "run")
    subprocess.run(["bash", "-e", str(cell / "command.sh")], check=True, capture_output=True)
    assert names(cell) >= {"run", "targets"}


def test_a_cell_whose_targets_cannot_be_stored_fails_without_a_training(compare, starts, tmp_path):
    compare("--strategies", "teacher", "--seeds", "0")
    starts()
    absent = "cached:model.codert.teacher_checkpoint=absent.nemo"
    status, _, err = compare("--strategies", "cached", "--seeds", "0", "--only", "cached", "--override", absent)
    assert status == 1 and starts() == [] and "no such file: absent.nemo" in err


def test_the_noise_of_a_strategy_may_be_given_for_all(compare, starts, tmp_path):
    noise = ["--", "model.codert.student_hears.noise=noise.json"]
    named = ["--strategies", "student", "noise_robust", "noise_robust-twin", "--seeds", "0"]
    status, _, err = compare(*named)
    assert status == 2 and "model.codert.student_hears.noise is ??? for noise_robust: give it with --override" in err
    status, _, _ = compare(*named, *noise)
    assert status == 0
    cells = tmp_path / "out" / "cells" / "all" / "seed0"
    given = {path.name for path in cells.iterdir() if noise[1] in (path / "command.sh").read_text()}
    assert given == {"noise_robust", "noise_robust-twin"}


# ---- trainings that fail or are stopped ----------------------------------------------------------------------------


def test_a_failed_cell_is_shown_the_others_go_on_and_the_next_call_tries_it_again(compare, starts, tmp_path):
    behave(tmp_path, fail=["all/tandem_kd/0"])
    status, _, err = compare("--strategies", "student", "tandem_kd")
    assert status == 1 and len(starts()) == 4
    assert "all, seed 0, tandem_kd: FAILED, exit status 1" in err and "    the loss is not finite" in err
    assert "1 cells failed: all, seed 0, tandem_kd" in err
    assert len(rows(tmp_path / "out")) == 3
    behave(tmp_path)
    status, _, _ = compare()
    assert status == 0 and starts() == ["all/tandem_kd/0"] and len(rows(tmp_path / "out")) == 4


def test_while_no_seed_is_finished_in_every_fold_each_fold_is_reported(run, starts, tmp_path):
    for fold in ("ann", "bob"):
        write_corpus(tmp_path / "folds" / fold)
    behave(tmp_path, fail=["bob/student/0"])
    status, _, err = run("--data-dir", str(tmp_path / "folds"), "--strategies", "student", "--seeds", "0")
    assert status == 1 and "1 cells failed: bob, seed 0, student" in err
    assert names(tmp_path / "out") >= REPORT - {"wer.png", "reduction.png"}
    assert "## test_seen, fold ann" in (tmp_path / "out" / "table.md").read_text()


def test_without_its_teacher_a_static_student_is_not_started(compare, starts, tmp_path):
    behave(tmp_path, fail=["all/teacher/1"])
    status, _, err = compare("--strategies", "static")
    assert status == 1 and starts() == ["all/teacher/0", "all/static/0", "all/teacher/1"]
    assert "all, seed 1, static: not started, its teacher failed" in err


def test_a_run_of_fewer_updates_is_a_failure(compare, tmp_path):
    behave(tmp_path, updates=7)
    status, out, err = compare("--strategies", "student", "--seeds", "0")
    assert status == 1 and "student had 7 updates, not 2000" in err
    assert "no cell is finished" in out and not (tmp_path / "out" / "results.csv").exists()


def listen() -> None:
    """Be interruptible: a process that the shell runs in the background ignores SIGINT, one of nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start_process(tmp_path: Path, **how) -> subprocess.Popen:
    """The script in a process of its own, waiting for a training that never ends."""
    behave(tmp_path, hang=["all/tandem_kd/0"], **how)
    code = (
        "import runpy, sys; from nemo_codert.compare import run; "
        f"run.TRAINER = {STUB!r}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    path = str(REPOSITORY / "scripts" / "compare_strategies.py")
    arguments = ["--output-dir", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"), "--seeds", "0-1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, path, *arguments, "--strategies", "student", "tandem_kd"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )
    wait_for(lambda: (tmp_path / "hanging").exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_locked(folder: Path) -> bool:
    with (folder / "comparison.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_comparison_ends_its_trainings_and_goes_on_later(number, compare, starts, tmp_path):
    process = start_process(tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted: the same command resumes from here" in err
    assert not is_locked(tmp_path / "out")  # a training that were left would hold it
    assert starts() == ["all/student/0", "all/tandem_kd/0"]
    assert "1 of 4 runs finished" in (tmp_path / "out" / "table.md").read_text()
    behave(tmp_path)
    status, _, _ = compare()
    assert status == 0
    assert starts() == ["all/tandem_kd/0", "all/student/1", "all/tandem_kd/1"]


@pytest.mark.usefixtures("run")
def test_a_second_interrupt_ends_trainings_that_do_not_listen(tmp_path):
    process = start_process(tmp_path, deaf=True)
    process.send_signal(signal.SIGINT)
    time.sleep(1)  # the training has ignored to be asked
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=8)  # less than the time of grace
    assert process.returncode == 130 and "Traceback" not in err
    assert not is_locked(tmp_path / "out") and children_of(tmp_path) == []


def test_two_comparisons_in_one_folder_are_refused_even_when_the_first_was_killed(compare, starts, tmp_path):
    process = start_process(tmp_path)
    starts()
    try:
        status, _, err = compare("--strategies", "student", "tandem_kd")
        assert status == 2 and f"is in use by another comparison (begun by process {process.pid})" in err
        process.kill()
        process.wait()
        status, _, err = compare()  # its training goes on
        assert status == 2 and "or a training that it left behind" in err and starts() == []
    finally:
        process.kill()
        for pid in children_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(tmp_path / "out"))
    behave(tmp_path)
    status, _, _ = compare()
    assert status == 0 and starts() == ["all/tandem_kd/0", "all/student/1", "all/tandem_kd/1"]


def children_of(tmp_path: Path) -> list[int]:
    """Stub trainings of this test: their command line names its folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if STUB[1].encode() in command and str(tmp_path).encode() in command:
            found.append(int(path.parent.name))
    return found


# ---- the report alone ----------------------------------------------------------------------------------------------


def test_three_files_are_enough_to_make_the_report_anew_and_name_no_folder_of_this_machine(
    compare, run, tmp_path, starts
):
    compare("--strategies", "student", "static", "shared_kd")
    starts()
    folder, release = tmp_path / "out", tmp_path / "release"
    release.mkdir()
    for name in ("comparison.json", "results.csv", "predictions.jsonl.gz"):
        shutil.copyfile(folder / name, release / name)
    status, out, _ = run("--output-dir", str(release), "--report-only")
    assert status == 0 and starts() == [] and "| static | 2 |" in out
    assert names(release) == REPORT | {"comparison.json"}
    for name in names(release):
        assert (release / name).read_bytes() == (folder / name).read_bytes(), name
    for name in names(release) - {"predictions.jsonl.gz"}:
        assert str(tmp_path).encode() not in (release / name).read_bytes(), f"{name} names a folder of this machine"


def test_a_comparison_that_was_handed_on_is_continued_from_its_three_files(compare, run, starts, tmp_path):
    compare("--strategies", "student", "static", "--seeds", "0")
    starts()
    folder = tmp_path / "out"
    before = {name: (folder / name).read_bytes() for name in ("results.csv", "predictions.jsonl.gz")}
    shutil.rmtree(folder / "cells")
    status, out, _ = compare("--seeds", "0")
    assert status == 0 and starts() == [] and "3 finished cells taken from results.csv" in out
    assert {name: (folder / name).read_bytes() for name in before} == before
    status, _, _ = compare("--seeds", "1")
    assert status == 0 and starts() == ["all/teacher/1", "all/student/1", "all/static/1"] and len(rows(folder)) == 6


def test_a_static_student_whose_teacher_was_not_handed_on_says_how_to_get_one(compare, starts, tmp_path):
    compare("--strategies", "student", "teacher", "--seeds", "0")
    starts()
    shutil.rmtree(tmp_path / "out" / "cells")
    status, _, err = compare("--strategies", "static", "--seeds", "0")
    result = tmp_path / "out" / "cells" / "all" / "seed0" / "teacher" / "result.json"
    assert status == 1 and starts() == [] and f"delete {result}, and the teacher is trained again" in err
    result.unlink()
    assert compare("--seeds", "0")[0] == 0 and starts() == ["all/teacher/0", "all/static/0"]


def test_the_report_can_be_against_another_strategy(compare, run):
    compare("--strategies", "student", "tandem_kd", "--seeds", "0")
    status, out, _ = run("--report-only", "--against", "tandem_kd")
    assert status == 0 and "relative reduction against tandem_kd" in out
    assert run("--report-only", "--against", "static")[0] == 2
