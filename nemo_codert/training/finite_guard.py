"""Guard of the optimizer against losses and gradients that are not finite: the run stops, or the step is dropped.

Works for a pair and for NeMo's own models alike. A good step costs one norm over all gradients, one transfer of two
numbers to the host, and with several processes one all-reduce of them.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nemo_codert.config.pair_checks import NON_FINITE_ACTIONS
from nemo_codert.training.non_finite import Fault, SeenBatch, find_fault

logger = logging.getLogger(__name__)

SKIPPED_STEPS = "skipped_steps.jsonl"  # file in the run's folder
NAMED_RANKS = 4


class FiniteGuard(Callback):
    """Callback that stops at, or skips, optimizer steps with a loss or gradient that is not finite.

    Set by `model.codert.non_finite`. A skipped step leaves weights, optimizer state and batch-norm statistics
    unchanged to the bit; with gradient accumulation all batches of the step are dropped, with several processes those
    of all processes. A skipped step counts as a step for schedules and `trainer.max_steps`. The number of skipped
    steps is logged as `train_skipped_steps` and goes into checkpoints; each step is written with its utterances to
    `skipped_steps.jsonl` in `trainer.default_root_dir`.

    Under `16-mixed` a gradient that overflows is the loss scaler's business until its scale is down to 1.

    Args:
        action: `stop` raises FloatingPointError, `skip` drops the step.
        max_skips: steps of the whole run, resumed or not, that may be skipped; one more stops the run.

    Raises:
        ValueError: unknown action.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(callbacks=[FiniteGuard("skip", max_skips=5)], accelerator="cpu", logger=False)
        >>> any(isinstance(callback, FiniteGuard) for callback in trainer.callbacks)
        True
    """

    def __init__(self, action: str = "stop", max_skips: int = 10) -> None:
        if action not in NON_FINITE_ACTIONS:
            raise ValueError(f"FiniteGuard: action is {action!r}, wanted one of {', '.join(NON_FINITE_ACTIONS)}")
        self.action, self.max_skips = action, max_skips
        self.skipped, self.in_a_row = 0, 0
        self._seen: list[SeenBatch] = []
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []  # batch-norm buffers, live and before the step

    def state_dict(self) -> dict[str, Any]:
        # Overrides Callback.state_dict: the limit holds for a run as a whole.
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Overrides Callback.load_state_dict.
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Overrides Callback.setup: from here on a pair does not check its losses itself.
        if getattr(pl_module, "_skip_nan_grad", False):
            raise ValueError(
                "model.skip_nan_grad is true: NeMo would set such a gradient to zero and let the optimizer step all "
                "the same. Leave it out and set model.codert.non_finite.action to skip"
            )
        pl_module.has_finite_guard = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Overrides Callback.teardown.
        pl_module.has_finite_guard = False
        self._seen, self._statistics = [], []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []
        if self.action == "skip":
            live = [buffer for module in pl_module.modules() for buffer in _statistics_of(module)]
            self._statistics = [(buffer, buffer.clone()) for buffer in live]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._seen and self._statistics:
            live, kept = zip(*self._statistics, strict=True)
            torch._foreach_copy_(kept, live)
        utterances = getattr(trainer.train_dataloader, "current_utterances", [])
        self._seen.append(SeenBatch(batch_idx, batch, list(utterances)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        parts = getattr(pl_module, "step_losses", None) or {}
        self._seen[-1].parts = {**parts, "train_loss": loss.detach()}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # The optimizer has run its closure only; no weight has changed.
        loss_is_bad, gradient_is_bad = self._faults_anywhere(trainer, pl_module)
        if loss_is_bad or (gradient_is_bad and not _is_back_off(trainer)):
            self._refuse_or_drop(trainer, pl_module)
        else:
            self.in_a_row = 0
        self._seen = []
        if self.action == "skip":
            pl_module.log("train_skipped_steps", float(self.skipped))

    def _faults_anywhere(self, trainer: Trainer, model: nn.Module) -> list[bool]:
        """Return whether loss and gradient are not finite on any rank, the same answer on all ranks."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        losses = [each.parts["train_loss"].float() for each in self._seen if each.parts]
        zero = torch.zeros((), device=trainer.strategy.root_device)
        norm = nn.utils.get_total_norm(gradients) if gradients else zero
        flags = 1.0 - torch.stack([sum(losses, zero), norm.float()]).isfinite().float()
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags, reduce_op="sum")
        return [flag > 0 for flag in flags.tolist()]  # the only wait for a GPU

    def _refuse_or_drop(self, trainer: Trainer, model: LightningModule) -> None:
        faults = _of_all_ranks(trainer, find_fault(model, self._seen, trainer.global_step, trainer.global_rank))
        named = [fault for fault in faults if fault.losses or fault.suspects] or faults
        said = "; ".join(
            (f"rank {fault.rank}: " if len(faults) > 1 else "") + fault.text(model) for fault in named[:NAMED_RANKS]
        )
        text = f"step {trainer.global_step}: {said}"
        if self.action == "stop":
            raise FloatingPointError(
                f"{text}. The optimizer has not moved. Look for broken audio, lower the learning rate, or set "
                "model.codert.non_finite.action to skip"
            )
        if self.skipped >= self.max_skips:
            raise FloatingPointError(
                f"{text}. {self.skipped} steps were skipped before it, {self.in_a_row} of them just before, and "
                f"model.codert.non_finite.max_skips is {self.max_skips}. The optimizer has not moved"
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        logger.warning("%s. Skipped, the %d. of at most %d.", text, self.skipped, self.max_skips)
        if trainer.is_global_zero:
            _write(Path(trainer.default_root_dir) / SKIPPED_STEPS, faults, self.in_a_row)
        for parameter in model.parameters():
            parameter.grad = None  # optimizers skip parameters without a gradient, decay and momentum included
        for live, kept in self._statistics:
            live.copy_(kept)


def _statistics_of(module: nn.Module) -> list[torch.Tensor]:
    """Return running mean, variance and number of batches, which a forward pass alone changes."""
    if not (isinstance(module, _BatchNorm) and module.track_running_stats):
        return []
    return list(module.buffers(recurse=False))


def _is_back_off(trainer: Trainer) -> bool:
    """Return whether `16-mixed` may still lower its loss scale, which handles an overflow by skipping the step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1.0


def _of_all_ranks(trainer: Trainer, fault: Fault) -> list[Fault]:
    if trainer.world_size == 1:
        return [fault]
    faults: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(faults, fault)
    return faults


def _write(path: Path, faults: list[Fault], in_a_row: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for fault in faults:
            file.write(json.dumps({**fault.plain, "in_a_row": in_a_row}, ensure_ascii=False) + "\n")
