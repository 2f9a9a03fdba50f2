"""Folders of targets from an untrusted source are refused by name before anything is allocated, mapped or executed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nemo_codert.data.target_cache import INDEX, TargetCache, shard_name
from nemo_codert.data.target_header import HEADER, TargetFault
from tests.data.target_folders import (
    NAMES,
    change_header,
    header,
    index_of,
    random_frames,
    rewrite_shard,
    write_index,
    write_targets,
)
from tests.files.traps import pickled, traps

pytestmark = pytest.mark.unit


def replace_by(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def set_keys(**values):
    return lambda folder: change_header(folder, **values)


def link(name: str):
    def change(folder: Path) -> None:
        outside = folder.parent / "outside"
        os.replace(folder / name, outside)
        (folder / name).symlink_to(outside)

    return change


def pipe(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def cut_off(name: str, count: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


def shards(**values):
    def change(folder: Path) -> None:
        records = json.loads((folder / HEADER).read_text())["shards"]
        change_header(folder, shards=[{**records[0], **values}, records[1]])

    return change


def frames_of_objects(folder: Path) -> None:
    """A shard of the right size whose .npy header says that it holds pickled objects."""
    path = folder / shard_name(1)
    content = path.read_bytes()
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (13,), }".ljust(117) + b"\n"
    prefix = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    path.write_bytes(prefix + content[len(prefix) :])


def entries(**values):
    def change(folder: Path) -> None:
        found = index_of(folder)
        for key, value in values.items():
            found[key][2] = value
        write_index(folder, found)

    return change


def out_of_order(folder: Path) -> None:
    write_index(folder, index_of(folder)[::-1])


OPENING = {
    "no JSON": (replace_by(HEADER, b"{"), "is not JSON"),
    "a pickle as header": (replace_by(HEADER, pickled({})), "is not JSON"),
    "brackets without end": (replace_by(HEADER, b"[" * 200_000), "is not JSON"),
    "a number that is none": (replace_by(HEADER, b'{"format": NaN}'), "NaN is not a number"),
    "a list as header": (replace_by(HEADER, b"[]"), "is not the header of targets"),
    "a huge header": (replace_by(HEADER, b" " * (2**24 + 1)), "has 16,777,217 bytes"),
    "another version": (set_keys(version=2), "version is 2"),
    "an unknown key": (set_keys(path="/etc/passwd"), "keys is ['path']"),
    "an unknown kind": (set_keys(kind="pickle"), "kind is 'pickle'"),
    "an unknown dtype": (set_keys(dtype="O"), "dtype is 'O'"),
    "more classes than there are": (set_keys(k=34), "k is 34"),
    "classes without end": (set_keys(classes=2**40), "classes is 1099511627776"),
    "a temperature of 0": (set_keys(temperature=0), "temperature is 0"),
    "a temperature as text": (set_keys(temperature="1"), "temperature is '1'"),
    "no hash": (set_keys(manifest="../../etc/passwd"), "manifest is '../../etc/passwd'"),
    "frames without end": (shards(frames=2**62), "shards[0].frames is "),
    "frames that do not add up": (shards(frames=13), "frames is 25"),
    "a negative count": (shards(frames=-1), "shards[0].frames is "),
    "a path in a shard": (shards(path="../a.npy"), "shards[0] is "),
    "thousands of shards": (set_keys(shards=[{"frames": 0, "sha256": "a" * 64}] * 5000), "shards is "),
    "utterances without end": (set_keys(utterances=2**40), "the header states"),
    "a link as header": (link(HEADER), "header.json is a link"),
    "a link as index": (link(INDEX), "index.npy is a link"),
    "a link as shard": (link(shard_name(0)), "shard-00000.npy is a link"),
    "a pipe as shard": (pipe(shard_name(0)), "is not a plain file"),
    "a torn shard": (cut_off(shard_name(1), 8), "shard-00001.npy has"),
    "a torn index": (cut_off(INDEX, 8), "index.npy has"),
    "no shard": (lambda folder: (folder / shard_name(1)).unlink(), "cannot be opened"),
    "objects in a shard": (frames_of_objects, "does not hold what the header states"),
    "a pickle as shard": (replace_by(shard_name(1), pickled([1, 2])), "the header states"),
    "an utterance in no shard": (entries(shard=7), "shard that does not exist"),
    "an utterance beyond the end": (entries(start=2**63), "beyond the end of its shard"),
    "an utterance too long": (entries(frames=2**31), "beyond the end of its shard"),
    "ids out of order": (out_of_order, "not in order"),
}


@pytest.mark.parametrize("fault", OPENING)
def test_a_folder_that_is_no_cache_is_refused_when_it_is_opened(tmp_path, fault):
    change, message = OPENING[fault]
    write_targets(tmp_path / "targets")
    change(tmp_path / "targets")
    with pytest.raises(TargetFault) as error:
        TargetCache(tmp_path / "targets")
    assert message in str(error.value) and str(tmp_path / "targets") in str(error.value)


def changed(of, **values) -> np.ndarray:
    frames = random_frames(of, 13)
    for key, value in values.items():
        frames[key][2, 1] = value
    return frames


def class_twice(of) -> np.ndarray:
    frames = random_frames(of, 13)
    frames["ids"][2, 1] = frames["ids"][2, 0]
    return frames


VALUES = {
    "a class beyond V": (lambda of: changed(of, ids=33), "class 33 does not exist"),
    "a class twice": (class_twice, "a frame has a class twice"),
    "a probability that is none": (lambda of: changed(of, probabilities=np.nan), "negative or not finite"),
    "a negative probability": (lambda of: changed(of, probabilities=-0.1), "negative or not finite"),
    "a sum above 1": (lambda of: changed(of, probabilities=1.5), "the probabilities of a frame sum to"),
}


@pytest.mark.parametrize("fault", VALUES)
def test_values_that_cannot_be_are_refused_with_the_utterance(tmp_path, fault):
    make, message = VALUES[fault]
    write_targets(tmp_path)
    rewrite_shard(tmp_path, make(header()))
    cache = TargetCache(tmp_path)
    with pytest.raises(TargetFault, match=NAMES[3]) as error:
        cache.read(NAMES[3])
    assert message in str(error.value)
    assert len(cache.read(NAMES[4])) == 7


def test_encoder_output_that_is_not_finite_is_refused(tmp_path):
    of = header("encoder")
    write_targets(tmp_path, of)
    frames = random_frames(of, 13)
    frames[2, 1] = np.inf
    rewrite_shard(tmp_path, frames)
    with pytest.raises(TargetFault, match="not finite"):
        TargetCache(tmp_path).read(NAMES[3])


def test_damaged_and_exchanged_frames_are_found_by_the_utterances_id(tmp_path):
    frames = write_targets(tmp_path)
    path = tmp_path / shard_name(1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cache = TargetCache(tmp_path)
    with pytest.raises(TargetFault, match=f"'{NAMES[4]}'.*are not those that were written"):
        cache.read(NAMES[4])
    with pytest.raises(TargetFault, match=r"shard-00001.npy is damaged"):
        cache.verify()
    found = index_of(tmp_path)  # two ids exchanged: each gets the frames of the other
    found["key"][[0, 1]] = found["key"][[1, 0]]
    write_index(tmp_path, found[np.argsort(found["key"])])
    exchanged = TargetCache(tmp_path)
    faults = 0
    for name in NAMES[:4]:
        try:
            assert np.array_equal(exchanged.read(name), frames[name])
        except TargetFault:
            faults += 1
    assert faults >= 1


def test_nothing_of_a_folder_is_executed(tmp_path):
    mark = tmp_path / "mark"
    for number, trap in enumerate(traps(mark).values()):
        for name in (HEADER, INDEX, shard_name(0)):
            folder = tmp_path / f"{number}_{name}"
            write_targets(folder)
            (folder / name).write_bytes(pickled(trap))
            with pytest.raises(TargetFault):
                TargetCache(folder)
    assert not mark.exists()


def test_an_utterance_without_targets_is_named_with_the_remedy(tmp_path):
    write_targets(tmp_path)
    cache = TargetCache(tmp_path)
    with pytest.raises(TargetFault, match="'speaker_9' has no targets .* with that manifest"):
        cache.read("speaker_9")
    with pytest.raises(TargetFault, match="Its speed is perturbed"):
        cache.frames("speaker_1 at speed 1.1")
