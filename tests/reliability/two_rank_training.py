"""A few steps of a pair on two processes, of which the second gets a batch that is not finite.

    python tests/reliability/two_rank_training.py FOLDER stop|skip

FOLDER holds `config.yaml` and `batch.pt`; every rank leaves `rank_N.json` with what became of it.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.training.finite_guard import FiniteGuard

STEPS, BAD_STEP, BAD_RANK = 4, 1, 1


class Hashes(Callback):
    """A hash of weights and optimizer state after every step."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_train_batch_end(self, trainer, model, *_) -> None:
        tensors = [*model.state_dict().values()]
        tensors += [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        content = b"".join(tensor.detach().contiguous().cpu().numpy().tobytes() for tensor in tensors)
        self.found.append(hashlib.sha256(content).hexdigest())


class Batches:
    """The same batch for every step; on one rank, at one step, not a number."""

    def __init__(self, batch: tuple, rank: int) -> None:
        self.batch, self.rank, self.current_utterances = batch, rank, []

    def __len__(self) -> int:
        return STEPS

    def __iter__(self):
        for step in range(STEPS):
            self.current_utterances = [f"rank{self.rank}-step{step}-{row}" for row in range(len(self.batch[0]))]
            signal = self.batch[0]
            is_bad = self.rank == BAD_RANK and step == BAD_STEP
            yield (signal * float("nan") if is_bad else signal, *self.batch[1:])


def main(folder: Path, action: str) -> None:
    torch.set_num_threads(1)
    hashes, guard = Hashes(), FiniteGuard(action)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[guard, hashes],
        **quiet,
    )
    torch.manual_seed(0)
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.codert.non_finite = {"action": action}
    model = EncDecCoDERTBPEModel(cfg, trainer=trainer)
    error = None
    try:
        trainer.fit(model, Batches(torch.load(folder / "batch.pt"), trainer.global_rank))
    except FloatingPointError as caught:
        error = str(caught)
    found = {"hashes": hashes.found, "skipped": guard.skipped, "error": error, "steps": trainer.global_step}
    (folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
