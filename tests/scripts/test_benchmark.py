"""`codert benchmark` at tiny sizes; the measurements themselves are tested in tests/benchmark."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_codert.benchmark.additive_loss import LossShape

LOSS = "--only loss --shapes 2x6x2x8 --vocabularies 8 16 32 --lattice 1x6x2 --lattices 1x4x2 1x6x2 1x8x2".split()
LOSS += ["--lattices-vocabulary", "8"]
STEP = "--batch-size 1 --seconds 0.5 --tokens 2 --vocabulary 64 --teacher 2x32 --student 1x16 --pred-hidden 12".split()
STEP += ["--joint-hidden", "12"]
DECODING = ["--decoding-batch-size", "2", "--decoding-frames", "8"]


@pytest.fixture
def run(run_command, monkeypatch, tmp_path):
    """The command in a folder of the test's, writing to `out` there."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield partial(run_command, "benchmark", "--output-dir", "out")
    torch.set_num_threads(threads)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "benchmark.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_loss_part_prints_and_writes_times_growth_and_plots(run, tmp_path):
    status, out, _ = run(*LOSS, "--skip-memory", "--rounds", "3", "--slow-rounds", "1", "--threads", "1")
    assert status == 0
    assert "1 torch threads" in out and "NeMo warprnnt_numba" in out
    assert "seconds against V, at (B, T, U) = (1, 6, 2)" in out and "seconds against B x T x U, at V = 8" in out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"benchmark.csv", "cost_against_vocabulary.png", "cost_against_lattice.png"}
    rows = table(tmp_path)
    shapes = dict.fromkeys((row["batch"], row["frames"], row["tokens"], row["vocabulary"]) for row in rows)
    assert len(shapes) == 6 and len(rows) == 18  # V = 8 at 1x6x2 is in both series, and measured once
    assert {row["rounds"] for row in rows if row["implementation"].startswith("NeMo")} == {"1"}
    assert {row["rounds"] for row in rows if row["implementation"] == "additive_rnnt_loss"} == {"3"}
    assert all(row["peak_bytes"] == row["resident_bytes"] == "" for row in rows)


def test_the_joint_part_prints_and_writes_both_losses(run, tmp_path):
    sizes = "--only joint --joint-shapes 2x6x2x8 --joint-hidden 5 --skip-memory --slow-rounds 1".split()
    status, out, _ = run(*sizes)
    assert status == 0 and "chunked_joint_rnnt_loss" in out
    assert [row["hidden"] for row in table(tmp_path)] == ["5", "5"]


@pytest.mark.usefixtures("preloaded_spawn")
def test_memory_is_measured_and_a_large_lattice_left_out(run, tmp_path):
    sizes = "--only loss --shapes 2x6x2x8 --vocabularies 8 --lattice 2x6x2 --lattices 2x6x2".split()
    sizes += ["--lattices-vocabulary", "8"]
    status, out, _ = run(*sizes, "--rounds", "1", "--largest-lattice", "1e-9")
    assert status == 0 and "NeMo warprnnt" not in out and "seconds against" not in out  # one size: no growth
    ours, floor = table(tmp_path)
    assert int(ours["peak_bytes"]) > 0 and int(ours["held_bytes"]) == 4 * 2 * (6 + 3) * 9
    assert int(floor["peak_bytes"]) == 4 * 2 * (2 * (6 + 3) * 9 + 6 * 3)


