"""What only the samples tell: numbers that are none, silence, clipping, damage inside; and lines about one audio."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data import DataReport, Loader, Reason, screen_dataset, screen_manifest, write_manifest
from nemo_codert.data import screening as screening_module
from nemo_codert.data.audio_files import BLOCK, listen
from nemo_codert.data.screening import Notice
from tests.data.test_manifest import entry, write_tone

pytestmark = pytest.mark.unit

RATE = 16000
NAN, INF = float("nan"), float("inf")


def write_samples(path: Path, samples: np.ndarray, **how: str) -> Path:
    soundfile.write(path, samples, RATE, **how)
    return path


def noise(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def with_damage_inside(path: Path) -> Path:
    """A FLAC file of 5 s of which two thousand bytes in the middle are overwritten."""
    write_samples(path, noise(5.0))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(range(250)) * 8
    path.write_bytes(content)
    return path


def screened(path: Path, *lines: dict, **how):
    return screen_manifest(write_manifest(path / "m.json", lines), progress=False, **how)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_a_sample_that_is_no_number_is_found_with_any_check(tmp_path, value, subtype):
    samples = noise()
    samples[9000] = value
    bad = write_samples(tmp_path / "bad.wav", samples, subtype=subtype)
    good = write_samples(tmp_path / "good.wav", noise(), subtype=subtype)
    for check in ("headers", "auto", "samples"):
        found = screened(tmp_path, entry(bad), entry(good, "stop"), audio_check=check)
        assert [line["reason"] for line in found.dropped] == [Reason.NOT_FINITE]
        assert [line["text"] for line in found.usable] == ["stop"] and found.decoded == 2


def test_only_the_stretch_of_an_utterance_is_looked_at(tmp_path):
    samples = noise(3.0)
    samples[int(1.5 * RATE)], samples[2 * RATE :] = NAN, 0.0
    path = write_samples(tmp_path / "long.wav", samples, subtype="FLOAT")
    lines = [{**entry(path, f"text {offset}"), "offset": offset} for offset in (0.0, 1.0, 2.0)]
    found = screened(tmp_path, *lines)
    assert [line["offset"] for line in found.usable] == [0.0]
    assert [(line["offset"], line["reason"]) for line in found.dropped] == [
        (1.0, Reason.NOT_FINITE),
        (2.0, Reason.SILENT),
    ]


def test_damage_inside_a_file_is_found_by_decoding_it(tmp_path):
    bad = with_damage_inside(tmp_path / "bad.flac")
    good = write_samples(tmp_path / "good.flac", noise(5.0))
    lines = entry(bad, duration=5.0), entry(good, "stop", duration=5.0)
    assert len(screened(tmp_path, *lines, audio_check="headers").usable) == 2  # header and end are sound
    found = screened(tmp_path, *lines, audio_check="samples")
    assert [line["reason"] for line in found.dropped] == [Reason.DAMAGED] and len(found.usable) == 1


def test_silence_is_dropped_and_faint_sound_is_not(tmp_path):
    silent = write_samples(tmp_path / "silent.wav", np.zeros(RATE))
    faint = write_samples(tmp_path / "faint.wav", np.where(np.arange(RATE) == 77, 1 / 32768, 0.0))
    found = screened(tmp_path, entry(silent), entry(faint, "stop"), audio_check="samples")
    assert [line["reason"] for line in found.dropped] == [Reason.SILENT]
    assert [line["text"] for line in found.usable] == ["stop"]


def test_clipped_audio_is_kept_and_noticed(tmp_path):
    clipped = write_samples(tmp_path / "clipped.wav", np.clip(20 * noise(), -1, 1))
    peak = noise()
    peak[5] = 1.0  # one sample at full scale is no clipping
    loud = write_samples(tmp_path / "loud.wav", peak)
    found = screened(tmp_path, entry(clipped), entry(loud, "stop"), audio_check="samples")
    assert len(found.usable) == 2
    assert [(Path(line["audio_filepath"]).stem, line["notice"]) for line in found.noticed] == [
        ("clipped", Notice.CLIPPED)
    ]


def test_both_channels_and_every_block_are_heard(tmp_path):
    samples = np.stack([noise(BLOCK * 2.5 / RATE)] * 2, axis=1)
    samples[-3, 1] = NAN
    path = write_samples(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert listen(str(path)).fault == Reason.NOT_FINITE
    assert listen(str(path), frames=len(samples) - 3).fault is None


def test_auto_decodes_as_long_as_it_is_quick(tmp_path, monkeypatch):
    lines = [entry(write_tone(tmp_path / f"{i}.wav", 2.0), f"text {i}", duration=2.0) for i in range(3)]
    assert screened(tmp_path, *lines, audio_check="auto").decoded == 3
    monkeypatch.setattr(screening_module, "AUTO_HOURS", 5.9 / 3600)
    assert screened(tmp_path, *lines, audio_check="auto").decoded == 0
    assert screened(tmp_path, *lines, audio_check="samples").decoded == 3
    with pytest.raises(ValueError, match="audio_check is 'all': use one of auto, headers, samples"):
        screened(tmp_path, *lines, audio_check="all")


def test_the_same_line_twice_is_kept_and_noticed(tmp_path):
    first, second = write_tone(tmp_path / "a.wav"), write_tone(tmp_path / "b.wav", 3.0)
    cut = {**entry(second, "stop"), "offset": 1.0}
    found = screened(
        tmp_path, entry(first), entry(first, " turn on  the light", 1.01), cut, cut, {**cut, "offset": 2.0}
    )
    assert len(found.usable) == 5
    assert [(line["notice"], line.get("offset")) for line in found.noticed] == [
        (Notice.REPEATED, None),
        (Notice.REPEATED, 1.0),
    ]


def test_different_transcripts_of_one_audio_are_all_dropped(tmp_path):
    first, second = write_tone(tmp_path / "a.wav"), write_tone(tmp_path / "b.wav")
    found = screened(tmp_path, entry(first, "one"), entry(second, "three"), entry(first, "two"))
    assert [line["text"] for line in found.usable] == ["three"]
    assert [(line["text"], line["reason"]) for line in found.dropped] == [
        ("one", Reason.CONTRADICTION),
        ("two", Reason.CONTRADICTION),
    ]


def test_another_stretch_of_a_file_may_say_something_else(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    found = screened(tmp_path, entry(path, "one two"), {**entry(path, "one"), "duration": 0.5, "offset": 0.0})
    assert len(found.usable) == 2 and not found.noticed


def test_an_id_of_two_utterances_is_noticed(tmp_path):
    first, second = write_tone(tmp_path / "a.wav"), write_tone(tmp_path / "b.wav")
    lines = {**entry(first, "one"), "id": "u7"}, {**entry(second, "two"), "id": "u7"}
    found = screened(tmp_path, *lines)
    assert len(found.usable) == 2 and [line["notice"] for line in found.noticed] == [Notice.SAME_ID]


def test_a_rate_that_is_not_the_files_is_a_fault_for_lhotse_which_would_believe_it(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    line = {**entry(path), "sampling_rate": 8000}
    assert [each["reason"] for each in screened(tmp_path, line).dropped] == [Reason.WRONG_RATE]
    assert len(screened(tmp_path, line, loader=Loader(lhotse=False)).usable) == 1


def test_lines_marked_to_be_skipped_are_left_out_for_lhotse(tmp_path):
    lines = [{**entry(write_tone(tmp_path / f"{i}.wav"), f"text {i}"), "_skipme": i > 0} for i in range(3)]
    found = screened(tmp_path, *lines)
    assert len(found.usable) == 1 and [line["reason"] for line in found.outside] == [Reason.SKIPPED] * 2
    path = write_manifest(tmp_path / "all.json", lines[1:])
    with pytest.raises(ValueError, match="2 of 2 utterances cannot be used ._skipme is set: 2"):
        screen_dataset(path, policy="drop", output_dir=tmp_path, name="train_ds", progress=False)


def test_the_report_counts_every_reason_with_examples(tmp_path):
    silent = write_samples(tmp_path / "silent.wav", np.zeros(RATE))
    low = write_tone(tmp_path / "low.wav", rate=8000)
    path = write_manifest(tmp_path / "m.json", [entry(silent), entry(low), entry(low), entry("gone.wav")])
    with open(path, "a") as file:
        file.write("{\n")
    report = DataReport()
    screen_dataset(
        path,
        policy="drop",
        output_dir=tmp_path / "run",
        name="train_ds",
        sample_rate=RATE,
        audio_check="samples",
        progress=False,
        report=lambda screening: report.add("train_ds", path, screening),
    )
    report.add_unchecked("validation_ds")
    written = json.loads(report.write(tmp_path / "run").read_text())
    of_train, of_validation = written["manifests"]
    assert (of_train["utterances"], of_train["usable"], of_train["decoded"]) == (5, 2, 3)
    assert of_train["dropped"] == [
        {"reason": "manifest line that is not JSON", "count": 1, "examples": ["line 5"]},
        {"reason": Reason.SILENT, "count": 1, "examples": [str(silent)]},
        {"reason": Reason.MISSING, "count": 1, "examples": [str(tmp_path / "gone.wav")]},
    ]
    assert [(group["reason"], group["count"]) for group in of_train["noticed"]] == [
        (Notice.REPEATED, 1),
        ("below the model's sample rate, upsampled", 2),
    ]
    assert of_validation["noticed"] == [{"reason": "not a plain manifest: not checked"}]
    table = report.table().splitlines()
    assert table[1].split() == ["train_ds", "2", "used,", "of", "5", "m.json"]
    assert table[3].split() == ["1", "dropped:", "digital", "silence", "silent.wav"]
    assert table[-1].split()[:2] == ["validation_ds", "not"]
