"""Small folders of stored targets, whole and changed."""

import hashlib
import json
from pathlib import Path

import numpy as np

from nemo_codert.data.target_cache import ENTRY, INDEX, Utterance, npy_prefix, shard_name, utterance_crc
from nemo_codert.data.target_header import HEADER, TargetHeader, TeacherRecord
from nemo_codert.data.target_writer import TargetWriter
from nemo_codert.data.utterance_ids import id_key

SHA = "a" * 64
NAMES = [f"speaker_{i}" for i in range(5)]
CLASSES, K = 33, 4


def header(kind: str = "top_k", **changes) -> TargetHeader:
    of_kind = {"width": 6} if kind == "encoder" else {"k": K, "temperature": 1.0, "prior": "none"}
    settings = {"classes": CLASSES, "teachers": (TeacherRecord("a.nemo", SHA, SHA),), "tokenizer": SHA}
    at = {"kind": kind, "at": "encoder", "dtype": "float16", "frame_seconds": 0.04, "feature_seconds": 0.01}
    return TargetHeader(**{**at, "manifest": SHA, **settings, **of_kind, **changes})


def random_frames(of: TargetHeader, count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if of.kind == "encoder":
        return generator.standard_normal((count, of.width)).astype(of.dtype)
    frames = np.zeros(count, of.frame_type)
    for frame in frames:
        frame["ids"] = generator.permutation(of.classes)[: of.k]
        frame["probabilities"] = generator.dirichlet(np.ones(of.k + 1))[: of.k]
    return frames


def write_targets(folder: Path, of: TargetHeader | None = None, names: list[str] = NAMES) -> dict[str, np.ndarray]:
    """A folder of two shards, the second with the last two utterances; returns the frames by id."""
    of = of or header()
    frames = {name: random_frames(of, 3 + i, seed=i) for i, name in enumerate(names)}
    writer = TargetWriter(folder, of, shards=2)
    for number, part in enumerate((names[:-2], names[-2:])):
        writer.write(number, [Utterance(name, frames[name], path=i, audio=7) for i, name in enumerate(part)])
    writer.finish()
    return frames


def change_header(folder: Path, **values) -> None:
    plain = json.loads((folder / HEADER).read_text())
    plain.update(values)
    (folder / HEADER).write_text(json.dumps(plain))


def rewrite_shard(folder: Path, frames: np.ndarray, names: list[str] = NAMES[-2:], number: int = 1) -> None:
    """Replace the frames of a shard's utterances, with checksums that agree: as somebody would who means harm."""
    prefix = npy_prefix(np.dtype((frames.dtype, frames.shape[1:])), len(frames))
    (folder / shard_name(number)).write_bytes(prefix + frames.tobytes())
    entries = index_of(folder)
    of_shard = entries["shard"] == number
    for name in names:
        [place] = np.flatnonzero(entries["key"] == id_key(name))
        start, count = int(entries[place]["start"]), int(entries[place]["frames"])
        entries["crc"][place] = utterance_crc(name, frames[start : start + count])
    assert of_shard.sum() == len(names)
    write_index(folder, entries)


def index_of(folder: Path) -> np.ndarray:
    return np.load(folder / INDEX, allow_pickle=False)


def write_index(folder: Path, entries: np.ndarray) -> None:
    content = npy_prefix(ENTRY, len(entries)) + entries.tobytes()
    (folder / INDEX).write_bytes(content)
    change_header(folder, index_sha256=hashlib.sha256(content).hexdigest(), utterances=len(entries))
