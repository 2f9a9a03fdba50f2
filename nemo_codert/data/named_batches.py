"""Ids of utterances in batches of NeMo's classic loader, which has places in its own list instead.

Imports neither torch nor NeMo.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from nemo_codert.data.utterance_ids import entry_id


def manifest_names(dataset: Any, manifest: str | Sequence[str] | None) -> list[str] | None:
    """Return the id of each utterance of a classic dataset of NeMo, in its order; None for a dataset without a list.

    Args:
        dataset: with NeMo's `manifest_processor.collection`, whose entries have the places of their lines.
        manifest: path, several separated by commas, or a list, that the dataset was made from.

    Example:
        >>> manifest_names(object(), None) is None
        True
    """
    collection = getattr(getattr(dataset, "manifest_processor", None), "collection", None)
    if collection is None or not manifest:
        return None
    lines: list[dict[str, Any]] = []
    for path in manifest.split(",") if isinstance(manifest, str) else manifest:
        with open(path.strip(), encoding="utf-8") as file:
            lines += [json.loads(line) for line in file if line.strip()]
    return [entry_id({**lines[entry.id], "audio_filepath": entry.audio_file}) for entry in collection]


class WithNames:
    """A collate function that puts ids in place of the places with which NeMo's classic loader ends a batch.

    Args:
        collate: NeMo's. names: id of each place.

    Example:
        >>> WithNames(lambda rows: ("signal", [1, 0]), ["a", "b"])([])
        ('signal', ('b', 'a'))
    """

    def __init__(self, collate: Callable[[Any], tuple[Any, ...]], names: Sequence[str]) -> None:
        self.collate, self.names = collate, names

    def __call__(self, rows: Any) -> tuple[Any, ...]:
        *parts, places = self.collate(rows)
        return *parts, tuple(self.names[int(place)] for place in places)
