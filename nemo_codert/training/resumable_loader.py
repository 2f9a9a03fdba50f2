"""Training loader with a position: the number of batches trained on, and their utterances.

Lightning and the loader's workers draw batches ahead of training, so a position counts batches trained, not drawn.
Going back to a position draws from the sampler, which reads no audio where the sampler runs in the training process
(NeMo's classic loader, lhotse without tarred or sharded data); a stream of shards is read again.
"""

import copy
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from nemo_codert.training.random_state import RandomState, capture, restore

logger = logging.getLogger(__name__)


class ResumableLoader:
    """A DataLoader that can start where an earlier one stopped; everything else is the DataLoader's.

    Lightning finds `state_dict` and `load_state_dict`, puts the position into its checkpoints and restores it
    before the first batch. The random states are saved separately, since every process has its own: see
    `random_states` and `resume_random`.

    Args:
        loader: the loader that Lightning has prepared; not changed, but its sampler is shared.
        replay_streams: read a stream of shards again up to the position; False starts the stream from scratch.
        limit: batches of an epoch (`limit_train_batches`). Lightning would draw one more where an epoch had ended.
    """

    def __init__(
        self, loader: DataLoader, *, replay_streams: bool = True, limit: Callable[[], float] = lambda: math.inf
    ) -> None:
        self.loader = copy.copy(loader)
        self.current_utterances: list[str] = []  # ids or paths of the batch in training, where known
        self.trained = 0  # number of batches in this epoch
        self.resume_random: tuple[RandomState, list[RandomState], RandomState] | None = None
        self._replay_streams, self._limit = replay_streams, limit
        self._sampler: _TrackedSampler | None = None
        self._is_stream = isinstance(loader.dataset, IterableDataset)
        if not self._is_stream:
            name = "sampler" if loader.batch_sampler is None else "batch_sampler"
            self._sampler = _TrackedSampler(getattr(loader, name), loader.dataset)
            object.__setattr__(self.loader, name, self._sampler)  # DataLoader forbids plain assignment
        self._position: dict[str, Any] | None = None
        self._passes: list[int] = []  # batches drawn from a stream in each earlier pass
        self._drawn = 0
        self._start: RandomState | None = None
        self._epoch = 0
        self._untrained: deque[tuple[RandomState, list[str]]] = deque()  # states and names of yielded batches
        self._again: deque[RandomState] = deque()  # states for batches drawn ahead by the interrupted run
        self._afterwards: RandomState | None = None
        self._iterator: Any = None  # name under which Lightning shuts workers down

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        position, self._position = self._position, None
        if self._iterator is None:
            self.loader._iterator = None  # persistent workers that were shut down
        self.trained = position["batches"] if position else 0
        if position:
            self._passes = list(position["passes"])
        elif self._is_stream and self._start is not None:
            self._passes.append(self._drawn)
        self._drawn = self.trained
        self._untrained.clear()
        again, afterwards = [], None
        if position:
            self._set_epoch(position["epoch"])
            if self.resume_random:
                start, again, afterwards = self.resume_random
                restore(start)
        self._again, self._afterwards = deque(again), afterwards
        self._epoch, self._start = self._sampler_epoch(), capture()
        self._open(self.trained, is_resumed=position is not None)
        if afterwards is not None and not again:
            restore(afterwards)
        return self

    def _open(self, skipped: int, *, is_resumed: bool) -> None:
        """Start the DataLoader behind `skipped` batches, drawing random numbers in the order of a first pass."""
        if self._sampler is None:
            self._open_stream(skipped, is_resumed=is_resumed)
            return
        self._sampler.skipped = skipped
        self._iterator = iter(self.loader)
        # A DataLoader without workers would draw at the first batch, from another random state.
        self._sampler.pass_over()
        self._sampler.skipped = 0

    def _open_stream(self, skipped: int, *, is_resumed: bool) -> None:
        counts, self._iterator = [*self._passes, skipped], None
        if is_resumed and any(counts) and not self._replay_streams:
            logger.warning("resume.replay_streams is false: the training data start from scratch")
        elif is_resumed and any(counts):
            logger.info("Reading %d batches of the stream again to resume behind them", sum(counts))
            for count in counts[:-1]:
                _draw(iter(self.loader), count)
        self._iterator = iter(self.loader)
        if is_resumed and self._replay_streams:
            _draw(self._iterator, skipped)

    def __next__(self) -> Any:
        if self._drawn >= self._limit():
            raise StopIteration
        is_again = bool(self._again)
        if is_again:
            restore(self._again.popleft())
        before = capture()
        batch = next(self._iterator)
        self._drawn += 1
        names = [] if self._sampler is None else self._sampler.names.popleft()
        self._untrained.append((before, names))
        if is_again and not self._again:
            restore(self._afterwards)
        return batch

    def begin_batch(self) -> None:
        """Note that training has begun the next batch."""
        self.current_utterances = self._untrained[0][1] if self._untrained else []

    def end_batch(self) -> None:
        """Note that training has finished a batch."""
        self.trained += 1
        self._untrained.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the sampler's epoch, the batches trained in it, and a stream's earlier passes."""
        return {"epoch": self._epoch, "batches": self.trained, "passes": list(self._passes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position at which the next pass begins."""
        self._position = dict(state)

    def random_states(self) -> tuple[RandomState | None, list[RandomState]]:
        """Return this process's states before this pass and before each batch that is drawn but not trained on."""
        return self._start, [state for state, _ in self._untrained]

    def _epoch_samplers(self) -> list[Any]:
        found = [self.loader.sampler, getattr(self.loader.batch_sampler, "sampler", None)]
        return [sampler for sampler in found if callable(getattr(sampler, "set_epoch", None))]

    def _set_epoch(self, epoch: int) -> None:
        for sampler in self._epoch_samplers():
            sampler.set_epoch(epoch)

    def _sampler_epoch(self) -> int:
        return max((int(getattr(sampler, "epoch", 0)) for sampler in self._epoch_samplers()), default=0)


def _draw(iterator: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(iterator, None)


class _TrackedSampler:
    """A sampler that can skip batches and records the utterances of the batches drawn."""

    def __init__(self, sampler: Any, dataset: Any) -> None:
        self.sampler, self.skipped = sampler, 0
        self.names: deque[list[str]] = deque()
        self._dataset = dataset
        self._draws: Iterator[Any] = iter(())
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["sampler"], name)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> "_TrackedSampler":
        self.names.clear()
        self._draws = iter(self.sampler)
        self._left = self.skipped
        return self

    def pass_over(self) -> None:
        """Draw the batches to be skipped, unless this is done."""
        while self._left:
            self._left -= 1
            next(self._draws, None)

    def __next__(self) -> Any:
        self.pass_over()
        drawn = next(self._draws)
        self.names.append(_utterances(drawn, self._dataset))
        return drawn


def _utterances(drawn: Any, dataset: Any) -> list[str]:
    """Return the ids of a lhotse CutSet; for indices of a classic loader, the audio files or the indices."""
    items = drawn if isinstance(drawn, list | tuple) or hasattr(drawn, "__iter__") else [drawn]
    entries = getattr(getattr(dataset, "manifest_processor", None), "collection", None)
    names = []
    for item in items:
        if hasattr(item, "id"):
            names.append(str(item.id))
        else:
            names.append(str(getattr(entries[item], "audio_file", item)) if entries is not None else str(item))
    return names
