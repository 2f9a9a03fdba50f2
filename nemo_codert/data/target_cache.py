"""Stored targets of a teacher, read by utterance id: `TargetCache`.

A folder of targets has a header, an index and shards of frames. Index and shards are `.npy` files which are mapped,
not loaded: opening takes as long as reading the index, however large the targets. The folder is an untrusted file:
nothing is unpickled, no path is taken from a file, links are refused, every size is checked against the header before
anything is mapped, and every utterance against its own checksum, the number of classes and the sum of probabilities
when it is read. Imports numpy only. T target frames, k classes, D channels, V vocabulary without blank.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from nemo_codert.data.target_header import REMEDY, TargetFault, TargetHeader, open_regular, read_header
from nemo_codert.data.utterance_ids import id_key

INDEX = "index.npy"
# One utterance: key of its id; shard, first frame and frames; checksum of id and frames; key of its audio's path and
# fingerprint of its audio's file.
ENTRY = np.dtype(
    [
        ("key", "<u8"),
        ("start", "<u8"),
        ("path", "<u8"),
        ("audio", "<u8"),
        ("shard", "<u4"),
        ("frames", "<u4"),
        ("crc", "<u4"),
        ("spare", "<u4"),
    ]
)
OPEN_SHARDS = 256  # mapped at a time: each holds a file handle
SUM_TOLERANCE = {"float16": 5e-4, "float32": 1e-5}  # rounding of each stored class in the sum of a frame
LISTED = 10
BLOCK_BYTES = 2**20


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.npy"


def npy_prefix(dtype: np.dtype, count: int) -> bytes:
    """Return the beginning of a `.npy` file of `count` items, always of the same bytes for the same arguments.

    A reader compares it with the file's instead of parsing the file's.

    Args:
        dtype: of an item; a subarray type such as `(float16, (8,))` gives an array of two dimensions.
        count: items.

    Example:
        >>> npy_prefix(np.dtype("<u2"), 2)[10:67]
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (2,), }"
    """
    base, shape = (dtype.subdtype or (dtype, ())) if dtype.fields is None else (dtype, ())
    descr = np.lib.format.dtype_to_descr(base)
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {(count, *shape)!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def utterance_crc(name: str, frames: np.ndarray) -> int:
    """Return the checksum of an utterance's id and frames."""
    return zlib.crc32(np.ascontiguousarray(frames).view(np.uint8).reshape(-1), zlib.crc32(name.encode()))


