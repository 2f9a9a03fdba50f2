"""Data of a comparison: one corpus, or a folder of corpora, the folds. Imports the manifest reader only."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_codert.data.manifest import read_manifest

ONE_FOLD = "all"  # name of the only fold where the data folder is a corpus itself
CLEAN = "clean.json"  # optional manifest: what the teacher of stored targets gets in place of train.json
HASHED = 64  # audio files of a manifest, evenly spread, whose bytes are hashed: enough to detect other audio


@dataclass(frozen=True)
class Fold:
    """One corpus: `folder` below the data folder, names of its test sets, and hashes by the name of the hashed file.

    Hashed are the manifests and the tokenizer, and for each manifest some of its audio (see `HASHED`).
    """

    folder: str
    test_sets: list[str]
    sha256: dict[str, str]


def find_folds(data_dir: Path, names: Sequence[str] | None) -> dict[str, Fold]:
    """Return the folds of a data folder by name: its subfolders that are corpora, or itself. `names`: only these.

    Raises:
        ValueError: no corpus, no such fold, a manifest that cannot be read, test sets that differ between folds.
    """
    if (data_dir / "train.json").is_file():
        folders = {ONE_FOLD: "."}
    else:
        folders = {path.parent.name: path.parent.name for path in sorted(data_dir.glob("*/train.json"))}
    if not folders:
        raise ValueError(
            f"--data-dir is {data_dir}: neither it nor a folder in it holds a train.json. "
            "codert prepare makes a corpus"
        )
    for name in names or ():
        if name not in folders:
            raise ValueError(f"--folds names {name!r}, --data-dir {data_dir} holds {', '.join(folders)}")
    folds = {name: _fold(data_dir, folder) for name, folder in folders.items() if not names or name in names}
    first, *others = folds
    for name in others:
        if folds[name].test_sets != folds[first].test_sets:
            raise ValueError(
                f"fold {name} has the test sets {', '.join(folds[name].test_sets)}, fold {first} "
                f"{', '.join(folds[first].test_sets)}: they must be the same. Prepare them alike"
            )
    return folds


def _fold(data_dir: Path, folder: str) -> Fold:
    root = data_dir / folder
    tests = sorted(path.stem for path in root.glob("test*.json"))
    if not tests:
        raise ValueError(f"{root} holds no test*.json: there is nothing to compare the students on")
    for name in [*tests, folder]:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{root} has the name {name!r}, which does not suit a command line. Use letters and _-.")
    files = [f"{name}.json" for name in ("train", "dev", *tests)]
    files += [CLEAN] if (root / CLEAN).is_file() else []
    audio = {f"audio of {file}": _hash_of_audio(read_manifest(root / file)) for file in files}
    files += sorted(path.name for path in root.glob("train_*.json"))  # manifests of variants
    files.append("tokenizer/tokenizer.model")
    if not (root / files[-1]).is_file():
        raise ValueError(f"{root / files[-1]} is missing: codert prepare makes a tokenizer")
    hashes = {file: hashlib.sha256((root / file).read_bytes()).hexdigest() for file in files}
    return Fold(folder, tests, {**hashes, **audio})


def _hash_of_audio(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the hash of `HASHED` files, or of all where there are fewer; training drops or refuses missing ones."""
    content = hashlib.sha256()
    for place in sorted({round(i * (len(entries) - 1) / (HASHED - 1)) for i in range(HASHED)}):
        path = Path(entries[place]["audio_filepath"])
        content.update(path.read_bytes() if path.is_file() else b"missing")
    return content.hexdigest()
