"""Audio that cannot be read in the middle of a training: counted and listed, or refused.

NeMo's lhotse loader skips such utterances with a log line. The loader runs in worker processes, so lost utterances are
written to a file in the run's folder, line by line, and counted there.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lhotse import CutSet
from lhotse.dataset import AudioSamples
from lightning.pytorch import LightningModule

from nemo_codert.data.data_report import add_loading

logger = logging.getLogger(__name__)

LOST = "lost_utterances.jsonl"  # file in the run's folder


class WatchedAudio:
    """Replacement of `AudioSamples` in a dataset of NeMo's that lists the utterances left out.

    Several channels are mixed down in every batch: a batch of nothing but stereo would otherwise keep its channels,
    and the model would fail.

    Args:
        load_audio: the dataset's own `AudioSamples`, which leaves out unreadable audio.
        listed_in: the file that gets one JSON line for each batch with lost utterances.
        refuse: raise instead of continuing without the lost utterances.

    Raises:
        ValueError: no utterance of a batch can be read; or, with `refuse`, one of them cannot.
    """

    def __init__(self, load_audio: AudioSamples, listed_in: Path, refuse: bool) -> None:
        load_audio.mono_downmix = True
        self.load_audio, self.listed_in, self.refuse = load_audio, listed_in, refuse

    def __call__(self, cuts: CutSet) -> tuple[torch.Tensor, torch.Tensor, CutSet]:
        try:
            audio, lengths, loaded = self.load_audio(cuts)
        except Exception as error:
            self._write(self._names(cuts), asked=len(cuts))
            raise ValueError(
                f"No utterance of a batch of {len(cuts)} can be read ({self._names(cuts)[0]}, ...; {error}). "
                f"Is the folder of the audio still there? They are listed in {self.listed_in}"
            ) from error
        if len(loaded) == len(cuts):
            return audio, lengths, loaded
        kept = {cut.id for cut in loaded}
        lost = self._names(cut for cut in cuts if cut.id not in kept)
        self._write(lost, asked=len(cuts))
        if self.refuse:
            raise ValueError(
                f"{len(lost)} of {len(cuts)} utterances of a batch cannot be read any more: {', '.join(lost[:10])}. "
                "Mend the audio, or set model.codert.bad_utterances to 'drop' to continue without such utterances"
            )
        return audio, lengths, loaded

    def _names(self, cuts: Iterable[Any]) -> list[str]:
        return [cut.recording.sources[0].source if getattr(cut, "recording", None) else cut.id for cut in cuts]

    def _write(self, lost: list[str], asked: int) -> None:
        line = json.dumps({"lost": lost, "asked": asked}, ensure_ascii=False) + "\n"
        # One write to a file opened for appending: lines of several processes do not mix.
        with open(self.listed_in, "ab", buffering=0) as file:
            file.write(line.encode("utf-8", errors="replace"))


class LoadWatch(pl.Callback):
    """Callback that counts the requested and the loaded training utterances and reports them when training ends.

    Puts `WatchedAudio` into the lhotse datasets of a model; NeMo's classic loader stops at a file that it cannot read.
    The list of lost utterances lies in `trainer.default_root_dir`, and the counts go into the data report there. List
    and counts cover the run as a whole, resumed or not.

    Args:
        policy: `drop` or `refuse`, the value of `model.codert.bad_utterances`.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.arrived = 0

    def state_dict(self) -> dict[str, Any]:
        # Overrides Callback.state_dict.
        return {"arrived": self.arrived}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Overrides Callback.load_state_dict.
        self.arrived = state_dict["arrived"]

    def setup(self, trainer: pl.Trainer, pl_module: LightningModule, stage: str) -> None:
        # Overrides Callback.setup: before any loader has made its workers.
        validation = getattr(pl_module, "_validation_dl", None)  # one or a list, or None
        validation = validation if isinstance(validation, list) else [validation]
        for loader in (getattr(pl_module, "_train_dl", None), *validation):
            dataset = _reading_dataset(loader)
            if dataset is not None:
                dataset.load_audio = WatchedAudio(
                    dataset.load_audio, self._listed_in(trainer), self.policy == "refuse"
                )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.arrived += len(batch[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        count = torch.tensor(float(self.arrived), device=trainer.strategy.root_device, dtype=torch.float64)
        arrived = int(trainer.strategy.reduce(count, reduce_op="sum")) if trainer.world_size > 1 else self.arrived
        if trainer.is_global_zero:
            self._report(trainer, arrived)

    def on_exception(self, trainer: pl.Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1:  # other ranks may not reach this point
            self._report(trainer, self.arrived)

    def _report(self, trainer: pl.Trainer, arrived: int) -> None:
        listed_in = self._listed_in(trainer)
        lost = count_lost(listed_in)
        if lost:
            logger.warning(
                "%d of %d requested utterances could not be read during training (listed in %s)",
                *(lost, arrived + lost, listed_in),
            )
        add_loading(Path(trainer.default_root_dir), {"asked": arrived + lost, "arrived": arrived, "lost": lost})

    def _listed_in(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / LOST


def count_lost(listed_in: Path) -> int:
    """Count the utterances in a list of lost ones, each as often as it was lost; 0 without a list."""
    if not listed_in.is_file():
        return 0
    return sum(len(json.loads(line)["lost"]) for line in listed_in.read_text(encoding="utf-8").splitlines())


def _reading_dataset(loader: Any) -> Any:
    """Return the dataset behind a loader that reads audio through lhotse, or None."""
    dataset = getattr(loader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset)  # lhotse wraps a dataset whose workers sample by themselves
    return dataset if isinstance(getattr(dataset, "load_audio", None), AudioSamples) else None