class TargetCache:
    """Targets of a folder, by utterance id.

    Args:
        folder: made by `codert cache`.

    Raises:
        TargetFault: a folder without targets, with unfinished ones or those of another version, or a file that differs
            from the header.

    Example:
        >>> import tempfile
        >>> from nemo_codert.data.target_writer import TargetWriter
        >>> header = TargetHeader("encoder", "encoder", "float16", 0.04, 0.01, "0" * 64, width=2)
        >>> folder = tempfile.mkdtemp()
        >>> writer = TargetWriter(folder, header, shards=1)
        >>> writer.write(0, [Utterance("anna_1", np.ones((3, 2), "float16"))])
        >>> _ = writer.finish()
        >>> cache = TargetCache(folder)
        >>> cache.header.utterances, cache.read("anna_1").shape
        (1, (3, 2))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header: TargetHeader = read_header(self.folder)
        for number, shard in enumerate(self.header.shards):
            self._map(shard_name(number), self.header.frame_type, shard.frames)  # all sizes now, each again when read
        self._shard = lru_cache(OPEN_SHARDS)(self._map_shard)
        self._entries = self._read_index()
        self._keys = np.ascontiguousarray(self._entries["key"])

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, name: str) -> np.ndarray:
        """Return the targets of an utterance, checked.

        Args:
            name: its id, see `nemo_codert.data.utterance_ids`.

        Returns:
            Of kind `top_k` [T] with the fields ids [k] and probabilities [k], of kind `encoder` [T, D]; read-only.

        Raises:
            TargetFault: no such utterance, or targets that are damaged; names the utterance.
        """
        place = self._place(name)
        if place is None:
            raise TargetFault(f"utterance {name!r} has no targets in {self.folder}. {_reason(name)}")
        entry = self._entries[place]
        start, frames = int(entry["start"]), int(entry["frames"])
        found = self._shard(int(entry["shard"]))[start : start + frames]
        if utterance_crc(name, found) != entry["crc"]:
            raise TargetFault(
                f"the targets of utterance {name!r} in {self.folder / shard_name(int(entry['shard']))} are not those "
                "that were written: the file is damaged. Remove the folder and run codert cache again"
            )
        if fault := self._value_fault(found):
            raise TargetFault(f"the targets of utterance {name!r} in {self.folder}: {fault}. {REMEDY}")
        return found

    def frames(self, name: str) -> int:
        """Return the number of target frames of an utterance; raises TargetFault where there is none."""
        place = self._place(name)
        if place is None:
            raise TargetFault(f"utterance {name!r} has no targets in {self.folder}. {_reason(name)}")
        return int(self._entries["frames"][place])

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the ids that have no targets."""
        names = list(names)
        keys = np.array([id_key(name) for name in names], dtype=np.uint64)
        return [names[i] for i in np.flatnonzero(~np.isin(keys, self._keys))]

    def stale(self, audio: Iterable[tuple[str, int, int]]) -> list[str]:
        """Return the ids whose audio is another than the teacher's, though its path is the same.

        Args:
            audio: id, key of the audio's path and fingerprint of its file, for each utterance.
        """
        changed = []
        for name, path, fingerprint in audio:
            place = self._place(name)
            entry = None if place is None else self._entries[place]
            if entry is not None and entry["path"] == path and entry["audio"] != fingerprint:
                changed.append(name)
        return changed

    def verify(self) -> None:
        """Compare every file with its checksum in the header.

        Raises:
            TargetFault: names the first file that differs.
        """
        expected = [(shard_name(number), shard.sha256) for number, shard in enumerate(self.header.shards)]
        for name, checksum in [(INDEX, self.header.index_sha256), *expected]:
            if file_sha256(self.folder / name) != checksum:
                raise TargetFault(
                    f"{self.folder / name} is damaged: its checksum is not the header's. Remove the folder and run "
                    "codert cache again"
                )

    def _place(self, name: str) -> int | None:
        key = np.uint64(id_key(name))
        place = int(np.searchsorted(self._keys, key))
        return place if place < len(self._keys) and self._keys[place] == key else None

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Map a `.npy` file of `count` items: its beginning and size must be those of such a file, to the byte."""
        path, prefix = self.folder / name, npy_prefix(dtype, count)
        with open_regular(path) as file:
            found = file.read(len(prefix))
            size, wanted = file.seek(0, 2), len(prefix) + count * dtype.itemsize
            if size != wanted:
                raise TargetFault(
                    f"{path} has {size:,} bytes, the header states {wanted:,}: it is torn or of another cache. Remove "
                    "the folder and run codert cache again"
                )
            if found != prefix:
                raise TargetFault(f"{path} does not hold what the header states. {REMEDY}")
            if not count:
                return np.empty(0, dtype)
            return np.memmap(file, dtype, "r", len(prefix), (count,))

    def _map_shard(self, number: int) -> np.ndarray:
        return self._map(shard_name(number), self.header.frame_type, self.header.shards[number].frames)

    def _read_index(self) -> np.ndarray:
        path, entries = self.folder / INDEX, self._map(INDEX, ENTRY, self.header.utterances)
        limits = np.array([shard.frames for shard in self.header.shards], dtype=np.uint64)
        if not len(entries):
            return entries
        if (entries["key"][1:] <= entries["key"][:-1]).any():
            raise TargetFault(f"{path}: its ids are not in order, or twice there. {REMEDY}")
        if (entries["shard"] >= len(limits)).any():
            raise TargetFault(f"{path}: an utterance lies in a shard that does not exist. {REMEDY}")
        limit = limits[entries["shard"]]
        start, frames = entries["start"], entries["frames"].astype(np.uint64)
        if ((start > limit) | (frames > limit - np.minimum(start, limit))).any():
            raise TargetFault(f"{path}: an utterance lies beyond the end of its shard. {REMEDY}")
        return entries

    def _value_fault(self, frames: np.ndarray) -> str | None:
        header = self.header
        if header.kind == "encoder":
            return None if np.isfinite(frames).all() else "its encoder output is not finite"
        ids, probabilities = frames["ids"], frames["probabilities"].astype(np.float64)
        if not len(frames):
            return None
        if ids.max() >= header.classes:
            return f"class {ids.max()} does not exist, there are {header.classes}"
        if not np.isfinite(probabilities).all() or probabilities.min() < 0:
            return "a probability is negative or not finite"
        if (highest := probabilities.sum(-1).max()) > 1 + header.k * SUM_TOLERANCE[header.dtype]:
            return f"the probabilities of a frame sum to {highest:.4f}"
        if (np.diff(np.sort(ids, axis=-1).astype(np.int64), axis=-1) == 0).any():
            return "a frame has a class twice"
        return None


class Utterance:
    """Targets of one utterance, to be written.

    Args:
        name: its id.
        frames: [T] of the header's `frame_type`, or [T, D].
        path: key of its audio's path. audio: fingerprint of its audio's file.
    """

    def __init__(self, name: str, frames: np.ndarray, path: int = 0, audio: int = 0) -> None:
        self.name, self.frames, self.path, self.audio = name, frames, path, audio


def file_sha256(path: Path) -> str:
    """Return the sha256 of a plain file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def listed(names: Sequence[str]) -> str:
    """Return the first of some names as text, and how many there are more."""
    more = f", ... and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def _reason(name: str) -> str:
    if " at speed " in name or " at tempo " in name:
        return "Its speed is perturbed, which stored targets cannot follow: switch the perturbation off"
    remedy = "Cache the targets of all of the training manifest, by codert cache with that manifest"
    if "/" not in name:  # NeMo's script for tarred data drops the folders
        remedy += ". File names without a folder, as in tarred data, are not ids: give each line an `id`"
    return remedy
