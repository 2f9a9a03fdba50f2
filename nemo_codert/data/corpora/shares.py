"""A share of a training set that keeps its text, while the rest loses it. Imports numpy only."""

from collections import Counter
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

from nemo_codert.data.corpora.joining import random_generator
from nemo_codert.data.manifest import manifest_lines, write_manifest


def check_shares(labelled_share: float | None, by_speaker: bool) -> None:
    """Raise ValueError for a share that is none, or for `by_speaker` without a share."""
    if labelled_share is not None and not 0.0 < labelled_share < 1.0:
        raise ValueError(f"labelled_share is {labelled_share}: want a share between 0 and 1, as in 0.1.")
    if by_speaker and labelled_share is None:
        raise ValueError("by_speaker is for labelled_share, which is not given.")


def write_shares(train: Path, labelled_share: float, seed: int, by_speaker: bool = False) -> dict[str, Path]:
    """Write `train_labelled.json` and `train_unlabelled.json` beside the manifest `train`; return both by name."""
    entries = manifest_lines(train)
    utterances = Counter(entry["speaker"] for entry in entries)
    units = sorted(utterances, key=lambda name: (-utterances[name], name)) if by_speaker else range(len(entries))
    count = round(labelled_share * len(units))
    if not 0 < count < len(units):
        raise ValueError(
            f"labelled_share is {labelled_share} of {len(units)} {'speakers' if by_speaker else 'utterances'}: want "
            "one or more labelled and one or more unlabelled. Change labelled_share or train_utterances."
        )
    generator = random_generator(seed, 4)
    if by_speaker:  # one of every so many in the order of their size
        bounds = [round(place * len(units) / count) for place in range(count + 1)]
        labelled = {units[generator.integers(*pair)] for pair in pairwise(bounds)}
        is_labelled = [entry["speaker"] in labelled for entry in entries]
    else:
        labelled = set(generator.permutation(len(entries))[:count].tolist())
        is_labelled = [number in labelled for number in range(len(entries))]
    chosen = list(compress(entries, is_labelled))
    others = [_without_text(entry) for entry, keeps in zip(entries, is_labelled, strict=True) if not keeps]
    return {
        name: write_manifest(train.with_name(f"{name}.json"), found)
        for name, found in (("train_labelled", chosen), ("train_unlabelled", others))
    }


def _without_text(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "text"}
