"""Curves of runs: read from event files, compared, drawn over each other."""

import math
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from nemo_codert.cli import curves as command
from nemo_codert.evaluation.learning_curves import largest_difference, read_curves

pytestmark = pytest.mark.unit


def make_run(folder: Path, losses: list[float], first: int = 0) -> Path:
    """A run's folder with a training loss for each step from `first` on."""
    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate(losses, first):
            writer.add_scalar("train_loss", loss, step)
    return folder


def test_curves_are_read_in_the_order_of_their_steps(tmp_path):
    make_run(tmp_path, [4.0, 2.0])
    assert read_curves(tmp_path) == {"train_loss": [(0, 4.0), (1, 2.0)]}


def test_the_starts_of_a_run_that_was_resumed_are_one_curve(tmp_path):
    make_run(tmp_path / "version_0", [4.0, 2.0])
    make_run(tmp_path / "version_1", [1.0], first=2)
    assert read_curves(tmp_path) == {"train_loss": [(0, 4.0), (1, 2.0), (2, 1.0)]}


def test_a_folder_without_curves_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no events"):
        read_curves(tmp_path)


def test_runs_are_compared_at_the_steps_both_have():
    reference, other = {"train_loss": [(0, 4.0), (1, 2.0), (2, 9.0)]}, {"train_loss": [(0, 4.0), (1, 2.5)]}
    assert largest_difference(reference, other, "train_loss") == (2, 0.5, 0.25)
    with pytest.raises(ValueError, match="no step of val_wer in common"):
        largest_difference(reference, other, "val_wer")


def test_a_loss_that_is_not_a_number_is_seen_and_a_term_that_is_over_is_left_out(tmp_path):
    make_run(tmp_path, [4.0, math.nan])
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate([2.0, math.nan]):
            writer.add_scalar("train_distillation_loss_hidden", value, step)
    curves = read_curves(tmp_path)
    assert curves["train_distillation_loss_hidden"] == [(0, 2.0)] and len(curves["train_loss"]) == 2
    steps, absolute, relative = largest_difference({"train_loss": [(0, 4.0), (1, 2.0)]}, curves, "train_loss")
    assert steps == 2 and math.isnan(absolute) and math.isnan(relative)


def test_the_script_prints_differences_and_draws(tmp_path, capsys):
    a, b = make_run(tmp_path / "a", [4.0, 2.0]), make_run(tmp_path / "b", [4.0, 2.1])
    names = ["--names", "train_loss", "--output", str(tmp_path / "curves.png")]
    assert command.main(["--run", f"exact={a}", "--run", f"nemo={b}", *names]) == 0
    assert "train_loss: nemo and exact at 2 steps: at most 0.1 apart (5.00%)" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_error_rates_are_printed_in_percent(tmp_path, capsys):
    for name, rate in (("one", 0.25), ("two", 0.125)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            writer.add_scalar("val_wer", rate, 0)
    runs = ["--run", f"a={tmp_path / 'one'}", "--run", f"b={tmp_path / 'two'}"]
    assert command.main([*runs, "--names", "val_wer", "--output", str(tmp_path / "curves.png")]) == 0
    assert "at most 12.50 points of WER apart (50.00%)" in capsys.readouterr().out


def test_the_script_refuses_a_run_without_a_name_or_curves(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--run", "folder", "--output", "x.png"])
    assert command.main(["--run", f"a={tmp_path}", "--output", str(tmp_path / "x.png")]) == 2
    assert "has no events" in capsys.readouterr().err
