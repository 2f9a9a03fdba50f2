"""A progress bar that counts optimizer steps: NeMo's lhotse loader has no length to count batches against."""

from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from nemo_codert.evaluation.word_errors import metric_of


class StepProgress(pl.Callback):
    """One bar over `trainer.max_steps` with the last training loss and the WER of both branches."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, desc="Training", unit="step", mininterval=1.0)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            self._bar.set_postfix(_shown(trainer), refresh=False)

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


def _shown(trainer: pl.Trainer) -> dict[str, str]:
    """Return the loss and the error rates by name; a rate of characters is not called a WER."""
    metrics, rate = trainer.callback_metrics, metric_of(getattr(trainer.lightning_module, "cfg", {})).lower()
    shown = {"loss": f"{float(metrics['train_loss']):.2f}"} if "train_loss" in metrics else {}
    for key in ("val_wer", "val_wer_teacher"):
        if key in metrics:
            shown[key.replace("wer", rate)] = f"{float(metrics[key]):.1%}"
    return shown
