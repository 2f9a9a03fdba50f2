"""What screening makes of a loader's limits, of several channels, and of transcripts that cannot be spelled."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data import DataReport, Loader, read_manifest, screen_dataset, screen_manifest, write_manifest
from tests.data.test_manifest import entry, write_tone

pytestmark = pytest.mark.unit

LIMITS = {"min_duration": 0.5, "max_duration": 1.6}


def listed(path: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(Path(line["audio_filepath"]).stem, line["reason"]) for line in lines]


@pytest.fixture
def durations(tmp_path: Path) -> Path:
    """Utterances at, below and above both limits; manifest and file disagree by a rounding where they can."""
    lines = []
    for seconds in (0.4, 0.4999375, 0.5, 0.5000625, 1.0, 1.5999375, 1.6, 1.6000625, 3.0):
        name = write_tone(tmp_path / f"{seconds}.wav", seconds).name
        lines += [entry(name, duration=round(seconds, digits)) for digits in (7, 3)]
        lines += [
            {**entry(name, duration=round(seconds, digits)), "sampling_rate": rate}
            for digits in (7, 3)
            for rate in (None, 16000)
        ]
    write_tone(tmp_path / "long.wav", 3.0)
    for offset, seconds in ((0, 0.5), (0, 1.6), (1.4, 1.6), (1.4, 1.6001), (1.45, 1.6), (1.0, 1.60001), (2.5, 0.51)):
        lines.append({**entry("long.wav", duration=seconds), "offset": offset})
        lines.append({**entry("long.wav", duration=seconds - 0.02), "offset": offset})
    return write_manifest(tmp_path / "d.json", [{**line, "number": i} for i, line in enumerate(lines)])


@pytest.mark.nemo
def test_the_limits_leave_out_what_lhotse_leaves_out(durations):
    from lhotse import CutSet
    from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator
    from nemo.collections.common.data.lhotse.sampling import DurationFilter

    cuts = CutSet(LazyNeMoIterator(str(durations))).filter(DurationFilter(*LIMITS.values()))
    loader = Loader.of({**LIMITS, "use_lhotse": True}, "model.train_ds")
    screening = screen_manifest(durations, loader=loader, progress=False)
    loaded = [cut.custom["number"] for cut in cuts]
    assert [line["number"] for line in screening.usable] == loaded and 10 < len(loaded) < 50
    assert not screening.dropped and len(screening.outside) == screening.total - len(loaded)


@pytest.mark.nemo
def test_the_limits_leave_out_what_the_classic_loader_leaves_out(durations):
    from nemo.collections.common.parts.preprocessing.collections import ASRAudioText

    loaded = ASRAudioText(manifests_files=[str(durations)], parser=list, **LIMITS)
    loader = Loader.of(LIMITS, "model.train_ds")
    screening = screen_manifest(durations, loader=loader, progress=False)
    found = [(line["audio_filepath"], line["duration"], line.get("offset")) for line in screening.usable]
    assert found == [(line.audio_file, line.duration, line.offset) for line in loaded]
    assert 10 < len(found) < 50


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_what_the_limits_leave_out_is_counted_and_listed_with_either_policy(tmp_path, caplog, policy):
    for seconds in (0.3, 1.0, 2.0):
        write_tone(tmp_path / f"{seconds}.wav", seconds)
    path = write_manifest(tmp_path / "a.json", [entry(f"{s}.wav", duration=s) for s in (0.3, 1.0, 2.0, 2.0)])
    where = {"output_dir": tmp_path, "name": "train_ds", "progress": False}
    found = screen_dataset(path, policy=policy, loader=Loader(**LIMITS), **where)
    assert [line["duration"] for line in read_manifest(found)] == [1.0]
    above, below = "longer than max_duration of 1.6 s", "shorter than min_duration of 0.5 s"
    assert listed(tmp_path / "train_ds_dropped.json") == [("0.3", below), ("2.0", above), ("2.0", above)]
    assert len(caplog.records) == 1
    assert f"3 of 4 utterances cannot be used ({above}: 2, {below}: 1)" in caplog.text


@pytest.mark.parametrize("policy", ["drop", "refuse"])
@pytest.mark.parametrize(
    "names, remedy",
    [
        (["a"], "\nChange the limits: none is usable."),
        (["a", "absent"], "\nMend these lines or change the limits: none is usable."),
    ],
)
def test_limits_that_leave_nothing_are_refused(tmp_path, policy, names, remedy):
    write_tone(tmp_path / "a.wav")
    path = write_manifest(tmp_path / "a.json", [entry(f"{name}.wav") for name in names])
    loader = Loader(max_duration=0.5)
    with pytest.raises(ValueError) as caught:
        screen_dataset(path, policy=policy, output_dir=tmp_path / "out", name="train", loader=loader, progress=False)
    assert f"{len(names)} of {len(names)} utterances cannot be used" in str(caught.value)
    assert "a.wav: longer than max_duration of 0.5 s" in str(caught.value) and str(caught.value).endswith(remedy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["abc", True, float("nan")])
def test_a_limit_that_is_no_number_is_refused_by_key(value):
    with pytest.raises(ValueError, match="model.train_ds.max_duration is .*: give seconds, or null for no limit"):
        Loader.of({"max_duration": value}, "model.train_ds")


@pytest.mark.parametrize("key", ["perturb_speed", "truncate_duration", "pad_min_duration"])
def test_limits_are_left_to_lhotse_where_it_changes_durations_first(key):
    loader = Loader.of({**LIMITS, key: 1.0, "use_lhotse": True}, "model.train_ds")
    assert (loader.min_duration, loader.max_duration) == (Loader().min_duration, Loader().max_duration)
    assert Loader.of({**LIMITS, key: 1.0}, "model.train_ds").max_duration == 1.6  # no key of the classic loader


@pytest.mark.parametrize(
    "settings, is_left",
    [
        ({"truncate_duration": 1.0}, True),
        ({"truncate_duration": 0.4}, False),
        ({"perturb_speed": True}, False),
        ({"perturb_speed": True, "max_duration": 1.85}, True),  # 2.0 s at 1.1 times the speed are 1.82 s
        ({"cut_into_windows_duration": 1.5}, True),
        ({"cut_into_windows_duration": 1.8, "min_duration": 0.3}, False),  # 1.8 s and 0.2 s
        ({"pad_min_duration": 3.0}, False),
    ],
)
def test_limits_that_leave_nothing_of_changed_durations_are_refused(tmp_path, settings, is_left):
    path = write_manifest(tmp_path / "a.json", [entry(write_tone(tmp_path / "a.wav", 2.0), duration=2.0)])
    loader = Loader.of({**LIMITS, **settings, "use_lhotse": True}, "model.train_ds")
    how = {"policy": "drop", "output_dir": tmp_path, "name": "train_ds", "progress": False, "loader": loader}
    if is_left:
        assert screen_dataset(path, **how) == path
    else:
        with pytest.raises(ValueError, match=f"a.json: after {next(iter(loader.resizing))} no utterance is within"):
            screen_dataset(path, **how)


@pytest.mark.parametrize("block, usable", [({}, 1), ({"channel_selector": "average"}, 2), ({"use_lhotse": True}, 2)])
def test_several_channels_are_dropped_where_the_classic_loader_would_stop_at_them(tmp_path, block, usable):
    write_tone(tmp_path / "mono.wav")
    soundfile.write(tmp_path / "stereo.wav", 0.1 * np.ones((16000, 2)), 16000)
    path = write_manifest(tmp_path / "a.json", [entry("mono.wav"), entry("stereo.wav")])
    screening = screen_manifest(path, loader=Loader.of(block, "model.train_ds"), progress=False)
    assert len(screening.usable) == usable
    assert all("neither use_lhotse nor channel_selector is set" in line["reason"] for line in screening.dropped)


def spell(text: str) -> list[int]:
    """Lower-case letters and blanks have a token, everything else is token 0."""
    return [1 + "abcdefghijklmnopqrstuvwxyz ".find(character) for character in text]


def test_transcripts_that_cannot_be_spelled_are_kept_counted_and_listed(tmp_path, caplog):
    texts = ["turn on", "TURN off", "play 2", "stop"]
    files = [write_tone(tmp_path / f"{i}.wav") for i in range(len(texts))]
    path = write_manifest(tmp_path / "a.json", [entry(*pair) for pair in zip(files, texts, strict=True)])
    where = {"output_dir": tmp_path / "out", "name": "train_ds", "progress": False}
    for policy in ("drop", "refuse"):
        caplog.clear()
        found = screen_dataset(path, policy=policy, tokenize=spell, unk_id=0, **where)
        assert found == path and [file.name for file in (tmp_path / "out").iterdir()] == ["train_ds_unspelled.json"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "2 of 4 transcripts hold characters that the tokenizer lacks" in caplog.text
        assert "such as 'TURN' in 'TURN off'" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "out" / "train_ds_unspelled.json").read_text().splitlines()]
    assert [(line["text"], line["unknown"]) for line in lines] == [("TURN off", "TURN"), ("play 2", "2")]


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_a_manifest_that_the_tokenizer_cannot_spell_at_all_is_refused(tmp_path, policy):
    first, second = (write_tone(tmp_path / f"{name}.wav") for name in "ab")
    path = write_manifest(tmp_path / "a.json", [entry(first, "TURN ON"), entry(second, "STOP")])
    with pytest.raises(ValueError) as caught:
        screen_dataset(
            path, policy=policy, output_dir=tmp_path / "out", name="train", tokenize=spell, unk_id=0, progress=False
        )
    message = str(caught.value)
    assert message.startswith(f"{path}: 2 of 2 transcripts hold characters that the tokenizer lacks")
    assert "such as 'TURNO' in 'TURN ON'" in message and "upper or lower case" in message
    assert not (tmp_path / "out").exists()


def test_lines_without_text_are_utterances_without_transcript_where_they_are_accepted(tmp_path):
    files = [write_tone(tmp_path / f"{i}.wav") for i in range(4)]
    labelled, bare, empty, null = (
        entry(file.name, text) for file, text in zip(files, ("on", "", " ", ""), strict=True)
    )
    del bare["text"]
    twin = {key: value for key, value in labelled.items() if key != "text"}  # contradicts nothing
    lines = [labelled, bare, empty, {**null, "text": None}, twin, {**bare, "normalized_text": "on"}]
    path = write_manifest(tmp_path / "a.json", lines)
    how = {"tokenize": spell, "unk_id": 0, "seconds_per_frame": 0.08, "progress": False}
    screening = screen_manifest(path, unlabelled=True, **how)
    assert [line.get("text") for line in screening.usable] == ["on", None, None, "on"]
    assert screening.unlabelled == screening.usable[1:3] and screening.unspelled == []
    assert screening.counts() == {"empty transcript": 1, "manifest line with a field of the wrong kind": 1}
    report = DataReport()
    report.add("train_ds", "a.json", screening)
    assert report.manifests[0]["unlabelled"] == 2
    assert "2  used, but: without transcript" in report.table()
    refused = screen_manifest(path, **how)
    assert refused.unlabelled == [] and refused.counts()["manifest line without a needed field"] == 2
    with pytest.raises(ValueError, match="text is missing. .* Audio without text trains distillation terms"):
        read_manifest(write_manifest(tmp_path / "b.json", [bare]))
    assert read_manifest(tmp_path / "b.json", unlabelled=True)[0]["duration"] == bare["duration"]
