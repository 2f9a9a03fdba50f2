"""One model on the same speech, recorded otherwise: what is changed, what is warned of."""

import numpy as np
import pytest

from nemo_codert.evaluation.robustness import CHANGES, Recording, moved, recordings_report, with_room
from nemo_codert.evaluation.transcribe import nemo_texts, read_signal, usable_entries
from nemo_codert.evaluation.word_errors import WordErrors, total_word_errors
from nemo_codert.export import deployment
from nemo_codert.export.deployment import DeploymentSettings, check_deployment
from nemo_codert.models.open_model import open_model

RATE = 16_000
WRITTEN = ["deployment.md", "student.nemo"]
SPEECH = (0.6 * np.sin(np.arange(8000) / 5)).astype(np.float32)


def of(wrong: int) -> WordErrors:
    return WordErrors(substitutions=wrong, words=100)


def test_the_changes_are_those_of_the_names():
    changed = {name: change(SPEECH, RATE) for name, change in CHANGES.items()}
    silent, room = (changed[f"1 s of {kind} before and after"] for kind in ("digital silence", "room noise"))
    np.testing.assert_array_equal(changed["as it is"], SPEECH)
    for longer in (silent, room):
        np.testing.assert_array_equal(longer[RATE:-RATE], SPEECH)
    assert not silent[:RATE].any() and not silent[-RATE:].any()
    assert 0.5e-3 < room[:RATE].std() < 2e-3 and np.array_equal(room, with_room(SPEECH, RATE))
    np.testing.assert_allclose(changed["20 dB quieter"], SPEECH / 10, rtol=1e-6)
    np.testing.assert_allclose(changed["6 dB louder"], np.clip(SPEECH * 1.9953, -1, 1), rtol=1e-4)
    assert all(signal.dtype == np.float32 for signal in changed.values())


def test_only_what_moves_beyond_three_points_upwards_is_warned_of():
    recordings = [Recording("as it is", of(10)), Recording("a", of(13)), Recording("b", of(14)), Recording("c", of(2))]
    assert [recording.name for recording in moved(recordings)] == ["b"]
    report = recordings_report([*recordings, Recording("d", None, "no such pipeline")], "CER")
    assert report.count("**Warning**") == 1 and "**Warning**: b: CER moves by +4.0 points." in report
    assert "d: not run. no such pipeline" in report and "| c | 2.00% | -8.00 |" in report


def verify(model, manifest, folder):
    return check_deployment(DeploymentSettings(model, manifest, limit=3, checks=["recordings"]), folder)


@pytest.fixture
def pair_file(make_model, tmp_path):
    def write(**overrides):
        path = tmp_path / "pair.nemo"
        make_model(**overrides).eval().save_to(str(path))
        return path

    return write


def test_a_model_that_normalises_is_streamed_in_the_buffered_pipeline(pair_file, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "PROGRAMS", ("no_such_program",))
    found = verify(pair_file(), manifest, tmp_path / "out")
    assert found.programs == [] and sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN
    assert [recording.name for recording in found.recordings] == [*CHANGES, "in NeMo's buffered pipeline"]
    student, entries = open_model(tmp_path / "out" / "student.nemo"), usable_entries(manifest)[:3]
    texts = nemo_texts(student, [read_signal(entry, RATE) for entry in entries])
    plain = total_word_errors([entry["text"] for entry in entries], texts)
    assert found.recordings[0].errors == plain
    assert all(recording.errors.words == plain.words for recording in found.recordings)
    assert "normalises each buffer by itself" in found.recordings[-1].note
    assert (tmp_path / "out" / "deployment.md").read_text() == found.report and "| recorded | WER |" in found.report


def test_a_model_without_normalisation_that_is_not_cache_aware_has_no_pipeline(pair_file, manifest, tmp_path):
    found = verify(pair_file(preprocessor={"normalize": "NA"}), manifest, tmp_path / "out")
    assert found.recordings[-1].errors is None and "encoder is not cache-aware" in found.report
    assert "| in NeMo's cache_aware pipeline | not run | |" in found.report


def test_without_any_check_there_is_nothing_to_do(manifest, tmp_path):
    with pytest.raises(ValueError, match="`checks` is empty: give one of programs, recordings, or both"):
        DeploymentSettings(manifest, manifest, checks=()).check()
    with pytest.raises(ValueError, match="checks"):
        DeploymentSettings(manifest, manifest, checks=("sound",)).check()
