"""Lines of manifests that NeMo's loaders read in a way of their own: paths, names of fields, channels."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data import Loader, Reason, read_manifest, screen_dataset, screen_manifest, write_manifest
from nemo_codert.data.audio_files import channel_selector, mono_entries, read_mono
from nemo_codert.data.manifest import LineFault, nemo_can_read, parse_manifest
from nemo_codert.data.screening import TOOLS, Notice, tools_loader
from tests.data.test_manifest import entry, write_tone

pytestmark = pytest.mark.unit

LHOTSE = {"use_lhotse": True}
BY_KEY = Loader.of({**LHOTSE, "channel_selector": "channel"}, "model.train_ds")
MIXED = Loader.of(LHOTSE, "model.train_ds")


# ---- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [("beside",), ("working",), ("beside", "working"), ()])
def test_a_path_starts_beside_the_manifest_or_else_where_the_command_is_given(tmp_path, monkeypatch, places):
    folders = {"beside": tmp_path / "data", "working": tmp_path / "here"}
    for folder in folders.values():
        folder.mkdir()
    for place in places:
        write_tone(folders[place] / "audio" / "a.wav")
    monkeypatch.chdir(folders["working"])
    path = write_manifest(folders["beside"] / "train.json", [entry("audio/a.wav")])
    wanted = folders["working" if places == ("working",) else "beside"] / "audio" / "a.wav"
    assert read_manifest(path)[0]["audio_filepath"] == str(wanted)
    assert len(screen_manifest(path, progress=False).usable) == bool(places)


@pytest.mark.nemo
def test_a_path_in_the_working_folder_is_the_one_that_nemo_opens(tmp_path, monkeypatch):
    from nemo.collections.common.parts.preprocessing.manifest import get_full_path

    write_tone(tmp_path / "here" / "a.wav")
    monkeypatch.chdir(tmp_path / "here")
    path = write_manifest(tmp_path / "data" / "train.json", [entry("a.wav")])
    assert Path(get_full_path("a.wav", str(path))).resolve() == Path(read_manifest(path)[0]["audio_filepath"])


# ---- names of fields ------------------------------------------------------------------------------------------------


def test_other_names_of_audio_and_text_are_read_and_written_under_the_usual_ones(tmp_path):
    (tmp_path / "text.txt").write_text("from a\nfile")
    audio = write_tone(tmp_path / "a.wav")
    lines = [
        {"audio_filename": "a.wav", "duration": 1.0, "text": "plain"},
        {"audio_filepath": "a.wav", "duration": 1.0, "text_filepath": "text.txt", "offset": 0.0},
        {"audio_filepath": "a.wav", "duration": 0.5, "normalized_text": "normalised", "offset": 0.0},
    ]
    path = write_manifest(tmp_path / "train.json", lines)
    assert not nemo_can_read(path)
    usable = screen_dataset(path, policy="refuse", output_dir=tmp_path / "run", name="train", progress=False)
    assert usable != path
    found = [json.loads(line) for line in usable.read_text().splitlines()]
    assert [line["text"] for line in found] == ["plain", "from afile", "normalised"]
    assert {line["audio_filepath"] for line in found} == {str(audio)} and "audio_filename" not in found[0]


@pytest.mark.parametrize("value, detail", [(3, "text_filepath is 3"), ("gone.txt", "no such file"), ("", "no such")])
def test_a_file_of_text_that_is_not_there_is_named(tmp_path, value, detail):
    lines = [entry("a.wav"), {"audio_filepath": "a.wav", "duration": 1.0, "text_filepath": value}]
    _, (bad,) = parse_manifest(write_manifest(tmp_path / "train.json", lines))
    assert bad.number == 2 and detail in bad.detail and bad.reason in (LineFault.NO_FIELD, LineFault.WRONG_TYPE)


def test_the_field_of_the_text_is_the_loaders(tmp_path):
    files = [write_tone(tmp_path / f"{i}.wav") for i in range(3)]
    own, without, wrong = ({**entry(file), "said": "yes"} for file in files)
    del without["said"]
    path = write_manifest(tmp_path / "train.json", [own, without, {**wrong, "said": 3}])
    screening = screen_manifest(path, text_field="said", progress=False)
    assert [line["text"] for line in screening.usable] == ["yes"] == [line["said"] for line in screening.usable]
    details = [line["detail"] for line in screening.dropped]
    assert details[0].startswith("said is missing, which text_field names.") and details[1].startswith("said is 3")
    bare = screen_manifest(path, text_field="said", unlabelled=True, progress=False)
    assert len(bare.unlabelled) == 1  # its `text` is not what the loader reads


# ---- channels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path) -> Path:
    """A file of two channels, of one second at 8 kHz: 0.5 in the first, a ramp in the second."""
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([np.full(8000, 0.5), np.linspace(-0.9, 0.9, 8000)], axis=1), 8000, subtype="FLOAT")
    return path


def of_channel(path: Path, channel: object, text: str, **more: object) -> dict:
    return {**entry(path, text), "channel": channel, **more}


def screened(tmp_path: Path, *lines: dict, loader: Loader):
    return screen_manifest(write_manifest(tmp_path / "m.json", lines), loader=loader, progress=False)


def test_two_texts_for_one_mixed_sound_contradict_each_other_whatever_channel_they_state(tmp_path, call):
    lines = of_channel(call, 0, "one"), of_channel(call, 1, "two")
    found = screened(tmp_path, *lines, loader=MIXED)
    assert {line["reason"] for line in found.dropped} == {Reason.CONTRADICTION_OF_CHANNELS} and not found.usable
    for loader in (BY_KEY, TOOLS):
        found = screened(tmp_path, *lines, loader=loader)
        assert len(found.usable) == 2 and not found.noticed
    first = Loader.of({**LHOTSE, "channel_selector": 0}, "model.train_ds")
    assert {line["reason"] for line in screened(tmp_path, *lines, loader=first).dropped} == {Reason.CONTRADICTION}


@pytest.mark.parametrize("key", ["channel", "channel_id"])
def test_a_channel_that_is_not_read_is_noticed_where_there_are_several(tmp_path, call, key):
    mono = write_tone(tmp_path / "mono.wav")
    lines = {**entry(call, "one"), key: 1}, {**entry(mono, "two"), key: 0}
    found = screened(tmp_path, *lines, loader=MIXED)
    assert [(line["text"], line["notice"]) for line in found.noticed] == [("one", Notice.UNREAD_CHANNEL)]


@pytest.mark.parametrize("channel", [2, -1, True, "left", None, 0.0])
def test_a_channel_that_the_file_does_not_have_is_a_fault(tmp_path, call, channel):
    found = screened(tmp_path, of_channel(call, channel, "one"), of_channel(call, 0, "two"), loader=BY_KEY)
    assert [line["reason"] for line in found.dropped] == [Reason.NO_CHANNEL]
    found = screened(tmp_path, of_channel(call, channel, "one"), loader=TOOLS)
    assert len(found.usable) == (channel is None)


def test_a_number_of_a_mono_file_is_a_fault_for_nemo_and_nothing_for_the_tools(tmp_path):
    line = of_channel(write_tone(tmp_path / "mono.wav"), 1, "one")
    assert [each["reason"] for each in screened(tmp_path, line, loader=BY_KEY).dropped] == [Reason.NO_CHANNEL]
    assert len(screened(tmp_path, line, loader=TOOLS).usable) == 1


def test_a_line_with_a_rate_has_one_channel_in_nemo(tmp_path, call):
    line = of_channel(call, 1, "one", sampling_rate=8000)
    assert [each["reason"] for each in screened(tmp_path, line, loader=BY_KEY).dropped] == [Reason.UNREACHABLE_CHANNEL]
    assert len(screened(tmp_path, line, loader=TOOLS).usable) == 1


@pytest.mark.parametrize(
    "lhotse, value, taken",
    [
        *((True, value, True) for value in (None, 0, "channel")),
        *((True, value, False) for value in ("average", -1, True, [0, 1])),
        *((False, value, True) for value in (None, 1, "average")),
        *((False, value, False) for value in ("channel", -1, [0, 1])),
    ],
)
def test_a_selector_that_the_loader_does_not_take_is_refused(lhotse, value, taken):
    block = {"use_lhotse": lhotse, "channel_selector": value}
    if taken:
        assert Loader.of(block, "model.train_ds").channel == (None if value == "average" else value)
    else:
        with pytest.raises(
            ValueError, match=r"model\.train_ds\.channel_selector is .*, wanted the number of a channel"
        ):
            Loader.of(block, "model.train_ds")


def test_the_tools_take_the_selector_of_a_section_of_tests():
    loaders = [tools_loader({"channel_selector": value}, "model.test_ds") for value in (None, "average", 1, "side")]
    assert [loader.channel for loader in loaders] == ["channel", None, 1, "side"]
    assert loaders[3].channel_of({"side": 1}) == 1


def test_one_channel_is_read_or_all_are_mixed(tmp_path, call):
    part = {"audio_filepath": str(call), "offset": 0.25, "duration": 0.5}
    both, rate = soundfile.read(call, dtype="float32", start=2000, frames=4000)
    assert rate == 8000 and np.array_equal(read_mono(part)[0], both.mean(axis=1))
    for channel in (0, 1):
        samples, rate = read_mono({**part, "channel": channel})
        assert np.array_equal(samples, both[:, channel]) and samples.dtype == np.float32
    mono = {"audio_filepath": str(write_tone(tmp_path / "mono.wav")), "channel": 1}
    assert channel_selector(mono) == "average" and len(read_mono(mono)[0]) == 16000


def test_only_files_of_several_channels_are_written_anew(tmp_path, call):
    mono, gone = entry(write_tone(tmp_path / "mono.wav")), entry("gone.wav")
    lines = [mono, of_channel(call, 1, "one", offset=0.25, duration=0.5), gone]
    (tmp_path / "new").mkdir()
    found = mono_entries(lines, tmp_path / "new")
    assert [found[0], found[2]] == [mono, gone] and lines[1]["audio_filepath"] == str(call)
    assert (found[1]["offset"], found[1]["duration"], found[1]["text"]) == (None, 0.5, "one")
    assert np.array_equal(soundfile.read(found[1]["audio_filepath"], dtype="float32")[0], read_mono(lines[1])[0])
