"""An hour of audio in one file: NeMo's pipelines write words to its end in little memory; `evaluate` reads it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nemo_codert.evaluation import long_audio
from nemo_codert.evaluation.transcribe import evaluate
from nemo_codert.export.stock_file import save_model
from tests.conftest import REPOSITORY, SAMPLE_RATE, conformer, lstm
from tests.export.tone_words import CACHE_AWARE, WORDS, spoken, trained_student

pytestmark = pytest.mark.reliability
SECONDS, LAST_SECONDS, LAST = 3600, 60, ("now", "red")
MOST_MEMORY = 3e9  # bytes, of which NeMo's libraries take 1.2
# Prints the text of the hour and the peak memory of the process.
STREAM = """
import json, sys
from nemo_codert.evaluation.streamed_files import StreamSettings, transcribe_streaming
model, manifest, pipeline = sys.argv[1:]
(line,) = transcribe_streaming(StreamSettings(model, manifest, pipeline=pipeline)).evaluation.predictions
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("FOUND", json.dumps([line["pred_text"], 1024 * int(peak)]))
"""


@pytest.fixture(scope="module")
def hour(tmp_path_factory) -> Path:
    """A manifest of one file of an hour: sentences without two of the words, and of these two in the last minute."""
    folder, generator = tmp_path_factory.mktemp("hour"), np.random.default_rng(0)
    others = [word for word in WORDS if word not in LAST]
    texts, signals, samples = [], [], 0
    while samples < SECONDS * SAMPLE_RATE:
        is_end = samples >= (SECONDS - LAST_SECONDS) * SAMPLE_RATE
        words = list(generator.choice(LAST if is_end else others, generator.integers(1, 6)))
        texts += words
        signals.append(spoken(words, generator))
        samples += len(signals[-1])
    soundfile.write(folder / "hour.wav", np.concatenate(signals)[: SECONDS * SAMPLE_RATE], SAMPLE_RATE)
    line = {"audio_filepath": str(folder / "hour.wav"), "duration": float(SECONDS), "text": " ".join(texts)}
    (folder / "hour.json").write_text(json.dumps(line) + "\n")
    return folder / "hour.json"


@pytest.mark.parametrize(
    "pipeline, encoder, normalize",
    [("buffered", conformer(1, 32), "per_feature"), ("cache_aware", CACHE_AWARE, "NA")],
    ids=["buffered", "cache_aware"],
)
def test_a_pipeline_writes_the_last_minute_of_an_hour(
    make_config, hour, campaign, tmp_path, pipeline, encoder, normalize
):
    student = save_model(
        trained_student(make_config, tmp_path, encoder, preprocessor={"normalize": normalize}), tmp_path / "s.nemo"
    )
    command = [sys.executable, "-c", STREAM, str(student), str(hour), pipeline]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    found = re.search("FOUND (.*)", run.stdout)
    assert found, run.stderr[-2000:]
    text, memory = json.loads(found[1])
    words = text.split()
    print(f"{pipeline}: {len(words)} words, the last ten {words[-10:]}, {memory / 1e9:.2f} GB")
    # The student is trained on sentences of at most five words and leaves out many in long audio, in `transcribe` too.
    survived = len(words) > 1000 and sum(word in LAST for word in words[-10:]) >= 8 and memory < MOST_MEMORY
    campaign.record(f"an hour in one file, {pipeline} pipeline", 1, int(survived), f"{memory / 1e9:.2f} GB of memory")
    assert survived


def test_evaluate_reads_an_hour_where_memory_is_linear_and_refuses_full_attention(
    make_model, hour, campaign, monkeypatch
):
    linear = make_model("tandem", student=lstm()).student_model()
    with torch.no_grad():
        linear.joint.pred.weight.mul_(100)  # untrained, the model would write nothing
    (line,) = evaluate(linear, hour).predictions
    survived = len(line["pred_text"].split()) > 100
    monkeypatch.setattr(long_audio, "total_memory", lambda device: 10**11)
    with pytest.raises(ValueError, match=r"hour\.wav lasts 3600 s: full attention over the batches of 16 needs some"):
        evaluate(make_model("tandem", student=conformer(1, 16)).student_model(), hour)
    campaign.record("an hour in one file, evaluate", 2, 1 + survived, "nothing")
    assert survived
