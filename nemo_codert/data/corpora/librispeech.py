"""LibriSpeech, and every corpus in its layout, through lhotse's recipe: NeMo manifests and a tokenizer.

lhotse is imported inside the functions. Audio files stay in place: the manifests hold absolute paths.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_codert.data.manifest import write_manifest
from nemo_codert.data.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from lhotse import RecordingSet, SupervisionSet

logger = logging.getLogger(__name__)

ALL_PARTS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
MINI_PARTS = ("train-clean-5", "dev-clean-2")  # OpenSLR 31, 0.5 GB
PREFIXES = ("train", "dev", "test")


def make_librispeech_corpus(
    output_dir: str | Path,
    *,
    corpus_dir: str | Path,
    parts: Sequence[str] | None = None,
    download: bool = False,
    vocab_size: int = 1024,
    num_jobs: int = 1,
) -> dict[str, Path]:
    """Write a manifest for each set and `tokenizer/` (BPE, of the training text); return the manifests by set name.

    train: all `train-*` parts together, dev: all `dev-*` parts together, `test_clean`, ...: each `test-*` part
    apart. Transcripts are lower-cased.

    Args:
        corpus_dir: folder with the parts, or with a folder LibriSpeech that has them.
        parts: names of folders; absent ones are skipped with a warning. None: every part found, or with download all
            seven.
        download: fetches missing parts into corpus_dir first (OpenSLR; the seven are 60 GB).

    Raises:
        ValueError: no part found, a part's name without a known prefix, or broken transcripts or audio.
    """
    _check_names(parts or ())
    if download:
        corpus_dir = _download(Path(corpus_dir), list(parts or ALL_PARTS))
    corpus_dir = _corpus_root(Path(corpus_dir))
    present = available_parts(corpus_dir, parts)
    entries = _read_parts(corpus_dir, present, num_jobs)
    sets: dict[str, list[dict[str, Any]]] = {}
    for part in present:
        sets.setdefault(set_name(part), []).extend(entries[part])
    # The tokenizer comes first: if its training fails, nothing has been written.
    if "train" in sets:
        train_tokenizer([entry["text"] for entry in sets["train"]], Path(output_dir) / "tokenizer", vocab_size)
    else:
        logger.warning("No train-* part in %s: neither train.json nor a tokenizer is made.", corpus_dir)
    return {name: write_manifest(Path(output_dir) / f"{name}.json", found) for name, found in sets.items()}


def set_name(part: str) -> str:
    """Return the set of a part: train-clean-100 -> train, dev-other -> dev, test-clean -> test_clean."""
    prefix = part.partition("-")[0]
    return part.replace("-", "_") if prefix == "test" else prefix


def available_parts(corpus_dir: Path, parts: Sequence[str] | None) -> list[str]:
    """Return the parts with transcripts, sorted, of those given or of all. Raises ValueError if there is none."""
    wanted = parts or [path.name for path in corpus_dir.iterdir() if path.name.partition("-")[0] in PREFIXES]
    present = [part for part in sorted(set(wanted)) if next((corpus_dir / part).rglob("*.trans.txt"), None)]
    for part in sorted(set(wanted) - set(present)):
        logger.warning("%s: no *.trans.txt in part %s, skipped.", corpus_dir, part)
    if not present:
        raise ValueError(
            f"{corpus_dir} has none of the parts {', '.join(parts or ALL_PARTS)} (folders such as "
            "train-clean-100/19/198/19-198.trans.txt). Give the folder that holds them, or set download."
        )
    return present


def _check_names(parts: Sequence[str]) -> None:
    for part in parts:
        if part.partition("-")[0] not in PREFIXES or Path(part).name != part:
            raise ValueError(f"part {part!r}: want the name of a folder that begins with train-, dev- or test-.")


def _corpus_root(corpus_dir: Path) -> Path:
    if not corpus_dir.is_dir():
        raise ValueError(f"{corpus_dir} is not a folder: give the LibriSpeech folder, or set download.")
    inner = corpus_dir / "LibriSpeech"
    return (inner if inner.is_dir() else corpus_dir).resolve()


def _download(target_dir: Path, parts: list[str]) -> Path:
    from lhotse.recipes.librispeech import download_librispeech

    unknown = sorted(set(parts) - {*ALL_PARTS, *MINI_PARTS})
    if unknown:
        known = ", ".join((*ALL_PARTS, *MINI_PARTS))
        raise ValueError(f"cannot download {', '.join(unknown)}: OpenSLR has {known}.")
    return Path(download_librispeech(target_dir, dataset_parts=parts))


def _read_parts(corpus_dir: Path, parts: list[str], num_jobs: int) -> dict[str, list[dict[str, Any]]]:
    from lhotse.audio import AudioLoadingError
    from lhotse.recipes.librispeech import prepare_librispeech

    entries = {}
    for part in parts:
        try:
            prepared = prepare_librispeech(corpus_dir, dataset_parts=part, normalize_text="lower", num_jobs=num_jobs)
        except (AssertionError, AudioLoadingError, ValueError) as error:
            # lhotse raises AssertionError without audio, and unpacks each transcript line into an id and a text.
            raise ValueError(
                f"{corpus_dir / part} cannot be prepared ({error}). Every line of its *.trans.txt needs an id, a "
                "text, and <id>.flac beside it: fetch the part again."
            ) from error
        entries[part] = _entries(prepared[part]["recordings"], prepared[part]["supervisions"])
    return entries


def _entries(recordings: "RecordingSet", supervisions: "SupervisionSet") -> list[dict[str, Any]]:
    """Return the manifest entries in order of utterance id: the recipe lists files in the order of the disk."""
    audio = {recording.id: recording for recording in recordings}
    return [
        {
            "audio_filepath": str(Path(audio[segment.recording_id].sources[0].source).resolve()),
            "duration": round(audio[segment.recording_id].duration, 4),
            "text": segment.text,
            "speaker": segment.speaker,
        }
        for segment in sorted(supervisions, key=lambda segment: segment.id)
    ]
