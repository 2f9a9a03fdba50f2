"""One of two processes (gloo): trains every strategy, measures gradients, metrics and sharded data; writes JSON.

    LOCAL_RANK=0|1 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python two_processes.py FOLDER

The folder holds the configs `STRATEGY.yaml`, `sharded.yaml` and one batch, `batch.pt`; the answers go to `rank0.json`
and `rank1.json`.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.training.resume import ResumeState

torch.set_num_threads(1)
RANK = int(os.environ["LOCAL_RANK"])
FOLDER = Path(sys.argv[1])
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)


class Gradients(pl.Callback):
    """Gradients before the first optimizer step, averaged over the processes by DDP."""

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


class Texts(pl.Callback):
    """Transcripts of the batches, as token ids."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, *_) -> None:
        self.seen += [module.tokenizer.ids_to_text(row[:size].tolist()) for row, size in zip(*batch[2:], strict=True)]


def make_trainer(*callbacks: pl.Callback, **settings) -> pl.Trainer:
    ddp = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    given = {**QUIET, "num_sanity_val_steps": 0, "max_epochs": -1, **settings}
    return pl.Trainer(accelerator="cpu", devices=2, strategy=ddp, callbacks=[ResumeState(), *callbacks], **given)


def build(name: str, trainer: pl.Trainer | None):
    cfg = OmegaConf.load(FOLDER / f"{name}.yaml")
    torch.manual_seed(0)
    if name == "student":
        stock = student_config(cfg)
        return EncDecRNNTBPEModel(stock, trainer=trainer)
    model = EncDecCoDERTBPEModel(cfg, trainer=trainer)
    if name.startswith("static"):
        model.load_state_dict(model.state_dict())  # a teacher with weights, as one from a checkpoint
    return model


def a_run(name: str) -> dict:
    """Three steps and a validation without `find_unused_parameters`; a number that all weights go into."""
    trainer = make_trainer(max_steps=3, val_check_interval=3, check_val_every_n_epoch=None)
    model = build(name, trainer)
    trainer.fit(model)
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {"steps": trainer.global_step, "weights": weights.sum().item(), "metrics": metrics}


def alone(model, batch) -> dict[str, torch.Tensor]:
    """Gradients of the global batch in one process."""
    model.train()
    if isinstance(model, EncDecCoDERTBPEModel):
        loss = model.training_step(batch, 0)["loss"]
    else:
        signal, signal_len, transcript, transcript_len = batch
        encoded, encoded_len = model.forward(input_signal=signal, input_signal_length=signal_len)
        decoded, *_ = model.decoder(targets=transcript, target_length=transcript_len)
        rnnt = {"encoder_lengths": encoded_len, "transcripts": transcript, "transcript_lengths": transcript_len}
        loss, *_ = model.joint(encoder_outputs=encoded, decoder_outputs=decoded, **rnnt, compute_wer=False)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradients(name: str) -> dict:
    """Largest difference to the gradients of one process, in parts of each tensor's largest gradient."""
    batch = torch.load(FOLDER / "batch.pt")
    mine = [part[2 * RANK : 2 * RANK + 2] for part in batch]
    callback = Gradients()
    trainer = make_trainer(callback, max_steps=1, limit_val_batches=0, use_distributed_sampler=False)
    trainer.fit(build(name, trainer), DataLoader([mine], batch_size=None))
    expected = alone(build(name, None), batch)
    largest = {}
    for tensor, gradient in expected.items():
        if tensor.endswith("linear_k.bias"):
            continue  # a softmax over keys does not change with it: its gradient is 0, and rounding what is found
        difference = (callback.found[tensor] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        largest[tensor] = float(difference)
    worst = max(largest, key=largest.get)
    return {"same": callback.found.keys() == expected.keys(), "worst": worst, "difference": largest[worst]}


def metrics() -> dict:
    """Word error rates where process r has 1 + 4r errors in 4 + 2r words of every batch."""
    trainer = make_trainer(limit_val_batches=2)
    model = build("shared_kd", trainer)
    for metric in (model.student_wer, model.wer):

        def update(*_, metric=metric, **__):
            metric.scores, metric.words = torch.tensor(1.0 + 4 * RANK), torch.tensor(4.0 + 2 * RANK)
            metric._update_count, metric._computed = metric._update_count + 1, None

        metric.update = update
    trainer.validate(model, verbose=False)
    return {key: float(trainer.callback_metrics[key]) for key in ("val_wer", "val_wer_teacher")}


def sharded(name: str, **settings) -> dict:
    """The transcripts that this process gets of sharded data."""
    texts = Texts()
    trainer = make_trainer(texts, limit_val_batches=0, **settings)
    trainer.fit(build(name, trainer))
    return {"seen": texts.seen, "steps": trainer.global_step}


def main() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("tarred"))
    tasks = {f"run {name}": (a_run, name, {}) for name in names}
    tasks |= {f"gradients {name}": (gradients, name, {}) for name in names}
    tasks["metrics"] = (lambda _: metrics(), "", {})
    tasks["tarred_classic"] = (sharded, "tarred_classic", {"max_epochs": 1})
    # lhotse shares its stream out by itself; it has no end
    lhotse = {"max_steps": 4, "limit_train_batches": 4, "use_distributed_sampler": False}
    tasks["tarred_lhotse"] = (sharded, "tarred_lhotse", lhotse)
    answers = {}
    for task, (function, name, settings) in tasks.items():
        try:
            answers[task] = function(name, **settings)
        except Exception:
            answers[task] = {"error": traceback.format_exc()}
            break  # the other process waits in vain
        finally:
            (FOLDER / f"rank{RANK}.json").write_text(json.dumps(answers, indent=1))


if __name__ == "__main__":
    main()
