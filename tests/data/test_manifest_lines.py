"""Whatever a manifest holds, every line of it becomes an entry or a named fault, and nothing else happens."""

import json
import math
from pathlib import Path

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_codert.data import parse_manifest, read_manifest, screen_dataset, write_manifest
from nemo_codert.data.manifest import LineFault
from tests.data.test_manifest import entry, write_tone

pytestmark = pytest.mark.unit

FAULTS = {value for name, value in vars(LineFault).items() if name.isupper()}
SETTINGS = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=["L", "N", "Cs", "Zl"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "audio_filepath": st.just("other.wav") | st.just("~nobody/a.wav") | st.text() | json_values,
        "duration": st.just(1.0) | st.just(10**400) | json_values,
        "text": st.just("stop") | st.text() | json_values,
        "offset": st.none() | json_values,
        "sampling_rate": st.none() | json_values,
        "speaker": st.just("\ud800") | json_values,
    },
)
lines = fields.map(lambda value: json.dumps(value).encode()) | json_values.map(lambda v: json.dumps(v).encode())
lines |= st.binary(max_size=40) | st.just(b"[" * 100_000) | st.just(b"9" * 5000)


@SETTINGS
@given(content=st.lists(lines.filter(lambda line: b"\n" not in line), min_size=1, max_size=5), crlf=st.booleans())
def test_every_line_is_an_entry_or_a_named_fault(tmp_path, content, crlf):
    path = tmp_path / "m.json"
    path.write_bytes((b"\r\n" if crlf else b"\n").join(content))
    wanted = sum(bool(line.strip()) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    if not wanted:
        with pytest.raises(ValueError, match="is empty"):
            parse_manifest(path)
        return
    entries, bad = parse_manifest(path)
    assert len(entries) + len(bad) == wanted
    for line in bad:
        assert line.reason in FAULTS and line.detail and 1 <= line.number <= len(content)
        json.dumps(line.plain, ensure_ascii=False).encode()
    for found in entries:
        assert isinstance(found["audio_filepath"], str) and Path(found["audio_filepath"]).is_absolute()
        assert isinstance(found["text"], str) and 0 <= float(found["duration"]) < math.inf
    if bad:
        with pytest.raises(ValueError, match=r"m\.json:\d+: "):
            read_manifest(path)


@SETTINGS
@given(values=st.lists(fields, max_size=6))
def test_any_line_beside_a_good_one_is_dropped_or_can_be_written(tmp_path, values):
    if not (tmp_path / "good.wav").is_file():
        write_tone(tmp_path / "good.wav"), write_tone(tmp_path / "other.wav")
    path = tmp_path / "m.json"
    path.write_text("".join(json.dumps(value) + "\n" for value in [entry("good.wav"), *values]))
    found = screen_dataset(path, policy="drop", output_dir=tmp_path / "run", name="train_ds", progress=False)
    usable = read_manifest(found)
    assert usable[0]["audio_filepath"] == str(tmp_path / "good.wav")
    assert all(soundfile.info(line["audio_filepath"]).frames for line in usable)


def test_of_many_bad_lines_the_first_ten_are_named(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(entry("a.wav")) + "\n" + '{"text": 1}\n' * 13)
    with pytest.raises(ValueError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: audio_filepath is missing") and f"{path}:11: " in message
    assert f"{path}:12: " not in message and message.endswith("... and 3 more lines like these")


BAD = ["{", "[1]", '{"text": "x"}', '{"audio_filepath": "a.wav", "duration": "1", "text": "x"}']


def test_bad_lines_are_dropped_by_number_and_refused_by_policy(tmp_path, caplog):
    write_tone(tmp_path / "a.wav")
    path, out = tmp_path / "m.json", tmp_path / "out"
    good = json.dumps(entry("a.wav")).encode()
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([good, *(line.encode() for line in BAD), b'{"text": "\xe4"}']))
    how = {"output_dir": out, "name": "train_ds", "progress": False}
    with pytest.raises(ValueError) as caught:
        screen_dataset(path, policy="refuse", **how)
    assert "5 of 6 utterances cannot be used" in str(caught.value)
    assert "  - line 2: not JSON (" in str(caught.value) and "  - line 5: duration is '1', want a" in str(caught.value)
    assert not out.exists()
    usable = read_manifest(screen_dataset(path, policy="drop", **how))
    assert [line["text"] for line in usable] == ["turn on the light"]
    dropped = [json.loads(line) for line in (out / "train_ds_dropped.json").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in dropped] == [
        (2, LineFault.NOT_JSON),
        (3, LineFault.NO_OBJECT),
        (4, LineFault.NO_FIELD),
        (5, LineFault.WRONG_TYPE),
        (6, LineFault.NOT_UTF8),
    ]
    assert "5 of 6 utterances cannot be used (manifest line that is not JSON: 1" in caplog.text


def test_half_of_a_surrogate_pair_is_named_and_does_not_stop_the_writing(tmp_path):
    write_tone(tmp_path / "a.wav")
    path = tmp_path / "m.json"
    path.write_text(json.dumps(entry("a.wav")) + "\n" + json.dumps(entry("a.wav", "\ud800")) + "\n")
    (line,) = parse_manifest(path)[1]
    assert line.reason == LineFault.NOT_UTF8 and write_manifest(tmp_path / "x.json", [line.plain]).is_file()