def test_steps_and_decoding_are_measured_at_the_sizes_given(run, tmp_path):
    rounds = ["--rounds", "1", "--slow-rounds", "1", "--skip-memory"]
    status, out, _ = run("--only", "step", "decoding", *STEP, *DECODING, *rounds)
    assert status == 0
    assert "step: 1 x 0.5 s, 2 tokens, V 64, 2x32 and 1x16" in out
    assert "greedy_batch, 2 x 8 frames, a token in 4, V 64, prediction 12, stock joint 12" in out
    assert "tandem step / (stock teacher step + stock student step)" in out and "additive joint kept" in out
    rows = table(tmp_path)
    assert [row["part"] for row in rows] == ["step"] * 6 + ["decoding"] * 5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"benchmark.csv"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--slow-rounds", "-1"], "--slow-rounds is -1"),
        (["--threads", "0"], "--threads is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--seconds", "nan"], "--seconds is nan, wanted a number above 0"),
        (["--seconds", "inf"], "--seconds is inf"),
        (["--only", "loss", "step", "--seconds", "0.159"], "--seconds is 0.159: batch norm needs two frames"),
        (["--largest-lattice", "nan"], "--largest-lattice is nan, wanted a number of GB, 0 or more"),
        (["--largest-lattice", "-1"], "--largest-lattice is -1"),
        (["--only", "cache", "--student", "1x18"], "--student is 1x18: the encoder has 4 attention heads"),
        (
            ["--teacher", "1x18"],
            "--teacher is 1x18: the encoder has 4 attention heads, which share its channels. Give 1x20",
        ),
        (["--student", "2x145"], "--student is 2x145: the encoder has 4 attention heads"),
        (["--vocabulary", "5"], "--vocabulary is 5: vocab_size is 5, but the texts have 28 different characters"),
        (["--vocabulary", "60000"], "--vocabulary is 60000: vocab_size is 60000, the largest"),
        (["--output-dir", "/proc/absent/out"], "--output-dir is /proc/absent/out: cannot write there (No such file"),
        (["--decoding-frames", "0"], "--decoding-frames is 0"),
        (["--vocabularies", "8", "0"], "--vocabularies"),
        (["--lattice", "4x100"], "'4x100': wanted 3 numbers"),
        (["--shapes", "1x2x3x0"], "'1x2x3x0': wanted 4 numbers"),
        (["--teacher", "large"], "'large': wanted 2 numbers"),
        (["--only", "everything"], "invalid choice"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(run, tmp_path, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2 and message in err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "out").write_text("kept")
    status, _, err = run()
    assert status == 2 and "that is a file" in err and (tmp_path / "out").read_text() == "kept"


def test_an_output_folder_below_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("kept")
    status, _, err = run("--only", "loss", "--output-dir", "file/new/out")
    assert status == 2 and "--output-dir is file/new/out: cannot write there (Not a directory)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_fails_before_anything_is_written_leaves_no_folder(run, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("no loss today")

    monkeypatch.setattr("nemo_codert.benchmark.additive_loss.loss_rows", fails)
    (tmp_path / "there").mkdir()
    for folder in ("new/out", "there", "there/out"):
        status, _, err = run(*LOSS, "--output-dir", folder)
        assert status == 2 and "no loss today" in err
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_the_shortest_audio_and_the_smallest_encoders_that_are_let_through_can_be_measured(run, tmp_path):
    smallest = ["--seconds", "0.16", "--teacher", "1x4", "--student", "1x8", "--vocabulary", "28"]
    status, _, _ = run("--only", "step", *STEP, *smallest, "--rounds", "1", "--slow-rounds", "1", "--skip-memory")
    assert status == 0 and len(table(tmp_path)) == 6


def test_stored_targets_are_measured_at_the_smallest_sizes_too(run, tmp_path):
    smallest = ["--seconds", "0.16", "--teacher", "1x4", "--student", "1x8", "--vocabulary", "28"]
    status, out, _ = run("--only", "cache", *STEP, *smallest, "--rounds", "1", "--skip-memory")
    assert status == 0 and [row["part"] for row in table(tmp_path)] == ["cache"] * 6
    assert "speed of caching / speed of features and encoder: wanted at least 0.9" in out
    assert "1.46  GB of 1,000 hours of top_k=8: wanted at most 2, met" in out


def test_a_gpu_gets_the_shape_of_its_targets_and_a_lattice_limit_of_its_own(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=32e9))
    monkeypatch.setattr("nemo_codert.benchmark.table.describe_machine", lambda *_: "a GPU")
    monkeypatch.setattr("nemo_codert.benchmark.additive_loss.loss_cases", lambda *case: asked.append(case) or case)
    monkeypatch.setattr("nemo_codert.benchmark.additive_loss.loss_rows", lambda cases, _: ([], []))
    monkeypatch.setattr("nemo_codert.benchmark.table.plot_costs", lambda *_: None)
    assert run("--only", "loss", "--device", "cuda")[0] == 0
    assert asked[-1] == (LossShape(32, 400, 100, 1024), "cuda", 8e9)
    assert run("--only", "loss", "--device", "cuda", "--largest-lattice", "2", "--shapes", "1x4x2x8")[0] == 0
    assert asked[-1] == (LossShape(1, 4, 2, 8), "cuda", 2e9)
    assert run("--only", "loss")[0] == 0 and asked[-1][1:] == ("cpu", 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused(run, tmp_path):
    status, _, err = run("--device", "cuda")
    assert status == 2 and "torch finds no GPU" in err and not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_parts_run_on_a_gpu(run, tmp_path):
    parts = [*LOSS[2:], *STEP, *DECODING, "--rounds", "1", "--device", "cuda"]
    status, out, _ = run("--only", "loss", "step", "decoding", *parts)
    assert status == 0 and "CUDA" in out
    assert all(int(row["peak_bytes"]) > 0 for row in table(tmp_path) if row["part"] == "loss")
