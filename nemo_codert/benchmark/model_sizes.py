"""Sizes of a model: parameters, file, and peak memory measured in a process of its own.

Imports export and analysis; nothing but scripts imports this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_codert.benchmark.measure import peak_memory_in_own_process
from nemo_codert.evaluation.long_audio import TooLong


@dataclass(frozen=True)
class Transcribing:
    """A case for `measure`: restore a model's file and transcribe one batch with it, weights included.

    entries: manifest entries of the batch. decoding: strategy, None: the model's own. device: `cpu` or `cuda`.
    """

    model: str
    branch: str
    decoding: str | None
    entries: tuple[dict[str, Any], ...]
    device: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model

    @property
    def slow(self) -> bool:
        """True: only the kernel's figure of the whole process counts allocations outside torch's allocator."""
        return True

    def prepare(self) -> Callable[[], None]:
        """Return the call to measure, which frees everything that it allocates."""
        from nemo_codert.config.model_kinds import TRANSCRIBED
        from nemo_codert.evaluation.transcribe import set_decoding, transcribed_texts
        from nemo_codert.export.stock_file import transcribing
        from nemo_codert.models.open_model import open_model

        def transcribe() -> None:
            model = transcribing(open_model(self.model, kinds=TRANSCRIBED), branch=self.branch).to(self.device)
            if self.decoding is not None:
                set_decoding(model, self.decoding)
            transcribed_texts(model, list(self.entries), len(self.entries))

        return transcribe


def peak_memory_of(
    model: Path, entries: list[dict[str, Any]], *, branch: str, decoding: str | None, batch_size: int, device: str
) -> int | None:
    """Measure the bytes to restore a model and transcribe a batch of the longest utterances, beyond NeMo's own.

    On a GPU the bytes of its allocator, elsewhere the growth of a fresh process's resident memory after NeMo's import;
    None if there is too little memory for such a batch or the system gives no figure.
    """
    longest = sorted(entries, key=lambda entry: entry["duration"])[-batch_size:]
    try:
        measured = peak_memory_in_own_process(Transcribing(str(model), branch, decoding, tuple(longest), device))
    except TooLong:  # the longest utterances in one batch; the batches that were transcribed had room
        return None
    return None if measured is None else measured.peak


def distinct_names(models: list[Path]) -> list[str]:
    """Return a unique name for each file: its stem, with as many parent folders as needed.

    Raises:
        ValueError: one file given twice.
    """
    paths = [path.resolve().with_suffix("").parts for path in models]
    if len(set(paths)) < len(paths):
        raise ValueError("--model: a file is given twice")
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")
