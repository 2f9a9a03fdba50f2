"""Reading, writing and screening NeMo manifests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data import Reason, read_manifest, screen_dataset, screen_manifest, write_manifest

pytestmark = pytest.mark.unit


def write_tone(path: Path, seconds: float = 1.0, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.1), rate)
    return path


def entry(path: Path | str, text: str = "turn on the light", duration: float = 1.0) -> dict:
    return {"audio_filepath": str(path), "duration": duration, "text": text}


def write_lines(path: Path, lines: list[str], newline: str = "\n", start: str = "") -> Path:
    path.write_bytes((start + newline.join(lines) + newline).encode("utf-8"))
    return path


@pytest.fixture
def faulty_manifest(tmp_path: Path) -> Path:
    """Two usable utterances and one of each fault."""
    (tmp_path / "noise.wav").write_bytes(b"this is no audio")
    (tmp_path / "zero_bytes.wav").write_bytes(b"")
    write_tone(tmp_path / "no_samples.wav", seconds=0)
    write_tone(tmp_path / "good.wav"), write_tone(tmp_path / "wordy.wav")
    return write_manifest(
        tmp_path / "train.json",
        [
            entry("good.wav"),
            entry("absent.wav"),
            entry("noise.wav"),
            entry("zero_bytes.wav"),
            entry("no_samples.wav"),
            entry("good.wav", text="  "),
            entry("wordy.wav", text="x" * 26),
            entry("good.wav", duration=1.2),
            entry("good.wav", duration=1.05),  # rounded up: within the tolerance of 0.1 s
        ],
    )


def test_a_written_manifest_is_read_back_with_absolute_paths(tmp_path):
    entries = [entry("audio/ä.wav", text="größe \u2028 zwei"), {**entry("/elsewhere/b.wav"), "speaker": "ann"}]
    path = write_manifest(tmp_path / "new" / "train.json", entries)
    expected = [{**entries[0], "audio_filepath": str(tmp_path / "new" / "audio" / "ä.wav")}, entries[1]]
    assert read_manifest(path) == expected


@pytest.mark.nemo
def test_relative_audio_paths_resolve_as_in_nemo(tmp_path):
    from nemo.collections.common.parts.preprocessing.manifest import get_full_path

    write_tone(tmp_path / "data" / "audio" / "a.wav")
    path = write_manifest(tmp_path / "data" / "train.json", [entry("audio/a.wav")])
    assert read_manifest(path)[0]["audio_filepath"] == get_full_path("audio/a.wav", str(path))


@pytest.mark.parametrize("newline, start", [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff"), ("\n\n", "")])
def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path, newline, start):
    lines = [json.dumps(entry("/a.wav")), json.dumps(entry("/b.wav"))]
    path = write_lines(tmp_path / "train.json", lines, newline, start)
    assert [found["audio_filepath"] for found in read_manifest(path)] == ["/a.wav", "/b.wav"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"audio_filepath": "a.wav",', "not JSON"),
        ('["a.wav", 1.0, "text"]', "JSON list"),
        ('{"duration": 1.0, "text": "one"}', "audio_filepath is missing"),
        ('{"audio_filepath": "a.wav", "text": "one"}', "duration is missing"),
        ('{"audio_filepath": "a.wav", "duration": 1.0}', "text is missing"),
        ('{"audio_filepath": 3, "duration": 1.0, "text": "one"}', "audio_filepath is 3"),
        ('{"audio_filepath": " ", "duration": 1.0, "text": "one"}', "audio_filepath is empty"),
        ('{"audio_filepath": "a.wav", "duration": "1.0", "text": "one"}', "duration is '1.0'"),
        ('{"audio_filepath": "a.wav", "duration": true, "text": "one"}', "duration is True"),
        ('{"audio_filepath": "a.wav", "duration": NaN, "text": "one"}', "duration is nan"),
        ('{"audio_filepath": "a.wav", "duration": -1, "text": "one"}', "duration is -1"),
        ('{"audio_filepath": "a.wav", "duration": 1.0, "text": null}', "text is None"),
        ('{"audio_filepath": "a.wav", "duration": 1.0, "text": "one", "offset": "0"}', "offset is '0'"),
    ],
)
def test_a_faulty_line_is_reported_with_file_line_and_field(tmp_path, line, message):
    path = write_lines(tmp_path / "train.json", [json.dumps(entry("/a.wav")), line])
    with pytest.raises(ValueError) as error:
        read_manifest(path)
    assert f"{path}:2: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"\xef\xbb\xbf\r\n\n", b"\xff\xfe\x00"])
def test_a_missing_empty_or_binary_manifest_is_refused_by_name(tmp_path, content):
    path = tmp_path / "train.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="train.json"):
        read_manifest(path)


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        read_manifest(tmp_path)


def test_interrupted_writing_leaves_the_old_manifest_and_nothing_else(tmp_path):
    path = write_manifest(tmp_path / "train.json", [entry("/old.wav")])

    def entries():
        yield entry("/new.wav")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, entries())
    assert read_manifest(path) == [entry("/old.wav")]
    assert os.listdir(tmp_path) == ["train.json"]


def test_every_fault_is_found_and_named(faulty_manifest):
    # 25 frames of 0.04 s in one second
    screening = screen_manifest(faulty_manifest, tokenize=list, seconds_per_frame=0.04, progress=False)
    reasons = [dropped["reason"] for dropped in screening.dropped]
    assert reasons == [
        Reason.MISSING,
        Reason.UNREADABLE,
        Reason.EMPTY_AUDIO,
        Reason.EMPTY_AUDIO,
        Reason.EMPTY_TEXT,
        Reason.TOO_LONG_TEXT,
        Reason.TOO_LONG_DURATION,
    ]
    assert [usable["duration"] for usable in screening.usable] == [1.0, 1.05]
    assert screening.counts()[Reason.EMPTY_AUDIO] == 2


@pytest.mark.parametrize("kind, part", [("flac", 0.5), ("flac", 0.99), ("mp3", 0.5)])
def test_audio_that_breaks_off_behind_a_good_header_is_named(tmp_path, kind, part):
    whole = write_tone(tmp_path / f"whole.{kind}", seconds=3.0)
    content = whole.read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(content[: int(len(content) * part)])
    assert soundfile.info(tmp_path / f"cut.{kind}").frames == 48000  # the header still promises all of it
    path = write_manifest(tmp_path / "a.json", [entry(f"{name}.{kind}", duration=3.0) for name in ("cut", "whole")])
    screening = screen_manifest(path, progress=False)
    assert [Path(line["audio_filepath"]).stem for line in screening.usable] == ["whole"]
    assert [line["reason"] for line in screening.dropped] == ["audio breaks off"]


@pytest.mark.parametrize("samples", [1, 399, 401])
@pytest.mark.parametrize("kind", ["flac", "wav", "ogg"])
def test_whole_audio_of_a_few_samples_is_usable(tmp_path, kind, samples):
    write_tone(tmp_path / f"a.{kind}", seconds=samples / 16000)
    path = write_manifest(tmp_path / "a.json", [entry(f"a.{kind}", "x", duration=samples / 16000)])
    assert len(screen_manifest(path, progress=False).usable) == 1


def test_as_many_tokens_as_frames_are_usable(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=2.0)
    path = write_manifest(tmp_path / "a.json", [entry("a.wav", "x" * n, duration=2.0) for n in (20, 21)])
    screening = screen_manifest(path, tokenize=list, seconds_per_frame=0.1, progress=False)
    assert [len(usable["text"]) for usable in screening.usable] == [20]


def test_text_without_tokens_counts_as_empty(tmp_path):
    write_tone(tmp_path / "a.wav")
    path = write_manifest(tmp_path / "a.json", [entry("a.wav")])
    screening = screen_manifest(path, tokenize=lambda text: [], seconds_per_frame=0.08, progress=False)
    assert screening.counts() == {Reason.EMPTY_TEXT: 1}


def test_an_offset_counts_towards_the_length_of_the_file(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=3.0)
    cuts = [{**entry("a.wav"), "offset": offset} for offset in (0, 1.5, 2.0, 2.5)]
    screening = screen_manifest(write_manifest(tmp_path / "a.json", cuts), progress=False)
    assert [usable["offset"] for usable in screening.usable] == [0, 1.5, 2.0]


def test_files_below_the_models_rate_are_counted_in_one_warning(tmp_path, caplog):
    write_tone(tmp_path / "low.wav", rate=8000)
    write_tone(tmp_path / "high.wav", rate=16000)
    path = write_manifest(tmp_path / "a.json", [entry("low.wav"), entry("high.wav"), entry("low.wav")])
    assert len(screen_manifest(path, sample_rate=16000, progress=False).usable) == 3
    assert len(caplog.records) == 1 and "2 of 3 utterances are below 16000 Hz" in caplog.text


@pytest.mark.parametrize(
    "keywords", [{"unk_id": 0, "seconds_per_frame": 0.08}, {"tokenize": list, "seconds_per_frame": 0.0}]
)
def test_half_a_frame_check_is_refused(faulty_manifest, keywords):
    with pytest.raises(ValueError, match="seconds_per_frame"):
        screen_manifest(faulty_manifest, progress=False, **keywords)


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_a_clean_manifest_is_used_as_it_is(tmp_path, policy):
    write_tone(tmp_path / "a.wav")
    path = write_manifest(tmp_path / "train.json", [entry("a.wav")])
    found = screen_dataset(path, policy=policy, output_dir=tmp_path / "out", name="train", progress=False)
    assert found == path and not (tmp_path / "out").exists()


def test_drop_writes_both_lists_and_one_warning(faulty_manifest, tmp_path, caplog):
    out = tmp_path / "out"
    found = screen_dataset(faulty_manifest, policy="drop", output_dir=out, name="train", progress=False)
    assert found == out / "train_usable.json"
    names = [Path(usable["audio_filepath"]).stem for usable in read_manifest(found)]
    assert names == ["good", "wordy", "good"]
    dropped = [json.loads(line) for line in (out / "train_dropped.json").read_text().splitlines()]
    assert len(dropped) == 6 and all(entry["reason"] for entry in dropped)
    noticed, unusable = caplog.messages  # two of the usable ones are of one file
    assert "same audio and transcript as another line: 1 (listed in" in noticed
    assert "6 of 9 utterances cannot be used" in unusable and "empty audio: 2" in unusable


def test_refuse_lists_the_count_and_the_first_ten(tmp_path):
    write_tone(tmp_path / "a.wav")
    entries = [entry("a.wav"), *(entry(f"absent_{number}.wav") for number in range(12))]
    path = write_manifest(tmp_path / "train.json", entries)
    with pytest.raises(ValueError) as error:
        screen_dataset(path, policy="refuse", output_dir=tmp_path, name="train", progress=False)
    message = str(error.value)
    assert "12 of 13" in message and "absent_9.wav" in message and "absent_10.wav" not in message
    assert "and 2 more" in message and Reason.MISSING in message and "'drop'" in message
    assert not (tmp_path / "train_usable.json").exists()


def test_drop_refuses_when_nothing_usable_is_left(tmp_path):
    path = write_manifest(tmp_path / "train.json", [entry("absent.wav")])
    with pytest.raises(ValueError, match="none is usable"):
        screen_dataset(path, policy="drop", output_dir=tmp_path, name="train", progress=False)


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bad_utterances is 'keep'"):
        screen_dataset(tmp_path / "train.json", policy="keep", output_dir=tmp_path, name="train")


@pytest.mark.nemo
@pytest.mark.parametrize("newline, start", [("\n", "\ufeff"), ("\n\n", "")])
def test_what_nemos_reader_stops_at_is_rewritten(tmp_path, newline, start):
    from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator

    write_tone(tmp_path / "a.wav")
    path = write_lines(tmp_path / "train.json", [json.dumps(entry("a.wav"))] * 2, newline, start)
    found = screen_dataset(path, policy="refuse", output_dir=tmp_path / "out", name="train", progress=False)
    assert found == tmp_path / "out" / "train_usable.json"
    assert len(list(LazyNeMoIterator(str(found)))) == 2
    with pytest.raises(ValueError):  # else the rewriting would be needless
        list(LazyNeMoIterator(str(path)))


def test_the_package_imports_neither_torch_nor_nemo():
    code = "import sys, nemo_codert.data; sys.exit(bool({'torch', 'nemo', 'lhotse'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
