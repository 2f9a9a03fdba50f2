"""An hour of audio in one file: both of NeMo's pipelines write words to its end, and `evaluate` reads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.evaluation.streamed_files import StreamSettings, transcribe_streaming
from nemo_codert.evaluation.transcribe import evaluate
from nemo_codert.evaluation.word_errors import word_errors
from nemo_codert.export.stock_file import save_model
from tests.conftest import SAMPLE_RATE, conformer, lstm
from tests.export.tone_words import CACHE_AWARE, trained_student, utterances

pytestmark = pytest.mark.reliability
SECONDS, WORDS_AT_THE_END = 3600, 500


@pytest.fixture(scope="module")
def hour(tmp_path_factory) -> Path:
    """A manifest of one file of an hour: sentences of tones one after the other."""
    folder = tmp_path_factory.mktemp("hour")
    texts, signals, samples = [], [], 0
    for text, audio in utterances(2500, seed=10_000):
        if samples + len(audio) > SECONDS * SAMPLE_RATE:
            break
        texts.append(text)
        signals.append(audio)
        samples += len(audio)
    signals.append(np.zeros(SECONDS * SAMPLE_RATE - samples, np.float32))
    soundfile.write(folder / "hour.wav", np.concatenate(signals), SAMPLE_RATE)
    line = {"audio_filepath": str(folder / "hour.wav"), "duration": SECONDS, "text": " ".join(texts)}
    (folder / "hour.json").write_text(json.dumps(line) + "\n")
    return folder / "hour.json"


@pytest.mark.parametrize(
    "pipeline, encoder, normalize",
    [("buffered", conformer(1, 32), "per_feature"), ("cache_aware", CACHE_AWARE, "NA")],
    ids=["buffered", "cache_aware"],
)
def test_a_pipeline_writes_words_to_the_end_of_an_hour(
    make_config, hour, campaign, tmp_path, pipeline, encoder, normalize
):
    student = trained_student(make_config, tmp_path, encoder, preprocessor={"normalize": normalize})
    settings = StreamSettings(save_model(student, tmp_path / "student.nemo"), hour, pipeline=pipeline)
    evaluation = transcribe_streaming(settings).evaluation
    (line,) = evaluation.predictions
    said, spoken = line["pred_text"].split(), line["text"].split()
    share = round(WORDS_AT_THE_END * len(said) / len(spoken))
    end = word_errors(" ".join(spoken[-WORDS_AT_THE_END:]), " ".join(said[-share:]))
    print(f"{pipeline}: {len(spoken)} words, {evaluation.errors.wer:.2%}, at the end {end.wer:.2%}")
    # The student is trained on sentences of at most five words, and leaves out most of what follows the first of them,
    # in `transcribe` too: that its words go on to the end is what is tested.
    survived = evaluation.errors.wer < 0.8 and end.wer < evaluation.errors.wer + 0.1
    campaign.record(f"an hour in one file, {pipeline} pipeline", 1, int(survived), "nothing" if survived else "words")
    assert survived


def test_evaluate_reads_an_hour_where_memory_is_linear_and_refuses_full_attention(make_model, hour, campaign):
    linear = make_model("tandem", student=lstm()).student_model()
    assert evaluate(linear, hour).audio_seconds == SECONDS
    with pytest.raises(ValueError, match=r"hour\.wav lasts 3600 s: full attention over the batches of 16 needs some"):
        evaluate(make_model("tandem", student=conformer(1, 16)).student_model(), hour)
    campaign.record("an hour in one file, evaluate", 2, 2, "nothing")
