"""nemo_codert/training/progress.py: what the bar shows, in how many columns, and when its clock starts."""

import io
import time
from types import SimpleNamespace

import pytest
import torch

from nemo_codert.training import progress
from nemo_codert.training.progress import COLUMNS, StepProgress, bar_text, step_bar


def run_of(**settings):
    rates = {"val_wer": torch.tensor(0.123), "val_wer_teacher": torch.tensor(1.0)}
    given = {"is_global_zero": True, "max_steps": 2000, "global_step": 0, "callback_metrics": rates}
    return SimpleNamespace(**{**given, "lightning_module": SimpleNamespace(cfg={}), **settings})


@pytest.mark.parametrize("steps, done", [(2_000, 1_999), (999_999, 999_998), (-1, 123_456)])
def test_the_bar_fits_80_columns_with_both_rates(steps, done):
    file = io.StringIO()
    bar = step_bar(steps, done - 1, file=file)
    bar.start_t -= 360_000  # a hundred hours
    bar.set_postfix_str(bar_text({"loss": "1234", "val_wer": "100.0%", "val_wer_teacher": "100.0%"}), refresh=False)
    bar.update(1)
    bar.refresh()
    bar.close()
    lines = [line for line in file.getvalue().replace("\n", "\r").split("\r") if line.strip()]
    assert "loss 1234 WER 100.0% teacher 100.0%" in lines[-1] and f"{done}/" in lines[-1]
    assert all(len(line) <= COLUMNS for line in lines)


def test_a_narrow_terminal_gets_a_narrow_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert step_bar(10, 0, file=io.StringIO()).ncols == 40
    monkeypatch.setenv("COLUMNS", "200")
    assert step_bar(10, 0, file=io.StringIO()).ncols == COLUMNS


def test_the_clock_starts_after_the_first_batch(monkeypatch, capsys):
    bar, trainer = StepProgress(), run_of()
    bar.on_train_start(trainer, None)
    assert bar._bar is None and "compiles kernels" in capsys.readouterr().out
    begun = time.time()
    trainer.global_step = 1
    bar.on_train_batch_end(trainer)
    assert bar._bar.start_t >= begun and bar._bar.n == bar._bar.initial == 1
    trainer.global_step = 2
    bar.on_train_batch_end(trainer)
    bar.on_validation_end(trainer, None)
    assert bar._bar.n == 2 and "step     2  val_wer 12.3%  val_wer_teacher 100.0%" in capsys.readouterr().out
    bar.on_train_end(trainer, None)
    assert bar._bar is None


def test_characters_are_named_and_further_processes_print_nothing(capsys):
    characters = run_of(lightning_module=SimpleNamespace(cfg={"use_cer": True}))
    assert progress._shown(characters) == {"val_cer": "12.3%", "val_cer_teacher": "100.0%"}
    assert bar_text(progress._shown(characters)) == "CER 12.3% teacher 100.0%"
    bar, second = StepProgress(), run_of(is_global_zero=False)
    bar.on_train_start(second, None), bar.on_train_batch_end(second), bar.on_validation_end(second, None)
    assert capsys.readouterr() == ("", "")
