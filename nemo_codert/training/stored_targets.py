"""Stored targets of a run, compared with its training data before the first step."""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omegaconf import DictConfig

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.data_sections import manifest_paths
from nemo_codert.data.manifest import read_manifest
from nemo_codert.data.target_cache import TargetCache, listed
from nemo_codert.data.utterance_ids import audio_id, entry_id, file_fingerprint, id_key
from nemo_codert.training.run_checks import plain_sources

logger = logging.getLogger("nemo_codert.train")

VERIFIED_BYTES = 4e9  # checksums of all files are compared up to this size; each utterance has its own in any case
THREADS = 8


def check_stored_targets(cfg: DictConfig, checked: CheckedConfig) -> None:
    """Compare the stored targets of a cached teacher with the run's usable utterances.

    Args:
        cfg: root config, with the manifests of usable utterances.
        checked: its model section.

    Raises:
        ValueError: targets that are damaged, utterances without targets, or audio that changed since; names the
            utterances.
    """
    if checked.alone or checked.codert.teacher != "cached":
        return
    cache = TargetCache(checked.codert.teacher_cache)
    header = cache.header
    if header.frames * header.frame_bytes <= VERIFIED_BYTES:
        cache.verify()
    paths = [path for source in plain_sources(cfg.model.train_ds) for path in manifest_paths(source.manifest_filepath)]
    entries = [entry for path in paths for entry in read_manifest(path, unlabelled=True)]
    if missing := cache.missing(entry_id(entry) for entry in entries):
        raise ValueError(
            f"model.codert.teacher_cache is {cache.folder}: {len(missing)} of {len(entries)} training utterances have "
            f"no targets ({listed(missing)}). Make the targets of this manifest with codert cache"
        )
    if stale := cache.stale(_audio(entries)):
        raise ValueError(
            f"model.codert.teacher_cache is {cache.folder}: the audio of {len(stale)} utterances changed after their "
            f"targets were made ({listed(stale)}). Remove the folder and run codert cache again"
        )
    teachers = ", ".join(teacher.name for teacher in header.teachers)
    logger.info(
        "Stored targets: %s of %d utterances, made by %s%s",
        *(header.kind, header.utterances, teachers),
        "" if header.manifest in map(_sha256, paths) else " from another manifest: the teacher got that one's audio",
    )


def _audio(entries: list[dict]) -> Iterator[tuple[str, int, int]]:
    """Yield id, key of the audio's path and fingerprint of its file for each utterance."""
    files = sorted({entry["audio_filepath"] for entry in entries})
    with ThreadPoolExecutor(THREADS) as pool:
        prints = dict(zip(files, pool.map(file_fingerprint, files), strict=True))
    for entry in entries:
        yield entry_id(entry), id_key(audio_id(entry)), prints[entry["audio_filepath"]]


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
