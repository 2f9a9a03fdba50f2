"""Writing stored targets shard by shard, by one or several processes, so that a kill loses the open shards alone.

Finished shards have their place in the index beside them until `TargetWriter.finish` joins these into one index and
writes the header last: a folder without a header is not finished. Imports numpy only.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_codert.data.target_cache import (
    ENTRY,
    INDEX,
    Utterance,
    file_sha256,
    listed,
    npy_prefix,
    shard_name,
    utterance_crc,
)
from nemo_codert.data.target_header import HEADER, ShardRecord, TargetFault, TargetHeader, TeacherRecord, open_regular
from nemo_codert.data.utterance_ids import id_key
from nemo_codert.files.atomic import UNFINISHED, whole_file

JOB = "job.json"  # settings of targets that are not finished
MAX_JOB_BYTES = 2**24


class TargetWriter:
    """Writer of a folder of targets. Each process may have one of its own for the same folder.

    Args:
        folder: made where it is missing; with finished shards of the same settings, these are kept.
        header: its settings are the targets'; counts and checksums are filled in by `finish`.
        shards: number of shards in all.

    Raises:
        TargetFault: the folder has targets of other settings, or other files.

    Example:
        >>> import tempfile
        >>> header = TargetHeader("encoder", "encoder", "float16", 0.04, 0.01, "0" * 64, width=2)
        >>> folder = tempfile.mkdtemp()
        >>> writer = TargetWriter(folder, header, shards=2)
        >>> writer.write(0, [Utterance("anna_1", np.ones((3, 2), "float16"))])
        >>> TargetWriter(folder, header, shards=2).unfinished()  # as after a kill
        [1]
    """

    def __init__(self, folder: str | Path, header: TargetHeader, shards: int) -> None:
        self.folder, self.header, self.shards = Path(folder), header, shards
        job = {"settings": header.settings(), "shards": shards}
        found = _job(self.folder)
        if found is None:
            _write_json(self.folder / JOB, job)
        elif found != json.loads(json.dumps(job)):
            raise TargetFault(
                f"{self.folder} has targets that are not finished and were made with other settings, teachers or "
                "another manifest. Give another folder, or remove this one"
            )

    def unfinished(self) -> list[int]:
        """Return the numbers of the shards that are not there as a whole."""
        return [number for number in range(self.shards) if not self._is_finished(number)]

    def write(self, number: int, utterances: Iterable[Utterance], notes: dict[str, Any] | None = None) -> None:
        """Write one shard.

        Args:
            number: of the shard, from 0.
            utterances: in the order in which their frames are stored.
            notes: JSON that `finish` returns, such as counts of word errors.

        Raises:
            TargetFault: values that cannot be stored; names the utterance.
            OSError: such as a full disk.
        """
        utterances = list(utterances)
        entries, dtype = np.zeros(len(utterances), ENTRY), self.header.frame_type
        parts, start = [], 0
        for place, utterance in enumerate(utterances):
            frames = self._stored(utterance)
            crc, key = utterance_crc(utterance.name, frames), id_key(utterance.name)
            entries[place] = (key, start, utterance.path, utterance.audio, number, len(frames), crc, 0)
            start += len(frames)
            parts.append(frames)
        path, digest = self.folder / shard_name(number), hashlib.sha256()
        with whole_file(path, durable=True) as temporary, open(temporary, "wb") as file:
            for block in (npy_prefix(dtype, start), *(part.tobytes() for part in parts)):
                digest.update(block)
                file.write(block)
        with whole_file(self._entries_path(number)) as temporary:
            temporary.write_bytes(npy_prefix(ENTRY, len(entries)) + entries.tobytes())
        state = {"frames": start, "utterances": len(entries), "sha256": digest.hexdigest(), "notes": notes or {}}
        _write_json(self._state_path(number), state)  # last: where it is, the others are too

    def notes(self) -> list[dict[str, Any]]:
        """Return the notes of the finished shards."""
        return [_read_json(self._state_path(number))["notes"] for number in range(self.shards)]

    def finish(self, teachers: Sequence[TeacherRecord] | None = None) -> TargetHeader:
        """Join the shards' indices and write the header; the folder then is a cache.

        Args:
            teachers: records with measured word error rates and shares, in place of the header's.

        Raises:
            TargetFault: shards are missing, or two utterances have one id.

        Returns:
            The header as written.
        """
        if missing := self.unfinished():
            raise TargetFault(
                f"{self.folder}: {len(missing)} of {self.shards} shards are missing. Run codert cache again"
            )
        states = [_read_json(self._state_path(number)) for number in range(self.shards)]
        entries = [self._entries(number, state["utterances"]) for number, state in enumerate(states)]
        index = np.concatenate(entries) if entries else np.zeros(0, ENTRY)
        index = index[np.argsort(index["key"], kind="stable")]
        if (index["key"][1:] == index["key"][:-1]).any():
            raise TargetFault(f"{self.folder}: two utterances have one id. Give every line of the manifest its own id")
        with whole_file(self.folder / INDEX, durable=True) as temporary:
            temporary.write_bytes(npy_prefix(ENTRY, len(index)) + index.tobytes())
        header = replace(
            self.header,
            teachers=tuple(teachers or self.header.teachers),
            utterances=len(index),
            frames=sum(state["frames"] for state in states),
            index_sha256=file_sha256(self.folder / INDEX),
            shards=tuple(ShardRecord(state["frames"], state["sha256"]) for state in states),
        )
        _write_json(self.folder / HEADER, header.plain(), indent=1)
        for number in range(self.shards):
            self._entries_path(number).unlink()
            self._state_path(number).unlink()
        (self.folder / JOB).unlink()
        return header

    def _stored(self, utterance: Utterance) -> np.ndarray:
        """Return an utterance's frames in the type that is written."""
        frames = utterance.frames
        if self.header.kind == "encoder":
            stored = frames.astype(self.header.frame_type.base, copy=False)
            if not np.isfinite(stored).all():
                remedy = "Give --dtype float32" if np.isfinite(frames).all() else "Its audio or its teacher is broken"
                raise TargetFault(f"encoder output of utterance {utterance.name!r} is not finite. {remedy}")
            return stored
        if not np.isfinite(frames["probabilities"]).all():
            raise TargetFault(f"a probability of utterance {utterance.name!r} is not finite. Its teacher is broken")
        return frames

    def _is_finished(self, number: int) -> bool:
        path = self._state_path(number)
        if not path.is_file():
            return False
        state, shard = _read_json(path), self.folder / shard_name(number)
        size = len(npy_prefix(self.header.frame_type, state["frames"])) + state["frames"] * self.header.frame_bytes
        return shard.is_file() and shard.stat().st_size == size and self._entries_path(number).is_file()

    def _entries(self, number: int, count: int) -> np.ndarray:
        with open_regular(self._entries_path(number)) as file:
            content = file.read()
        return np.frombuffer(content, ENTRY, count, len(npy_prefix(ENTRY, count)))

    def _entries_path(self, number: int) -> Path:
        return self.folder / f"{shard_name(number)}.index"

    def _state_path(self, number: int) -> Path:
        return self.folder / f"{shard_name(number)}.json"


def _job(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a folder's unfinished targets, None where there are none; other content is refused."""
    if (folder / HEADER).exists():
        raise TargetFault(f"{folder} has finished targets already. Give another folder, or remove this one")
    if (folder / JOB).exists():
        return _read_json(folder / JOB)
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in others if not name.endswith(UNFINISHED)]:
        raise TargetFault(f"{folder} holds other files ({listed(others)}). Give a new or an empty folder")
    return None


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path, MAX_JOB_BYTES) as file:
        return json.loads(file.read())


def _write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    with whole_file(path, durable=True) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
