"""A progress bar that counts optimizer steps: NeMo's lhotse loader has no length to count batches against."""

import shutil
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from nemo_codert.evaluation.word_errors import metric_of

COLUMNS = 80  # most that a line takes, also of a wider terminal
FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class StepProgress(pl.Callback):
    """One bar over `trainer.max_steps` with the last training loss and the WER of both branches, in percent.

    Its clock starts after the first batch, in which kernels are compiled and the last modules imported.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            tqdm.write("The first step compiles kernels ...")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is None:
            self._bar = step_bar(trainer.max_steps, trainer.global_step)
        self._bar.update(trainer.global_step - self._bar.n)
        self._bar.set_postfix_str(bar_text(_shown(trainer)), refresh=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None and "val_wer" in trainer.callback_metrics:
            shown = {key: value for key, value in _shown(trainer).items() if key != "loss"}
            self._bar.write(f"step {trainer.global_step:5d}  " + "  ".join(f"{k} {v}" for k, v in shown.items()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def step_bar(total: int, step: int, **options: Any) -> tqdm:
    """Return the bar of a training at a step, no wider than 80 columns.

    Args:
        total: optimizer steps of the training, -1 where they are not limited. step: at which it is.
        options: further arguments of tqdm.
    """
    columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 1)).columns)
    return tqdm(
        total=total if total > 0 else None,
        initial=step,
        ncols=columns,
        bar_format=FORMAT,
        mininterval=1.0,
        **options,
    )


def bar_text(shown: dict[str, str]) -> str:
    """Return loss and error rates for the bar, the rates without the prefix of their set.

    Args:
        shown: loss and rates by name.

    Example:
        >>> bar_text({"loss": "9.15", "val_wer": "12.3%", "val_wer_teacher": "10.1%"})
        'loss 9.15 WER 12.3% teacher 10.1%'
    """
    words = {"val_wer": "WER", "val_cer": "CER", "val_wer_teacher": "teacher", "val_cer_teacher": "teacher"}
    return " ".join(f"{words.get(name, name)} {value}" for name, value in shown.items())


def _shown(trainer: pl.Trainer) -> dict[str, str]:
    """Return the loss and the error rates by name; a rate of characters is not called a WER."""
    metrics, rate = trainer.callback_metrics, metric_of(getattr(trainer.lightning_module, "cfg", {})).lower()
    shown = {"loss": f"{float(metrics['train_loss']):.4g}"} if "train_loss" in metrics else {}
    for key in ("val_wer", "val_wer_teacher"):
        if key in metrics:
            shown[key.replace("wer", rate)] = f"{float(metrics[key]):.1%}"
    return shown
