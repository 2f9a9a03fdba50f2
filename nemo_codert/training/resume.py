"""State that Lightning and NeMo leave out of a checkpoint, so that a resumed run continues as if never stopped.

Random states and data order (`ResumableLoader`), gradients that wait for their optimizer step, whether this step was
validated, and counters that Lightning saves one batch too early or too late. Lightning itself saves weights,
optimizer, schedule and step; the weight of the distillation follows from the step.
"""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from nemo_codert.nemo_compat import (
    answer_validation_after_resume,
    augmentation_generators,
    is_accumulating,
    save_last_checkpoint,
    validation_is_due,
    was_just_saved,
)
from nemo_codert.training.random_state import (
    capture,
    from_plain,
    python_from_plain,
    python_to_plain,
    restore,
    to_plain,
)
from nemo_codert.training.resumable_loader import ResumableLoader

logger = logging.getLogger(__name__)

KEY = "nemo_codert_resume"  # key in a checkpoint


class ResumeState(pl.Callback):
    """Callback that saves and restores all state which a resumed run needs to continue exactly.

    Args:
        every_n_steps: optimizer steps between checkpoints besides those of the validations; 0: none.
        replay_streams: read tarred or sharded data again up to the position; False starts them from scratch.

    Example:
        >>> trainer = pl.Trainer(callbacks=[ResumeState(every_n_steps=500)], accelerator="cpu", logger=False)
        >>> any(isinstance(callback, ResumeState) for callback in trainer.callbacks)
        True
    """

    def __init__(self, every_n_steps: int = 0, replay_streams: bool = True) -> None:
        self._every_n_steps, self._replay_streams = every_n_steps, replay_streams
        self._loader: ResumableLoader | None = None
        self._resumed: dict[str, Any] | None = None
        self._own: dict[str, Any] | None = None  # this process's part of the state
        self._saved_step = 0
        self._in_flight = False  # True from the end of a batch's step until Lightning is done with the batch
        self._validated = False  # True if the batch in flight was validated
        self._accumulating = False

    # ---- the loader ------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Overrides Callback.setup: the strategy's hook is the one place between Lightning's preparation of a loader,
        # which adds a DistributedSampler where need be, and the first batch.
        if stage != "fit":
            return
        process = type(trainer.strategy).process_dataloader.__get__(trainer.strategy)
        trainer.strategy.process_dataloader = lambda loader: self._made_resumable(trainer, process(loader))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Overrides Callback.teardown.
        vars(trainer.strategy).pop("process_dataloader", None)

    def _made_resumable(self, trainer: pl.Trainer, loader: object) -> object:
        if not trainer.training or not isinstance(loader, DataLoader):
            return loader
        self._loader = ResumableLoader(
            loader, replay_streams=self._replay_streams, limit=lambda: trainer.num_training_batches
        )
        if self._own and self._own["start"]:
            states = [from_plain(self._own[key]) for key in ("start", "now")]
            ahead = [from_plain(state) for state in self._own["ahead"]]
            self._loader.resume_random = states[0], ahead, states[1]
        return self._loader

    # ---- resuming --------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._resumed, self._own = checkpoint.get(KEY), None
        if self._resumed is None:
            logger.warning("%s has no random state: data order and dropout start from scratch", trainer.ckpt_path)
        elif len(self._resumed["ranks"]) != trainer.world_size:
            logger.warning(
                "The checkpoint is of %d processes, this run has %d: every process begins a random state of its own, "
                "and utterances of this epoch may be repeated or left out",
                *(len(self._resumed["ranks"]), trainer.world_size),
            )
        else:
            self._own = self._resumed["ranks"][trainer.global_rank]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._in_flight = False
        if self._resumed is None:
            return
        self._saved_step = trainer.global_step
        answer_validation_after_resume(trainer, due=self._resumed["validation_due"])
        parameters = dict(pl_module.named_parameters())
        for name, gradient in self._resumed["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name])
        if self._own:
            for generator, state in zip(augmentation_generators(pl_module), self._own["augmentation"], strict=True):
                generator.setstate(python_from_plain(state))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._own:  # the last moment before Lightning draws a batch
            restore(from_plain(self._own["now"]))
        self._resumed = self._own = None

    # ---- keeping count ---------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._in_flight = False
        if self._loader is not None:
            self._loader.begin_batch()
        step, every = trainer.global_step, self._every_n_steps
        if every and step and step % every == 0 and step != self._saved_step and not self._accumulating:
            self._saved_step = step
            if not was_just_saved(trainer):
                save_last_checkpoint(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._loader is not None:
            self._loader.end_batch()
        self._in_flight, self._validated, self._accumulating = True, False, is_accumulating(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._in_flight = False

    # ---- saving ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        due = self._in_flight and not self._validated and validation_is_due(trainer)
        checkpoint[KEY] = {
            "ranks": _on_all_ranks(trainer, self._of_this_rank(pl_module)),
            "validation_due": bool(due),
            "gradients": _mean_gradients(trainer, pl_module) if self._accumulating else {},
        }
        self._correct_counters(checkpoint["loops"]["fit_loop"], validation_due=due)

    def _of_this_rank(self, pl_module: pl.LightningModule) -> dict[str, Any]:
        start, ahead = self._loader.random_states() if self._loader is not None else (None, [])
        return {
            "start": start and to_plain(start),
            "ahead": [to_plain(state) for state in ahead],
            "now": to_plain(capture()),
            "augmentation": [python_to_plain(rng.getstate()) for rng in augmentation_generators(pl_module)],
        }

    def _correct_counters(self, loops: dict[str, Any], *, validation_due: bool) -> None:
        """Set the saved counters to the batches whose step is in the saved weights.

        At the end of a batch Lightning has counted the optimizer step but not the batch, which a resumed run would
        train on again; at its start Lightning has counted the batch in the total by which validations are due.
        """
        progress = loops["epoch_loop.batch_progress"]
        current, total = progress["current"], progress["total"]
        done = current["ready"] if self._in_flight else current["completed"]
        begun = current["ready"] - done
        progress["total"], progress["current"] = (
            dict.fromkeys(total, total["ready"] - begun),
            dict.fromkeys(current, done),
        )
        if begun:
            progress["is_last_batch"] = False  # the flag was that of the batch just begun
        if self._in_flight and not self._accumulating and not validation_due:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # counts the steps of the curves


def _on_all_ranks(trainer: pl.Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather the states of all processes on rank 0, which writes the checkpoint; elsewhere an empty list."""
    if trainer.world_size == 1:
        return [own]
    gathered = [None] * trainer.world_size if trainer.global_rank == 0 else None
    torch.distributed.gather_object(own, gathered, dst=0)
    return gathered or []


def _mean_gradients(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, torch.Tensor]:
    """Return the gradients summed so far for the next optimizer step, averaged over processes as DDP averages."""
    gradients = {name: p.grad.detach() for name, p in pl_module.named_parameters() if p.grad is not None}
    return {name: trainer.strategy.reduce(gradient.clone(), reduce_op="mean") for name, gradient in gradients.items()}
