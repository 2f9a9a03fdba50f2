"""Stored targets: what is written is read by id, after a kill too, and nothing large is loaded to open them."""

import time

import numpy as np
import pytest

from nemo_codert.data.target_cache import TargetCache, Utterance, npy_prefix
from nemo_codert.data.target_header import HEADER, TargetFault, read_header
from nemo_codert.data.target_writer import TargetWriter
from nemo_codert.data.utterance_ids import audio_id, cut_id, entry_id, file_fingerprint, id_key
from tests.data.target_folders import CLASSES, NAMES, header, random_frames, write_targets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", ["top_k", "encoder"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read_by_id(tmp_path, kind, dtype):
    frames = write_targets(tmp_path, header(kind, dtype=dtype))
    cache = TargetCache(tmp_path)
    cache.verify()
    assert len(cache) == 5 and cache.header.frames == sum(map(len, frames.values()))
    for name in reversed(NAMES):
        assert np.array_equal(cache.read(name), frames[name]) and cache.frames(name) == len(frames[name])
    assert name in cache and "speaker_9" not in cache
    assert cache.missing([*NAMES, "speaker_9"]) == ["speaker_9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "header.json",
        "index.npy",
        "shard-00000.npy",
        "shard-00001.npy",
    ]
    assert len(np.load(tmp_path / "shard-00001.npy", mmap_mode="r", allow_pickle=False)) == 13  # any numpy reads them


def test_the_files_begin_as_numpy_writes_them(tmp_path):
    for array in (np.zeros((3, 2), "<f2"), random_frames(header(), 4), np.zeros(0, "<u4")):
        dtype = np.dtype((array.dtype, array.shape[1:]))
        path = tmp_path / "a.npy"
        path.write_bytes(npy_prefix(dtype, len(array)) + array.tobytes())
        found = np.load(path, allow_pickle=False)
        assert found.dtype == array.dtype and np.array_equal(found, array)


def test_classes_above_65536_have_wider_ids():
    assert header(classes=2**16).frame_bytes == 4 * (2 + 2)
    assert header(classes=2**16 + 1).frame_bytes == 4 * (4 + 2)


def test_a_thousand_hours_of_eight_classes_take_less_than_two_gigabytes_and_open_in_seconds(tmp_path):
    of = header(k=8, classes=1025)
    utterances, frames = 300_000, 150  # of 12 s at 12.5 frames/s
    assert utterances * frames * of.frame_bytes < 1.5e9
    # The shard is a file with a hole: as long as the real one, without its content.
    writer = TargetWriter(tmp_path, of, shards=1)
    writer.write(0, [])
    one = np.zeros(0, of.frame_type)
    writer.write(0, (Utterance(f"id_{i}", one) for i in range(utterances)))
    writer.finish()
    start = time.perf_counter()
    cache = TargetCache(tmp_path)
    assert time.perf_counter() - start < 2 and len(cache) == utterances


def test_a_killed_writer_keeps_its_finished_shards_and_several_write_side_by_side(tmp_path):
    of = header()
    first = TargetWriter(tmp_path, of, shards=3)
    first.write(1, [Utterance("b", random_frames(of, 2))], {"errors": 3})
    (tmp_path / ".shard-00002.npy_12345678.part").write_bytes(b"half")  # what a kill leaves
    with pytest.raises(TargetFault, match="not finished"):
        read_header(tmp_path)
    second, third = (TargetWriter(tmp_path, of, shards=3) for _ in "ab")
    assert second.unfinished() == [0, 2]
    second.write(2, [Utterance("c", random_frames(of, 2))])
    with pytest.raises(TargetFault, match="1 of 3 shards are missing"):
        third.finish()
    third.write(0, [Utterance("a", random_frames(of, 2))])
    assert [note.get("errors") for note in third.notes()] == [None, 3, None]
    third.finish()
    cache = TargetCache(tmp_path)
    assert cache.missing("abc") == [] and (cache.read("b") == random_frames(of, 2)).all()


def test_another_job_does_not_mix_with_a_finished_or_an_unfinished_one(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(TargetFault, match="holds other files"):
        TargetWriter(tmp_path / "notes", header(), 1)
    TargetWriter(tmp_path / "new", header(), 1)
    with pytest.raises(TargetFault, match="other settings"):
        TargetWriter(tmp_path / "new", header(temperature=2.0), 1)
    write_targets(tmp_path / "whole")
    with pytest.raises(TargetFault, match="finished targets already"):
        TargetWriter(tmp_path / "whole", header(), 2)


def test_what_cannot_be_stored_is_refused_with_the_utterance(tmp_path):
    writer = TargetWriter(tmp_path, header("encoder"), 1)
    with pytest.raises(TargetFault, match="'a' is not finite. Give --dtype float32"):
        writer.write(0, [Utterance("a", np.full((2, 6), 1e5, "float32"))])
    twice = [Utterance("a", np.zeros((1, 6)))] * 2
    writer.write(0, twice)
    with pytest.raises(TargetFault, match="two utterances have one id"):
        writer.finish()
    assert not (tmp_path / HEADER).exists()


def test_audio_that_changed_under_the_same_path_is_stale(tmp_path):
    write_targets(tmp_path)
    cache = TargetCache(tmp_path)
    audio = [(NAMES[0], 0, 7), (NAMES[1], 1, 8), (NAMES[2], 99, 8), ("speaker_9", 1, 1)]
    assert cache.stale(audio) == [NAMES[1]]  # the third is another file on purpose, as a mixture is


def test_ids_are_those_of_the_manifest_or_of_the_audio():
    entry = {"audio_filepath": "/data/clips/a.wav", "duration": 1.5}
    assert entry_id(entry) == audio_id(entry) == "clips/a.wav"
    assert entry_id({**entry, "id": 7}) == "7" and audio_id({**entry, "id": 7}) == "clips/a.wav"
    assert entry_id({**entry, "offset": 0.0}) == "clips/a.wav-000000-000150"
    assert entry_id({"audio_filepath": "a.wav"}) == "a.wav"


def test_a_cut_has_the_id_of_its_entry_and_a_perturbed_one_has_none(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    source = lhotse.audio.AudioSource("file", [0], "/data/clips/a.wav")
    recording = lhotse.Recording("a", [source], sampling_rate=16000, num_samples=32000, duration=2.0)
    cut = recording.to_cut()
    cut.custom = {}
    assert cut_id(cut) == cut_id(cut.resample(8000)) == entry_id({"audio_filepath": "/data/clips/a.wav"})
    assert cut_id(cut.perturb_speed(1.1)) == "clips/a.wav at speed 1.1"
    cut.custom = {"utterance_id": "anna"}
    assert cut_id(cut) == cut_id(cut.pad(3.0)) == "anna" and cut_id(cut.perturb_speed(0.9)) == "anna at speed 0.9"


def test_a_fingerprint_is_of_the_whole_file(tmp_path):
    path, content = tmp_path / "a.wav", bytearray(100_000)
    prints = set()
    for place in (None, 10, 50_100, 99_990):
        if place:
            content[place] = 1
        path.write_bytes(content)
        prints.add(file_fingerprint(path))
    path.write_bytes(content + b"0")
    assert len({*prints, file_fingerprint(path)}) == 5
    assert 0 <= id_key("a") < 2**64 and CLASSES > 0
